"""How far the members of a committee of heads are apart: an estimate of the error that costs no second model.

It is the spread between heads that were trained on different samples of the same frames. Everything below the heads is
shared, so that it is small where all members are wrong together: read it as a ranking, and as a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.force_field import ForceField, precision
from ase_mlip.graph import Graph
from ase_mlip.predictor import Params, Prediction, Predictor


@dataclass(frozen=True)
class Deviation:
    """Sample standard deviation over the members of a committee; padding nodes and graphs hold no meaning."""

    energy: np.ndarray  # [graphs] eV
    forces: np.ndarray  # [nodes] eV/Angstrom, root of the summed variances of the three components


@partial(jax.jit, static_argnums=0)
def compiled_members(predictor: Predictor, params: Params, graph: Graph, weights: jax.Array) -> Prediction:
    """Interaction of each member, with one forward pass for all.

    Energies and forces are linear in the head weights: the interaction's linear map, which holds the forward pass as
    constants, gives each member in turn. All at once they would need the memory of all and leave a CPU's cache.

    Args:
        predictor: of the force field.
        params: the network's parameters.
        graph: padded or not; its own head weights are not used.
        weights: head weights of each member, [members, heads].
    """

    def interaction(member: jax.Array) -> Prediction:
        shape = (graph.num_graphs, len(member))
        return predictor.interaction(params, replace(graph, head_weights=jnp.broadcast_to(member, shape)))

    _, linear = jax.linearize(interaction, weights[0])
    return jax.lax.map(linear, weights)


def has_committee(predictor: Predictor, level: str | None = None) -> bool:
    """Whether a level (default: the newest) sums a committee of heads.

    Raises:
        ValueError: there is no such level.
    """
    level = predictor.find_level(level)
    try:
        predictor.member_weights(level)
    except ValueError:
        return False
    return True


def member_predictions(
    force_field: ForceField, graph: Graph, level: str | None = None, dtype: str = "float32"
) -> Prediction:
    """Total energy, forces and stress of each member of a level's newest committee; their mean is the level.

    Compiled once for each shape of graph. The members share the network's forward pass; each has a backward pass of
    its own.

    Args:
        force_field: a force field whose level has a committee.
        graph: see `ForceField.graph`; padded or not, of any number of structures. Its head weights are not used.
        level: the newest by default.
        dtype: "float32" or "float64".

    Returns:
        A prediction whose arrays have the members as first axis: energy [members, graphs] eV, and so on.

    Raises:
        ValueError: there is no such level, or no committee in it.
    """
    predictor = force_field.predictor
    weights = predictor.member_weights(level)
    with precision(dtype):
        stacked = compiled_members(
            predictor, force_field.cast_params(dtype), graph.astype(dtype), weights.astype(dtype)
        )
        stacked = jax.tree.map(np.asarray, stacked)
    members = []
    for number, member in enumerate(weights):
        own = replace(graph, head_weights=np.tile(member, (graph.num_graphs, 1)))
        members.append(predictor.add_reference(own, jax.tree.map(lambda x, n=number: x[n], stacked)))
    return jax.tree.map(lambda *parts: np.stack(parts), *members)


def deviation(members: Prediction) -> Deviation:
    """Standard deviation of energies and forces over the members.

    The members are a sample of the heads that other draws of the training frames would have given: the sum of squares
    is divided by one less than their number, so that committees of any size compare. Divided by their number it would
    be 29 % lower for two members and 13 % lower for four.

    Args:
        members: of `member_predictions`.
    """
    energy = np.asarray(members.energy, np.float64)
    forces = np.asarray(members.forces, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the result
        return Deviation(energy.std(axis=0, ddof=1), np.sqrt(forces.var(axis=0, ddof=1).sum(axis=-1)))
