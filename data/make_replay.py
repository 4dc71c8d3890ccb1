"""Choose the structures that `replay="auto"` distorts: one frame each of molecules and clusters of the training data.

Half are random, so that common molecules are there; half have the elements that come seldom. No label is kept: the
model to be fine-tuned labels them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from ase_mlip.dataset import read_frames
from ase_mlip.replay import by_elements

KINDS = ("conformer", "mode", "md", "torsion", "radical", "dimer", "dimer_md", "cluster", "cluster_md", "ionic")
FEWEST, MOST = 4, 24  # atoms
COUNT = 400


def candidates(frames: Iterable[Atoms], seed: int = 0) -> list[Atoms]:
    """One random frame of each molecule or group of molecules, without labels, cell or information."""
    found: dict[str, list[Atoms]] = {}
    for atoms in frames:
        if atoms.info["config_type"] in KINDS and FEWEST <= len(atoms) <= MOST and not atoms.pbc.any():
            found.setdefault(atoms.info["smiles"], []).append(atoms)
    rng = np.random.default_rng(seed)
    chosen = [same[int(rng.integers(len(same)))] for _, same in sorted(found.items())]
    return [Atoms(atoms.numbers, atoms.positions) for atoms in chosen]


def main() -> None:
    """Write replay.extxyz.xz beside this script."""
    folder = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=folder, help="folder of the file")
    args = parser.parse_args()

    pool = candidates(read_frames(folder / "base_train.extxyz.xz"))
    rng = np.random.default_rng(0)
    shuffled = [pool[int(i)] for i in rng.permutation(len(pool))]
    half = COUNT // 2
    chosen = shuffled[:half] + list(islice(by_elements(shuffled[half:], rng), half))
    path = args.out / "replay.extxyz.xz"
    ase.io.write(path, chosen, format="extxyz", columns=["symbols", "positions"])
    print(f"{path}: {COUNT} of {len(pool)} structures, {sum(map(len, chosen)) / COUNT:.1f} atoms on average")


if __name__ == "__main__":
    main()
