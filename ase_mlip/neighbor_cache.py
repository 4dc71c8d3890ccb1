"""The Verlet list that keeps a structure's graph while its atoms move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import ase
import numpy as np

from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.structure import check_structure, known_cell


class NeighborCache:
    """A Verlet list: rebuilds neighbours only when a pair from outside `cutoff + skin` could have come within `cutoff`.

    With F the homogeneous deformation of the cell since the list was built and u the remaining displacements, a pair
    that was farther than `cutoff + skin` is now farther than `s (cutoff + skin) - 2 max|u|`, s the smallest singular
    value of F. The list holds while that is at least `cutoff`.

    Attributes:
        rebuilds: how often a list was built.
        shape: the pad shape in use; it grows when needed and shrinks only when less than half full.
    """

    def __init__(self, elements: Sequence[int], cutoff: float, skin: float = 0.3):
        if not skin >= 0:
            raise ValueError(f"skin={skin}: give a length in Angstrom that is zero or positive")
        self.elements, self.cutoff, self.skin = tuple(elements), float(cutoff), float(skin)
        self.rebuilds = 0
        self.shape: PadShape | None = None
        self._graph: Graph | None = None
        self._built_for: ase.Atoms | None = None

    def update(self, atoms: ase.Atoms, head_weights: Sequence[float] | np.ndarray) -> Graph:
        """The padded graph of `atoms`, from the standing list where that is safe."""
        if self._graph is None or not self._still_valid(atoms):
            self._rebuild(atoms, head_weights)
        graph = self._graph
        assert graph is not None
        positions = np.zeros_like(graph.positions)
        positions[: len(atoms)] = atoms.positions
        weights = np.asarray(head_weights, float)[None]
        return replace(graph, positions=positions, cell=known_cell(atoms)[None], head_weights=weights)

    def _rebuild(self, atoms: ase.Atoms, head_weights: Sequence[float] | np.ndarray) -> None:
        graph = Graph.from_atoms(atoms, self.elements, self.cutoff + self.skin, head_weights)
        needed = graph.shape.rounded()
        half_full = self.shape is not None and (needed.nodes * needed.slots * 2 < self.shape.nodes * self.shape.slots)
        if self.shape is None or half_full or not self.shape.holds(needed):
            self.shape = needed
        self._graph = batch([graph], self.shape)
        self._built_for = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        self.rebuilds += 1

    def _still_valid(self, atoms: ase.Atoms) -> bool:
        old = self._built_for
        assert old is not None
        if len(old) != len(atoms) or (old.pbc != atoms.pbc).any() or (old.numbers != atoms.numbers).any():
            return False
        if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
            check_structure(atoms, self.elements)  # says which atom; all else was checked when the list was built
        if np.array_equal(old.cell.array, atoms.cell.array):
            smallest, moved = 1.0, atoms.positions - old.positions
        elif old.cell.rank != 3 or atoms.cell.rank != 3:
            return False
        else:
            deformation = np.linalg.solve(old.cell.array, atoms.cell.array)
            smallest = np.linalg.svd(deformation, compute_uv=False).min()
            moved = atoms.positions - old.positions @ deformation
        largest = np.sqrt((moved**2).sum(axis=1).max(initial=0.0))
        return smallest * (self.cutoff + self.skin) - 2 * largest >= self.cutoff
