"""Geometries of the base data set and their labels: relaxed conformers, modes, dynamics, bonds, contacts, boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from rdkit import Chem
from rdkit.Chem import AllChem
from tblite.ase import TBLite

MAX_FORCE = 60.0  # eV/Angstrom, frames above are dropped, but for diatomics
MAX_PAIR_FORCE = 500.0  # eV/Angstrom, the same for training on diatomics: the wall that a network must learn
DISSOCIATED_FORCE = 0.003  # eV/Angstrom, limit where the SCF of another multiplicity failed: the curve may jump there
MIN_CONTACT = 0.35  # Angstrom, geometries with closer atoms are not computed, but for diatomics
DECIMALS = 5  # of the positions: the rounded geometry is the one that is labelled
SOFTEST_MODE = 120.0  # 1/cm, softer modes are displaced as if they were this stiff


def closest_pair(atoms: Atoms) -> float:
    """Return the smallest distance in a structure, periodic images of other atoms included."""
    if len(atoms) < 2:
        return np.inf
    distances = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    return float(distances[np.triu_indices(len(atoms), 1)].min())


def bare_copy(atoms: Atoms) -> Atoms:
    """Return the geometry alone, centred on its mass and rounded to the decimals that the files have."""
    shift = 0.0 if atoms.pbc.any() else atoms.get_center_of_mass()
    positions = np.round(atoms.get_positions() - shift, DECIMALS) + 0.0
    return Atoms(atoms.get_chemical_symbols(), positions, cell=atoms.cell, pbc=atoms.pbc)


def single_point(bare: Atoms, multiplicities: tuple[int | None, ...]) -> tuple[dict[str, np.ndarray] | None, bool]:
    """Compute the tightly converged results of the lowest multiplicity; also tell whether every one converged."""
    found = []
    for multiplicity in multiplicities:
        atoms = bare.copy()
        atoms.calc = TBLite(
            method="GFN2-xTB",
            verbosity=0,
            accuracy=0.1,
            multiplicity=multiplicity,
            max_iterations=250 if multiplicity is None else 100,
        )
        try:
            results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            if atoms.cell.rank == 3:
                results["stress"] = atoms.get_stress()
        except CalculationFailed:
            continue
        found.append(results)
    return min(found, key=lambda result: result["energy"], default=None), len(found) == len(multiplicities)


def label(
    atoms: Atoms,
    config_type: str,
    multiplicities: tuple[int | None, ...] = (None,),
    max_force: float = MAX_FORCE,
    **info: float,
) -> Atoms | None:
    """Return a rounded copy with its energy and forces, or None if the SCF failed or it is too far up the wall."""
    if max_force <= MAX_FORCE and closest_pair(atoms) < MIN_CONTACT:
        return None
    frame = bare_copy(atoms)
    results, complete = single_point(frame, multiplicities)
    if results is None:
        return None
    largest = np.linalg.norm(results["forces"], axis=1).max()
    if not np.isfinite(largest) or largest > (max_force if complete else DISSOCIATED_FORCE):
        return None
    frame.calc = SinglePointCalculator(frame, **results)
    frame.info.update(config_type=config_type, **info)
    return frame


def conformers(smiles: str, count: int, fmax: float = 0.05, steps: int = 40) -> tuple[list[Atoms], Chem.Mol]:
    """Embed up to `count` conformers and relax each with GFN2-xTB, as the ion that the SMILES says."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    options = AllChem.ETKDGv3()
    options.randomSeed = 7
    options.pruneRmsThresh = 0.3
    AllChem.EmbedMultipleConfs(mol, count, options)
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    relaxed = []
    for conformer in mol.GetConformers():
        atoms = Atoms(symbols, conformer.GetPositions())
        relax(atoms, fmax, steps, Chem.GetFormalCharge(mol))
        relaxed.append(atoms)
    return relaxed, mol


def relax(atoms: Atoms, fmax: float, steps: int, charge: int = 0, method: str = "GFN2-xTB") -> None:
    """Relax in place, keeping the last geometry if the SCF fails."""
    atoms.calc = TBLite(method=method, verbosity=0, charge=charge)
    try:
        BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps)
    except CalculationFailed:
        pass
    atoms.calc = None


def dynamics(
    start: Atoms,
    temperature: float,
    frames: int,
    rng: np.random.Generator,
    equilibrate: int = 40,
    interval: int = 25,
    config_type: str = "md",
    method: str = "GFN2-xTB",
) -> Iterator[Atoms]:
    """Yield labelled snapshots of Langevin dynamics started from a relaxed geometry at twice the temperature."""
    atoms = start.copy()
    atoms.calc = TBLite(method=method, verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    motion = Langevin(atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng)
    for index in range(frames):
        try:
            motion.run(interval + (equilibrate if index == 0 else 0))
        except CalculationFailed:
            return
        frame = label(atoms, config_type, temperature=temperature)
        if frame is not None:
            yield frame


def stretched(
    atoms: Atoms, mol: Chem.Mol, factor: float, rng: np.random.Generator, every: bool = False
) -> Atoms | None:
    """Change the length of one random acyclic bond (`every` or, if possible, a single one), moving one side rigidly."""
    acyclic = [bond for bond in mol.GetBonds() if not bond.IsInRing()]
    single = [bond for bond in acyclic if bond.GetBondType() == Chem.BondType.SINGLE]
    bonds = acyclic if every else single or acyclic
    if not bonds:
        return None
    bond = bonds[rng.integers(len(bonds))]
    first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    cut = Chem.RWMol(mol)
    cut.RemoveBond(first, second)
    side = next(list(part) for part in Chem.GetMolFrags(cut) if second in part)
    moved = atoms.copy()
    moved.positions[side] += (factor - 1.0) * (atoms.positions[second] - atoms.positions[first])
    return moved


def hessian(atoms: Atoms, step: float = 0.01) -> np.ndarray:
    """Return the second derivatives [3 atoms, 3 atoms] by one-sided differences of GFN2-xTB forces, symmetrised."""
    work = atoms.copy()
    work.calc = TBLite(method="GFN2-xTB", verbosity=0)
    rest = work.get_forces().ravel()
    rows = []
    for index in range(3 * len(atoms)):
        shift = np.zeros(3 * len(atoms))
        shift[index] = step
        work.positions = atoms.positions + shift.reshape(-1, 3)
        rows.append((rest - work.get_forces().ravel()) / step)
    return 0.5 * (np.array(rows) + np.array(rows).T)


def vibrations(atoms: Atoms) -> np.ndarray:
    """Return one row per vibration: the displacement [3 atoms] that has the energy 1 eV / 2 in the harmonic well.

    Translations and rotations are projected out of the mass-weighted Hessian; modes softer than `SOFTEST_MODE` and
    those that go downhill are taken to be as stiff as it.
    """
    roots = np.sqrt(atoms.get_masses())[:, None]
    relative = atoms.get_positions() - atoms.get_center_of_mass()
    axes = np.eye(3)
    rigid = [(roots * axis).ravel() for axis in axes]
    rigid += [(roots * np.cross(relative, axis)).ravel() for axis in axes]
    left, sizes, _ = np.linalg.svd(np.array(rigid).T, full_matrices=True)
    inner = left[:, np.count_nonzero(sizes > 1e-3 * sizes[0]) :]
    weights = np.repeat(roots.ravel(), 3)
    values, vectors = np.linalg.eigh(inner.T @ (hessian(atoms) / np.outer(weights, weights)) @ inner)
    softest = (SOFTEST_MODE * units.invcm / (units._hbar * units.J * units.s)) ** 2
    return (inner @ vectors / weights[:, None] / np.sqrt(np.maximum(np.abs(values), softest))).T


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly distributed rotation matrix."""
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    return matrix if np.linalg.det(matrix) > 0 else -matrix


def attach(cluster: Atoms, guest: Atoms, contact: float, rng: np.random.Generator) -> Atoms:
    """Add a randomly oriented molecule so that its closest atom pair to the cluster is `contact` apart."""
    fixed = cluster.positions - cluster.positions.mean(axis=0)
    turned = (guest.positions - guest.positions.mean(axis=0)) @ random_rotation(rng).T
    direction = random_rotation(rng)[0]
    outside, inside = 25.0, 0.0
    for shift in np.arange(25.0, 0.0, -0.1):
        if closest(fixed, turned + shift * direction) < contact:
            inside = shift
            break
        outside = shift
    for _ in range(30):
        middle = 0.5 * (outside + inside)
        if closest(fixed, turned + middle * direction) < contact:
            inside = middle
        else:
            outside = middle
    symbols = cluster.get_chemical_symbols() + guest.get_chemical_symbols()
    return Atoms(symbols, np.vstack([fixed, turned + outside * direction]))


def closest(first: np.ndarray, second: np.ndarray) -> float:
    """Return the smallest distance between two groups of points."""
    return float(np.linalg.norm(first[:, None] - second[None], axis=-1).min())


@cache
def monomer(smiles: str) -> Atoms:
    """Return one relaxed conformer."""
    return conformers(smiles, 1)[0][0]


def assemble(names: str, contacts: list[float], rng: np.random.Generator, sigma: float) -> Atoms:
    """Build a cluster of the named molecules, each attached at the next closest-contact distance."""
    parts = []
    for smiles in names.split("."):
        part = monomer(smiles).copy()
        part.positions += rng.normal(0.0, sigma, part.positions.shape)
        parts.append(part)
    cluster = parts[0]
    for part, contact in zip(parts[1:], contacts, strict=True):
        cluster = attach(cluster, part, contact, rng)
    return cluster


def spin_states(symbols: list[str]) -> tuple[int, ...]:
    """Return the multiplicities tried for an atom or diatomic."""
    electrons = int(Atoms(symbols).numbers.sum())
    return (1, 3, 5) if electrons % 2 == 0 else (2, 4)


def turned(atoms: Atoms, mol: Chem.Mol, angle: float, rng: np.random.Generator) -> Atoms | None:
    """Turn one side of a random acyclic single bond between atoms that have further neighbours, in degrees."""
    pattern = Chem.MolFromSmarts("[!D1]-!@[!D1]")
    bonds = mol.GetSubstructMatches(pattern)
    if not bonds:
        return None
    first, second = (int(index) for index in bonds[rng.integers(len(bonds))])
    cut = Chem.RWMol(mol)
    cut.RemoveBond(first, second)
    side = next(list(part) for part in Chem.GetMolFrags(cut) if second in part)
    part = atoms[side]
    part.rotate(angle, atoms.positions[second] - atoms.positions[first], center=atoms.positions[second])
    moved = atoms.copy()
    moved.positions[side] = part.positions
    return moved


def packed_box(smiles: str, count: int, density: float, rng: np.random.Generator) -> Atoms:
    """Put randomly turned molecules on a grid in a periodic cube of the density, in g/cm^3."""
    part = monomer(smiles)
    mass = count * part.get_masses().sum() / units.kg * 1e3
    length = np.round((mass / density) ** (1 / 3) * 1e8, DECIMALS)
    grid = int(np.ceil(count ** (1 / 3)))
    sites = np.array(list(np.ndindex(grid, grid, grid)))
    box = Atoms(cell=[length] * 3, pbc=True)
    for site in rng.permutation(sites)[:count]:
        rotated = (part.positions - part.get_center_of_mass()) @ random_rotation(rng).T
        box += Atoms(part.get_chemical_symbols(), rotated + site * length / grid)
    return box


def crowd(symbols: Sequence[str], filling: float, rng: np.random.Generator) -> Atoms | None:
    """Put atoms at random into a periodic cube whose volume is so far filled by spheres of their covalent radii.

    No two are closer than 0.65 times the sum of their radii. Where they do not fit in many trials, there is no crowd.
    """
    numbers = Atoms(list(symbols)).numbers
    radii = covalent_radii[numbers]
    length = np.round((4 / 3 * np.pi * (radii**3).sum() / filling) ** (1 / 3), DECIMALS)
    box = Atoms(cell=[length] * 3, pbc=True)
    for _ in range(5000):
        more = box + Atoms([numbers[len(box)]], positions=[rng.uniform(0, length, 3)])
        apart = more.get_distances(len(box), range(len(box)), mic=True) if len(box) else np.empty(0)
        if (apart >= 0.65 * (radii[: len(box)] + radii[len(box)])).all():
            box = more
        if len(box) == len(numbers):
            return box
    return None


def crystal_ice(constant: float, rng: np.random.Generator) -> Atoms:
    """Build cubic ice of eight molecules that obeys the ice rules, with a random order of the protons.

    The 16 hydrogen bonds are walked through in closed trails; a proton sits at the start of each step, so that as many
    bonds leave a molecule as enter it: two.
    """
    corners = np.array([[0, 0, 0], [0, 2, 2], [2, 0, 2], [2, 2, 0]])
    sites = np.vstack([corners, corners + 1])
    steps = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    bonds = []
    for first in range(4):
        for step in steps:
            second = int(np.argmin(np.abs((sites - sites[first] - step) % 4).sum(axis=1)))
            bonds.append({first: (second, step), second: (first, -step)})
    unused, hydrogens, here = list(range(len(bonds))), [], 0
    while unused:
        ways = [index for index in unused if here in bonds[index]]
        if not ways:
            here = next(iter(bonds[unused[0]]))
            continue
        bond = int(rng.choice(ways))
        unused.remove(bond)
        there, step = bonds[bond][here]
        hydrogens.append(sites[here] * constant / 4 + step / np.sqrt(3.0) * 0.99)
        here = there
    return Atoms("O8H16", np.vstack([sites * constant / 4, hydrogens]), cell=[constant] * 3, pbc=True)
