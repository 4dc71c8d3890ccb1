"""Random atoms on their way downhill, labelled with GFN2-xTB: where a model that knows only molecules may see holes.

The structures are those of the model card's test, with other random numbers. A model relaxes them; some steps of each
way are labelled, and all of them where it ends with atoms too close or forces that no structure has.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from base_molecules import ELEMENTS
from card_motion import random_structures
from card_parts import bonds
from make_base import GFN2, PREFIX, write_files
from walked import Walk, label_walks, labelled

from ase_mlip import ForceField, relax

STAGES = (0, 4, 6, 10, 20, 40, 80, 240)  # steps from one geometry of a way to the next
USUAL = (1, 3, 5, 7)  # of the geometries: those labelled where nothing is wrong
SMALLEST_CELL = 3.0  # Angstrom: GFN2-xTB here knows one k point
TOO_CLOSE, STEEP = 0.65, 30.0  # times the sum of the covalent radii; eV/Angstrom
TYPE, LEAST_SEED = "random", 1  # the card's structures have the seed 0


def ways(model: str, count: int, seed: int, work: Path) -> list[list[Atoms]]:
    """The geometries of each structure's way, those to be labelled."""
    force_field = ForceField.load(model)
    numbers = [Atoms(symbol).numbers[0] for symbol in ELEMENTS]
    frames = random_structures(numbers, count, seed=seed)
    frames = [atoms for atoms in frames if not atoms.pbc.any() or atoms.cell.lengths().min() >= SMALLEST_CELL]
    for atoms in frames:
        atoms.info["config_type"] = TYPE
        if not atoms.pbc.any():
            atoms.cell = None
    walked = [[] for _ in frames]
    for place, steps in enumerate(STAGES):
        result = relax(force_field, frames, fmax=0.1, steps=steps, folder=work / f"seed{seed}_{place}", log=None)
        frames = result.structures
        for way, atoms in zip(walked, frames, strict=True):
            way.append(atoms)
    return [way if wrong(way[-1]) else [way[place] for place in USUAL] for way in walked]


def wrong(atoms: Atoms) -> bool:
    """Whether a relaxed structure is one that no matter has."""
    if atoms.calc is None:
        return True
    steepest = np.linalg.norm(atoms.get_forces(), axis=1).max()
    return bool(bonds(atoms, 1.0)[3].min(initial=1.0) < TOO_CLOSE or steepest > STEEP)


def main() -> None:
    """Walk, label what is not yet labelled, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint files")
    parser.add_argument("--model", default="default", help="that walks")
    parser.add_argument("--structures", type=int, default=800, help="per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help=f"{LEAST_SEED} or more")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the final files")
    options = parser.parse_args()
    if min(options.seeds) < LEAST_SEED:
        parser.error(f"--seeds {min(options.seeds)}: the model card tests the structures of seed 0")
    options.work.mkdir(parents=True, exist_ok=True)
    walks = []
    for seed in options.seeds:
        found = ways(options.model, options.structures, seed, options.work)
        print(
            f"seed {seed}: {sum(len(way) == len(STAGES) for way in found)} of {len(found)} ways are wrong", flush=True
        )
        for number, way in enumerate(found):
            smiles = ".".join(f"[{symbol}]" for symbol in sorted(way[0].get_chemical_symbols()))
            walks.append(Walk(options.work / f"random_{seed}_{number:04d}.extxyz", smiles, way))
    label_walks(walks, options.jobs)
    source = replace(GFN2, seeds=f"of the structures: {', '.join(map(str, options.seeds))}; order of the frames: 2")
    write_files({TYPE: labelled(sorted(options.work.glob("random_*.extxyz")))}, options.out, PREFIX, source=source)


if __name__ == "__main__":
    main()
