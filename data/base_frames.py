"""What is sampled of a molecule, dimer, cluster, pair of ions, radical, box, pair of atoms or crowd of the base set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.data import covalent_radii
from base_geometry import (
    assemble,
    conformers,
    crowd,
    crystal_ice,
    dynamics,
    label,
    packed_box,
    relax,
    spin_states,
    stretched,
    turned,
    vibrations,
)
from rdkit import Chem

LARGE_FRAMES = 4  # of further dynamics of a larger molecule, per temperature
WALL_CONTACT = 1.6  # Angstrom, closest atoms of two molecules below which a dimer is one of the repulsive wall
CROWDS = 10  # densities of each crowd of atoms


def molecule_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield dynamics, displaced, stretched and scaled frames of one molecule."""
    relaxed, mol = conformers(smiles, 3)
    for index, temperature in enumerate((300.0, 600.0, 1000.0)):
        frames = 5 if len(relaxed[0]) > 7 else 3
        yield from dynamics(relaxed[index % len(relaxed)], temperature, frames, rng)

    def pick(sigma: float) -> Atoms:
        atoms = relaxed[rng.integers(len(relaxed))].copy()
        atoms.positions += rng.normal(0.0, sigma, atoms.positions.shape)
        return atoms

    geometries = [(pick(sigma), "displaced") for sigma in (0.04, 0.08)]
    for low, high in ((0.75, 0.9), (0.9, 1.2), (1.2, 1.4), (1.4, 1.6)):
        geometries.append((stretched(pick(0.02), mol, rng.uniform(low, high), rng), "stretched"))
    for low, high in ((0.93, 1.0), (1.0, 1.12)):
        atoms = pick(0.02)
        atoms.positions *= rng.uniform(low, high)
        geometries.append((atoms, "scaled"))
    yield from labelled(geometries)


def labelled(geometries: Iterable[tuple[Atoms | None, str]]) -> Iterator[Atoms]:
    """Yield those of the geometries with their types that could be made and labelled."""
    for atoms, config_type in geometries:
        frame = None if atoms is None else label(atoms, config_type)
        if frame is not None:
            yield frame


def large_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield further dynamics of a larger molecule at two more temperatures."""
    relaxed, _ = conformers(smiles, 3)
    for index, temperature in enumerate((450.0, 800.0)):
        yield from dynamics(relaxed[-1 - index % len(relaxed)], temperature, LARGE_FRAMES, rng)


def dimer_frames(names: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield a dimer at random orientations from the repulsive wall to 5 Angstrom, and dynamics near its minimum."""
    yield from contact_frames(
        names, (1.0, 1.15, 1.3, 1.5, 1.6, 1.7, 1.85, 2.0, 2.2, 2.4, 2.7, 3.2, 4.0, 5.0), 0.03, rng
    )
    bound = assemble(names, [2.2], rng, sigma=0.0)
    relax(bound, fmax=0.1, steps=40)
    yield from dynamics(bound, 150.0, 4, rng, equilibrate=25, interval=25, config_type="dimer_md")


def contact_frames(names: str, contacts: Sequence[float], spread: float, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield two molecules at random orientations and the given contacts in Angstrom, each varied by a factor."""
    for contact in contacts:
        contact *= rng.uniform(1 - spread, 1 + spread)
        frame = label(assemble(names, [contact], rng, sigma=0.03), "dimer_wall" if contact < WALL_CONTACT else "dimer")
        if frame is not None:
            yield frame


def cluster_frames(names: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield dynamics of a small cluster at 200, 300 and 400 K, each from its own random start."""
    for temperature in (200.0, 300.0, 400.0):
        start = assemble(names, [2.0] * names.count("."), rng, sigma=0.0)
        relax(start, fmax=0.1, steps=60)
        yield from dynamics(start, temperature, 7, rng, equilibrate=40, interval=25, config_type="cluster_md")


def jittered(relaxed: list[Atoms], sigma: float, rng: np.random.Generator) -> Atoms:
    """Return a random conformer with normal random displacements, in Angstrom."""
    atoms = relaxed[rng.integers(len(relaxed))].copy()
    atoms.positions += rng.normal(0.0, sigma, atoms.positions.shape)
    return atoms


def mode_frames(relaxed: list[Atoms], count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield `count` samples of the harmonic well of the first conformers at each of five temperatures."""
    for atoms in relaxed[: 1 if len(relaxed[0]) > 12 else 2]:
        try:
            modes = vibrations(atoms)
        except CalculationFailed:
            continue
        for temperature in (300.0, 500.0, 700.0, 1000.0, 1500.0):
            for _ in range(count if len(relaxed) == 1 or len(atoms) > 12 else -(-count // 2)):
                moved = atoms.copy()
                amplitudes = rng.normal(0.0, np.sqrt(units.kB * temperature), len(modes))
                moved.positions += (amplitudes @ modes).reshape(-1, 3)
                frame = label(moved, "mode", temperature=temperature)
                if frame is not None:
                    yield frame


def strained_frames(relaxed: list[Atoms], mol: Chem.Mol, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield stretched and compressed bonds, turned torsions, large random displacements and scaled molecules."""

    def tries() -> Iterator[Atoms | None]:
        for low, high in ((1.05, 1.3), (1.3, 1.55), (1.55, 1.8)):
            moved = stretched(jittered(relaxed, 0.03, rng), mol, rng.uniform(low, high), rng, every=True)
            yield moved and label(moved, "stretched")
        for low, high in ((0.4, 0.6), (0.5, 0.65), (0.6, 0.75), (0.75, 0.9)):
            frame, attempts = None, 0
            while frame is None and attempts < 4:
                moved = stretched(jittered(relaxed, 0.03, rng), mol, rng.uniform(low, high), rng, every=True)
                frame = moved and label(moved, "compressed")
                attempts += 1
            yield frame
        for _ in range(4):
            moved = turned(jittered(relaxed, 0.03, rng), mol, rng.uniform(20.0, 340.0), rng)
            yield moved and label(moved, "torsion")
        yield label(jittered(relaxed, 0.06, rng), "displaced")
        for sigma in (0.13, 0.22):
            yield label(jittered(relaxed, sigma, rng), "shaken")
        for low, high in ((0.72, 0.93), (1.1, 1.35)):
            moved = jittered(relaxed, 0.03, rng)
            moved.positions *= rng.uniform(low, high)
            yield label(moved, "scaled")

    yield from (frame for frame in tries() if frame is not None)


def still_frames(relaxed: list[Atoms], mol: Chem.Mol, modes: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield conformers, `modes` harmonic samples per temperature, and strained geometries."""
    yield from labelled((atoms, "conformer") for atoms in relaxed)
    yield from mode_frames(relaxed, modes, rng)
    yield from strained_frames(relaxed, mol, rng)


def static_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield conformers, modes and strained geometries of a molecule."""
    yield from still_frames(*conformers(smiles, 2, fmax=0.02, steps=80), 3, rng)


def moved_frames(relaxed: list[Atoms], mol: Chem.Mol, turns: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield so many turned bonds, and a stretched one."""
    moved = [
        (turned(jittered(relaxed, 0.03, rng), mol, rng.uniform(20.0, 340.0), rng), "torsion") for _ in range(turns)
    ]
    moved.append((stretched(jittered(relaxed, 0.03, rng), mol, rng.uniform(0.8, 1.4), rng, every=True), "stretched"))
    yield from labelled(moved)


def variant_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield one conformer of a molecule, two modes per temperature, and a few turned and stretched bonds."""
    relaxed, mol = conformers(smiles, 1, fmax=0.02, steps=100)
    yield from labelled([(relaxed[0], "conformer")])
    yield from mode_frames(relaxed, 2, rng)
    yield from moved_frames(relaxed, mol, 3, rng)


def neighbour_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield one conformer, a mode at each temperature, two frames of dynamics, a turned and a stretched bond."""
    relaxed, mol = conformers(smiles, 1, fmax=0.02, steps=100)
    yield from labelled([(relaxed[0], "conformer")])
    yield from mode_frames(relaxed, 1, rng)
    yield from dynamics(relaxed[0], float(rng.integers(300, 1001)), 2, rng, equilibrate=28, interval=12)
    yield from moved_frames(relaxed, mol, 1, rng)


def sample_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the same with fewer modes, and dynamics up to 1500 K, 12 fs apart."""
    relaxed, mol = conformers(smiles, 2, fmax=0.02, steps=80)
    yield from still_frames(relaxed, mol, 2, rng)
    for index, temperature in enumerate((300.0, 600.0, 1000.0, 1500.0)):
        yield from dynamics(relaxed[index % len(relaxed)], temperature, 2, rng, equilibrate=28, interval=12)


def radical_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the same of a radical (doublet), all under one name."""
    for frame in sample_frames(smiles, rng):
        frame.info["config_type"] = "radical"
        yield frame


def approach_frames(names: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield two molecules at random orientations from the wall to 6 Angstrom, and dynamics near their minimum."""
    yield from contact_frames(
        names, (0.8, 1.0, 1.15, 1.3, 1.45, 1.7, 1.9, 2.1, 2.4, 2.7, 3.1, 3.7, 4.6, 5.8), 0.05, rng
    )
    bound = assemble(names, [2.2], rng, sigma=0.0)
    relax(bound, fmax=0.05, steps=60)
    yield from dynamics(bound, 250.0, 3, rng, interval=15, config_type="dimer_md")


def group_frames(names: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield three or more molecules put together at random distances, and dynamics of the relaxed cluster."""
    count = names.count(".")
    for low, high in ((1.1, 1.6), (1.5, 2.0), (1.8, 2.4), (1.8, 2.4), (2.0, 3.0), (2.5, 4.5)):
        contacts = list(rng.uniform(low, high, count))
        config_type = "cluster_wall" if min(contacts) < WALL_CONTACT else "cluster"
        frame = label(assemble(names, contacts, rng, sigma=0.03), config_type)
        if frame is not None:
            yield frame
    for temperature in (200.0, 350.0, 500.0):
        start = assemble(names, [2.0] * count, rng, sigma=0.0)
        relax(start, fmax=0.1, steps=60)
        yield from dynamics(start, temperature, 5, rng, interval=15, config_type="cluster_md")


def water_frames(name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield a random heap of water molecules, and dynamics of what it relaxes to."""
    count = int(name.split()[0])
    contacts = list(rng.uniform(1.7, 2.6, count - 1))
    yield from labelled([(assemble(".".join(["O"] * count), contacts, rng, sigma=0.03), "cluster")])
    start = assemble(".".join(["O"] * count), [2.0] * (count - 1), rng, sigma=0.0)
    relax(start, fmax=0.1, steps=60)
    temperature = rng.choice([150.0, 200.0, 300.0, 450.0, 600.0])
    yield from dynamics(start, temperature, 8, rng, interval=20, config_type="cluster_md")


def ion_frames(names: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield ions at random orientations, and dynamics from where they have relaxed to."""
    count = names.count(".")
    for contact in (1.0, 1.15, 1.3, 1.45, 1.6, 1.75, 1.9, 2.1, 2.4):
        contacts = [contact * rng.uniform(0.95, 1.05), *rng.uniform(1.6, 2.2, count - 1)]
        frame = label(assemble(names, contacts, rng, sigma=0.03), "ionic")
        if frame is not None:
            yield frame
    for temperature in (200.0, 400.0):
        start = assemble(names, [1.6, *[1.8] * (count - 1)], rng, sigma=0.0)
        relax(start, fmax=0.1, steps=25)
        yield from dynamics(start, temperature, 4, rng, equilibrate=20, interval=12, config_type="ionic")


def box_frames(name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield a periodic box or ice: geometries from GFN1-xTB dynamics, several times cheaper, labels as everywhere."""
    smiles, kind, count, size, temperature = name.split()[0], *name.split()[1:4], float(name.split()[4])
    start = crystal_ice(float(size), rng) if kind == "ice" else packed_box(smiles, int(count), float(size), rng)
    relax(start, fmax=0.2, steps=25, method="GFN1-xTB")
    yield from dynamics(start, temperature, 6, rng, equilibrate=15, interval=10, config_type=kind, method="GFN1-xTB")


def crowd_frames(name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield periodic cubes full of the atoms at random places: what no molecule shows of matter under pressure."""
    for filling in np.geomspace(0.06, 0.5, CROWDS):
        start = crowd(name.split("."), filling, rng)
        frame = None if start is None else label(start, "crowd")
        if frame is not None:
            yield frame


def curve_frames(name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the curve of two atoms from the repulsive wall to 5 Angstrom, lowest multiplicity at each point."""
    symbols = name.split("-")
    radii = sum(covalent_radii[Atoms(symbols).numbers])
    near, far = np.linspace(0.4, 1.6, 25) * radii, np.linspace(1.7 * radii, 5.0, 10)
    for distance in np.concatenate([near, far]):
        atoms = Atoms(symbols, [[0, 0, 0], [0, 0, distance]])
        frame = label(atoms, "diatomic", spin_states(symbols), max_force=np.inf)
        if frame is not None:
            yield frame


def atom_frames(name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the isolated atom."""
    frame = label(Atoms(name), "isolated_atom", spin_states([name]))
    if frame is None:
        raise RuntimeError(f"SCF of the isolated {name} atom failed")
    frame.calc.results["forces"] = np.zeros((1, 3))
    yield frame
