"""Structures that move side by side in one padded graph; each enters and leaves alone and has its own Verlet list."""

from __future__ import annotations

from dataclasses import replace

import ase
import jax
import numpy as np

from ase_mlip.force_field import ForceField, precision
from ase_mlip.graph import Graph, PadShape, batch, round_up
from ase_mlip.predictor import Prediction, compiled_interaction
from ase_mlip.structure import known_cell

ALL_PAIRS = 64  # atoms of an open structure up to which looking at all pairs is faster than cells


class MovingBatch:
    """A padded graph with seats: a structure takes a free seat and any free rows, and frees them when it leaves.

    The host holds the positions in float64; whoever integrates changes them in place. A structure's neighbours are
    searched again when one of its own atoms has moved by half the skin, so that what happens to a structure does not
    depend on when its companions move. Rows of a structure ascend in the order of its atoms, and so do sums over them.

    Args:
        force_field: cut down to the elements in use.
        level: which level predicts; the newest by default.
        shape: seats, rows and slots; see `reshape`.
        dtype: "float32" or "float64", of the model.
        skin: Angstrom by which the neighbour lists reach beyond the cutoff.

    Attributes:
        shape: as it is now; the slots grow when a structure gets more neighbours.
        positions: [rows, 3] Angstrom; those of free rows have no meaning.
        seat_of: [rows] the seat that a row belongs to; `shape.graphs` for a free row.
        atoms: the structure on each seat, None where it is free; their positions lag behind.
        rebuilds: how many neighbour lists were made.
    """

    def __init__(
        self, force_field: ForceField, level: str | None, shape: PadShape, dtype: str = "float32", skin: float = 0.3
    ):
        self.force_field, self.dtype, self.skin = force_field, dtype, float(skin)
        self.head_weights = force_field.predictor.head_weights(level)
        self.shape = shape
        self.atoms: list[ase.Atoms | None] = [None] * shape.graphs
        self.rebuilds = 0
        self._graph = self._blank(shape)
        self.positions, self.seat_of = self._graph.positions, self._graph.node_graph
        self._listed = self.positions.copy()  # where the neighbour lists were made
        self._device: Graph | None = None  # what does not change at each step, on the device

    @property
    def seats(self) -> list[int]:
        """Seats that are taken, ascending."""
        return [seat for seat, atoms in enumerate(self.atoms) if atoms is not None]

    @property
    def free_rows(self) -> int:
        """How many rows are free."""
        return int(np.count_nonzero(self.seat_of == self.shape.graphs))

    def rows(self, seat: int) -> np.ndarray:
        """Rows of a seat's atoms, ascending."""
        return np.flatnonzero(self.seat_of == seat)

    def has_room(self, atoms: int) -> bool:
        """Whether a structure of so many atoms can enter now."""
        return None in self.atoms and atoms <= self.free_rows

    def enter(self, atoms: ase.Atoms) -> int:
        """Seat a structure that `check_structure` has passed, and of which a copy is kept; returns the seat."""
        seat = self.atoms.index(None)
        rows = self.rows(self.shape.graphs)[: len(atoms)]
        if len(rows) < len(atoms):
            raise ValueError(f"{len(atoms)} atoms do not fit into {len(rows)} free rows: ask `has_room` first")
        self._list_neighbors(seat, rows, atoms)
        self.atoms[seat] = atoms.copy()
        self.seat_of[rows] = seat
        return seat

    def leave(self, seat: int) -> None:
        """Free a seat and its rows."""
        rows = self.rows(seat)
        self._graph.neighbors[rows] = rows[:, None]
        self._graph.slot_mask[rows] = False
        self._graph.cell[seat] = 0.0
        self.positions[rows] = 0.0  # it may have left because they were not finite
        self.seat_of[rows] = self.shape.graphs
        self.atoms[seat], self._device = None, None

    def reshape(self, shape: PadShape) -> tuple[np.ndarray, np.ndarray]:
        """Change the numbers of seats, rows and slots; those that are taken move to the front.

        Returns:
            Rows and seats that were taken, in the order in which they are now the first ones.

        Raises:
            ValueError: the structures do not fit.
        """
        old, rows, seats = self._graph, np.flatnonzero(self.seat_of < self.shape.graphs), np.array(self.seats, int)
        needed = PadShape(len(seats), len(rows), self.shape.slots)
        if not shape.holds(needed):
            raise ValueError(f"structures that need {needed} do not fit into {shape}: choose a larger shape")
        new_row, new_seat = np.zeros(self.shape.nodes, np.int32), np.zeros(self.shape.graphs, np.int32)
        new_row[rows], new_seat[seats] = np.arange(len(rows)), np.arange(len(seats))
        graph, here, slots = self._blank(shape), slice(len(rows)), slice(self.shape.slots)
        graph.positions[here] = old.positions[rows]
        graph.species[here] = old.species[rows]
        graph.neighbors[here, slots] = new_row[old.neighbors[rows]]
        graph.shifts[here, slots] = old.shifts[rows]
        graph.slot_mask[here, slots] = old.slot_mask[rows]
        graph.node_graph[here] = new_seat[self.seat_of[rows]]
        graph.cell[: len(seats)] = old.cell[seats]
        listed = graph.positions.copy()
        listed[here] = self._listed[rows]
        taken = [self.atoms[seat] for seat in seats]
        self.atoms = taken + [None] * (shape.graphs - len(taken))
        self.shape, self._graph, self._listed, self._device = shape, graph, listed, None
        self.positions, self.seat_of = graph.positions, graph.node_graph
        return rows, seats

    def evaluate(self) -> Prediction:
        """Total energies, forces and stress of all seats where their atoms are now, float64 on the host.

        Forces of free rows are zero. What is not finite stays with its own structure.
        """
        self._renew_lists()
        force_field = self.force_field
        with precision(self.dtype):
            if self._device is None:
                self._device = jax.device_put(self._graph.astype(self.dtype))
            graph = self._device.moved(self.positions, self._graph.cell)
            prediction = compiled_interaction(*force_field.prepared(self.dtype), graph, False)
            prediction = jax.tree.map(np.asarray, prediction)
        total = force_field.predictor.add_reference(self._graph, prediction)
        forces = np.where((self.seat_of < self.shape.graphs)[:, None], np.asarray(total.forces, np.float64), 0.0)
        return replace(total, forces=forces, stress=np.asarray(total.stress, np.float64))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over the atoms of each seat: [rows] -> [seats + 1]; the last one is for free rows."""
        return np.bincount(self.seat_of, values, minlength=self.shape.graphs + 1)

    def max(self, values: np.ndarray) -> np.ndarray:
        """Largest over the atoms of each seat, at least zero, NaN where one is: [rows] -> [seats + 1]."""
        out = np.zeros(self.shape.graphs + 1)
        np.maximum.at(out, self.seat_of, values)
        return out

    def _blank(self, shape: PadShape) -> Graph:
        """A padded graph without structures; every seat has the level's head weights."""
        force_field = self.force_field
        nothing = Graph.from_atoms(ase.Atoms(), force_field.elements, force_field.cutoff, self.head_weights)
        blank = batch([nothing], shape)
        return replace(
            blank,
            shifts=blank.shifts.astype(np.float32),  # whole numbers: half the memory, no bit lost
            head_weights=np.tile(np.asarray(self.head_weights, float), (shape.graphs, 1)),
        )

    def _renew_lists(self) -> None:
        """Search neighbours again for the structures of which an atom has moved too far."""
        moved = ((self.positions - self._listed) ** 2).sum(axis=1) > (0.5 * self.skin) ** 2
        for seat in np.unique(self.seat_of[moved]).tolist():
            atoms = self.atoms[seat] if seat < self.shape.graphs else None
            if atoms is not None:
                rows = self.rows(seat)
                atoms.positions = self.positions[rows]
                self._list_neighbors(seat, rows, atoms)

    def _list_neighbors(self, seat: int, rows: np.ndarray, atoms: ase.Atoms) -> None:
        """Write a structure's own graph into its rows."""
        force_field = self.force_field
        reach = force_field.cutoff + self.skin
        if atoms.pbc.any() or len(atoms) > ALL_PAIRS:
            own = Graph.from_atoms(atoms, force_field.elements, reach, self.head_weights)
            neighbors, shifts, mask = own.neighbors, own.shifts, own.slot_mask
        else:
            neighbors, mask = near_pairs(atoms.positions, reach)
            shifts = np.zeros((*mask.shape, 3))
        slots = mask.shape[1]
        if slots > self.shape.slots:
            self._widen(round_up(slots))
        graph = self._graph
        graph.positions[rows] = self._listed[rows] = atoms.positions
        graph.species[rows] = np.searchsorted(force_field.elements, atoms.numbers)
        graph.neighbors[rows] = rows[:, None]
        graph.neighbors[rows, :slots] = rows[neighbors]
        graph.shifts[rows] = 0.0
        graph.shifts[rows, :slots] = shifts
        graph.slot_mask[rows] = False
        graph.slot_mask[rows, :slots] = mask
        graph.cell[seat] = known_cell(atoms)
        self._device = None
        self.rebuilds += 1

    def _widen(self, slots: int) -> None:
        """More slots; rows and seats stay where they are."""
        old, self.shape = self._graph, replace(self.shape, slots=slots)
        more = ((0, 0), (0, slots - old.neighbors.shape[1]))
        own_row = np.repeat(np.arange(self.shape.nodes, dtype=np.int32)[:, None], more[1][1], axis=1)
        self._graph = replace(
            old,
            neighbors=np.concatenate([old.neighbors, own_row], axis=1),
            shifts=np.pad(old.shifts, (*more, (0, 0))),
            slot_mask=np.pad(old.slot_mask, more),
        )


def near_pairs(positions: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours closer than `reach` in an open structure, by looking at all pairs.

    Args:
        positions: [nodes, 3] Angstrom.
        reach: Angstrom.

    Returns:
        neighbors and mask [nodes, slots]; what the mask leaves out points at its own row.
    """
    near = ((positions[:, None] - positions) ** 2).sum(axis=2) < reach**2
    np.fill_diagonal(near, False)
    slots = int(near.sum(axis=1).max())
    first = np.argsort(~near, axis=1, kind="stable")[:, :slots]
    mask = np.take_along_axis(near, first, axis=1)
    return np.where(mask, first, np.arange(len(positions))[:, None]), mask
