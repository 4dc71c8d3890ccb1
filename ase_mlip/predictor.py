"""One gradient turns node energies into forces and stress: the physics that every architecture shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.bounds import bounded_energies
from ase_mlip.dataset_info import DatasetInfo, Head, unknown_to_all
from ase_mlip.graph import Graph
from ase_mlip.repulsion import floored_vectors, repulsion_energies, touching_distances

Params = Mapping[str, Any]


class Network(Protocol):
    """What an architecture provides: node energies per head from neighbour vectors, and nothing physical.

    It may also have faster forms of itself, as `networks.heads.MultiHeadNetwork` does: `with_kernels` and `tabulated`.
    """

    dataset_info: DatasetInfo
    config: Any

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the readout heads."""
        ...

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Named parts of the network, each with the patterns of its parameters' names."""
        ...

    def rebuild(self, config: Any, dataset_info: DatasetInfo) -> Network:
        """The same architecture with another configuration and constants."""
        ...

    def apply(self, variables: Any, vectors: jax.Array, graph: Graph, **options: Any) -> Any:
        """Flax: node energies [nodes, heads], dimensionless; with `mutable`, also parameters that are missing."""
        ...


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Prediction:
    """What a force field says about a batch of graphs; padding nodes and graphs hold no meaning.

    Stress is (1/V) dE/dstrain, positive in tension, and zero for graphs without a three-dimensional cell.
    """

    energy: Any  # [graphs] eV
    forces: Any  # [nodes, 3] eV/Angstrom
    stress: Any  # [graphs, 3, 3] eV/Angstrom^3
    node_energies: Any  # [nodes] eV
    head_energies: Any = None  # [graphs, heads] eV, unweighted, when asked for


@dataclass(frozen=True)
class Predictor:
    """A network with its heads and levels; pure, hashable, and without parameters.

    Attributes:
        network: the architecture.
        levels: (name, heads that it sums) in order of creation; the last one is the default.
        committees: groups of heads that are averaged where a level sums them: the spread of their energies is an
            estimate of the error.
    """

    network: Network
    levels: tuple[tuple[str, tuple[str, ...]], ...]
    committees: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        names = self.network.head_names
        members = [head for committee in self.committees for head in committee]
        if len(set(members)) != len(members) or not set(members) <= set(names):
            raise ValueError(f"committees={self.committees}: give heads of the network, each in one committee at most")
        for level, heads in self.levels:
            unknown = [head for head in heads if head not in names]
            if unknown or not heads:
                raise ValueError(f"level {level!r} sums the heads {heads}; the network has {names}")

    @classmethod
    def from_network(cls, network: Network) -> Predictor:
        """Levels that build on each other: the level named after a head sums all heads up to and including it."""
        names = network.head_names
        return cls(network, tuple((name, names[: number + 1]) for number, name in enumerate(names)))

    @cached_property
    def heads(self) -> tuple[Head, ...]:
        """Constants of all heads, in the network's order."""
        return tuple(self.network.dataset_info.head(name) for name in self.network.head_names)

    @cached_property
    def reference_energies(self) -> np.ndarray:
        """E0 of each head and element, [heads, elements] eV."""
        return np.array([head.atomic_energies for head in self.heads])

    @cached_property
    def bounds(self) -> np.ndarray | None:
        """Bounds of each element and head, [elements, heads, 2] eV, infinite where there are none; None if none has."""
        if all(head.bounds is None for head in self.heads):
            return None
        free, count = (-np.inf, np.inf), len(self.network.dataset_info.elements)
        rows = [[pair or free for pair in head.bounds or (None,) * count] for head in self.heads]
        return np.array(rows).swapaxes(0, 1)

    def head_weights(self, level: str | None = None) -> np.ndarray:
        """Weights [heads] that make a level (default: the newest): one for heads it sums, 1 / k in a committee of k.

        Raises:
            ValueError: there is no such level.
        """
        share = {head: 1.0 / len(committee) for committee in self.committees for head in committee}
        summed = dict(self.levels)[self.find_level(level)]
        return np.array([share.get(name, 1.0) if name in summed else 0.0 for name in self.network.head_names])

    def unknown_elements(self, level: str | None = None) -> tuple[int, ...]:
        """Atomic numbers that no head of a level (default: the newest) has been trained on.

        Raises:
            ValueError: there is no such level.
        """
        summed = dict(self.levels)[self.find_level(level)]
        return unknown_to_all(head for head in self.heads if head.name in summed)

    def member_weights(self, level: str | None = None) -> np.ndarray:
        """Head weights of each member of a level's newest committee, [members, heads]; their mean is the level.

        Raises:
            ValueError: there is no such level, or no committee in it.
        """
        level = self.find_level(level)
        summed = dict(self.levels)[level]
        committees = [committee for committee in self.committees if set(committee) <= set(summed)]
        if not committees:
            raise ValueError(f"level {level!r} has no committee of heads; fine-tune with n_heads > 1 to get one")
        members, names = committees[-1], self.network.head_names
        weights = np.tile(self.head_weights(level), (len(members), 1))
        places = [names.index(head) for head in members]
        weights[:, places] = np.eye(len(members))
        return weights

    def find_level(self, level: str | None) -> str:
        """The level's own name, or the default level's for None.

        Raises:
            ValueError: there is no such level.
        """
        levels = dict(self.levels)
        if level is not None and level not in levels:
            raise ValueError(f"there is no level {level!r}; this model has {', '.join(map(repr, levels))}")
        return self.levels[-1][0] if level is None else level

    def with_kernels(self) -> Predictor:
        """The same predictor, with C++ kernels where they run: the same numbers, but only two derivatives."""
        fast = getattr(self.network, "with_kernels", None)
        return replace(self, network=fast()) if fast else self

    def tabulated(self, params: Params) -> tuple[Predictor, Params]:
        """A predictor and parameters with the same energies up to the rounding of float32, as fast as it goes."""
        tabulated = getattr(self.network, "tabulated", None)
        network, params = tabulated(params) if tabulated else (self.network, params)
        return replace(self, network=network), params

    def interaction(
        self, params: Params, graph: Graph, per_head: bool = False, matmul_precision: str = "float32"
    ) -> Prediction:
        """Prediction without the reference energies E0: what depends on positions. Pure; use inside your own jit.

        E0 can be a million times the interaction energy; adding it on the host in float64 keeps float32 sums exact.
        Matrix products are float32 proper: a GPU would by default keep ten bits of their factors (TF32), cell vectors
        included.

        Args:
            params: the network's parameters.
            graph: padded or not, of any number of structures.
            per_head: also fill `head_energies`.
            matmul_precision: of the network's matrix products and of their derivatives, as JAX names it; what is
                computed of positions and cells alone is always float32 proper.
        """
        with jax.default_matmul_precision("float32"):
            return self._interaction(params, graph, per_head, matmul_precision)

    def network_energies(self, params: Params, graph: Graph) -> jax.Array:
        """The network's share of each atom's energy per head, [nodes, heads] eV, without bounds, repulsion or E0."""
        graph = jax.tree.map(jnp.asarray, graph)
        with jax.default_matmul_precision("float32"):
            return self._shares(params, graph, graph.vectors(self.network.dataset_info.cutoff), "float32")[0]

    def _shares(
        self, params: Params, graph: Graph, vectors: jax.Array, matmul_precision: str
    ) -> tuple[jax.Array, jax.Array]:
        """What the network and the pair repulsion give each atom, both [nodes, heads] eV or of a shape like it."""
        info, dtype = self.network.dataset_info, vectors.dtype
        seen, repelled = vectors, jnp.zeros((), dtype)
        if info.repulsion is not None:
            pair = (np.array(info.elements), graph.species, graph.neighbors)
            distances, touching = jnp.linalg.norm(vectors, axis=-1), touching_distances(*pair, dtype)
            seen = floored_vectors(info.repulsion, vectors, distances, touching)
            pairs = repulsion_energies(info.repulsion, distances, touching, info.cutoff, *pair)
            repelled = pairs[:, None] * jnp.asarray([head.repulsion for head in self.heads], dtype)
        with jax.default_matmul_precision(matmul_precision):
            network = self.network.apply({"params": params}, seen, graph)
        scale = jnp.asarray([head.scale for head in self.heads], dtype)
        shift = jnp.asarray([head.shift for head in self.heads], dtype)
        return network * scale + shift, repelled

    def _interaction(self, params: Params, graph: Graph, per_head: bool, matmul_precision: str) -> Prediction:
        graph = jax.tree.map(jnp.asarray, graph)
        info, dtype, bounds = self.network.dataset_info, graph.positions.dtype, self.bounds
        node_weights = graph.head_weights.at[graph.node_graph].get(mode="fill", fill_value=0.0)

        def total(vectors: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            energies, repelled = self._shares(params, graph, vectors, matmul_precision)
            if bounds is not None:
                energies = bounded_energies(energies, jnp.asarray(bounds, dtype)[graph.species])
            per_node = energies + repelled
            nodes = jnp.sum(per_node * node_weights, axis=-1)
            return jnp.sum(nodes), (nodes, per_node)

        vectors = graph.vectors(info.cutoff)
        gradient, (nodes, per_node) = jax.grad(total, has_aux=True)(vectors)
        gradient = jnp.where(graph.slot_mask[..., None], gradient, 0.0)
        virial = graph.sum_graphs(jnp.einsum("nka,nkb->nab", vectors, gradient))
        volume = jnp.abs(jnp.linalg.det(graph.cell))[:, None, None]
        solid = volume > 0
        return Prediction(
            energy=graph.sum_graphs(nodes),
            forces=gradient.sum(axis=1) - graph.sum_to_neighbors(gradient),
            stress=jnp.where(solid, virial / jnp.where(solid, volume, 1.0), 0.0),
            node_energies=nodes,
            head_energies=graph.sum_graphs(per_node) if per_head else None,
        )

    def reference(self, graph: Graph) -> np.ndarray:
        """Reference energy of each node under the graph's head weights, [nodes] eV, on the host in float64."""
        per_head = self.reference_energies.T[np.asarray(graph.species)]
        node_graph = np.minimum(np.asarray(graph.node_graph), graph.num_graphs - 1)
        return np.sum(per_head * np.asarray(graph.head_weights, np.float64)[node_graph], axis=-1)

    def add_reference(self, graph: Graph, prediction: Prediction) -> Prediction:
        """Total energies, in float64 on the host, from an interaction `Prediction`."""
        node_graph, graphs = np.asarray(graph.node_graph), graph.num_graphs

        def sum_graphs(values: np.ndarray) -> np.ndarray:
            out = np.zeros((graphs + 1, *values.shape[1:]))
            np.add.at(out, node_graph, values)
            return out[:graphs]

        nodes = np.asarray(prediction.node_energies, np.float64) + self.reference(graph)
        per_head = prediction.head_energies
        if per_head is not None:
            per_head = np.asarray(per_head, np.float64) + sum_graphs(
                self.reference_energies.T[np.asarray(graph.species)]
            )
        return replace(prediction, energy=sum_graphs(nodes), node_energies=nodes, head_energies=per_head)


@partial(jax.jit, static_argnums=(0, 3))
def compiled_interaction(predictor: Predictor, params: Params, graph: Graph, per_head: bool) -> Prediction:
    """`Predictor.interaction` on the fastest path; equal predictors share their compilations, copies included."""
    return predictor.with_kernels().interaction(params, graph, per_head)
