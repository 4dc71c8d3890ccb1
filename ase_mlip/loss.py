"""The loss of a batch, and what it compares: interaction energies, without the reference energies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.dataset import Example, Targets
from ase_mlip.evaluate import LossWeights
from ase_mlip.graph import Graph
from ase_mlip.predictor import Params, Predictor


def loss_function(
    params: Params,
    predictor: Predictor,
    graph: Graph,
    targets: Targets,
    weights: LossWeights,
    matmul_precision: str = "float32",
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean of squared errors over the labels that are present.

    Args:
        targets: energies without the reference energies E0.
        matmul_precision: see `Predictor.interaction`.

    Returns:
        The loss, and its unweighted parts by label.
    """
    prediction = predictor.with_kernels().interaction(params, graph, matmul_precision=matmul_precision)
    ones = jnp.ones_like(prediction.node_energies)
    counts = jnp.maximum(jax.ops.segment_sum(ones, graph.node_graph, graph.num_graphs), 1)
    node_weight = jnp.asarray(targets.weight).at[graph.node_graph].get(mode="fill", fill_value=0.0)

    def squares(error: jax.Array) -> jax.Array:
        """Twice Huber's function, averaged over the components."""
        inside = jnp.minimum(jnp.abs(error), weights.huber_delta)
        huber = inside * (2 * jnp.abs(error) - inside)
        return jnp.mean(huber.reshape(len(error), -1), axis=1)

    def mean(values: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, weight * values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)

    energy = squares((prediction.energy - targets.energy) / counts)
    parts = {
        "energy": mean(energy, targets.energy_mask, targets.weight),
        "forces": mean(squares(prediction.forces - targets.forces), targets.forces_mask, node_weight),
        "stress": mean(squares(prediction.stress - targets.stress), targets.stress_mask, targets.weight),
    }
    return sum(getattr(weights, name) * parts[name] for name in weights.wanted), parts


def without_reference(predictor: Predictor, example: Example) -> tuple[Graph, Targets]:
    """The batch in float32 with the reference energies taken off its labels, in float64 beforehand."""
    graph, targets = example.graph, example.targets
    reference = np.zeros(graph.num_graphs + 1)
    np.add.at(reference, graph.node_graph, predictor.reference(graph))
    energy = np.where(targets.energy_mask, targets.energy - reference[: graph.num_graphs], 0.0)
    arrays = {**targets.__dict__, "energy": energy}
    cast = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    return graph.astype("float32"), Targets(**cast)
