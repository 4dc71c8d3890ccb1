"""The sum over neighbours and its derivatives to any order, in C++.

The total of weights[row(n,k),p,c] features[j,a,c] couplings[n,k,(p,a,m)] messages[n,(p,m),c] is linear in each factor.
The derivative by one of the four is linear in the other three: derivatives of derivatives are of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.kernels.build import call

Path = tuple[int, int, int]  # degrees of feature, edge and output
EDGE_FACTORS = (0, 1, 2)  # weights, features, couplings: the factors that messages are made of
ALL_EDGE_FACTORS, MESSAGES = 0b0111, 0b1000  # what is wanted, as neighbor_sum.cc knows it


@dataclass(frozen=True)
class Layout:
    """Where each coupling path finds its numbers.

    Rows of the features are ordered by degree and component; couplings by path, feature's and output's component; rows
    of the messages by output degree, component and path: each degree is one array [nodes, 2 l + 1, paths * channels].

    Attributes:
        paths: the coupling paths, ordered by output degree.
        feature_degrees: degrees of the features.
    """

    paths: tuple[Path, ...]
    feature_degrees: tuple[int, ...]

    @cached_property
    def degrees(self) -> dict[int, int]:
        """Output degree -> number of its paths."""
        outputs = [l_out for _, _, l_out in self.paths]
        return {ell: outputs.count(ell) for ell in sorted(set(outputs))}

    @property
    def message_rows(self) -> int:
        """Rows of the messages."""
        return sum(2 * l_out + 1 for _, _, l_out in self.paths)

    @property
    def couplings(self) -> int:
        """Numbers of all paths' couplings."""
        return sum((2 * a + 1) * (2 * c + 1) for a, _, c in self.paths)

    @property
    def feature_rows(self) -> int:
        """Rows of the features."""
        return sum(2 * ell + 1 for ell in self.feature_degrees)

    @cached_property
    def rows(self) -> list[tuple[int, int, int, int, int, int]]:
        """Of each path: feature row, components, first coupling, outputs, first message row, stride of message rows."""
        starts = np.cumsum([0, *(2 * ell + 1 for ell in self.feature_degrees)])
        first_row = dict(zip(self.feature_degrees, starts, strict=False))
        message_starts = np.cumsum([0, *((2 * ell + 1) * count for ell, count in self.degrees.items())])
        first_message = dict(zip(self.degrees, message_starts, strict=False))
        rows, coupling, seen = [], 0, dict.fromkeys(self.degrees, 0)
        for a, _, c in self.paths:
            sizes = (2 * a + 1, 2 * c + 1)
            message = int(first_message[c]) + seen[c]
            rows.append((int(first_row[a]), sizes[0], coupling, sizes[1], message, self.degrees[c]))
            coupling += sizes[0] * sizes[1]
            seen[c] += 1
        return rows

    def split(self, messages: jax.Array) -> dict[int, jax.Array]:
        """[nodes, rows, channels] -> each output degree's [nodes, 2 l + 1, paths * channels]."""
        parts = jnp.split(messages, np.cumsum([(2 * ell + 1) * n for ell, n in self.degrees.items()])[:-1], axis=1)
        return {ell: part.reshape(len(part), 2 * ell + 1, -1) for ell, part in zip(self.degrees, parts, strict=True)}


@dataclass(frozen=True)
class Pairs:
    """Which pairs are summed, not differentiated: [nodes, slots] each.

    Attributes:
        neighbors: index of the neighbouring node.
        inside: whether the pair is within the cutoff.
        rows: of the stored weights; those from the number of rows on count again from zero. No number occurs twice: a
            pair's two directions share a row of weights as r and r plus the number of rows.
        reverse: the neighbour's slot that holds this node, see `Graph.reverse_slots`; for a GPU alone.
    """

    neighbors: Any
    inside: Any
    rows: Any = None
    reverse: Any = None


jax.tree_util.register_dataclass(Pairs, ("neighbors", "inside", "rows", "reverse"), ())


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_neighbors(
    layout: Layout, weights: jax.Array, features: jax.Array, couplings: jax.Array, pairs: Pairs
) -> jax.Array:
    """Messages [nodes, rows, channels]: the sum over each node's neighbours and the features' components.

    Args:
        layout: of the rows.
        weights: [rows, paths, channels].
        features: [nodes, rows, channels].
        couplings: [nodes, slots, couplings].
        pairs: only pairs inside are summed; elsewhere the derivatives by weights and couplings are zero.
    """
    shape = (len(features), layout.message_rows, features.shape[-1])
    arrays = (weights, features, couplings, pairs.neighbors, pairs.inside, pairs.rows)
    return _call(layout, MESSAGES, 0.0, [shape], *arrays)[0]


def _call(layout: Layout, wanted: int, spacing: float, shapes: list[tuple[int, ...]], *arrays: Any) -> list[jax.Array]:
    paths = np.array(layout.rows, np.int32).ravel()
    constants = {"wanted": np.int64(wanted), "paths": paths, "spacing": np.float64(spacing)}
    return call("neighbor_sum", arrays[0].dtype, shapes, arrays, **constants)


def _forward(layout: Layout, weights: Any, features: Any, couplings: Any, pairs: Pairs) -> tuple[jax.Array, Any]:
    return sum_neighbors(layout, weights, features, couplings, pairs), (weights, features, couplings, pairs)


def _backward(layout: Layout, saved: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    *factors, pairs = saved
    return *_gradients(layout, EDGE_FACTORS, (*factors, cotangent), pairs), None


sum_neighbors.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gradients(
    layout: Layout, wanted: tuple[int, ...], factors: tuple[jax.Array, ...], pairs: Pairs
) -> tuple[jax.Array, ...]:
    """Derivatives of the total by the wanted factors, from weights, features, couplings and messages."""
    shapes = [factors[number].shape for number in wanted]
    flags = sum(1 << number for number in wanted)
    return tuple(_call(layout, flags, 0.0, shapes, *factors, pairs.neighbors, pairs.inside, pairs.rows))


def _forward_gradients(layout: Layout, wanted: tuple[int, ...], factors: Any, pairs: Pairs) -> tuple[Any, Any]:
    return _gradients(layout, wanted, factors, pairs), (factors, pairs)


def _backward_gradients(layout: Layout, wanted: tuple[int, ...], saved: Any, cotangents: Any) -> tuple[Any, None]:
    """The total is linear in each factor: where a derivative by one is taken, its cotangent stands in for it."""
    factors, pairs = saved
    sums: list[Any] = [0.0] * 4
    for number, cotangent in zip(wanted, cotangents, strict=True):
        replaced = tuple(cotangent if place == number else factor for place, factor in enumerate(factors))
        others = tuple(place for place in EDGE_FACTORS if place != number)
        for place, found in zip(others, _gradients(layout, others, replaced, pairs), strict=True):
            sums[place] = sums[place] + found
        sums[3] = sums[3] + sum_neighbors(layout, *replaced[:3], pairs)
    return tuple(sums), None


_gradients.defvjp(_forward_gradients, _backward_gradients)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_tabulated(
    layout: Layout,
    spacing: float,
    knots: jax.Array,
    distances: jax.Array,
    features: jax.Array,
    couplings: jax.Array,
    pairs: Pairs,
) -> jax.Array:
    """`sum_neighbors` with weights interpolated from a table; once differentiable, by all but the table.

    Args:
        layout: of the rows.
        spacing: distance between knots, Angstrom.
        knots: [knots, paths, 2, channels]: weights at the distances 0, spacing, ..., and derivatives times spacing.
        distances: [nodes, slots] Angstrom.
        features: [nodes, rows, channels].
        couplings: [nodes, slots, couplings].
        pairs: only pairs inside are summed.
    """
    shape = (len(features), layout.message_rows, features.shape[-1])
    arrays = (knots, features, couplings, pairs.neighbors, pairs.inside, distances)
    return _call(layout, MESSAGES, spacing, [shape], *arrays)[0]


def _forward_tabulated(
    layout: Layout, spacing: float, knots: Any, distances: Any, features: Any, couplings: Any, pairs: Pairs
) -> tuple[jax.Array, Any]:
    out = sum_tabulated(layout, spacing, knots, distances, features, couplings, pairs)
    return out, (knots, distances, features, couplings, pairs)


def _backward_tabulated(layout: Layout, spacing: float, saved: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    knots, distances, features, couplings, pairs = saved
    arrays = (knots, features, couplings, cotangent, pairs.neighbors, pairs.inside, distances)
    shapes = [distances.shape, features.shape, couplings.shape]
    by_distance, by_feature, by_coupling = _call(layout, ALL_EDGE_FACTORS, spacing, shapes, *arrays)
    return None, by_distance, by_feature, by_coupling, None


sum_tabulated.defvjp(_forward_tabulated, _backward_tabulated)
