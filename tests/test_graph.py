"""Neighbours, batching and the Verlet list, against a sum over images that shares no code with ours."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from conftest import CUTOFF, build_zoo

from ase_mlip import structure
from ase_mlip.graph import Graph, PadShape, batch, round_up
from ase_mlip.kernels.neighbor_list import available
from ase_mlip.neighbor_cache import NeighborCache
from ase_mlip.structure import InvalidStructure, find_neighbors, neighbor_table

ELEMENTS = (1, 6, 8, 29)
Pairs = set[tuple[int, ...]]


def image_pairs(atoms: ase.Atoms, cutoff: float) -> Pairs:
    """All (i, j, shift) closer than the cutoff: every image that could matter, one by one."""
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    spread = np.linalg.norm(np.ptp(atoms.positions, axis=0)) + cutoff
    # the pseudo-inverse bounds each whole number n_k by |r| / (height of the cell along k)
    reach = atoms.pbc * np.ceil(spread * np.linalg.norm(np.linalg.pinv(cell), axis=0)).astype(int)
    pairs = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        offsets = atoms.positions[None] - atoms.positions[:, None] + np.array(shift) @ cell
        close = np.linalg.norm(offsets, axis=-1) < cutoff
        if shift == (0, 0, 0):
            np.fill_diagonal(close, False)
        pairs |= {(int(i), int(j), *shift) for i, j in np.argwhere(close)}
    return pairs


def list_pairs(atoms: ase.Atoms, cutoff: float) -> list[tuple[int, ...]]:
    """The same from `find_neighbors`."""
    centers, neighbors, shifts = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    return [
        (int(i), int(j), *(int(n) for n in s)) for i, j, s in zip(centers, neighbors, np.round(shifts), strict=True)
    ]


def graph_pairs(graph: Graph, cutoff: float) -> Pairs:
    """The pairs of a graph that are within the cutoff at its present positions and cell."""
    offsets = graph.shifts @ graph.cell[0]
    vectors = graph.positions[graph.neighbors] - graph.positions[:, None] + offsets
    close = graph.slot_mask & (np.linalg.norm(vectors, axis=-1) < cutoff)
    return {
        (int(i), int(graph.neighbors[i, k]), *np.round(graph.shifts[i, k]).astype(int).tolist())
        for i, k in np.argwhere(close)
    }


def random_structure(seed: int) -> ase.Atoms:
    """Skewed cells of either hand, any periodicity, atoms anywhere, any vector or none along open axes."""
    rng = np.random.default_rng(seed)
    pbc = np.array([seed & 1, seed & 2, seed & 4], bool)
    cell = np.diag(rng.uniform(2.5, 6.0, 3)) + rng.uniform(-1.2, 1.2, (3, 3))
    if seed & 8:
        cell[0] *= -1
    if seed & 16:
        cell[~pbc] = cell[0] if seed & 32 and pbc[0] else 0.0
    count = int(rng.integers(1, 6))
    return ase.Atoms([29] * count, positions=rng.uniform(-9, 9, (count, 3)), cell=cell, pbc=pbc)


def table_pairs(atoms: ase.Atoms, cutoff: float) -> list[tuple[int, ...]]:
    """The same from `neighbor_table`; what is left of its rows must hold nothing."""
    neighbors, shifts, counts = neighbor_table(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    used = np.arange(neighbors.shape[1]) < counts[:, None]
    assert neighbors.shape[1] == counts.max()
    assert not shifts[~used].any()
    assert (neighbors == np.arange(len(atoms))[:, None])[~used].all()
    return [(int(i), int(neighbors[i, k]), *map(int, shifts[i, k])) for i, k in np.argwhere(used)]


@pytest.mark.parametrize("seed", range(64))
def test_neighbors_equal_sum_over_images(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pair missing, none twice, shifts right: for all eight periodicities, both hands, far unwrapped atoms."""
    atoms = random_structure(seed)
    expected = image_pairs(atoms, 3.7)
    assert available()
    ways = [list_pairs(atoms, 3.7), table_pairs(atoms, 3.7)]
    monkeypatch.setattr(structure, "available", lambda: False)
    ways.append(table_pairs(atoms, 3.7))
    for found in ways:
        assert len(found) == len(set(found))
        assert set(found) == expected


def test_neighbors_of_many_atoms_in_many_bins() -> None:
    """Enough atoms for bins of every kind, some of them in clumps that no uniform density foretells."""
    rng = np.random.default_rng(0)
    positions = np.concatenate([rng.uniform(-30, 30, (300, 3)), rng.normal(scale=1.5, size=(80, 3))])
    atoms = ase.Atoms([29] * 380, positions=positions, cell=np.diag([31.0, 29.0, 33.0]) + 2.0, pbc=(True, False, True))
    for cutoff in (0.8, 2.9, 7.3):
        found = table_pairs(atoms, cutoff)
        assert len(found) == len(set(found))
        assert set(found) == image_pairs(atoms, cutoff)


@pytest.mark.parametrize("name", build_zoo())
def test_graph_vectors(name: str) -> None:
    """Every structure of the zoo: vectors to the true neighbours, also without a three-dimensional cell."""
    atoms = build_zoo()[name]
    graph = Graph.from_atoms(atoms, ELEMENTS, CUTOFF)
    cell = np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    expected = sorted(
        np.linalg.norm(atoms.positions[i] + np.array(s) @ cell - atoms.positions[j])
        for j, i, *s in image_pairs(atoms, CUTOFF)
    )
    vectors = np.asarray(graph.vectors(CUTOFF))[graph.slot_mask]
    assert graph.slot_mask.sum() == len(expected)
    np.testing.assert_allclose(np.sort(np.linalg.norm(vectors, axis=-1)), expected, atol=1e-5)
    assert (np.array(ELEMENTS)[graph.species] == atoms.numbers).all()


@pytest.mark.parametrize("name", build_zoo())
def test_listed_pairs_are_both_directions_of_every_pair(name: str) -> None:
    """Each slot in use is one direction of one pair; the two are opposite vectors between their nodes."""
    graph = Graph.from_atoms(build_zoo()[name], ELEMENTS, CUTOFF).with_pairs()
    node, slot, back = graph.pairs.T
    neighbor = graph.neighbors[node, slot]
    used = [*zip(node, slot, strict=True), *zip(neighbor, back, strict=True)]
    assert sorted(used) == sorted(map(tuple, np.argwhere(graph.slot_mask)))
    assert (graph.neighbors[neighbor, back] == node).all()
    vectors = np.asarray(graph.vectors(CUTOFF))
    np.testing.assert_allclose(vectors[node, slot], -vectors[neighbor, back], atol=1e-5)


def test_listed_pairs_in_a_batch() -> None:
    """A padded batch lists the pairs of its graphs; every slot in use finds its own."""
    listed = [Graph.from_atoms(atoms, ELEMENTS, CUTOFF).with_pairs() for atoms in build_zoo().values()]
    exact = batch(listed)
    padded = batch(listed, replace(exact.shape, nodes=exact.shape.nodes + 3, pairs=exact.shape.pairs + 7))
    for graph in (exact, padded):
        first, rows = map(np.asarray, graph.pair_rows())
        count, slots = len(graph.pairs), graph.neighbors.shape[1]
        assert len(set(rows[graph.slot_mask])) == graph.slot_mask.sum() == 2 * exact.shape.pairs
        own = np.arange(graph.slot_mask.size).reshape(graph.slot_mask.shape)
        forward = graph.slot_mask & (rows < count)
        np.testing.assert_array_equal(first[rows[forward]], own[forward])
        vectors = np.asarray(graph.vectors(CUTOFF)).reshape(-1, 3)
        np.testing.assert_allclose(
            vectors[first[rows[graph.slot_mask] % count]] ** 2, vectors[own[graph.slot_mask]] ** 2
        )
        assert (first[exact.shape.pairs :] >= len(graph.species) * slots).all()


def test_pair_in_one_direction_alone() -> None:
    """Rounding may leave a pair at the cutoff in one row only; it is listed, without a way back."""
    graph = Graph.from_atoms(molecule("H2O"), ELEMENTS, CUTOFF)
    graph.slot_mask[2, 1] = False
    pairs = graph.with_pairs().pairs
    assert len(pairs) == 3
    assert (pairs[:, 2] == graph.slot_mask.shape[1]).sum() == 1
    first, rows = map(np.asarray, graph.with_pairs().pair_rows())
    assert len(set(rows[graph.slot_mask])) == 5
    assert len(first) == 3


def test_batch_wants_the_pairs_of_all_graphs_or_of_none() -> None:
    graph = Graph.from_atoms(molecule("H2O"), ELEMENTS, CUTOFF)
    with pytest.raises(ValueError, match=r"list theirs by `Graph\.with_pairs`"):
        batch([graph, graph.with_pairs()])
    assert len(batch([graph, graph.with_pairs()], PadShape(2, 6, 2)).pairs) == 0


def test_batch_pads_without_touching_the_graphs() -> None:
    """Each graph comes out of a padded batch as it went in; padding is masked and belongs to no graph."""
    singles = [Graph.from_atoms(atoms, ELEMENTS, CUTOFF, (1.0, 0.5)) for atoms in build_zoo().values()]
    nodes, slots = sum(g.shape.nodes for g in singles), max(g.shape.slots for g in singles)
    padded = batch(singles, PadShape(len(singles) + 2, nodes + 5, slots + 3))
    assert batch(singles).shape == PadShape(len(singles), nodes, slots)
    start = 0
    for number, graph in enumerate(singles):
        count, width = graph.slot_mask.shape
        rows = slice(start, start + count)
        np.testing.assert_array_equal(padded.neighbors[rows, :width] - start, graph.neighbors)
        np.testing.assert_array_equal(padded.shifts[rows, :width], graph.shifts)
        np.testing.assert_array_equal(padded.slot_mask[rows].sum(), graph.slot_mask.sum())
        np.testing.assert_array_equal(padded.positions[rows], graph.positions)
        np.testing.assert_array_equal(padded.species[rows], graph.species)
        assert (padded.node_graph[rows] == number).all()
        np.testing.assert_array_equal(padded.cell[number], graph.cell[0])
        np.testing.assert_array_equal(padded.head_weights[number], [1.0, 0.5])
        start += count
    assert (padded.node_graph[start:] == padded.num_graphs).all()
    assert not padded.slot_mask[start:].any()
    lengths = np.linalg.norm(np.asarray(padded.vectors(CUTOFF)), axis=-1)
    np.testing.assert_allclose(lengths[~padded.slot_mask], CUTOFF, rtol=1e-6)


def test_batch_that_does_not_fit() -> None:
    """The error says what is needed and what was given."""
    graph = Graph.from_atoms(bulk("Cu", cubic=True), ELEMENTS, CUTOFF)
    with pytest.raises(ValueError, match=r"nodes=4, slots=12.* do not fit into .*nodes=3"):
        batch([graph], PadShape(1, 3, 12))


def test_pad_shape_rounding() -> None:
    """Buckets hold what they are for, waste at most 4 or an eighth, grow with the size, and are few."""
    sizes = [round_up(n) for n in range(5000)]
    assert all(n <= size <= max(n + 4, n * 1.125) for n, size in enumerate(sizes))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 80
    assert all(round_up(size) == size for size in sizes)
    assert PadShape(2, 21, 100).rounded() == PadShape(2, 24, 104)
    assert PadShape(1, 4, 4).holds(PadShape(1, 4, 4))
    assert not PadShape(1, 4, 4).holds(PadShape(1, 4, 5))
    assert PadShape(1, 4, 4, 21).rounded() == PadShape(1, 4, 4, 24)
    assert PadShape(1, 4, 4).holds(PadShape(1, 4, 4, 9))
    assert not PadShape(1, 4, 4, 8).holds(PadShape(1, 4, 4, 9))


def test_astype_casts_real_numbers_only() -> None:
    """Indices and masks keep their types."""
    graph = Graph.from_atoms(bulk("Cu"), ELEMENTS, CUTOFF)
    single = graph.astype("float32")
    for field in fields(Graph):
        before, after = getattr(graph, field.name).dtype, getattr(single, field.name).dtype
        assert after == (np.float32 if before == np.float64 else before)


@pytest.mark.parametrize("strain", ["none", "random", "compression"])
@pytest.mark.parametrize("name", ["bulk", "primitive", "left_handed", "slab", "sheet", "wire", "molecule"])
def test_cache_never_misses_a_pair(name: str, strain: str) -> None:
    """Random walks and cell strains: exactly the true pairs are in the list at every step, and it does stand."""
    atoms, cutoff, steps = build_zoo()[name], 3.4, 60
    rng = np.random.default_rng(5)
    cache = NeighborCache(ELEMENTS, cutoff, skin=0.5)
    for _ in range(steps):
        deformation = np.eye(3)
        if strain == "compression":  # the list must fail by strain alone
            deformation[1, 1] = 0.99
        else:
            atoms.positions += rng.normal(0, 0.03, atoms.positions.shape)
        if strain == "random":
            deformation += rng.normal(0, 0.004, (3, 3))
        atoms.set_cell(atoms.cell.array @ deformation, scale_atoms=atoms.cell.rank > 0)
        graph = cache.update(atoms, (1.0,))
        assert graph_pairs(graph, cutoff) == image_pairs(atoms, cutoff)
        np.testing.assert_array_equal(graph.positions[: len(atoms)], atoms.positions)
    # a move is at most ~0.1 of the 0.25 Angstrom that the skin allows; without a full cell every strain rebuilds
    if strain == "none":
        assert 2 <= cache.rebuilds <= steps // 2
    elif atoms.cell.rank == 3:
        assert 2 <= cache.rebuilds < 0.8 * steps


def test_cache_stands_for_small_moves_only() -> None:
    """Moves of just under half the skin keep the list, more rebuild it; so do wrapping, new species and new pbc."""
    atoms = build_zoo()["triclinic"]
    atoms.positions += 30.0  # far from the origin, a strain moves atoms a lot: only what remains beyond it counts
    cache = NeighborCache(ELEMENTS, 3.4, skin=0.4)
    cache.update(atoms, (1.0,))
    atoms.positions[0, 1] += 0.199
    cache.update(atoms, (1.0,))
    assert cache.rebuilds == 1
    atoms.positions[0, 1] += 0.002
    cache.update(atoms, (1.0,))
    assert cache.rebuilds == 2
    atoms.set_cell(atoms.cell.array * 0.99, scale_atoms=True)
    cache.update(atoms, (1.0,))
    assert cache.rebuilds == 2
    atoms.numbers[0] = 8
    cache.update(atoms, (1.0,))
    atoms.pbc = (True, True, False)
    cache.update(atoms, (1.0,))
    atoms.positions[1] += atoms.cell[0]
    cache.update(atoms, (1.0,))
    assert cache.rebuilds == 5
    cache.update(atoms[[0, 1, 2]], (1.0,))
    assert cache.rebuilds == 6


def test_cache_without_skin_and_bad_skin() -> None:
    """With a zero skin every move rebuilds; a negative or NaN skin is an error."""
    atoms, cache = bulk("Cu"), NeighborCache(ELEMENTS, 3.4, skin=0.0)
    for number in range(3):
        cache.update(atoms, (1.0,))
        atoms.positions += 1e-3 * number
    assert cache.rebuilds == 2
    for skin in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="skin"):
            NeighborCache(ELEMENTS, 3.4, skin=skin)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.numbers.__setitem__(1, 79), r"does not know Au \(Z=79\); it knows H, C, O, Cu"),
        (lambda a: a.positions.__setitem__((2, 0), np.nan), r"atom 2 \(Cu\)"),
        (lambda a: a.positions.__setitem__((3, 1), np.inf), r"atom 3 \(Cu\)"),
        (lambda a: a.cell.__setitem__(1, 0.0), "axis 1"),
        (lambda a: a.cell.__setitem__(1, a.cell[0]), "linearly dependent"),
        (lambda a: a.cell.__setitem__((0, 0), np.nan), "cell .* must be finite"),
    ],
)
def test_invalid_structures(change: object, message: str) -> None:
    """Every error names the atom, the axis or the element; the standing list of a cache does not hide it."""
    atoms = bulk("Cu", cubic=True)
    cache = NeighborCache(ELEMENTS, CUTOFF)
    cache.update(atoms, (1.0,))
    assert callable(change)
    change(atoms)
    with pytest.raises(InvalidStructure, match=message):
        Graph.from_atoms(atoms, ELEMENTS, CUTOFF)
    with pytest.raises(InvalidStructure, match=message):
        cache.update(atoms, (1.0,))
