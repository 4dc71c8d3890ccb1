"""The structures that are timed: water boxes and copper, of any size."""

from __future__ import annotations

import ase
import numpy as np
from ase.build import bulk, molecule

WATER_SPACING = 3.1036  # Angstrom between molecules on a cubic lattice: 1 g/cm^3
COPPER_LATTICE = 3.6  # Angstrom
SIZES = (24, 192, 648, 1536, 5184, 24000)  # atoms; water boxes of 3 n^3 atoms
ELEMENTS = {"water": (1, 8), "copper": (29,)}


def build_system(name: str, atoms: int, seed: int = 0) -> ase.Atoms:
    """The periodic box of that kind whose number of atoms is nearest to `atoms`.

    Args:
        name: "water", 3 n^3 atoms, or "copper", 4 n^3 atoms.
        atoms: number of atoms that is wanted.
        seed: of the random orientations and displacements.

    Raises:
        ValueError: an unknown name or no atoms.

    Example:
        >>> len(build_system("water", 24)), len(build_system("copper", 24))
        (24, 32)
    """
    if name not in ELEMENTS:
        raise ValueError(f"system {name!r}: give one of {', '.join(map(repr, ELEMENTS))}")
    if atoms < 1:
        raise ValueError(f"a size of {atoms} atoms: give a positive number")
    make, per_cell = (water_box, 3) if name == "water" else (copper, 4)
    return make(max(1, round((atoms / per_cell) ** (1 / 3))), seed)


def water_box(molecules: int, seed: int = 0) -> ase.Atoms:
    """`molecules`^3 randomly turned water molecules at 1 g/cm^3, periodic."""
    rng = np.random.default_rng(seed)
    count = molecules**3
    water = molecule("H2O")
    local = water.positions - water.get_center_of_mass()
    corners = np.stack(np.meshgrid(*[np.arange(molecules)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    turned = np.einsum("nab,ib->nia", _rotations(rng, count), local)
    positions = (turned + WATER_SPACING * (corners[:, None] + 0.5)).reshape(-1, 3)
    positions += rng.normal(scale=0.02, size=positions.shape)
    return ase.Atoms(list(water.numbers) * count, positions, cell=[molecules * WATER_SPACING] * 3, pbc=True)


def copper(cells: int, seed: int = 0) -> ase.Atoms:
    """4 x `cells`^3 atoms of fcc copper, displaced at random by 0.05 Angstrom, periodic."""
    crystal = bulk("Cu", "fcc", a=COPPER_LATTICE, cubic=True) * (cells, cells, cells)
    crystal.rattle(0.05, seed=seed)
    return crystal


def _rotations(rng: np.random.Generator, count: int) -> np.ndarray:
    """Uniformly distributed rotation matrices [count, 3, 3], from normalised quaternions."""
    w, x, y, z = (q := rng.normal(size=(count, 4))).T / np.linalg.norm(q, axis=1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
