"""The sum over neighbours of NequIP, whose features have a width of their own in each degree (arXiv:2101.03164, Eq. 9).

The kernels take arrays of one width: the channels are cut wherever a degree ends, and each group is summed on its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.kernels.build import VECTOR
from ase_mlip.kernels.neighbor_sum import Path
from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.coupling import coupling_paths, coupling_table
from ase_mlip.networks.layers import Features
from ase_mlip.networks.neighbor_sum import Edges, Kernels, sum_stored, sum_tables

RADIAL_GAIN = 2.0  # of the radial network's hidden layers at the start: SiLU halves small numbers


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that several degrees have, so that the kernels can take them together, filled up with zeros.

    Attributes:
        first: channel.
        last: channel, not one of them any more.
        paths: of the degrees that have them.
        columns: of the radial network's output, [paths, channels of the kernels]; any where the features are zero.
    """

    first: int
    last: int
    paths: list[Path]
    columns: np.ndarray

    def features(self, features: Features) -> Features:
        """The group's part of the features."""
        degrees, fill = {path[0] for path in self.paths}, self.columns.shape[1] - (self.last - self.first)
        own = {ell: x[..., self.first : self.last] for ell, x in features.items() if ell in degrees}
        return {ell: jnp.pad(x, [(0, 0), (0, 0), (0, fill)]) for ell, x in own.items()}

    def weights(self, x: jax.Array, output: jax.Array) -> jax.Array:
        """[..., width] and [width, all columns] -> [..., paths, channels]."""
        weights = x @ (output[:, self.columns.ravel()] * radial_scale(len(output)))
        return weights.reshape(*x.shape[:-1], *self.columns.shape)


def channel_groups(widths: dict[int, int], l_max: int, l_out: int) -> list[ChannelGroup]:
    """Cut the channels wherever a degree ends.

    Args:
        widths: channels of each degree of the features.
        l_max: highest degree of the harmonics.
        l_out: highest degree of the messages.
    """
    paths = [path for path in coupling_paths(tuple(widths), l_max) if path[2] <= l_out]
    starts = dict(zip(paths, accumulate((widths[path[0]] for path in paths), initial=0), strict=False))
    groups = []
    for first, last in pairwise(sorted({0, *widths.values()})):
        own = [path for path in paths if widths[path[0]] >= last]
        columns = np.array([np.arange(starts[path] + first, starts[path] + last) for path in own])
        columns = np.pad(columns, [(0, 0), (0, -(last - first) % VECTOR)], mode="edge")
        groups.append(ChannelGroup(first, last, own, columns))
    return groups


def join_groups(groups: list[ChannelGroup], messages: list[Features]) -> Features:
    """Messages of all paths, each with the channels of all groups: [nodes, 2 l + 1, paths' channels] of each degree."""
    parts: dict[Path, list[jax.Array]] = {path: [] for path in groups[0].paths}
    for group, message in zip(groups, messages, strict=True):
        for l_out, x in message.items():
            own = [path for path in group.paths if path[2] == l_out]
            for path, part in zip(own, jnp.split(x, len(own), axis=-1), strict=True):
                parts[path].append(part[..., : group.last - group.first])
    degrees = sorted({path[2] for path in parts})
    return {
        ell: jnp.concatenate([x for path in parts if path[2] == ell for x in parts[path]], axis=-1) for ell in degrees
    }


def radial_scale(inputs: int, gain: float = 1.0) -> float:
    """What a map of the radial network is multiplied by, so that its parameters are about one, as all others are.

    Near gain / sqrt(inputs), and a power of two: published weights without this factor are taken bit by bit.
    """
    return 2.0 ** round(math.log2(gain / inputs**0.5))


def radial_start(inputs: int, gain: float = 1.0) -> nn.initializers.Initializer:
    """Of a map's parameters: so that the map itself has entries of gain / sqrt(inputs)."""
    return nn.initializers.normal(gain / inputs**0.5 / radial_scale(inputs, gain))


def radial_features(hidden: list[jax.Array], radial: jax.Array) -> jax.Array:
    """The radial network without its last map. It has no biases: messages vanish with the basis at the cutoff."""
    for kernel in hidden:
        radial = jax.nn.silu(radial @ (kernel * radial_scale(len(kernel), RADIAL_GAIN)))
    return radial


class NeighborSum(nn.Module):
    """Sum over neighbours of radial weight x features x spherical harmonics, coupled to each degree: Eq. 9."""

    l_max: int
    l_out: int
    radial_mlp: tuple[int, ...]
    kernels: Kernels | None = None

    @nn.compact
    def __call__(self, features: Features, edges: Edges) -> Features:
        """Message of each degree, [nodes, 2 l + 1, paths' channels], before it is mixed and normalised."""
        groups = channel_groups({ell: x.shape[-1] for ell, x in features.items()}, self.l_max, self.l_out)
        if self.kernels and self.kernels.knots:
            messages = []
            for number, group in enumerate(groups):
                paths, channels = group.columns.shape
                table = self.param(f"knots_{number}", nn.initializers.zeros, (self.kernels.knots, paths, 2, channels))
                own = group.features(features)
                messages.append(sum_tables(self.kernels, table, group.paths, self.l_max, own, edges))
            return join_groups(groups, messages)
        widths = (edges.radial.shape[-1], *self.radial_mlp)
        hidden = [
            self.param(f"hidden_{number}", radial_start(shape[0], RADIAL_GAIN), shape)
            for number, shape in enumerate(pairwise(widths))
        ]
        size = (widths[-1], 1 + max(group.columns.max() for group in groups))
        output = self.param("output", radial_start(widths[-1]), size)
        if self.kernels is None:
            return self._by_formula(groups[0].paths, features, edges, hidden, output)
        basis, rows = edges.by_pairs() if edges.shared else (edges.radial, edges.slot_rows())
        x = radial_features(hidden, basis).reshape(-1, widths[-1])
        messages = [
            sum_stored(group.weights(x, output), rows, group.paths, self.l_max, group.features(features), edges)
            for group in groups
        ]
        return join_groups(groups, messages)

    @nn.nowrap
    def _by_formula(
        self, paths: list[Path], features: Features, edges: Edges, hidden: list[jax.Array], output: jax.Array
    ) -> Features:
        """Path by path as matrix products, a block of nodes at a time."""
        slots = edges.neighbors.shape[1]
        channels = [features[l_feature].shape[-1] for l_feature, _, _ in paths]
        by_path = jnp.split(output * radial_scale(len(output)), list(accumulate(channels))[:-1], axis=-1)
        couplings, edge_widths = coupling_table(tuple(paths), self.l_max)

        def sum_neighbors(arrays: tuple[Features, jax.Array, jax.Array]) -> jax.Array:
            gathered, harmonics, radial = arrays
            radial = radial_features(hidden, radial)
            # Couple the harmonics first: they carry no channels. The sum over neighbours is then a matrix product.
            coupled = jnp.split(harmonics @ jnp.asarray(couplings, harmonics.dtype), edge_widths, axis=-1)
            messages = []
            for (l_feature, _, l_out), kernel, edge in zip(paths, by_path, coupled, strict=True):
                edge = edge.reshape(*edge.shape[:2], 2 * l_feature + 1, 2 * l_out + 1)
                weighted = (radial @ kernel)[:, :, None] * gathered[l_feature]
                messages.append(jnp.einsum("nkam,nkac->nmc", edge, weighted).reshape(len(edge), -1))
            return jnp.concatenate(messages, axis=-1)

        gathered = {ell: x[edges.neighbors] for ell, x in features.items()}  # [nodes, slots, 2 l + 1, channels]
        block = max(1, 32768 // (max(slots, 1) * max(channels)))
        summed = map_node_blocks(sum_neighbors, (gathered, edges.harmonics, edges.radial), block)
        sizes = [(2 * path[2] + 1) * count for path, count in zip(paths, channels, strict=True)]
        messages: dict[int, list[jax.Array]] = {}
        for (_, _, l_out), message in zip(paths, jnp.split(summed, np.cumsum(sizes)[:-1], axis=-1), strict=True):
            messages.setdefault(l_out, []).append(message.reshape(len(message), 2 * l_out + 1, -1))
        return {ell: jnp.concatenate(messages[ell], axis=-1) for ell in sorted(messages)}
