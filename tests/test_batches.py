"""Batches: every example once, in few fixed shapes, with padding that no mask lets through."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from ase_mlip.batches import Batches, prefetch, slot_limits
from ase_mlip.dataset import Example, LabelKeys, make_examples
from ase_mlip.graph import round_up
from ase_mlip.spill import SpilledList

COUNT = 23


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Clusters of 1 to 9 atoms, each known by its energy."""
    rng = np.random.default_rng(0)
    frames = []
    for number in range(COUNT):
        size = 1 + number % 9
        grid = np.array([[i % 3, i // 3, 0] for i in range(size)], float)
        atoms = ase.Atoms(["H", "O"][number % 2] + f"H{size - 1}" * (size > 1), positions=grid)
        forces = rng.normal(size=(size, 3)) + 10
        atoms.calc = SinglePointCalculator(atoms, energy=float(number), forces=forces)
        frames.append(atoms)
    return make_examples(frames, (1, 8), 1.8, np.ones(2), LabelKeys(), weight=0.7)


def energies(batch: Example) -> list[float]:
    """The labels of the graphs that are no padding, which tell who is in a batch."""
    return batch.targets.energy[batch.targets.energy_mask].tolist()


@pytest.mark.parametrize("max_shapes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
@pytest.mark.parametrize("seed", [None, (0, 3)])
def test_every_example_once(examples: list[Example], batch_size: int, max_shapes: int, seed: tuple | None) -> None:
    batches = Batches(examples, batch_size, max_shapes)
    assert len(batches.shapes) <= max_shapes
    seen = []
    for batch in batches.epoch(seed):
        assert batch.graph.shape in batches.shapes
        found = energies(batch)
        assert 0 < len(found) <= batch_size
        seen += found
    assert sorted(seen) == list(range(COUNT))
    if seed is None and max_shapes == 1:
        assert seen == list(range(COUNT))


@pytest.mark.parametrize("max_shapes", [1, 3])
def test_padding_is_masked_and_content_kept(examples: list[Example], max_shapes: int) -> None:
    for batch in Batches(examples, 4, max_shapes).epoch((1,)):
        graph, targets = batch.graph, batch.targets
        graphs, nodes, _ = shape = (graph.shape.graphs, graph.shape.nodes, graph.shape.slots)
        assert targets.energy.shape == targets.energy_mask.shape == targets.weight.shape == (graphs,)
        assert targets.forces.shape == (nodes, 3), shape
        assert targets.stress.shape == (graphs, 3, 3)
        members = [examples[int(energy)] for energy in energies(batch)]
        real = sum(len(member.graph.species) for member in members)
        np.testing.assert_array_equal(targets.forces_mask, np.arange(nodes) < real)
        np.testing.assert_array_equal(targets.energy_mask, np.arange(graphs) < len(members))
        np.testing.assert_array_equal(targets.weight, 0.7 * (np.arange(graphs) < len(members)))
        assert not targets.stress_mask.any()
        assert not targets.forces[real:].any()
        np.testing.assert_array_equal(targets.forces[:real], np.concatenate([m.targets.forces for m in members]))
        np.testing.assert_array_equal(graph.positions[:real], np.concatenate([m.graph.positions for m in members]))
        assert (graph.node_graph[real:] == graphs).all()
        assert not graph.slot_mask[real:].any()
        assert graph.slot_mask.sum() == sum(m.graph.slot_mask.sum() for m in members)


def test_shuffles_differ_by_epoch_and_repeat(examples: list[Example]) -> None:
    batches = Batches(examples, 4, 2)

    def order(seed: tuple[int, int]) -> list[list[float]]:
        return [energies(batch) for batch in batches.epoch(seed)]

    assert order((0, 1)) == order((0, 1))
    assert order((0, 1)) != order((0, 2))
    assert order((0, 1)) != order((1, 1))
    # who is together changes too, not only the order of fixed batches
    assert {frozenset(batch) for batch in order((0, 1))} != {frozenset(batch) for batch in order((0, 2))}


@pytest.mark.parametrize("max_shapes", [1, 2])
def test_the_largest_shape_comes_first(examples: list[Example], max_shapes: int) -> None:
    batches = Batches(examples, 2, max_shapes)
    sizes = [shape.nodes * shape.slots for shape in batches.shapes]
    assert len(sizes) == max_shapes
    for seed in range(20):
        shape, members = batches.plan((seed, 0))[0]
        assert shape.nodes * shape.slots == max(sizes)
        assert members
    firsts = [tuple(batches.plan((seed, 0))[0][1]) for seed in range(20)]
    assert len(set(firsts)) > 5


def test_the_plan_is_the_epoch(examples: list[Example]) -> None:
    batches = Batches(examples, 4, 3)
    for seed in (None, (5, 2)):
        plan = batches.plan(seed)
        assert [energies(batch) for batch in batches.epoch(seed)] == [[float(i) for i in held] for _, held in plan]
        assert [batch.graph.shape for batch in batches.epoch(seed)] == [shape for shape, _ in plan]


def test_examples_on_disk_give_the_same_batches(examples: list[Example]) -> None:
    on_disk, in_memory = (Batches(e, 4, 3).epoch((1,)) for e in (SpilledList(examples), examples))
    for first, second in zip(on_disk, in_memory, strict=True):
        for part in ("graph", "targets"):
            for name, array in vars(getattr(first, part)).items():
                np.testing.assert_array_equal(array, getattr(getattr(second, part), name))


@pytest.mark.parametrize("most", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_limits_are_the_best_there_are(seed: int, most: int) -> None:
    """Against a search through all ways to cut."""
    rng = np.random.default_rng(seed)
    slots = rng.integers(0, 40, 30)
    nodes = rng.integers(1, 20, 30)
    padded = np.array([round_up(int(count)) for count in slots])

    def table(limits: tuple[int, ...]) -> int:
        return int(np.sum(nodes * np.array(limits)[np.searchsorted(limits, padded)]))

    values = sorted(set(padded.tolist()))
    least = [
        min(table((*cuts, values[-1])) for cuts in itertools.combinations(values[:-1], groups - 1))
        for groups in range(1, most + 1)
    ]
    found = slot_limits(nodes, slots, most)
    assert table(tuple(found)) == least[len(found) - 1]
    # one more shape would not have saved a twentieth
    assert len(found) == most or least[len(found)] > 0.95 * least[len(found) - 1]


def test_equal_examples_share_one_shape(examples: list[Example]) -> None:
    assert len(Batches([examples[4]] * 9, 4, 4).shapes) == 1


def test_no_examples(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="no examples"):
        Batches(examples[:0], 4)


def test_more_shapes_waste_less(examples: list[Example]) -> None:
    def slots(max_shapes: int) -> int:
        return sum(batch.graph.slot_mask.size for batch in Batches(examples, 4, max_shapes).epoch(None))

    assert slots(3) < slots(1)


def test_batch_size_must_be_positive(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        Batches(examples, 0)


def prefetch_threads() -> list[threading.Thread]:
    """Those alive."""
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("depth", [1, 2, 50])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_prefetch_is_a_map_in_another_thread(count: int, depth: int) -> None:
    found = list(prefetch(iter(range(count)), lambda n: (n * n, threading.current_thread()), depth))
    assert [square for square, _ in found] == [n * n for n in range(count)]
    assert all(thread is not threading.current_thread() for _, thread in found)
    assert not prefetch_threads()


def test_prefetch_works_ahead_but_not_too_far() -> None:
    begun: list[int] = []
    done = prefetch(range(100), lambda n: begun.append(n) or n, depth=3)
    assert next(done) == 0
    deadline = time.monotonic() + 10
    while len(begun) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.05)
    assert begun == [0, 1, 2, 3, 4]  # one taken, three waiting, one in the making
    done.close()


@pytest.mark.parametrize("where", ["items", "function"])
def test_prefetch_raises_what_was_raised_after_what_was_made(where: str) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        if where == "items":
            raise OSError("gone")
        yield 3

    def function(number: int) -> int:
        if number == 3:
            raise OSError("gone")
        return number

    done = prefetch(items(), function)
    assert [next(done) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="gone"):
        next(done)
    assert not prefetch_threads()


@pytest.mark.parametrize("taken", [0, 1, 3])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("end", ["close", "forget", "raise"])
def test_an_abandoned_prefetch_ends_its_thread(end: str, depth: int, taken: int) -> None:
    for length in (4, 5, 6, 1000):
        done = prefetch(range(length), lambda n: n, depth)
        assert [next(done) for _ in range(taken)] == list(range(taken))
        if end == "close":
            done.close()
        elif end == "raise":
            with pytest.raises(KeyError):
                done.throw(KeyError())
        del done
        assert not prefetch_threads()
