"""Fixed-shape batches of labelled structures."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from queue import Empty, Queue
from threading import Event, Thread, current_thread
from typing import Any, TypeVar

import numpy as np

from ase_mlip.dataset import Example, Targets
from ase_mlip.graph import PadShape, batch, round_up

Item = TypeVar("Item")
Ready = TypeVar("Ready")

OPEN = 8  # batches that are filled side by side


def join_examples(examples: Sequence[Example], shape: PadShape) -> Example:
    """Join examples into one of fixed shape; all masks of the padding are False."""
    graph = batch([example.graph for example in examples], shape)

    def join(name: str, length: int) -> np.ndarray:
        parts = [getattr(example.targets, name) for example in examples]
        joined = np.concatenate(parts)
        return np.concatenate([joined, np.zeros((length - len(joined), *joined.shape[1:]), joined.dtype)])

    graphs, nodes = shape.graphs, shape.nodes
    return Example(
        graph,
        Targets(
            energy=join("energy", graphs),
            forces=join("forces", nodes),
            stress=join("stress", graphs),
            energy_mask=join("energy_mask", graphs),
            forces_mask=join("forces_mask", nodes),
            stress_mask=join("stress_mask", graphs),
            weight=join("weight", graphs),
        ),
    )


class Batches:
    """Packs examples into batches of a few fixed shapes.

    Examples are grouped by their largest number of neighbours, each group with its own shape, so that small molecules
    do not pay for the slots of large ones. Within a group a batch is filled until its graphs, nodes or pairs are full.
    The examples may lie on disk: only their sizes are kept here, and a batch's examples are read when it is made.

    Args:
        examples: what to pack.
        batch_size: graphs in a batch, at most.
        max_shapes: groups, at most; each shape costs one compilation, so that one which would save less than a
            twentieth of the work is not made.

    Attributes:
        examples: as given.
        groups: the pad shape and the examples' numbers of each group, by ascending slots.

    Raises:
        ValueError: no examples, or a batch size below 1.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, max_shapes: int = 1):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: give a whole number of at least 1")
        if not examples:
            raise ValueError("there are no examples to make batches of; give at least one")
        self.examples = examples
        shapes = [example.graph.shape for example in examples]
        slots = np.array([shape.slots for shape in shapes])
        self._sizes = np.array([(shape.nodes, shape.pairs) for shape in shapes])
        limits = slot_limits(self._sizes[:, 0], slots, max_shapes)
        group = np.searchsorted(limits, slots)
        self.groups: list[tuple[PadShape, np.ndarray]] = []
        for number, limit in enumerate(limits):
            members = np.flatnonzero(group == number)
            # room for batch_size graphs of mean size, and for the largest one
            size, sizes = min(batch_size, len(members)), self._sizes[members]
            nodes, pairs = np.maximum(sizes.max(axis=0), np.ceil(size * sizes.mean(axis=0))).astype(int)
            self.groups.append((PadShape(size, int(nodes), limit, int(pairs)).rounded(), members))

    @property
    def shapes(self) -> list[PadShape]:
        """Pad shapes in use."""
        return [shape for shape, _ in self.groups]

    def plan(self, seed: Sequence[int] | None) -> list[tuple[PadShape, list[int]]]:
        """The shape of each batch of an epoch and the numbers of the examples in it.

        Shuffled if a seed is given, with a batch of the largest shape first: if memory does not suffice, that shows at
        once. In order otherwise.
        """
        if seed is None:
            return [plan for shape, members in self.groups for plan in self._fill(shape, members, 1)]
        rng = np.random.default_rng(list(seed))
        plans = [plan for shape, members in self.groups for plan in self._fill(shape, rng.permutation(members), OPEN)]
        order = rng.permutation(len(plans)).tolist()
        largest = max(order, key=lambda number: plans[number][0].nodes * plans[number][0].slots)
        order.remove(largest)
        return [plans[number] for number in (largest, *order)]

    def _fill(self, shape: PadShape, members: np.ndarray, most: int) -> Iterator[tuple[PadShape, list[int]]]:
        """Put each member into the first batch with room; of more than `most` batches begun, the fullest is closed."""
        begun: list[list[int]] = []
        room: list[tuple[int, int]] = []  # nodes and pairs left in each
        for index, (nodes, pairs) in zip(members.tolist(), self._sizes[members].tolist(), strict=True):
            fitting = (number for number, left in enumerate(room) if nodes <= left[0] and pairs <= left[1])
            place = next(fitting, len(begun))
            if place == most:
                fullest = room.index(min(room))
                yield shape, begun.pop(fullest)
                room.pop(fullest)
                place -= 1
            if place == len(begun):
                begun.append([])
                room.append((shape.nodes, shape.pairs))
            begun[place].append(index)
            room[place] = (room[place][0] - nodes, room[place][1] - pairs)
            if len(begun[place]) == shape.graphs:
                yield shape, begun.pop(place)
                room.pop(place)
        yield from ((shape, held) for held in begun)

    def epoch(self, seed: Sequence[int] | None) -> Iterator[Example]:
        """All examples once, in batches as planned."""
        for shape, indices in self.plan(seed):
            yield join_examples([self.examples[i] for i in indices], shape)


def slot_limits(nodes: np.ndarray, slots: np.ndarray, most: int) -> list[int]:
    """Where to cut the examples into at most `most` groups by slots, such that the padded tables are smallest.

    The table of an example has nodes times its group's largest slots; the least sum over all examples is found by
    dynamic programming over the slots that occur, rounded up as pad shapes are.

    Returns:
        The slots of each group, ascending.
    """
    rounded = np.array([round_up(count) for count in range(int(slots.max()) + 1)])[slots]
    values, place = np.unique(rounded, return_inverse=True)
    before = np.concatenate([[0.0], np.cumsum(np.bincount(place.ravel(), nodes))])  # nodes in the first values

    @cache
    def least(count: int, groups: int) -> tuple[float, tuple[int, ...]]:
        """Least sum over the first `count` values in at most so many groups, and the groups' largest slots."""
        largest = int(values[count - 1])
        options: list[tuple[float, tuple[int, ...]]] = [(before[count] * largest, (largest,))]
        for cut in range(1, count if groups > 1 else 1):
            total, limits = least(cut, groups - 1)
            options.append((total + (before[count] - before[cut]) * largest, (*limits, largest)))
        return min(options)

    total, limits = least(len(values), 1)
    for groups in range(2, most + 1):
        less, more_limits = least(len(values), groups)
        if less > 0.95 * total:
            break
        total, limits = less, more_limits
    return list(limits)


def prefetch(items: Iterable[Item], function: Callable[[Item], Ready], depth: int = 2) -> Generator[Ready, None, None]:
    """What `function` makes of each item, in order, made ahead in a thread of its own.

    The consumer's device does not wait for the host this way. Close the generator, or let go of it, to end the thread
    early.

    Args:
        items: taken one by one, in the thread.
        function: called with each, in the thread.
        depth: results that wait to be taken, at most; one more is in the making.

    Raises:
        Exception: whatever `items` or `function` raised, once the results before it are taken.
    """
    results: Queue[tuple[bool, Any]] = Queue(depth)
    closed = Event()

    def work() -> None:
        end: BaseException | None = None
        try:
            for item in items:
                if closed.is_set():
                    return
                results.put((True, function(item)))
        except BaseException as error:
            end = error
        if not closed.is_set():
            results.put((False, end))

    thread = Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, result = results.get()
            if not more:
                break
            yield result
    finally:
        closed.set()
        # what the thread may be about to put finds room now; before another it looks at `closed`
        with suppress(Empty):
            while True:
                results.get_nowait()
        if thread is not current_thread():  # a garbage collector may run in any thread
            thread.join()
    if result is not None:
        raise result
