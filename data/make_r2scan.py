"""Label frames of the base files once more, with the density functional of `make_dft.py`.

One frame of each molecule, small ones mostly, dimers and water; none of a molecule that the base set leaves out. Frames
of the valid and of the test file stay apart.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import ase.io
import numpy as np
from ase import Atoms
from make_base import Source, write_files
from make_dft import METHOD, label

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
    """A frame to label, with its own checkpoint file."""

    kind: str
    key: int
    atoms: Atoms
    rank: float

    def path(self, work: Path) -> Path:
        """The checkpoint file; it is empty if the density did not converge."""
        return work / f"{self.key:08x}.extxyz"


def calm(atoms: Atoms, kind: Kind) -> bool:
    """Whether a frame is one that the kind is about."""
    heavy = int((atoms.numbers > 1).sum())
    return (
        atoms.info["config_type"] in kind.types
        and kind.heavy[0] <= heavy <= kind.heavy[1]
        and atoms.info.get("temperature", 0.0) <= HOTTEST
        and np.linalg.norm(atoms.get_forces(), axis=1).max() <= STEEPEST
    )


def jobs_of(name: str) -> list[Job]:
    """The frames of a kind, in an order in which a larger number only adds to them."""
    kind, found, seen = KINDS[name], [], dict[str, int]()
    frames = {
        crc32(f"{file} {place}".encode()): atoms
        for file in kind.files
        for place, atoms in enumerate(read_frames(FOLDER / f"base_{file}.extxyz.xz"))
        if calm(atoms, kind)
    }
    for key in sorted(frames):
        smiles = frames[key].info["smiles"]
        seen[smiles] = seen.get(smiles, 0) + 1
        if seen[smiles] <= kind.same and len(found) < kind.number:
            found.append((key, frames[key]))
    return [Job(name, key, atoms, (place + 0.5) / len(found)) for place, (key, atoms) in enumerate(found)]


def work_off(job: Job, work: Path) -> str:
    """Label a frame, write its checkpoint, and return a line of the log."""
    begin = time.perf_counter()
    try:
        frame = label(job.atoms)
        frame.info = {name: value for name, value in job.atoms.info.items() if name in ("config_type", "smiles")}
        outcome = f"{frame.get_potential_energy():.6f} eV"
    except RuntimeError as error:
        frame, outcome = None, f"skipped, {error}"
    partial = job.path(work).with_suffix(".partial")
    ase.io.write(partial, frame, format="extxyz") if frame else partial.touch()
    partial.rename(job.path(work))
    formula = job.atoms.get_chemical_formula()
    return f"{job.kind} {formula}: {outcome}, {time.perf_counter() - begin:.1f} s"


def check(out: Path, share: float) -> float:
    """Label a share of the shipped frames anew and return the largest difference of the energies, in eV."""
    frames = [atoms for split in SPLITS for atoms in read_frames(out / f"{PREFIX}{split}.extxyz.xz")]
    chosen = np.random.default_rng(3).permutation(len(frames))[: max(1, round(share * len(frames)))]
    energies, forces = 0.0, 0.0
    for place in chosen:
        old, new = frames[place], label(Atoms(frames[place]))
        energies = max(energies, abs(new.get_potential_energy() - old.get_potential_energy()))
        forces = max(forces, float(np.abs(new.get_forces() - old.get_forces()).max()))
    print(f"{len(chosen)} frames: energies within {energies:.1e} eV, forces within {forces:.1e} eV/Angstrom")
    return energies


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
        sys.exit(check(options.out, options.check) > 1e-6)
    if options.work is None:
        parser.error("--work is needed, the folder of the checkpoint files")
    options.work.mkdir(parents=True, exist_ok=True)
    jobs = sorted((job for name in KINDS for job in jobs_of(name)), key=lambda job: job.rank)
    todo = [] if options.collect else [job for job in jobs if not job.path(options.work).exists()]
    print(f"{len(jobs)} frames, {len(todo)} to label", flush=True)
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for number, line in enumerate(pool.map(work_off, todo, [options.work] * len(todo)), 1):
            print(f"{number}/{len(todo)} {line}", flush=True)
    done = [job for job in jobs if job.path(options.work).exists() and job.path(options.work).stat().st_size]
    files = {
        split: [ase.io.read(job.path(options.work)) for job in done if KINDS[job.kind].split == split]
        for split in SPLITS
    }
    write_files(files, options.out, PREFIX, source=SOURCE)


if __name__ == "__main__":
    main()
