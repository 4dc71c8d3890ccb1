"""Frames of many molecules, and of water in heaps and boxes, where the fast model went, labelled with GFN2-xTB.

An energy that is wrong for a whole molecule is not mended by more of its frames, but by more molecules. Geometries are
the model's, which costs less than the labels: what a start relaxes to, and frames of a short dynamics from there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from ase import Atoms
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from base_geometry import assemble, crystal_ice, packed_box
from base_molecules import check_names
from base_neighbours import relatives
from make_base import GFN2, PREFIX, write_files
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem
from walked import Walk, label_walks, labelled

from ase_mlip import ForceField, relax, run_dynamics

FMAX, STEPS = 0.2, 60  # eV/Angstrom and steps of relaxing, at most
TIMESTEP, FRICTION = 0.8, 0.02  # fs, 1/fs
HEAPS = 240  # of each size
SIZES = (2, 3, 4, 7, 8, 9, 10)  # molecules of water: none of six, or of five, which are a test
SOURCE = replace(
    GFN2,
    seeds="crc32 of the name of each heap or box; conformers: 7; velocities: the temperature in K; "
    "order of the starts: 3, of the frames: 2",
)
BOXES = (("box", 8, 60), ("box", 16, 15), ("ice", 8, 25))  # kind, molecules of water, number


@dataclass(frozen=True)
class Kind:
    """What goes into one file.

    Attributes:
        starts: makes pairs of the SMILES and the geometry that is relaxed.
        kelvin: temperatures; each start gets one of them.
        frames: of the dynamics, besides the relaxed geometry.
        every: steps between them.
        resting: `config_type` of the relaxed geometry, by default that of the start.
        moving: the same of the dynamics.
    """

    starts: Callable[[], list[tuple[str, Atoms]]]
    kelvin: tuple[int, ...]
    frames: int
    every: int
    resting: str | None = None
    moving: str | None = None


def embedded() -> list[tuple[str, Atoms]]:
    """RDKit's conformer of each relative that it finds one for."""
    names = relatives()
    check_names(list(names))
    found = []
    for smiles in names:
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        options = AllChem.ETKDGv3()
        options.randomSeed = 7
        if AllChem.EmbedMolecule(mol, options) == 0:
            symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
            found.append((smiles, Atoms(symbols, mol.GetConformer().GetPositions())))
    return found


def heaps() -> list[tuple[str, Atoms]]:
    """Random heaps of water molecules, the sizes in turn."""
    found = []
    for number in range(HEAPS):
        for size in SIZES:
            rng = np.random.default_rng(crc32(f"heap {size} {number}".encode()))
            smiles = ".".join(["O"] * size)
            found.append((smiles, assemble(smiles, list(rng.uniform(1.7, 2.6, size - 1)), rng, sigma=0.0)))
    return found


def boxes() -> list[tuple[str, Atoms]]:
    """Periodic boxes of water of random densities, and cubic ice of random constants and proton orders."""
    found = []
    for kind, size, count in BOXES:
        for number in range(count):
            rng = np.random.default_rng(crc32(f"{kind} {size} {number}".encode()))
            if kind == "ice":
                box = crystal_ice(round(rng.uniform(6.05, 6.55), 3), rng)
            else:
                box = packed_box("O", size, rng.uniform(0.8, 1.15), rng)
            box.info["config_type"] = kind
            found.append((".".join(["O"] * size), box))
    return [found[place] for place in np.random.default_rng(3).permutation(len(found))]


KINDS = {
    "relatives": Kind(embedded, (300, 500, 700, 1000), 2, 50, "conformer", "md"),
    "heaps": Kind(heaps, (150, 250, 350, 500), 3, 125, "cluster", "cluster_md"),
    "boxes": Kind(boxes, (200, 300, 450, 700), 3, 125),
}


def walk(model: str, name: str, starts: list[tuple[str, Atoms]], kelvin: int, work: Path) -> list[Walk]:
    """Relax the starts by the model, and let them move at the temperature."""
    force_field, rng, kind = ForceField.load(model), np.random.default_rng(kelvin), KINDS[name]
    still = relax(
        force_field,
        [atoms for _, atoms in starts],
        fmax=FMAX,
        steps=STEPS,
        optimizer="lbfgs",
        folder=work / f"{name}_{kelvin}_relaxed",
    ).structures
    moving = [atoms.copy() for atoms in still]
    for atoms in moving:
        MaxwellBoltzmannDistribution(atoms, temperature_K=2 * kelvin, rng=rng)
    trajectories = run_dynamics(
        force_field,
        moving,
        kind.frames * kind.every,
        temperature=kelvin,
        friction=FRICTION,
        timestep=TIMESTEP,
        record_every=kind.every,
        folder=work / f"{name}_{kelvin}_moved",
    ).trajectories
    walks = []
    for number, ((smiles, start), rest, frames) in enumerate(zip(starts, still, trajectories, strict=True)):
        own = start.info.get("config_type")
        geometries = [atoms.copy() for atoms in (rest, *list(frames)[1:])]
        for place, atoms in enumerate(geometries):
            moved = {"config_type": kind.moving or own, "temperature": float(kelvin)}
            atoms.info = moved if place else {"config_type": kind.resting or own}
        walks.append(Walk(work / f"{name}_{kelvin}_{number:05d}.extxyz", smiles, geometries))
    return walks


def main() -> None:
    """Walk, label what is not yet labelled, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint files")
    parser.add_argument("--files", nargs="+", choices=KINDS, default=list(KINDS), help="by default all")
    parser.add_argument("--model", default="default", help="that walks")
    parser.add_argument("--jobs", type=int, default=2, help="processes that label")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the final files")
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.files:
        kind, walks = KINDS[name], []
        starts = kind.starts()
        print(f"{name}: {len(starts)} starts", flush=True)
        for place, kelvin in enumerate(kind.kelvin):
            walks += walk(options.model, name, starts[place :: len(kind.kelvin)], kelvin, options.work)
        label_walks(walks, options.jobs)
        found = labelled(sorted(options.work.glob(f"{name}_*.extxyz")))
        write_files({name: found}, options.out, PREFIX, source=SOURCE)


if __name__ == "__main__":
    main()
