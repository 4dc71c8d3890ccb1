"""Geometries and GFN2-xTB energies that the model card compares with, made with tblite and RDKit, kept in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS
from base_geometry import assemble, conformers, packed_box, relax
from base_molecules import TEST_DIMERS, TEST_MOLECULES
from rdkit import Chem
from tblite.ase import TBLite

# Twenty molecules whose geometry and frequencies are compared, and ten for dynamics; all are held out of training.
GEOMETRIES = """
CCC(C)O CCOC C=CC=C CCC=O O=C1CCCC1 CCC(=O)O CN(C)C=O CC[N+](=O)[O-] c1cnoc1 CNC(N)=O C1CNC1 OCC(F)(F)F C=C(F)F CC(=O)Cl
ClCC#N CS(C)=O Cc1ccsc1 CPC BrCC=C Brc1cccnc1
""".split()
DYNAMICS = """
CCC(C)O CCC(=O)O CN(C)C=O CNC(N)=O C[C@@H](O)[C@H](N)C(=O)O Nc1ccc(F)cc1 ClCC#N CS(C)=O COP(=O)(OC)OC Brc1cccnc1
""".split()
WATERS, DENSITY = 64, 1.0  # molecules of the periodic box, g/cm^3
FMAX = 0.002  # eV/Angstrom, of geometries that are compared

# Held-out molecules and the four atoms (in the order of the SMILES) of the dihedral angle that is turned.
TORSIONS = {
    "CCOC": (0, 1, 2, 3),
    "CCC(=O)O": (0, 1, 2, 3),
    "Cc1ccccc1-c1ccccc1": (1, 6, 7, 8),
    "COc1cccnc1": (0, 1, 2, 3),
    "CC(=O)SC": (0, 1, 3, 4),
    "BrCC=C": (0, 1, 2, 3),
}
ANGLES = np.arange(0.0, 360.0, 15.0)  # degrees
DIMERS = ("O.O", "NC=O.O", "C.C", "O.OC=O", "CS(C)=O.O", "CF.CBr")  # the last three are held out as dimers
SHIFTS = np.array([-0.7, -0.5, -0.35, -0.2, -0.1, 0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0])


@dataclass(frozen=True)
class Scan:
    """Frames along a coordinate, with GFN2-xTB energies, and those whose energies are subtracted.

    Attributes:
        frames: along the scan.
        coordinate: [frames] degrees, or Angstrom between the closest atoms of the two molecules at the minimum.
        apart: the molecules of a dimer alone, as they are in it; empty for a torsion.
        held_out: whether it is in none of the training frames.
    """

    frames: list[Atoms]
    coordinate: np.ndarray
    apart: list[Atoms]
    held_out: bool


def check_lists() -> None:
    """Raise if a molecule that is compared was trained on."""
    known = [name for name in (*GEOMETRIES, *DYNAMICS, *TORSIONS) if name not in TEST_MOLECULES]
    if known:
        raise ValueError(
            f"{', '.join(known)}: not in TEST_MOLECULES of base_molecules.py; compare held-out molecules only"
        )


def possible(names: list[str], elements: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """Split SMILES into those made of the elements and the others."""
    fits = {n: {a.GetAtomicNum() for a in Chem.AddHs(Chem.MolFromSmiles(n)).GetAtoms()} <= {*elements} for n in names}
    return [name for name in names if fits[name]], [name for name in names if not fits[name]]


def xtb(accuracy: float = 0.1) -> TBLite:
    """The reference method."""
    return TBLite(method="GFN2-xTB", verbosity=0, accuracy=accuracy, max_iterations=250)


def minimum(work: Path, smiles: str) -> Atoms:
    """The relaxed first conformer, with its energy."""

    def make() -> list[Atoms]:
        atoms = conformers(smiles, 1)[0][0]
        atoms.calc = xtb()
        BFGS(atoms, logfile=None).run(fmax=FMAX, steps=500)
        return [_labelled(atoms)]

    return _cached(work / f"minimum_{crc32(smiles.encode()):08x}.extxyz", make)[0]


def torsion(work: Path, smiles: str) -> Scan:
    """Turn one dihedral angle of the relaxed molecule, everything else rigid."""
    first, second, third, fourth = TORSIONS[smiles]

    def make() -> list[Atoms]:
        mol = Chem.RWMol(Chem.AddHs(Chem.MolFromSmiles(smiles)))
        mol.RemoveBond(second, third)
        side = next(list(part) for part in Chem.GetMolFrags(mol) if third in part)
        frames = []
        for angle in ANGLES:
            atoms = minimum(work, smiles).copy()
            atoms.set_dihedral(first, second, third, fourth, angle, indices=side)
            frames.append(_labelled(atoms))
        return frames

    return Scan(_cached(work / f"torsion_{crc32(smiles.encode()):08x}.extxyz", make), ANGLES, [], True)


def dimer(work: Path, names: str) -> Scan:
    """Pull the two molecules of a relaxed dimer apart along the line of their closest atoms, both rigid."""

    def make() -> list[Atoms]:
        atoms = assemble(names, [2.2], np.random.default_rng(5), sigma=0.0)
        relax(atoms, fmax=0.01, steps=300)
        size = len(Chem.AddHs(Chem.MolFromSmiles(names.split(".")[0])).GetAtoms())
        vectors = atoms.positions[None, size:] - atoms.positions[:size, None]
        lengths = np.linalg.norm(vectors, axis=-1)
        nearest = np.unravel_index(lengths.argmin(), lengths.shape)
        frames = [_labelled(atoms[:size]), _labelled(atoms[size:])]
        for shift in SHIFTS:
            moved = atoms.copy()
            moved.positions[size:] += shift * vectors[nearest] / lengths[nearest]
            frames.append(_labelled(moved))
            frames[-1].info["distance"] = lengths[nearest] + shift
        return frames

    frames = _cached(work / f"dimer_{crc32(names.encode()):08x}.extxyz", make)
    distances = np.array([frame.info["distance"] for frame in frames[2:]])
    return Scan(frames[2:], distances, frames[:2], names in TEST_DIMERS)


def frequencies(work: Path, smiles: str, compute: Callable[[Atoms], np.ndarray]) -> np.ndarray:
    """Wavenumbers of the minimum by `compute`, 1/cm."""
    path = work / f"frequencies_{crc32(smiles.encode()):08x}.txt"
    if not path.exists():
        atoms = minimum(work, smiles).copy()
        atoms.calc = xtb()
        np.savetxt(path, compute(atoms))
    return np.loadtxt(path)


def water_box() -> Atoms:
    """A periodic box of randomly turned water molecules on a grid; not relaxed."""
    return packed_box("O", WATERS, DENSITY, np.random.default_rng(6))


def _labelled(atoms: Atoms) -> Atoms:
    """A copy with GFN2-xTB energy and forces."""
    frame = Atoms(atoms.get_chemical_symbols(), atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    frame.calc = xtb()
    results = {"energy": frame.get_potential_energy(), "forces": frame.get_forces()}
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def _cached(path: Path, make: Callable[[], list[Atoms]]) -> list[Atoms]:
    """The frames of a file, made first if there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        ase.io.write(partial, make(), format="extxyz")
        partial.rename(path)
    return ase.io.read(path, index=":")
