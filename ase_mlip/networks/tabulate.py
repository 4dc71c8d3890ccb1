"""Radial networks as tables of cubic Hermite splines: a frozen model need not evaluate them for every pair.

A radial weight depends on the distance alone. Between knots it is the cubic polynomial with the right values and
derivatives at both ends, so that forces remain the exact gradient of the energy; the error falls with the fourth power
of the spacing. What is smaller than the rounding of float32 does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.graph import Graph
from ase_mlip.networks.neighbor_sum import Edges, Kernels

Params = Mapping[str, Any]
FIRST_KNOTS, LAST_KNOTS = 256, 2048
PART = 512  # distances evaluated at once: one shape, traced once, whatever the number of knots
TOLERANCE = 2e-7  # of a weight, relative to the largest one: rounding of float32 is 1.2e-7


class RadialModel(Protocol):
    """What is needed of a network: its constants, how it describes pairs, and the weights that it makes of that."""

    dataset_info: DatasetInfo

    def edges(self, vectors: jax.Array, graph: Graph) -> Edges:
        """Radial basis of vectors [nodes, slots, 3]."""
        ...

    def radial_weights(self, layer: str, params: Params, edges: Edges) -> list[jax.Array]:
        """What a layer's tables are to hold, [nodes, slots, paths, channels] each, from its sum's parameters."""
        ...


def tabulate(network: RadialModel, params: Params) -> tuple[Kernels, Params]:
    """Tables for the radial networks of all layers, in float64 arithmetic.

    Args:
        network: one whose radial weights depend on the distance alone.
        params: its parameters.

    Returns:
        The shape of the tables, and the parameters with each `neighbor_sum` replaced by `knots_0`, `knots_1`, ...
        [knots, paths, 2, channels], float32: values, and derivatives times the spacing.
    """
    layers = sorted(name for name in params if "neighbor_sum" in params[name])  # JAX sorts dictionaries
    cutoff = network.dataset_info.cutoff
    with jax.enable_x64(True):
        sums = jax.tree.map(
            partial(jnp.asarray, dtype="float64"), {name: params[name]["neighbor_sum"] for name in layers}
        )
        evaluate = partial(_in_parts, partial(jax.jit(partial(_weights, network)), sums))
        for count in _doublings(FIRST_KNOTS, LAST_KNOTS):
            values, slopes = _hermite(evaluate, count, cutoff)
            if _midpoint_error(evaluate, values, slopes, cutoff) < TOLERANCE:
                break
    out = dict(params)
    for name in layers:
        tables = [np.stack(both, axis=2).astype("float32") for both in zip(values[name], slopes[name], strict=True)]
        out[name] = {**params[name], "neighbor_sum": {f"knots_{n}": table for n, table in enumerate(tables)}}
    return Kernels(count, cutoff / (count - 1)), out


def _doublings(first: int, last: int) -> list[int]:
    return [first * 2**n for n in range((last // first).bit_length())]


Weights = dict[str, list[Any]]  # of each layer's tables, [distances, paths, channels]


def _weights(network: RadialModel, sums: Params, distances: jax.Array) -> tuple[Weights, Weights]:
    """Weights of each layer and their derivatives."""
    zeros = np.zeros((len(distances), 1), np.int32)
    graph = Graph(None, zeros[:, 0], zeros, *(None,) * 6)

    def all_layers(distances: jax.Array) -> Weights:
        edges = network.edges(distances[:, None, None] * jnp.array([1.0, 0.0, 0.0]), graph)
        return {
            name: [weights[:, 0] for weights in network.radial_weights(name, params, edges)]
            for name, params in sums.items()
        }

    return jax.jvp(all_layers, (distances,), (jnp.ones_like(distances),))


Evaluate = Callable[[np.ndarray], tuple[Weights, Weights]]


def _in_parts(
    compiled: Callable[[np.ndarray], tuple[Weights, Weights]], distances: np.ndarray
) -> tuple[Weights, Weights]:
    """What `_weights` gives for any number of distances."""
    padded = np.resize(distances, (-(-len(distances) // PART), PART))  # repeats them to fill the last part
    found = [compiled(part) for part in padded]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(distances)], *found)


def _hermite(evaluate: Evaluate, count: int, cutoff: float) -> tuple[Weights, Weights]:
    """Values and scaled slopes at the knots, of each layer."""
    spacing = cutoff / (count - 1)
    distances = np.arange(count) * spacing
    distances[0] = 1e-3 * spacing  # the basis divides by the distance
    values, slopes = evaluate(distances)
    return values, jax.tree.map(lambda slope: spacing * slope, slopes)


def _midpoint_error(evaluate: Evaluate, values: Weights, slopes: Weights, cutoff: float) -> float:
    """Largest error of any table halfway between knots, relative to its largest weight."""
    count = len(jax.tree.leaves(values)[0])
    exact, _ = evaluate((np.arange(1, count - 1) + 0.5) * cutoff / (count - 1))

    def error(value: np.ndarray, slope: np.ndarray, right: np.ndarray) -> float:
        middle = (value[1:-1] + value[2:]) / 2 + (slope[1:-1] - slope[2:]) / 8
        return float(np.abs(middle - right).max() / np.abs(value).max())

    return max(jax.tree.leaves(jax.tree.map(error, values, slopes, exact)))
