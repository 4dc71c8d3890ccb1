"""From `ase.Atoms` to padded graphs of fixed shape.

A structure becomes a `Graph` with a dense table of neighbours, `[nodes, slots]`: row i lists the atoms around atom i.
A sum over neighbours is then a batched matrix product, where an edge list would need a scatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.kernels import on_gpu
from ase_mlip.structure import check_structure, known_cell, neighbor_table

Array = Any  # numpy on the host, jax inside a compiled function


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Graph:
    """One or several structures as arrays of fixed shape; inputs only.

    Padding nodes belong to graph number `graphs`, one past the last, so that every per-graph sum drops them. Padding
    slots are False in `slot_mask` and point at their own row.

    Example:
        >>> from ase.build import molecule
        >>> graph = Graph.from_atoms(molecule("H2O"), elements=(1, 8), cutoff=4.0)
        >>> graph.neighbors.shape, graph.num_graphs
        ((3, 2), 1)
    """

    positions: Array  # [nodes, 3] Angstrom
    species: Array  # [nodes] index into the model's elements
    neighbors: Array  # [nodes, slots] index of the neighbouring node
    shifts: Array  # [nodes, slots, 3] whole cell vectors between a node and its neighbour
    slot_mask: Array  # [nodes, slots] True where a slot holds a neighbour
    node_graph: Array  # [nodes] the graph a node belongs to
    cell: Array  # [graphs, 3, 3] Angstrom, rows are cell vectors; open axes are zero unless all three span space
    head_weights: Array  # [graphs, heads] what each readout head counts in a graph's energy
    pairs: Array  # [pairs, 3] both directions of a pair at once, see `with_pairs`; empty if they are not listed

    @classmethod
    def from_atoms(
        cls,
        atoms: ase.Atoms,
        elements: Sequence[int],
        cutoff: float,
        head_weights: Sequence[float] | np.ndarray = (1.0,),
    ) -> Graph:
        """Build the unpadded graph of one structure.

        Args:
            atoms: any structure: molecule, wire, slab or bulk; positions need not be wrapped.
            elements: the atomic numbers a model knows, in its order.
            cutoff: largest neighbour distance, Angstrom.
            head_weights: [heads] weight of each readout head.

        Raises:
            InvalidStructure: unknown elements, non-finite positions, or a periodic axis without a cell vector.
        """
        check_structure(atoms, elements)
        neighbors, shifts, counts = neighbor_table(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
        return cls(
            positions=atoms.positions.copy(),
            species=np.searchsorted(elements, atoms.numbers).astype(np.int32),
            neighbors=neighbors,
            shifts=shifts,
            slot_mask=np.arange(neighbors.shape[1]) < counts[:, None],
            node_graph=np.zeros(len(atoms), np.int32),
            cell=known_cell(atoms)[None],
            head_weights=np.asarray(head_weights, float)[None],
            pairs=np.zeros((0, 3), np.int32),
        )

    @property
    def num_graphs(self) -> int:
        """Number of graph slots, padding included."""
        return self.cell.shape[0]

    @property
    def shape(self) -> PadShape:
        """The shape this graph has now."""
        nodes, slots = self.slot_mask.shape
        return PadShape(self.num_graphs, nodes, slots, len(self.pairs))

    def with_pairs(self) -> Graph:
        """The same graph with its pairs listed: node, slot, and the slot of the neighbour that holds the node.

        What depends on the distance alone is computed once for both directions then, and not for padding slots. A pair
        that is in the table in one direction alone, at the cutoff, has the number of slots in the last place. On the
        host.
        """
        node, slot = np.nonzero(self.slot_mask)
        neighbor, shift = self.neighbors[node, slot], self.shifts[node, slot].astype(int)
        sign = np.sign(neighbor - node)
        for axis in range(3):  # an atom and its own image
            sign = np.where(sign == 0, np.sign(shift[:, axis]), sign)
        keys = np.column_stack([np.minimum(node, neighbor), np.maximum(node, neighbor), shift * sign[:, None]])
        order = np.lexsort(keys.T)
        begins = np.ones(len(order), bool)
        begins[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        first, back = order[begins], np.full(int(begins.sum()), self.neighbors.shape[1])
        back[np.cumsum(begins)[~begins] - 1] = slot[order[~begins]]
        return replace(self, pairs=np.column_stack([node[first], slot[first], back]).astype(np.int32))

    def vectors(self, cutoff: float) -> Array:
        """Vectors from each node to its neighbours, [nodes, slots, 3] Angstrom.

        A padding slot gets a vector of length `cutoff`, where every cutoff envelope and its derivative are zero. This
        is the only place where padding is masked.
        """
        positions = jnp.asarray(self.positions)
        cells = jnp.asarray(self.cell).at[self.node_graph].get(mode="fill", fill_value=0.0)
        offsets = jnp.einsum("nka,nab->nkb", self.shifts, cells)
        vectors = positions[self.neighbors] - positions[:, None] + offsets
        padding = jnp.asarray([cutoff, 0.0, 0.0], dtype=positions.dtype)
        return jnp.where(jnp.asarray(self.slot_mask)[..., None], vectors, padding)

    def reverse_slots(self) -> Array:
        """The slot of each neighbour that holds the same pair seen from there, [nodes, slots]; 0 for padding.

        Neighbour lists are symmetric: what a pair gives to its neighbour can be collected instead of scattered.
        """
        neighbors, mask = jnp.asarray(self.neighbors), jnp.asarray(self.slot_mask)
        shifts = jnp.asarray(self.shifts).astype(jnp.int32)
        image = (shifts[..., 0] * 1024 + shifts[..., 1]) * 1024 + shifts[..., 2]  # negated where the shift is
        here = jnp.arange(len(neighbors))[:, None, None]
        found = (neighbors[neighbors] == here) & (image[neighbors] == -image[..., None]) & mask[neighbors]
        slots = jnp.arange(neighbors.shape[1])
        return jnp.sum(jnp.where(found & mask[..., None], slots, 0), axis=-1)

    def pair_rows(self) -> tuple[Array, Array]:
        """Where pairs and slots find each other.

        Returns:
            [pairs] number of the slot, counted through all rows, of each pair's first direction (too large in padding),
            and [nodes, slots] number of each slot's pair, plus the number of pairs in the second direction.
        """
        node, slot, back = jnp.asarray(self.pairs).T
        (nodes, slots), numbers = self.neighbors.shape, jnp.arange(len(node), dtype=jnp.int32)
        neighbor = jnp.asarray(self.neighbors).at[node, slot].get(mode="fill", fill_value=nodes)
        rows = jnp.zeros((nodes, slots), jnp.int32).at[node, slot].set(numbers, mode="drop")
        return node * slots + slot, rows.at[neighbor, back].set(len(node) + numbers, mode="drop")

    def sum_graphs(self, values: Array) -> Array:
        """The sum over each graph's nodes, [nodes, ...] -> [graphs, ...], in a fixed order on a GPU too."""
        if not on_gpu():
            return jax.ops.segment_sum(values, self.node_graph, self.num_graphs)
        member = self.node_graph == jnp.arange(self.num_graphs)[:, None]
        return jnp.sum(jnp.where(member.reshape(*member.shape, *(1,) * (values.ndim - 1)), values, 0.0), axis=1)

    def sum_to_neighbors(self, values: Array) -> Array:
        """The sum of what all pairs give to each node as a neighbour, [nodes, slots, ...] -> [nodes, ...].

        `values` of padding slots are zero. A GPU collects it in a fixed order: adding to scattered places, in whatever
        order threads come, would change the last digits from run to run.
        """
        if on_gpu():
            return jnp.sum(values[self.neighbors, self.reverse_slots()] * self.slot_mask[..., None], axis=1)
        return jnp.zeros((len(values), *values.shape[2:]), values.dtype).at[self.neighbors].add(values)

    def astype(self, dtype: str) -> Graph:
        """The same graph with its real-valued arrays in `dtype`."""
        cast = {f.name: getattr(self, f.name) for f in fields(self)}
        return Graph(**{k: v.astype(dtype) if np.issubdtype(v.dtype, np.floating) else v for k, v in cast.items()})

    def moved(self, positions: Array, cell: Array) -> Graph:
        """The same graph with positions [nodes, 3] and cell [graphs, 3, 3] in its own precision."""
        dtype = self.positions.dtype
        return replace(self, positions=positions.astype(dtype), cell=cell.astype(dtype))


@dataclass(frozen=True, order=True)
class PadShape:
    """Shape of a padded graph; one compilation serves all graphs of one shape. Without `pairs` none are listed."""

    graphs: int
    nodes: int
    slots: int
    pairs: int = 0

    def holds(self, other: PadShape) -> bool:
        """Whether a graph of shape `other` fits into this one."""
        fits = self.graphs >= other.graphs and self.nodes >= other.nodes and self.slots >= other.slots
        return fits and (not self.pairs or self.pairs >= other.pairs)

    def rounded(self) -> PadShape:
        """The bucket for this shape: nodes, slots and pairs rounded up by at most 4 or an eighth."""
        pairs = round_up(self.pairs) if self.pairs else 0
        return PadShape(self.graphs, round_up(self.nodes), round_up(self.slots), pairs)


def round_up(count: int) -> int:
    """Round up to a multiple of 4, and of an eighth of the power of two below: 21 -> 24, 100 -> 104, 999 -> 1024."""
    step = max(4, 2 ** (max(count, 1).bit_length() - 4))
    return max(4, -(-count // step) * step)


def batch(graphs: Sequence[Graph], shape: PadShape | None = None) -> Graph:
    """Join graphs into one of the given shape, padding nodes, slots and graphs.

    Args:
        graphs: unpadded graphs with the same number of heads.
        shape: the padded shape; by default the exact sum of nodes and the largest number of slots.

    Raises:
        ValueError: the graphs do not fit into `shape`, or it lists pairs and they do not.
    """
    counts = [len(g.species) for g in graphs]
    listed = sum(len(g.pairs) for g in graphs)
    needed = PadShape(len(graphs), sum(counts), max(g.neighbors.shape[1] for g in graphs), listed)
    shape = shape or needed
    if not shape.holds(needed):
        raise ValueError(f"graphs that need {needed} do not fit into {shape}: choose a larger pad shape")
    if shape.pairs and any(2 * len(g.pairs) < np.count_nonzero(g.slot_mask) for g in graphs):
        raise ValueError(f"{shape} lists pairs, and some graphs do not: list theirs by `Graph.with_pairs`")
    starts, pair_starts = np.cumsum([0, *counts]), np.cumsum([0, *(len(g.pairs) for g in graphs)])
    out = Graph(
        positions=np.zeros((shape.nodes, 3)),
        species=np.zeros(shape.nodes, np.int32),
        neighbors=np.repeat(np.arange(shape.nodes, dtype=np.int32)[:, None], shape.slots, axis=1),
        shifts=np.zeros((shape.nodes, shape.slots, 3)),
        slot_mask=np.zeros((shape.nodes, shape.slots), bool),
        node_graph=np.full(shape.nodes, shape.graphs, np.int32),
        cell=np.zeros((shape.graphs, 3, 3)),
        head_weights=np.zeros((shape.graphs, graphs[0].head_weights.shape[1])),
        pairs=np.full((shape.pairs, 3), (shape.nodes, 0, shape.slots), np.int32),
    )
    for number, (graph, start, count) in enumerate(zip(graphs, starts, counts, strict=False)):
        rows, slots = slice(start, start + count), slice(graph.neighbors.shape[1])
        out.positions[rows] = graph.positions
        out.species[rows] = graph.species
        out.neighbors[rows, slots] = graph.neighbors + start
        out.shifts[rows, slots] = graph.shifts
        out.slot_mask[rows, slots] = graph.slot_mask
        out.node_graph[rows] = number
        out.cell[number] = graph.cell[0]
        out.head_weights[number] = graph.head_weights[0]
        if shape.pairs:
            out.pairs[pair_starts[number] : pair_starts[number + 1]] = graph.pairs + np.array([start, 0, 0])
    return out
