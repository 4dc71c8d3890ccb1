"""Molecules that are related to those of the base set, many of them, three frames each, labelled with GFN2-xTB.

An energy that is wrong for a whole molecule is not mended by more of its frames, but by more molecules. Geometries are
the model's, which costs less than the labels: RDKit's conformer relaxed, and two frames of a short dynamics.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from base_molecules import check_names
from base_neighbours import relatives
from make_base import PREFIX, write_files
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from walked import Walk, label_walks, labelled_walks

from ase_mlip import ForceField, relax, run_dynamics

KELVIN = (300, 500, 700, 1000)  # one of them for each molecule
FMAX, STEPS = 0.2, 60  # eV/Angstrom and steps of relaxing, at most
EVERY, TIMESTEP, FRICTION = 50, 0.8, 0.02  # steps between frames of the dynamics, fs, 1/fs


def embedded(smiles: str) -> Atoms | None:
    """RDKit's conformer, or None where it finds none."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    options = AllChem.ETKDGv3()
    options.randomSeed = 7
    if AllChem.EmbedMolecule(mol, options) != 0:
        return None
    return Atoms([atom.GetSymbol() for atom in mol.GetAtoms()], mol.GetConformer().GetPositions())


def walk(model: str, names: list[str], starts: list[Atoms], kelvin: int, work: Path) -> list[Walk]:
    """Relax the molecules by the model, and let them move at the temperature."""
    force_field, rng = ForceField.load(model), np.random.default_rng(kelvin)
    relaxed = relax(force_field, starts, fmax=FMAX, steps=STEPS, optimizer="lbfgs", folder=work / f"{kelvin}_relaxed")
    moving = [atoms.copy() for atoms in relaxed.structures]
    for atoms in moving:
        MaxwellBoltzmannDistribution(atoms, temperature_K=2 * kelvin, rng=rng)
    motion = run_dynamics(
        force_field,
        moving,
        2 * EVERY,
        temperature=kelvin,
        friction=FRICTION,
        timestep=TIMESTEP,
        record_every=EVERY,
        folder=work / f"{kelvin}_moved",
    )
    walks = []
    for number, (name, still, frames) in enumerate(zip(names, relaxed.structures, motion.trajectories, strict=True)):
        geometries = [Atoms(still.numbers, atoms.positions) for atoms in (still, *list(frames)[1:])]
        geometries[0].info = {"config_type": "conformer"}
        for atoms in geometries[1:]:
            atoms.info = {"config_type": "md", "temperature": float(kelvin)}
        walks.append(Walk(work / f"relative_{kelvin}_{number:05d}.extxyz", name, geometries))
    return walks


def main() -> None:
    """Walk, label what is not yet labelled, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint files")
    parser.add_argument("--model", default="default", help="that walks")
    parser.add_argument("--jobs", type=int, default=2, help="processes that label")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the final file")
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    options.work.mkdir(parents=True, exist_ok=True)
    names = relatives()
    check_names(list(names))
    embeds = {name: atoms for name in names if (atoms := embedded(name)) is not None}
    print(f"{len(embeds)} of {len(names)} molecules have a conformer", flush=True)
    walks = []
    for place, kelvin in enumerate(KELVIN):
        theirs = list(embeds)[place :: len(KELVIN)]
        walks += walk(options.model, theirs, [embeds[name] for name in theirs], kelvin, options.work)
    label_walks(walks, options.jobs)
    write_files({"relatives": labelled_walks(options.work, "relative_*.extxyz")}, options.out, PREFIX)


if __name__ == "__main__":
    main()
