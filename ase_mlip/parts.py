"""Structures too large for the memory at hand: computed in parts, with the same result.

The energy of a node depends on the nodes that it can reach in as many steps between neighbours as the network has
layers. A part is some nodes and all within their reach, with the neighbour lists among them: the energies of its own
nodes and all their derivatives are complete. What the parts add up to is the whole, whatever the architecture.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import jax
import numpy as np

from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.predictor import Params, Prediction, Predictor, compiled_interaction

SHARE = 0.6  # of the memory that may be used
ROWS_PER_NODE = 300  # channels-wide rows that a prediction holds for a node, at most
ROWS_PER_SLOT = {True: 6, False: 45}  # and for a neighbour; with kernels or without


@dataclass(frozen=True)
class Part:
    """Some nodes of a graph and those within their reach.

    Attributes:
        nodes: [own + halo] rows of the whole graph, own nodes first.
        own: how many nodes are the part's own.
        graph: padded; own nodes are its graph 0, the halo its graph 1, which counts no energy.
    """

    nodes: np.ndarray
    own: int
    graph: Graph


def most_atoms(predictor: Predictor, slots: int) -> int:
    """How many atoms are surely predicted at once with the memory of the device (a GPU's own, or the machine's)."""
    network = predictor.network
    stats = jax.devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    kernels = getattr(network, "kernels", None) is not None or getattr(network, "has_kernels", False)
    channels = getattr(network.config, "num_channels", 128)
    rows = ROWS_PER_NODE + slots * ROWS_PER_SLOT[kernels]
    return max(1, int(SHARE * memory / (4 * channels * rows)))


def cut(graph: Graph, hops: int, most: int) -> list[Part]:
    """Divide the nodes of one structure.

    Args:
        graph: of one structure, with padding or without.
        hops: layers of the network.
        most: nodes of a part, at most.

    Raises:
        ValueError: a node reaches more than that.
    """
    rows = np.flatnonzero(np.asarray(graph.node_graph) == 0)
    reach = list(_divide(graph, _wrapped(graph), rows, hops, most))
    graphs = [_take(graph, np.concatenate(nodes)) for nodes in reach]
    shape = PadShape(2, max(len(part.species) for part in graphs), graph.neighbors.shape[1]).rounded()
    return [
        Part(np.concatenate(nodes), len(nodes[0]), _halved(batch([part], shape), len(nodes[0])))
        for nodes, part in zip(reach, graphs, strict=True)
    ]


def on_device(parts: list[Part], dtype: str) -> list[Part]:
    """The same parts, whose graphs stay on the device: only positions and cell are new at each step."""
    return [replace(part, graph=jax.device_put(part.graph.astype(dtype))) for part in parts]


def predict_in_parts(predictor: Predictor, params: Params, graph: Graph, parts: list[Part]) -> Prediction:
    """As `compiled_interaction` for a graph of one structure, on the host in float64.

    Args:
        predictor: the heads and levels.
        params: on the device.
        graph: as it was cut, but for the positions and the cell.
        parts: see `cut` and `on_device`.
    """
    count = len(graph.positions)
    energies, forces, stress = np.zeros(count), np.zeros((count, 3)), np.zeros((1, 3, 3))
    for part in parts:
        positions = np.zeros((len(part.graph.positions), 3))
        positions[: len(part.nodes)] = graph.positions[part.nodes]
        moved = part.graph.moved(positions, np.repeat(graph.cell, 2, axis=0))
        found = jax.device_get(compiled_interaction(predictor, params, moved, False))
        energies[part.nodes[: part.own]] = found.node_energies[: part.own]
        forces[part.nodes] += found.forces[: len(part.nodes)]
        stress += found.stress.sum(axis=0)
    return Prediction(energies.sum()[None], forces, stress, energies)


def _wrapped(graph: Graph) -> np.ndarray:
    """Positions within the cell, where there is one, so that near nodes have near coordinates."""
    cell = graph.cell[0]
    if np.linalg.matrix_rank(cell) < 3:
        return graph.positions
    return np.linalg.solve(cell.T, graph.positions.T).T % 1.0 @ cell


def _divide(
    graph: Graph, positions: np.ndarray, own: np.ndarray, hops: int, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Own nodes and halo of parts: halves across the longest side, until they are small enough."""
    if len(own) <= most:
        halo = _reach(graph, own, hops)
        if len(own) + len(halo) <= most:
            yield own, halo
            return
        if len(own) == 1:
            raise ValueError(
                f"an atom's energy depends on {len(halo)} others, and max_atoms={most}: give at least {len(halo) + 1}; "
                "a few times as many are much faster"
            )
    axis = int(np.argmax(np.ptp(positions[own], axis=0)))
    order = own[np.argsort(positions[own, axis], kind="stable")]
    for half in (order[: len(order) // 2], order[len(order) // 2 :]):
        yield from _divide(graph, positions, half, hops, most)


def _reach(graph: Graph, own: np.ndarray, hops: int) -> np.ndarray:
    """The other nodes that a node's energy depends on, ascending."""
    inside = np.zeros(len(graph.positions), bool)
    inside[own] = True
    for _ in range(hops):
        rows = np.flatnonzero(inside)
        inside[graph.neighbors[rows][graph.slot_mask[rows]]] = True
    inside[own] = False
    return np.flatnonzero(inside)


def _take(graph: Graph, nodes: np.ndarray) -> Graph:
    """Some nodes as a structure of their own, with the pairs among them."""
    place, here = np.full(len(graph.positions), -1, np.int32), np.arange(len(nodes), dtype=np.int32)
    place[nodes] = here
    neighbors = place[graph.neighbors[nodes]]
    known = graph.slot_mask[nodes] & (neighbors >= 0)
    return replace(
        graph,
        positions=graph.positions[nodes],
        species=graph.species[nodes],
        neighbors=np.where(known, neighbors, here[:, None]),
        shifts=np.where(known[..., None], graph.shifts[nodes], 0.0),
        slot_mask=known,
        node_graph=np.zeros(len(nodes), np.int32),
    )


def _halved(padded: Graph, own: int) -> Graph:
    """A padded structure whose nodes after the first `own` are the graph 1, in the same cell and without energy."""
    halo = (padded.node_graph == 0) & (np.arange(len(padded.node_graph)) >= own)
    return replace(
        padded,
        node_graph=np.where(halo, 1, padded.node_graph).astype(np.int32),
        cell=np.repeat(padded.cell[:1], 2, axis=0),
    )
