"""Batches: every example once, in few fixed shapes, with padding that no mask lets through."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from ase_mlip.batches import Batches
from ase_mlip.dataset import Example, LabelKeys, make_examples

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


def test_more_shapes_waste_less(examples: list[Example]) -> None:
    def slots(max_shapes: int) -> int:
        return sum(batch.graph.slot_mask.size for batch in Batches(examples, 4, max_shapes).epoch(None))

    assert slots(3) < slots(1)


def test_batch_size_must_be_positive(examples: list[Example]) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        Batches(examples, 0)
