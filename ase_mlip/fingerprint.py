"""What structures look like, whatever their rotation, order and number of atoms, and diverse subsets of them."""

from __future__ import annotations

from collections.abc import Iterable

import ase
import numpy as np
from ase.data import covalent_radii
from scipy.sparse import csr_array, vstack

from ase_mlip.structure import find_neighbors

BINS = 24
ELEMENTS = len(covalent_radii)  # atomic numbers are below it
DUPLICATE = 1e-4  # distance of two fingerprints; one atom of 20 moved by 0.01 Angstrom makes some 1e-2


def fingerprints(frames: Iterable[ase.Atoms], cutoff: float) -> csr_array:
    """What frames look like, whatever their orientation, order and number of atoms: [frames, features].

    For each pair of elements a histogram of the distances below `cutoff`, smoothed by Gaussians as wide as the bins
    and by a cosine that vanishes at the cutoff, per atom of the frame; and the share of each element. Any model can
    use it; structures that differ only in angles at equal distances, or by a mirror, look the same.

    Args:
        frames: read one by one.
        cutoff: Angstrom.
    """
    rows = [_fingerprint(atoms, cutoff) for atoms in frames]
    if not rows:
        return csr_array((0, ELEMENTS**2 * BINS))
    starts = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    columns, values = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    return csr_array((values, columns, starts), shape=(len(rows), ELEMENTS**2 * BINS))


def _fingerprint(atoms: ase.Atoms, cutoff: float) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values that are not zero. Pair (z, z') has the columns from (z ELEMENTS + z') BINS, z <= z'."""
    centers, others, shifts = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    vectors = atoms.positions[others] + shifts @ atoms.cell.array - atoms.positions[centers]
    distances = np.linalg.norm(vectors, axis=1)
    numbers = np.sort(atoms.numbers[np.stack([centers, others])], axis=0)
    pairs, place = np.unique(numbers[0] * ELEMENTS + numbers[1], return_inverse=True)
    width = cutoff / BINS
    gaussians = np.exp(-0.5 * (distances[:, None] / width - np.arange(BINS)) ** 2)
    histogram = np.zeros((len(pairs), BINS))
    np.add.at(histogram, place.ravel(), gaussians * (0.5 + 0.5 * np.cos(np.pi * distances / cutoff))[:, None])
    elements, counts = np.unique(atoms.numbers, return_counts=True)
    columns = (pairs[:, None] * BINS + np.arange(BINS)).ravel()
    # no atom has number 0: its pairs with each element hold the share of that element
    return np.concatenate([elements * BINS, columns]), np.concatenate([counts, histogram.ravel()]) / len(atoms)


def farthest_points(points: csr_array, count: int, taken: csr_array) -> list[int]:
    """Rows of `points`, each farthest from those before it and from `taken`, and none a repetition; ties to the first.

    Args:
        points: [points, features]; with none taken, the first row is the first one returned.
        count: rows to return, at most.
        taken: [taken, features].
    """
    nearest = np.full(points.shape[0], np.inf)
    for number in range(taken.shape[0]):
        nearest = np.minimum(nearest, _distances(points, taken[[number]]))
    rows: list[int] = []
    while len(rows) < count and nearest.max() > DUPLICATE:
        rows.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, _distances(points, points[rows[-1:]]))
    return rows


def join_points(first: csr_array, second: csr_array) -> csr_array:
    """The rows of both."""
    return vstack([first, second], format="csr")


def _distances(points: csr_array, point: csr_array) -> np.ndarray:
    """Euclidean distance of each row to one point; rounding makes it uncertain by some 1e-7."""
    products = (points @ point.T).toarray().ravel()
    squares = points.power(2).sum(axis=1) - 2 * products + point.power(2).sum()
    return np.sqrt(np.maximum(squares, 0.0))
