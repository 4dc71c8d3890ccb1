"""The sum over neighbours: radial weight x features x spherical harmonics, coupled to each degree (Eq. 8 of MACE)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.kernels import on_gpu, pick_sum
from ase_mlip.kernels.neighbor_sum import Layout, Pairs, Path, sum_neighbors
from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.coupling import coupling_paths, coupling_table
from ase_mlip.networks.layers import Features, unit_normal
from ase_mlip.networks.radial import layer_norm, scaled_silu

RadialInputs = tuple[jax.Array, ...]  # each [nodes, ...]
PAIR_MLP = (64, 64, 64)  # hidden widths of `PairScales`


class Edges(NamedTuple):
    """What a layer knows of the pairs of a node and its neighbours."""

    neighbors: jax.Array  # [nodes, slots] index of the neighbouring node
    species: jax.Array  # [nodes] index of the element
    harmonics: jax.Array  # [nodes, slots, (l_max + 1)^2]
    radial: jax.Array  # [nodes, slots, basis]
    distances: jax.Array  # [nodes, slots] Angstrom
    inside: jax.Array  # [nodes, slots] whether the pair is within the cutoff; padding is not
    envelope: jax.Array | None  # [nodes, slots] factor of every message; None where `radial` makes them vanish
    pairs: jax.Array | None = None  # [elements, elements, features] of each (neighbour, centre), for `PairScales`
    reverse: jax.Array | None = None  # [nodes, slots] the neighbour's slot that holds the node, for kernels on a GPU
    shared: tuple[jax.Array, jax.Array] | None = None  # both directions as one, `Graph.pair_rows`, for stored weights

    @property
    def scaled_harmonics(self) -> jax.Array:
        """Harmonics times the envelope, if there is one."""
        return self.harmonics if self.envelope is None else self.harmonics * self.envelope[..., None]

    def by_pairs(self) -> tuple[jax.Array, jax.Array]:
        """The radial basis once for both directions of a pair, [pairs, basis], and the pair of each slot."""
        assert self.shared is not None
        first, rows = self.shared
        return self.radial.reshape(-1, self.radial.shape[-1]).at[first].get(mode="fill", fill_value=0.0), rows

    def slot_rows(self) -> jax.Array:
        """The number of each slot, [nodes, slots]."""
        return jnp.arange(self.neighbors.size, dtype=jnp.int32).reshape(self.neighbors.shape)


@dataclass(frozen=True)
class Kernels:
    """How the kernels get the radial weights.

    Attributes:
        knots: of each table that stands for a radial network, see `tabulate.py`; the network itself if 0.
        spacing: distance between knots, Angstrom.
    """

    knots: int = 0
    spacing: float = 0.0


class NeighborSum(nn.Module):
    """Messages of each node from its neighbours.

    With `Edges.pairs`, each pair of elements scales the radial weights.

    Attributes:
        l_max: highest degree of the output.
        radial_mlp: hidden widths of the radial network.
        elements: number of elements if the radial network is to know both atoms' elements, see `RadialNetwork`.
        kernels: run the kernel, if given.
    """

    l_max: int
    radial_mlp: tuple[int, ...]
    elements: int | None = None
    kernels: Kernels | None = None

    @nn.compact
    def __call__(self, features: Features, edges: Edges) -> Features:
        """Message of each degree, [nodes, 2 l + 1, paths * channels], before it is mixed and normalised."""
        channels = features[0].shape[-1]
        paths = coupling_paths(tuple(features), self.l_max)
        if self.kernels and self.kernels.knots:
            table = self.param("knots_0", nn.initializers.zeros, (self.kernels.knots, len(paths), 2, channels))
            return sum_tables(self.kernels, table, paths, self.l_max, features, edges)
        rows = edges.slot_rows()
        if edges.shared is not None and self.elements is None and edges.pairs is None:
            basis, rows = edges.by_pairs()
            edges = edges._replace(radial=basis)
        radial = RadialNetwork(self.radial_mlp, len(paths), channels, self.elements, name="radial")(edges)
        if edges.pairs is not None:
            scales = PairScales(len(paths), channels, name="pair")(edges.pairs)
            pair = edges.species[edges.neighbors] * len(edges.pairs) + edges.species[:, None]
            radial = radial.scaled(scales, pair)
        if self.kernels:
            return sum_stored(
                radial.stacked().reshape(-1, len(paths), channels), rows, paths, self.l_max, features, edges
            )
        return _sum_by_formula(paths, self.l_max, features, radial, edges)


def sum_tables(
    kernels: Kernels, table: jax.Array, paths: list[Path], l_max: int, features: Features, edges: Edges
) -> Features:
    """The sum over neighbours by the kernel, with radial weights from a table [knots, paths, 2, channels]."""
    summed, spacing, distances = pick_sum(), kernels.spacing, edges.distances
    return _sum_by_kernel(
        paths, l_max, features, edges, lambda layout, *rest: summed(layout, spacing, table, distances, *rest)
    )


def sum_stored(
    weights: jax.Array, rows: jax.Array, paths: list[Path], l_max: int, features: Features, edges: Edges
) -> Features:
    """The sum over neighbours by the kernel, with radial weights [rows, paths, channels] and the row of each slot."""
    return _sum_by_kernel(
        paths, l_max, features, edges,
        lambda layout, x, angular, pairs: sum_neighbors(layout, weights, x, angular, replace(pairs, rows=rows)),
    )  # fmt: skip


Sum = Callable[[Layout, jax.Array, jax.Array, Pairs], jax.Array]  # of features and couplings, weights known


def _sum_by_kernel(paths: list[Path], l_max: int, features: Features, edges: Edges, summed: Sum) -> Features:
    """All degrees at once, see `kernels.neighbor_sum`; on a GPU the kernel couples the harmonics itself."""
    layout = Layout(tuple(paths), tuple(sorted(features)))
    angular = edges.scaled_harmonics
    if not on_gpu():
        angular = angular @ jnp.asarray(coupling_table(tuple(paths), l_max)[0], angular.dtype)
    rows = jnp.concatenate([features[ell] for ell in layout.feature_degrees], axis=1)
    return layout.split(summed(layout, rows, angular, Pairs(edges.neighbors, edges.inside, reverse=edges.reverse)))


def _sum_by_formula(paths: list[Path], l_max: int, features: Features, radial: RadialWeights, edges: Edges) -> Features:
    """Path by path as matrix products, a block of nodes at a time."""
    channels, slots = features[0].shape[-1], edges.neighbors.shape[1]
    couplings, edge_widths = coupling_table(tuple(paths), l_max)

    def sum_block(arrays: tuple[Features, jax.Array, RadialInputs]) -> jax.Array:
        gathered, harmonics, inputs = arrays
        # Couple the harmonics first: they carry no channels. The sum over neighbours is then a matrix product.
        coupled = jnp.split(harmonics @ jnp.asarray(couplings, harmonics.dtype), edge_widths, axis=-1)
        messages = []
        for (l_feature, _, l_out), weight, edge in zip(paths, radial.by_path(inputs), coupled, strict=True):
            edge = edge.reshape(*edge.shape[:2], 2 * l_feature + 1, 2 * l_out + 1)
            messages.append(jnp.einsum("nkam,nkac->nmc", edge, weight[:, :, None] * gathered[l_feature]))
        return jnp.concatenate(messages, axis=1)

    gathered = {ell: x[edges.neighbors] for ell, x in features.items()}  # [nodes, slots, 2 l + 1, channels]
    block = max(1, 32768 // (max(slots, 1) * channels))
    summed = map_node_blocks(sum_block, (gathered, edges.scaled_harmonics, radial.inputs), block)
    by_path = jnp.split(summed, np.cumsum([2 * path[2] + 1 for path in paths])[:-1], axis=1)
    messages: dict[int, list[jax.Array]] = {}
    for (_, _, l_out), message in zip(paths, by_path, strict=True):
        messages.setdefault(l_out, []).append(message)
    return {ell: jnp.concatenate(messages[ell], axis=-1) for ell in sorted(messages)}


class PairScales(nn.Module):
    """Network from features of a pair of elements to one factor per coupling path and channel (mlip)."""

    paths: int
    channels: int

    @nn.compact
    def __call__(self, pairs: jax.Array) -> list[jax.Array]:
        """[elements, elements, features] -> one [elements^2, channels] per path."""
        x = pairs.reshape(-1, pairs.shape[-1])
        zeros = nn.initializers.zeros
        for number, width in enumerate(PAIR_MLP):
            kernel = self.param(f"layer_{number}", unit_normal, (x.shape[-1], width))
            bias = self.param(f"bias_{number}", zeros, (width,))
            x = scaled_silu(x @ (kernel / x.shape[-1] ** 0.5) + bias)
        output = self.param("output", unit_normal, (x.shape[-1], self.paths, self.channels)) / x.shape[-1] ** 0.5
        constants = self.param("output_bias", zeros, (self.paths, self.channels))
        return [x @ output[:, path] + constants[path] for path in range(self.paths)]


class NeighborDensity(nn.Module):
    """A smooth count of each node's neighbours: the sum of tanh(f^2), f a radial network with one output."""

    radial_mlp: tuple[int, ...] = ()
    elements: int | None = None

    @nn.compact
    def __call__(self, edges: Edges) -> jax.Array:
        """Density [nodes, 1, 1]."""
        radial = RadialNetwork(self.radial_mlp, 1, 1, self.elements, name="radial")(edges)
        counts = jnp.tanh(radial.stacked()[..., 0, 0] ** 2)
        if edges.envelope is not None:
            counts *= edges.envelope
        return jnp.sum(counts, axis=1)[:, None, None]


@dataclass(frozen=True)
class RadialWeights:
    """One weight per pair, coupling path and channel: a linear map of what the radial network's last layer gives.

    Attributes:
        inputs: arrays [nodes, ...] that the weights are computed from, any rows of them.
        hidden: from inputs to [..., width].
        output: [width, paths, channels].
        constants: [paths, channels], added; none if None.
        scales: one table [pairs, channels] per path, whose row is the last of the inputs; none if None.
    """

    inputs: RadialInputs
    hidden: Callable[[RadialInputs], jax.Array]
    output: jax.Array
    constants: jax.Array | None = None
    scales: tuple[jax.Array, ...] | None = None

    def scaled(self, scales: Sequence[jax.Array], pair: jax.Array) -> RadialWeights:
        """Each weight times the row `pair` [nodes, slots] of its path's table."""
        hidden = self.hidden
        return replace(self, inputs=(*self.inputs, pair), hidden=lambda x: hidden(x[:-1]), scales=tuple(scales))

    def by_path(self, inputs: RadialInputs) -> list[jax.Array]:
        """[..., channels] per path; separate arrays, because slices of a large one are slow."""
        x = self.hidden(inputs)
        weights = [x @ self.output[:, path] for path in range(self.output.shape[1])]
        if self.constants is not None:
            weights = [weight + constant for weight, constant in zip(weights, self.constants, strict=True)]
        if self.scales is not None:
            weights = [weight * scale[inputs[-1]] for weight, scale in zip(weights, self.scales, strict=True)]
        return weights

    def stacked(self) -> jax.Array:
        """[..., paths, channels] by one matrix product."""
        x = self.hidden(self.inputs)
        weights = (x @ self.output.reshape(len(self.output), -1)).reshape(*x.shape[:-1], *self.output.shape[1:])
        if self.constants is not None:
            weights += self.constants
        if self.scales is not None:
            weights *= jnp.stack(self.scales, axis=1)[self.inputs[-1]]
        return weights


class RadialNetwork(nn.Module):
    """Network from the radial basis to one weight per coupling path and channel.

    Without `elements` it has no biases and maps zero to zero, so that messages vanish smoothly at the cutoff. With
    them, each pair of elements shifts the first layer, and biases and layer normalisation are used (as eSEN does,
    arXiv:2502.12147): what it feeds must be multiplied by an envelope.
    """

    hidden: tuple[int, ...]
    paths: int
    channels: int
    elements: int | None

    @nn.compact
    def __call__(self, edges: Edges) -> RadialWeights:
        """The weights, not computed yet."""
        widths = (edges.radial.shape[-1], *self.hidden)
        kernels = [
            self.param(f"layer_{number}", unit_normal, shape) / shape[0] ** 0.5
            for number, shape in enumerate(pairwise(widths))
        ]
        output = self.param("output", unit_normal, (widths[-1], self.paths, self.channels)) / widths[-1] ** 0.5
        if self.elements is None:

            def plain(inputs: RadialInputs) -> jax.Array:
                (x,) = inputs
                for kernel in kernels:
                    x = scaled_silu(x @ kernel)
                return x

            return RadialWeights((edges.radial,), plain, output)

        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        tables = [self.param(f"element_{role}", zeros, (self.elements, widths[1])) for role in ("neighbor", "center")]
        biases = [jnp.zeros(())] + [self.param(f"bias_{n}", zeros, (width,)) for n, width in enumerate(widths[2:], 1)]
        gains = [self.param(f"norm_gain_{n}", ones, (width,)) for n, width in enumerate(widths[1:])]
        offsets = [self.param(f"norm_bias_{n}", zeros, (width,)) for n, width in enumerate(widths[1:])]
        constants = self.param("output_bias", zeros, (self.paths, self.channels))

        def knowing_elements(inputs: RadialInputs) -> jax.Array:
            x, pair = inputs
            for kernel, bias, gain, offset in zip(kernels, biases, gains, offsets, strict=True):
                x = jax.nn.silu(layer_norm(x @ kernel + bias + pair, gain, offset))
                pair = jnp.zeros((), x.dtype)
            return x

        pairs = tables[0][edges.species][edges.neighbors] + tables[1][edges.species][:, None]
        return RadialWeights((edges.radial, pairs), knowing_elements, output, constants)
