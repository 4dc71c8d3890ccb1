"""The sum over neighbours with tabulated weights on a GPU, as Pallas kernels.

A program walks through a node's neighbours, or a share of them, with all sums over them in registers; the coupling to
harmonics is made of constants. As on a CPU, nothing of size edges x channels is stored, but for one thing in the
gradient: what an edge gives to its neighbour's features. The neighbour collects it from the reverse edges, in a fixed
order and without atomics.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from ase_mlip.kernels.launch import block_of, launch
from ase_mlip.kernels.neighbor_sum import Layout, Pairs
from ase_mlip.networks.coupling import coupling_table

MESSAGE_WARPS, GRADIENT_WARPS, COLLECT_WARPS = 4, 1, 1  # one warp sums over its channels without shared memory
GRADIENT_SLOTS = 8  # neighbours of a program
ENOUGH_PROGRAMS = 2048
GRADIENT_BLOCK = 64  # channels of a program: two for each thread, for whose gradients there are registers enough


class Path(NamedTuple):
    """A coupling path, unrolled.

    Attributes:
        feature: row of the features' first component.
        components: how many components they have.
        messages: row of each component of the messages.
        terms: for each (feature's component, message's component): (harmonic, Clebsch-Gordan coefficient), not zero.
    """

    feature: int
    components: int
    messages: tuple[int, ...]
    terms: dict[tuple[int, int], list[tuple[int, float]]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_tabulated(
    layout: Layout,
    spacing: float,
    knots: jax.Array,
    distances: jax.Array,
    features: jax.Array,
    harmonics: jax.Array,
    pairs: Pairs,
) -> jax.Array:
    """As `neighbor_sum.sum_tabulated`, from the harmonics themselves and for pairs with a table of reverse edges.

    Args:
        layout: of the rows.
        spacing: distance between knots, Angstrom.
        knots: [knots, paths, 2, channels].
        distances: [nodes, slots] Angstrom.
        features: [nodes, rows, channels].
        harmonics: [nodes, slots, (l_max + 1)^2].
        pairs: only pairs inside are summed.
    """
    nodes, _, channels = features.shape
    shares = _shares(nodes, distances.shape[1])
    shapes = [(shares, nodes, layout.message_rows, channels)]
    arrays = (_inside_only(pairs), distances, knots, features, harmonics)
    grid = (nodes, channels, shares)
    return _total(launch(partial(_messages, layout, spacing), shapes, grid, arrays, MESSAGE_WARPS)[0])


def _forward(layout: Layout, spacing: float, *arrays: Any) -> tuple[jax.Array, Any]:
    knots, distances, features, harmonics, pairs = arrays
    values = knots.value, distances.value, features.value, harmonics.value, jax.tree.map(lambda x: x.value, pairs)
    return sum_tabulated(layout, spacing, *values), (values, bool(features.perturbed))


def _backward(layout: Layout, spacing: float, saved: Any, cotangent: Any) -> tuple[Any, ...]:
    (knots, distances, features, harmonics, pairs), features_move = saved
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return (None,) * 5
    (nodes, slots), (_, rows, channels) = distances.shape, features.shape
    neighbors = _inside_only(pairs)
    parts = channels // block_of(channels, GRADIENT_BLOCK)
    shapes: list[tuple[int, ...]] = [(parts, nodes, slots), (parts, nodes, slots, harmonics.shape[-1])]
    shapes += [(nodes, slots, rows, channels)] if features_move else []
    inputs = (neighbors, distances, knots, features, harmonics, cotangent)
    kernel, grid = partial(_gradients, layout, spacing), (nodes, channels, pl.cdiv(slots, GRADIENT_SLOTS))
    by_distance, by_harmonic, *edges = launch(kernel, shapes, grid, inputs, GRADIENT_WARPS, GRADIENT_BLOCK)
    by_feature = None
    if features_move:
        given = (neighbors, pairs.reverse, edges[0])
        by_feature = launch(_collect, [features.shape], (nodes, channels, rows), given, COLLECT_WARPS)[0]
    return None, _total(by_distance), by_feature, _total(by_harmonic), None


sum_tabulated.defvjp(_forward, _backward, symbolic_zeros=True)


def _shares(nodes: int, slots: int) -> int:
    """Programs among which a node's messages are shared out, so that a GPU has enough of them."""
    return max(1, min(ENOUGH_PROGRAMS // nodes, slots // GRADIENT_SLOTS))


def _total(parts: jax.Array) -> jax.Array:
    """The sum over the first axis."""
    return parts.reshape(parts.shape[1:]) if len(parts) == 1 else parts.sum(axis=0)


def _inside_only(pairs: Pairs) -> jax.Array:
    """Neighbours [nodes, slots], -1 beyond the cutoff."""
    return jnp.where(pairs.inside, pairs.neighbors, -1)


@lru_cache(maxsize=64)
def _unroll(layout: Layout) -> tuple[Path, ...]:
    """The paths of a layout with their non-zero Clebsch-Gordan coefficients."""
    table, widths = coupling_table(layout.paths, max(ell for _, ell, _ in layout.paths))
    paths = []
    columns = np.split(table, widths, axis=1)
    for (row, components, _, outputs, message, stride), column in zip(layout.rows, columns, strict=True):
        terms: dict[tuple[int, int], list[tuple[int, float]]] = {}
        for a, m in np.ndindex(components, outputs):
            values = column[:, a * outputs + m]
            terms[a, m] = [(int(e), float(values[e])) for e in np.flatnonzero(np.abs(values) > 1e-12)]
        paths.append(Path(row, components, tuple(message + m * stride for m in range(outputs)), terms))
    return tuple(paths)


class _Slot(NamedTuple):
    """What a program knows of an edge: numbers, and rows of channels."""

    knot: Any
    basis: list[Any]  # weights of the values and slopes at both knots
    slopes: list[Any]  # their derivatives by the distance
    harmonics: list[Any]
    features: list[Any]


def _read(spacing: float, at: tuple[Any, Any, Any], channels: Any, distances: Any, knots: Any, *refs: Any) -> _Slot:
    """An edge at (node, slot) to a neighbour."""
    features, harmonics = refs
    node, slot, neighbor = at
    x = distances[node, slot] / spacing
    knot = jnp.clip(x.astype(jnp.int32), 0, knots.shape[0] - 2)
    t = x - knot.astype(jnp.float32)
    u = 1 - t
    basis = [u * u * (1 + 2 * t), t * u * u, t * t * (3 - 2 * t), -t * t * u]
    slopes = [slope / spacing for slope in (-6 * t * u, u * (1 - 3 * t), 6 * t * u, t * (3 * t - 2))]
    angular = [harmonics[node, slot, e] for e in range(harmonics.shape[2])]
    return _Slot(knot, basis, slopes, angular, [features[neighbor, row, channels] for row in range(features.shape[1])])


def _corners(slot: _Slot, knots: Any, path: int, channels: Any) -> list[Any]:
    """Values and slopes of a path's weights at both knots."""
    return [knots[slot.knot + side, path, kind, channels] for side in (0, 1) for kind in (0, 1)]


def _mix(factors: list[Any], values: list[Any]) -> Any:
    """The sum of products."""
    first, *rest = (factor * value for factor, value in zip(factors, values, strict=True))
    return sum(rest, start=first)


def _couple(slot: _Slot, path: Path, a: int) -> list[tuple[int, Any]]:
    """Couplings of a feature's component: (component of the messages, number), without those that vanish."""
    found = [(m, path.terms[a, m]) for m in range(len(path.messages)) if path.terms[a, m]]
    return [(m, _mix([factor for _, factor in terms], [slot.harmonics[e] for e, _ in terms])) for m, terms in found]


def _messages(layout: Layout, spacing: float, channels: Any, *refs: Any) -> None:
    """All messages of one node and block of channels."""
    neighbors, distances, knots, features, harmonics, out = refs
    node, share = pl.program_id(0), pl.program_id(2)
    slots, shares = neighbors.shape[1], pl.num_programs(2)

    def add(number: Any, sums: tuple[Any, ...]) -> tuple[Any, ...]:
        neighbor = neighbors[node, number]

        def inside(sums: tuple[Any, ...]) -> tuple[Any, ...]:
            new = list(sums)
            slot = _read(spacing, (node, number, neighbor), channels, distances, knots, features, harmonics)
            for index, path in enumerate(_unroll(layout)):
                weight = _mix(slot.basis, _corners(slot, knots, index, channels))
                for a in range(path.components):
                    weighted = weight * slot.features[path.feature + a]
                    for m, coupling in _couple(slot, path, a):
                        new[path.messages[m]] += coupling * weighted
            return tuple(new)

        return jax.lax.cond(neighbor >= 0, inside, lambda sums: sums, sums)

    zeros = (jnp.zeros(channels.size, jnp.float32),) * layout.message_rows
    sums = jax.lax.fori_loop(slots * share // shares, slots * (share + 1) // shares, add, zeros)
    for row, total in enumerate(sums):
        out[share, node, row, channels] = total


def _gradients(layout: Layout, spacing: float, channels: Any, *refs: Any) -> None:
    """Derivatives by what belongs to some edges of a node; those by the features only if there is a place for them."""
    neighbors, distances, knots, features, harmonics, messages, by_distance, by_harmonic, *by_feature = refs
    node, part, first = pl.program_id(0), pl.program_id(1), pl.program_id(2) * GRADIENT_SLOTS
    last = jnp.minimum(first + GRADIENT_SLOTS, neighbors.shape[1])
    zeros = jnp.zeros(channels.size, jnp.float32)

    def inside(number: Any, neighbor: Any) -> None:
        slot = _read(spacing, (node, number, neighbor), channels, distances, knots, features, harmonics)
        pulls, angular, along = [zeros] * features.shape[1], [zeros] * harmonics.shape[2], zeros
        for index, path in enumerate(_unroll(layout)):
            corners = _corners(slot, knots, index, channels)
            weight, total = _mix(slot.basis, corners), zeros
            pulled = [messages[node, row, channels] for row in path.messages]
            for a in range(path.components):
                row = path.feature + a
                pull = sum((coupling * pulled[m] for m, coupling in _couple(slot, path, a)), start=zeros)
                total += pull * slot.features[row]
                pulls[row] += weight * pull
                weighted = weight * slot.features[row]
                for m, one in enumerate(pulled):
                    for e, factor in path.terms[a, m]:
                        angular[e] += factor * (weighted * one)
            along += _mix(slot.slopes, corners) * total
        by_distance[part, node, number] = jnp.sum(along)
        for e, value in enumerate(angular):
            by_harmonic[part, node, number, e] = jnp.sum(value)
        for edges in by_feature:
            for row, pull in enumerate(pulls):
                edges[node, number, row, channels] = pull

    def outside(number: Any) -> None:
        by_distance[part, node, number] = 0.0
        for e in range(harmonics.shape[2]):
            by_harmonic[part, node, number, e] = 0.0
        for edges in by_feature:
            for row in range(features.shape[1]):
                edges[node, number, row, channels] = zeros

    def step(number: Any, _: Any) -> None:
        neighbor = neighbors[node, number]
        jax.lax.cond(neighbor >= 0, lambda: inside(number, neighbor), lambda: outside(number))

    jax.lax.fori_loop(first, last, step, None)


def _collect(channels: Any, neighbors: Any, reverse: Any, edges: Any, out: Any) -> None:
    """Derivative by a row of the features of one node: what its neighbours' edges back to it hold."""
    node, row = pl.program_id(0), pl.program_id(2)

    def add(number: Any, total: Any) -> Any:
        neighbor, back = neighbors[node, number], reverse[node, number]
        there = edges[jnp.maximum(neighbor, 0), back, row, channels]
        return total + jnp.where(neighbor >= 0, there, 0.0)

    out[node, row, channels] = jax.lax.fori_loop(0, neighbors.shape[1], add, jnp.zeros(channels.size, jnp.float32))
