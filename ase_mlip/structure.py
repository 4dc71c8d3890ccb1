"""Structures as ASE gives them: what cannot be predicted is refused here, and who neighbours whom is found here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ase
import numpy as np
from ase.calculators.calculator import CalculationFailed
from ase.data import chemical_symbols
from ase.geometry import complete_cell
from matscipy.neighbours import neighbour_list

from ase_mlip.kernels.neighbor_list import available, list_neighbors

OVERLAP = 0.1  # Angstrom, below which atoms lie on top of each other


class InvalidStructure(CalculationFailed, ValueError):
    """A structure that no prediction can be made for; the message names the atom or the axis."""


def check_structure(atoms: ase.Atoms, elements: Sequence[int]) -> None:
    """Raise InvalidStructure, naming the atom, for anything a model cannot take.

    Raises:
        InvalidStructure: elements outside `elements`, non-finite positions or cell, a periodic axis without a vector.
    """
    check_elements(atoms.numbers.tolist(), elements)
    bad = np.flatnonzero(~np.isfinite(atoms.positions).all(axis=1))
    if len(bad):
        raise InvalidStructure(
            f"atom {bad[0]} ({symbol_of(atoms.numbers[bad[0]])}) has the position {atoms.positions[bad[0]].tolist()}; "
            "positions must be finite"
        )
    if not np.isfinite(atoms.cell.array).all():
        raise InvalidStructure(f"the cell {atoms.cell.array.tolist()} must be finite")
    lengths = atoms.cell.lengths()
    for axis in np.flatnonzero(atoms.pbc):
        if lengths[axis] == 0:
            raise InvalidStructure(
                f"pbc is True along axis {axis} but its cell vector is zero; set the cell, or pbc=False along that axis"
            )
    periodic = atoms.cell.array[atoms.pbc]
    if len(periodic) and np.linalg.matrix_rank(periodic) < len(periodic):
        raise InvalidStructure(
            f"the periodic cell vectors {periodic.tolist()} are linearly dependent; correct the cell"
        )


def check_elements(numbers: Iterable[int], elements: Sequence[int]) -> None:
    """Raise InvalidStructure, naming them, for atomic numbers outside `elements`."""
    unknown = sorted(set(numbers) - set(elements))
    if unknown:
        names = ", ".join(f"{symbol_of(z)} (Z={z})" for z in unknown)
        known = ", ".join(symbol_of(z) for z in elements)
        raise InvalidStructure(f"the model does not know {names}; it knows {known}")


def symbol_of(number: int) -> str:
    """Chemical symbol, or the number itself where there is none."""
    return chemical_symbols[number] if 0 <= number < len(chemical_symbols) else str(number)


def known_cell(atoms: ase.Atoms) -> np.ndarray:
    """Cell vectors [3, 3]; where they do not span space, the periodic ones only, so that the volume is exactly zero."""
    return atoms.cell.array.copy() if atoms.cell.rank == 3 else np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)


def find_neighbors(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ordered pairs closer than `cutoff`, the same path for every periodicity and handedness.

    Non-periodic axes are completed by a vector normal to the others that encloses the atoms; atoms are wrapped along
    the periodic axes and a left-handed cell is searched as its mirror, both undone in the shifts.

    Args:
        positions: [nodes, 3] Angstrom.
        cell: [3, 3] Angstrom, rows are cell vectors; rows of non-periodic axes are not used.
        pbc: [3] which axes are periodic.
        cutoff: Angstrom.

    Returns:
        centers [edges] (sorted), neighbors [edges], shifts [edges, 3] in whole cell vectors, such that the
        vector from center to neighbour is `positions[neighbor] + shift @ cell - positions[center]`.
    """
    pbc = np.asarray(pbc, bool)
    if len(positions) == 0:
        return np.zeros(0, int), np.zeros(0, int), np.zeros((0, 3))
    inside, wrap, box = _enclose(positions, cell, pbc, cutoff)
    hand = np.array([1.0, 1.0, np.sign(np.linalg.det(box))])
    centers, neighbors, shifts = neighbour_list(
        "ijS",
        positions=inside + np.where(hand < 0, 1.0, 0.0) @ box,
        cell=box * hand[:, None],
        pbc=pbc,
        cutoff=float(cutoff),
    )
    if (centers[1:] < centers[:-1]).any():
        order = np.argsort(centers, kind="stable")
        centers, neighbors, shifts = centers[order], neighbors[order], shifts[order]
    if hand[2] < 0:
        shifts *= hand.astype(shifts.dtype)
    if wrap.any():  # numbers that need not fit the integers of a neighbour list
        shifts = shifts + (wrap[centers] - wrap[neighbors])
    if not pbc.all():
        shifts *= pbc
    return centers, neighbors, shifts


def neighbor_table(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `find_neighbors` finds, one row for each node: much faster in C++, where there is a compiler.

    Returns:
        neighbors [nodes, slots], whose unused slots hold the row's own number, shifts [nodes, slots, 3], and the number
        of neighbours [nodes].
    """
    pbc = np.asarray(pbc, bool)
    if len(positions) and available():
        return list_neighbors(*_enclose(positions, cell, pbc, cutoff), pbc, float(cutoff))
    centers, neighbors, shifts = find_neighbors(positions, cell, pbc, cutoff)
    counts = np.bincount(centers, minlength=len(positions))
    slots = int(np.max(counts, initial=0))
    place = centers * np.intp(slots) + np.arange(len(centers)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.repeat(np.arange(len(positions), dtype=np.int32)[:, None], slots, axis=1)
    table.ravel()[place] = neighbors
    dense = np.zeros((len(positions), slots, 3))
    dense.reshape(-1, 3)[place] = shifts
    return table, dense, counts


def _enclose(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions within a box that spans space, the whole vectors taken off for that [nodes, 3], and the box [3, 3]."""
    box = complete_cell(np.where(pbc[:, None], cell, 0.0))
    fractional = np.linalg.solve(box.T, positions.T).T
    wrap = np.where(pbc, np.floor(fractional), 0.0)
    inside = positions - wrap @ box
    # enclose the atoms along the open axes, whatever length `complete_cell` chose
    low, high = fractional.min(axis=0), fractional.max(axis=0)
    lengths = np.linalg.norm(box, axis=1)
    stretch = np.where(pbc, 1.0, (high - low) + 2 * cutoff / lengths)
    origin = np.where(pbc, 0.0, low - cutoff / lengths) @ box
    return inside - origin, wrap, box * stretch[:, None]


def overlapping_pair(atoms: ase.Atoms) -> tuple[int, int, float] | None:
    """The two atoms that are closest to each other and their distance, if that is less than `OVERLAP`."""
    centers, others, shifts = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, OVERLAP)
    if len(centers) == 0:
        return None
    vectors = atoms.positions[others] + shifts @ atoms.cell.array - atoms.positions[centers]
    distances = np.linalg.norm(vectors, axis=1)
    pair = int(distances.argmin())
    return int(centers[pair]), int(others[pair]), float(distances[pair])
