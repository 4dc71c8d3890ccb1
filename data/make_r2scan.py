"""Label frames of the base files once more, with the density functional of `make_dft.py`.

One frame of each molecule, small ones mostly, dimers and water; none of a molecule that the base set leaves out. Frames
of the valid and of the test file stay apart.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from ase import Atoms
from make_base import Source, check, write_files
from make_dft import METHOD, label
from walked import Walk, label_walks, labelled

from ase_mlip.dataset import read_frames

FOLDER = Path(__file__).parent
PREFIX, SPLITS = "r2scan_", ("train", "valid", "test")
SOURCE = Source(
    method=METHOD,
    seeds="crc32 of the name of the base file and the place of the frame in it; order of the frames: 2",
    packages=("pyscf", "pyscf-dispersion", "ase", "numpy"),
)
ALONE, STRAINED = {"conformer", "md", "mode", "torsion"}, {"displaced", "shaken", "stretched"}
PAIRS, HEAPS = {"dimer", "dimer_md"}, {"cluster", "cluster_md"}
HOTTEST, STEEPEST = 1000.0, 8.0  # K, and eV/Angstrom of GFN2-xTB


@dataclass(frozen=True)
class Kind:
    """What is drawn from some of the base files.

    Attributes:
        files: their names.
        types: values of `config_type`.
        heavy: the smallest and largest number of atoms that are not hydrogen.
        number: of frames.
        split: the file that the labelled frames go to.
        same: frames of one molecule or cluster, at most.
    """

    files: tuple[str, ...]
    types: set[str]
    heavy: tuple[int, int]
    number: int
    split: str = "train"
    same: int = 1


KINDS = {
    "small": Kind(("train", "neighbours"), ALONE, (1, 4), 300),
    "middle": Kind(("train", "neighbours"), ALONE, (5, 5), 100),
    "large": Kind(("train", "more"), ALONE, (6, 8), 60),
    "relatives": Kind(("relatives",), ALONE, (1, 5), 60),
    "strained": Kind(("train",), STRAINED, (1, 4), 60),
    "dimers": Kind(("train",), PAIRS, (2, 5), 80),
    "water": Kind(("water", "heaps"), HEAPS, (2, 4), 180, same=60),
    "heaps": Kind(("water", "heaps"), HEAPS, (7, 7), 6, same=6),
    "valid": Kind(("valid",), ALONE | PAIRS, (1, 6), 40, "valid", 4),
    "test": Kind(("test",), ALONE | PAIRS, (1, 6), 60, "test", 4),
}


@dataclass(frozen=True)
class Job:
    """A frame to label.

    Attributes:
        walk: the frame, alone, and its checkpoint file.
        split: the file that it goes to.
        rank: its place in the queue, where all kinds are mixed: a cut-off run stays balanced.
    """

    walk: Walk
    split: str
    rank: float


def suits(atoms: Atoms, kind: Kind) -> bool:
    """Whether a frame is one that the kind is about."""
    heavy = int((atoms.numbers > 1).sum())
    return (
        atoms.info["config_type"] in kind.types
        and kind.heavy[0] <= heavy <= kind.heavy[1]
        and atoms.info.get("temperature", 0.0) <= HOTTEST
        and np.linalg.norm(atoms.get_forces(), axis=1).max() <= STEEPEST
    )


@cache
def base_frames(name: str) -> Sequence[Atoms]:
    """The frames of one of the base files."""
    return read_frames(FOLDER / f"base_{name}.extxyz.xz")


def jobs_of(kind: Kind, work: Path) -> list[Job]:
    """The frames of a kind, in an order in which a larger number only adds to them."""
    frames = {
        crc32(f"{file} {place}".encode()): atoms
        for file in kind.files
        for place, atoms in enumerate(base_frames(file))
        if suits(atoms, kind)
    }
    found, seen = list[Walk](), Counter[str]()
    for key in sorted(frames):
        config_type, smiles = (frames[key].info[name] for name in ("config_type", "smiles"))
        seen[smiles] += 1
        if seen[smiles] <= kind.same and len(found) < kind.number:
            bare = Atoms(frames[key].symbols, frames[key].positions, info={"config_type": config_type})
            found.append(Walk(work / f"{key:08x}.extxyz", smiles, [bare], converged))
    return [Job(walk, kind.split, (place + 0.5) / len(found)) for place, walk in enumerate(found)]


def converged(atoms: Atoms, **info: str) -> Atoms | None:
    """A labelled copy, which keeps its `info`; None if the density does not converge."""
    try:
        return label(atoms)
    except RuntimeError:
        return None


def anew(frame: Atoms) -> dict[str, Any]:
    """The functional's results on the geometry of a frame."""
    return label(Atoms(frame)).calc.results


def main() -> None:
    """Label what has no checkpoint yet, and write the files; or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the checkpoint files")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--collect", action="store_true", help="only write the final files from what is done")
    parser.add_argument("--check", type=float, metavar="SHARE", help="only compute this share of the labels anew")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the final files")
    options = parser.parse_args()
    if options.check:
        sys.exit(check(options.out, PREFIX, options.check, options.jobs, anew) > 1e-6)
    if options.work is None:
        parser.error("--work is needed, the folder of the checkpoint files")
    options.work.mkdir(parents=True, exist_ok=True)
    jobs = sorted((job for kind in KINDS.values() for job in jobs_of(kind, options.work)), key=lambda job: job.rank)
    if not options.collect:
        label_walks([job.walk for job in jobs], options.jobs)
    files = {split: labelled(job.walk.path for job in jobs if job.split == split) for split in SPLITS}
    write_files(files, options.out, PREFIX, source=SOURCE)


if __name__ == "__main__":
    main()
