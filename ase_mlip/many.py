"""Many structures, one device: who is computed when, so that the batch stays full and shapes stay few."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import ase
import jax
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from ase_mlip.batches import slot_limits
from ase_mlip.cache import keep_compiled
from ase_mlip.force_field import ForceField, precision
from ase_mlip.graph import PadShape, round_up
from ase_mlip.moving import MovingBatch
from ase_mlip.predictor import Prediction
from ase_mlip.structure import InvalidStructure, find_neighbors, overlapping_pair, symbol_of

ATOMS_AT_ONCE = {"cpu": 256}  # on two cores 64 take an eighth longer per atom, 1024 leave the cache and take half more
ATOMS_AT_ONCE_ELSEWHERE = 16384
COMPILATION = 100  # evaluations of a full batch that take as long as one compilation, roughly


@dataclass(frozen=True)
class Group:
    """Structures that share a pad shape."""

    shape: PadShape
    numbers: list[int]  # in the order in which they enter


@dataclass(frozen=True)
class Intake:
    """What is known of the structures before anything is predicted.

    Attributes:
        groups: those that can be computed, by ascending slots.
        problems: number and reason of those that cannot.
        force_field: cut down to the elements of the groups.
    """

    groups: list[Group]
    problems: dict[int, str]
    force_field: ForceField


def ready_model(force_field: ForceField | str | os.PathLike[str], level: str | None, dtype: str) -> ForceField:
    """The model, loaded if it is a name or a file.

    Raises:
        ValueError: a level or dtype that does not exist.
    """
    keep_compiled()
    model = force_field if isinstance(force_field, ForceField) else ForceField.load(force_field)
    model.predictor.find_level(level)
    with precision(dtype):
        return model


def take_in(
    force_field: ForceField,
    level: str | None,
    frames: Sequence[ase.Atoms],
    numbers: Iterable[int],
    skin: float,
    batch_size: int | None,
) -> Intake:
    """Check structures and plan the shapes that hold them.

    Args:
        force_field: the model.
        level: of the model; the newest by default.
        frames: all structures.
        numbers: of those that are to be computed.
        skin: Angstrom by which neighbour lists reach beyond the cutoff.
        batch_size: structures at once, at most; by default as many as the device computes best.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give a whole number of at least 1")
    problems, sizes, elements = dict[int, str](), dict[int, tuple[int, int]](), set[int]()
    for number in numbers:
        atoms = frames[number]
        try:
            force_field.check(atoms, level)
        except InvalidStructure as error:
            problems[number] = str(error)
            continue
        if len(atoms) == 0:
            problems[number] = "it has no atoms"
            continue
        centers, _, _ = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, force_field.cutoff + skin)
        sizes[number] = len(atoms), int(np.max(np.bincount(centers, minlength=1)))
        elements.update(atoms.numbers.tolist())
    groups = _plan(sizes, batch_size) if sizes else []
    return Intake(groups, problems, force_field.for_elements(elements) if elements else force_field)


def _plan(sizes: dict[int, tuple[int, int]], batch_size: int | None) -> list[Group]:
    """Groups by slots; largest structures first, since they tend to take longest.

    By default the shapes are powers of two, so that other sets of structures find them compiled.
    """
    numbers = np.array(list(sizes))
    nodes, slots = np.array(list(sizes.values())).T
    at_once = ATOMS_AT_ONCE.get(jax.default_backend(), ATOMS_AT_ONCE_ELSEWHERE)
    limits = slot_limits(nodes, slots, min(3, 1 + int(nodes.sum()) // (10 * at_once)))
    group, found = np.searchsorted(limits, slots), []
    for place, limit in enumerate(limits):
        members = np.flatnonzero(group == place)
        members = members[np.argsort(-nodes[members], kind="stable")]
        largest, total = int(nodes[members[0]]), int(nodes[members].sum())
        if batch_size is None:
            room = max(power_of_two(largest), min(at_once, power_of_two(total)))
            shape = PadShape(max(room // 4, 1), room, limit)
        else:
            size = min(batch_size, len(members))
            shape = PadShape(size, round_up(max(largest, int(np.ceil(size * total / len(members))))), limit)
        found.append(Group(shape, numbers[members].tolist()))
    return found


def power_of_two(count: int) -> int:
    """The least power of two that is not below `count`."""
    return 1 << max(count - 1, 0).bit_length()


class Motion(ABC):
    """How the structures of a batch move: an optimiser or an integrator, with the state of every seat.

    Attributes:
        batch: the structures.
        number: [seats + 1] which structure sits there.
        steps: [seats + 1] steps it has done.
        fresh: [seats + 1] whether it has not been evaluated yet.
    """

    per_row: tuple[str, ...] = ()  # names of the attributes that are arrays with one item for each row
    per_seat: tuple[str, ...] = ("number", "steps", "fresh")  # and for each seat; the last item is for free rows

    def __init__(self, batch: MovingBatch):
        self.batch = batch
        seats = batch.shape.graphs + 1
        self.number, self.steps, self.fresh = np.zeros(seats, int), np.zeros(seats, int), np.ones(seats, bool)

    @abstractmethod
    def enter(self, number: int) -> None:
        """Seat the structure of that number."""

    @abstractmethod
    def advance(self, prediction: Prediction) -> None:
        """Move everyone, given the forces where they are; those that are done leave the batch."""

    def seat(self, number: int, atoms: ase.Atoms) -> int:
        """Put a structure on a free seat, with zeros as its state."""
        seat = self.batch.enter(atoms)
        rows = self.batch.rows(seat)
        for name in self.per_row:
            getattr(self, name)[rows] = 0
        for name in self.per_seat:
            getattr(self, name)[seat] = 0
        self.number[seat], self.fresh[seat] = number, True
        return seat

    def reshape(self, shape: PadShape) -> None:
        """Give the batch another shape."""
        if shape == self.batch.shape:
            return
        rows, seats = self.batch.reshape(shape)
        for names, kept, length in ((self.per_row, rows, shape.nodes), (self.per_seat, seats, shape.graphs + 1)):
            for name in names:
                old = getattr(self, name)
                new = np.zeros((length, *old.shape[1:]), old.dtype)
                new[: len(kept)] = old[kept]
                setattr(self, name, new)


def keep_full(motion: Motion, frames: Sequence[ase.Atoms], groups: Sequence[Group]) -> None:
    """Evaluate and move until every structure of the groups is done; whoever leaves makes room for the next.

    The stragglers of a group go on among the structures of the next one, and those of the last in a smaller batch, once
    the empty rows have cost as much as the compilation of one.
    """
    batch = motion.batch
    for place, group in enumerate(groups):
        motion.reshape(_holding(group.shape, batch))
        waiting, last, wasted = deque(group.numbers), place == len(groups) - 1, 0.0
        while waiting or (last and batch.seats):
            while waiting and batch.has_room(len(frames[waiting[0]])):
                motion.enter(waiting.popleft())
            if not waiting:
                if not last:
                    break
                empty = batch.free_rows / batch.shape.nodes
                wasted += empty
                if empty >= 0.75 and wasted > COMPILATION:
                    motion.reshape(_quarter(batch))
                    wasted = 0.0
            motion.advance(batch.evaluate())


def _holding(shape: PadShape, batch: MovingBatch) -> PadShape:
    """The shape, enlarged where those who are seated already need more."""
    taken = batch.shape.nodes - batch.free_rows
    return PadShape(
        max(shape.graphs, len(batch.seats)),
        max(shape.nodes, round_up(taken)),
        max(shape.slots, batch.shape.slots if batch.seats else 0),
    )


def _quarter(batch: MovingBatch) -> PadShape:
    """A batch of a quarter of the rows, which those who are seated fill at most."""
    shape = batch.shape
    return replace(shape, graphs=max(len(batch.seats), shape.graphs // 4), nodes=round_up(shape.nodes // 4))


def with_results(atoms: ase.Atoms, energy: float, forces: np.ndarray, stress: np.ndarray) -> ase.Atoms:
    """Attach energy, forces [atoms, 3] and, where the structure has a volume, stress [3, 3], as ASE keeps them."""
    results = {"energy": float(energy), "free_energy": float(energy), "forces": np.array(forces)}
    if atoms.pbc.any() and atoms.cell.rank == 3:
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def explain(atoms: ase.Atoms) -> str:
    """Why a prediction is not finite, in words."""
    if np.isfinite(atoms.positions).all() and (pair := overlapping_pair(atoms)):
        first, second = (f"{symbol_of(atoms.numbers[i])} {i}" for i in pair[:2])
        return f"the atoms {first} and {second} lie on top of each other"
    return "energy or forces are not finite"
