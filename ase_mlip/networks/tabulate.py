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
from ase_mlip.networks.neighbor_sum import Edges, Kernels, RadialNetwork

Params = Mapping[str, Any]
FIRST_KNOTS, LAST_KNOTS = 256, 2048
PART = 512  # distances evaluated at once: one shape, traced once, whatever the number of knots
TOLERANCE = 2e-7  # of a weight, relative to the largest one: rounding of float32 is 1.2e-7


class RadialModel(Protocol):
    """What is needed of a network: its constants, and how it describes pairs."""

    config: Any
    dataset_info: DatasetInfo

    def edges(self, vectors: jax.Array, graph: Graph) -> Edges:
        """Radial basis of vectors [nodes, slots, 3]."""
        ...


def tabulate(network: RadialModel, params: Params) -> tuple[Kernels, Params]:
    """Tables for the radial networks of all layers, in float64 arithmetic.

    Args:
        network: a MACE whose radial weights depend on the distance alone.
        params: its parameters.

    Returns:
        The shape of the tables, and the parameters with each `neighbor_sum/radial` replaced by `neighbor_sum/knots`
        [knots, paths, 2, channels], float32: values, and derivatives times the spacing.
    """
    layers = sorted(name for name in params if "neighbor_sum" in params[name])  # JAX sorts dictionaries
    cutoff = network.dataset_info.cutoff
    with jax.enable_x64(True):
        radial = jax.tree.map(
            partial(jnp.asarray, dtype="float64"), {name: params[name]["neighbor_sum"]["radial"] for name in layers}
        )
        evaluate = partial(_in_parts, partial(jax.jit(partial(_weights, network)), radial))
        for count in _doublings(FIRST_KNOTS, LAST_KNOTS):
            tables = _hermite(evaluate, count, cutoff)
            if max(_midpoint_errors(evaluate, tables, cutoff)) < TOLERANCE:
                break
    out = dict(params)
    for name, (values, slopes) in zip(layers, tables, strict=True):
        out[name] = {**params[name], "neighbor_sum": {"knots": np.stack([values, slopes], axis=2).astype("float32")}}
    return Kernels(count, cutoff / (count - 1)), out


def _doublings(first: int, last: int) -> list[int]:
    return [first * 2**n for n in range((last // first).bit_length())]


def _weights(network: RadialModel, radial: Params, distances: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Weights of each layer and their derivatives, each [distances, paths, channels]."""
    count = len(distances)
    zeros = np.zeros((count, 1), np.int32)
    graph = Graph(None, zeros[:, 0], zeros, *(None,) * 6)

    def all_layers(distances: jax.Array) -> list[jax.Array]:
        vectors = distances[:, None, None] * jnp.array([1.0, 0.0, 0.0])
        edges, found = network.edges(vectors, graph), []
        for params in radial.values():
            _, paths, channels = params["output"].shape
            module = RadialNetwork(network.config.radial_mlp, paths, channels, None)
            found.append(module.apply({"params": params}, edges).stacked()[:, 0])
        return found

    return list(zip(*jax.jvp(all_layers, (distances,), (jnp.ones_like(distances),)), strict=True))


Evaluate = Callable[[np.ndarray], list[tuple[np.ndarray, np.ndarray]]]


def _in_parts(
    compiled: Callable[[np.ndarray], list[tuple[jax.Array, jax.Array]]], distances: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What `_weights` gives for any number of distances."""
    padded = np.resize(distances, (-(-len(distances) // PART), PART))  # repeats them to fill the last part
    found = [compiled(part) for part in padded]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(distances)], *found)


def _hermite(evaluate: Evaluate, count: int, cutoff: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Values and scaled slopes at the knots, of each layer."""
    spacing = cutoff / (count - 1)
    distances = np.arange(count) * spacing
    distances[0] = 1e-3 * spacing  # the basis divides by the distance
    return [(value, spacing * slope) for value, slope in evaluate(distances)]


def _midpoint_errors(evaluate: Evaluate, tables: list[tuple[np.ndarray, np.ndarray]], cutoff: float) -> list[float]:
    """Largest error of each layer's weights halfway between knots, its maximum, relative to the largest weight."""
    count = len(tables[0][0])
    spacing = cutoff / (count - 1)
    exact = evaluate((np.arange(1, count - 1) + 0.5) * spacing)
    errors = []
    for (values, slopes), (right, _) in zip(tables, exact, strict=True):
        middle = (values[1:-1] + values[2:]) / 2 + (slopes[1:-1] - slopes[2:]) / 8
        errors.append(float(np.abs(middle - right).max() / np.abs(values).max()))
    return errors
