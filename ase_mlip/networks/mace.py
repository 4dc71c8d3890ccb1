"""MACE: higher-order equivariant message passing (Batatia et al., NeurIPS 2022, arXiv:2206.07697).

Node features are one array per degree l, `[nodes, 2 l + 1, channels]`, channels last so that every linear map is one
matrix product. Components follow e3nn's order and "component" normalisation; parity is always (-1)^l.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.graph import Graph
from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.coupling import coupling_paths, coupling_table, spherical_harmonics
from ase_mlip.networks.radial import bessel_basis, polynomial_cutoff, radial_network, scaled_silu
from ase_mlip.networks.symmetric import path_counts, symmetric_contractions

Features = dict[int, jax.Array]  # degree l -> [nodes, 2 l + 1, channels]
unit_normal = nn.initializers.normal(1.0)


@dataclass(frozen=True)
class MaceConfig:
    """Shape of a MACE network; the defaults are the published medium-sized model.

    Attributes:
        num_channels: width of every feature.
        num_layers: message-passing layers.
        l_max: highest degree of the spherical harmonics, and of the density A.
        hidden_l_max: highest degree L of the features passed between layers.
        correlation: body order of the product minus one, 1 to 4.
        num_bessel: radial basis functions.
        cutoff_order: p of the polynomial cutoff.
        radial_mlp: hidden widths of the radial network.
        readout_mlp: hidden width of the last layer's readout.
        first_layer: "residual" adds the element-dependent skip connection in the first layer too; "plain" applies the
            element-dependent map to the message instead.
        num_readout_heads: number of readout heads.
        head_names: their names; by default those of the dataset's heads, then head_1, head_2, ...
    """

    num_channels: int = 128
    num_layers: int = 2
    l_max: int = 3
    hidden_l_max: int = 1
    correlation: int = 3
    num_bessel: int = 8
    cutoff_order: int = 5
    radial_mlp: tuple[int, ...] = (64, 64, 64)
    readout_mlp: int = 16
    first_layer: Literal["residual", "plain"] = "residual"
    num_readout_heads: int = 1
    head_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "radial_mlp", tuple(self.radial_mlp))
        if self.head_names is not None:
            object.__setattr__(self, "head_names", tuple(self.head_names))
            if len(set(self.head_names)) != self.num_readout_heads:
                raise ValueError(
                    f"head_names={self.head_names} with num_readout_heads={self.num_readout_heads}: "
                    "give one name for each head, all different"
                )
        positive = ("num_channels", "num_layers", "num_bessel", "cutoff_order", "readout_mlp", "num_readout_heads")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        if not 0 <= self.hidden_l_max <= self.l_max:
            raise ValueError(f"hidden_l_max={self.hidden_l_max}: give 0 to l_max={self.l_max}")
        if not 1 <= self.correlation <= 4:
            raise ValueError(f"correlation={self.correlation}: give 1, 2, 3 or 4")
        if self.first_layer not in ("residual", "plain"):
            raise ValueError(f"first_layer={self.first_layer!r}: give 'residual' or 'plain'")


class Mace(nn.Module):
    """MACE with any number of additive readout heads: neighbour vectors -> node energies per head.

    Example:
        >>> info = DatasetInfo.create({1: 0.0, 8: 0.0}, cutoff=4.0, avg_num_neighbors=5.0)
        >>> Mace(Mace.Config(num_readout_heads=2), info).head_names
        ('base', 'head_1')
    """

    config: MaceConfig
    dataset_info: DatasetInfo

    Config = MaceConfig

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names of the readout heads, in order."""
        if self.config.head_names is not None:
            return self.config.head_names
        count = self.config.num_readout_heads
        known = tuple(head.name for head in self.dataset_info.heads)
        if len(known) > count:
            raise ValueError(f"num_readout_heads={count} but the dataset describes the heads {known}; raise the number")
        return known + tuple(f"head_{number}" for number in range(len(known), count))

    @nn.nowrap
    def rebuild(self, config: MaceConfig, dataset_info: DatasetInfo) -> Mace:
        """The same architecture with another configuration and constants."""
        return Mace(config, dataset_info)

    @nn.compact
    def __call__(self, vectors: jax.Array, graph: Graph) -> jax.Array:
        """Dimensionless node energies, before each head's scale, shift and E0.

        Args:
            vectors: [nodes, slots, 3] from each node to its neighbours, Angstrom; padding has length `cutoff`.
            graph: species and neighbours are used.

        Returns:
            [nodes, heads].
        """
        config, info = self.config, self.dataset_info
        distances = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        harmonics = spherical_harmonics(vectors / distances[..., None], config.l_max)
        envelope = polynomial_cutoff(distances, info.cutoff, config.cutoff_order)
        radial = bessel_basis(distances, info.cutoff, config.num_bessel) * envelope[..., None]

        species = jax.nn.one_hot(graph.species, len(info.elements), dtype=vectors.dtype)
        embedding = self.param("embedding", unit_normal, (len(info.elements), config.num_channels))
        features: Features = {0: (species @ embedding / len(info.elements) ** 0.5)[:, None]}
        layer_features = []
        for number in range(config.num_layers):
            last = number == config.num_layers - 1
            layer = MaceLayer(
                config,
                info.avg_num_neighbors,
                hidden_l_max=0 if last else config.hidden_l_max,
                residual=number > 0 or config.first_layer == "residual",
                name=f"layer_{number}",
            )
            features = layer(features, species, graph.neighbors, harmonics, radial)
            layer_features.append(features[0][:, 0])
        heads = [ReadoutHead(config.readout_mlp, name=f"head_{name}")(layer_features) for name in self.head_names]
        return jnp.stack(heads, axis=-1)


class MaceLayer(nn.Module):
    """One interaction and product: Eqs. 8-11 of arXiv:2206.07697 with the residual update of Eq. 11."""

    config: MaceConfig
    avg_num_neighbors: float
    hidden_l_max: int
    residual: bool

    @nn.compact
    def __call__(
        self, features: Features, species: jax.Array, neighbors: jax.Array, harmonics: jax.Array, radial: jax.Array
    ) -> Features:
        """Features of the next layer; `species` is one-hot [nodes, elements]."""
        config = self.config
        channels = config.num_channels
        message = NeighborSum(config, name="neighbor_sum")(
            Linear(channels, name="linear_up")(features), neighbors, harmonics, radial
        )
        message = Linear(channels, name="linear_message")(message)
        message = {ell: x / self.avg_num_neighbors for ell, x in message.items()}
        if self.residual:
            kept = {ell: x for ell, x in features.items() if ell <= self.hidden_l_max}
            skip = ElementLinear(channels, name="skip")(kept, species)
        else:
            message, skip = ElementLinear(channels, name="skip")(message, species), {}
        products = SymmetricContraction(config.l_max, self.hidden_l_max, config.correlation, name="contraction")(
            jnp.concatenate([message[ell] for ell in range(config.l_max + 1)], axis=1), species
        )
        products = Linear(channels, name="linear_product")(products)
        return {ell: x + skip[ell] if ell in skip else x for ell, x in products.items()}


class NeighborSum(nn.Module):
    """Sum over neighbours of radial weight x features x spherical harmonics, coupled to each degree: Eq. 8."""

    config: MaceConfig

    @nn.compact
    def __call__(self, features: Features, neighbors: jax.Array, harmonics: jax.Array, radial: jax.Array) -> Features:
        """Message of each degree, [nodes, 2 l + 1, paths * channels], before it is mixed and normalised."""
        config, slots = self.config, neighbors.shape[1]
        paths = coupling_paths(tuple(features), config.l_max)
        widths = (radial.shape[-1], *config.radial_mlp)
        hidden = [self.param(f"radial_{number}", unit_normal, shape) for number, shape in enumerate(pairwise(widths))]
        output = self.param("radial_output", unit_normal, (widths[-1], len(paths), config.num_channels))

        couplings, edge_widths = coupling_table(tuple(paths), config.l_max)

        def sum_neighbors(arrays: tuple[Features, jax.Array, jax.Array]) -> jax.Array:
            gathered, harmonics, radial = arrays
            # Couple the harmonics first: they carry no channels. The sum over neighbours is then a matrix product.
            coupled = jnp.split(harmonics @ jnp.asarray(couplings, harmonics.dtype), edge_widths, axis=-1)
            messages = []
            for (l_feature, _, l_out), weight, edge in zip(
                paths, radial_network(radial, hidden, output), coupled, strict=True
            ):
                edge = edge.reshape(*edge.shape[:2], 2 * l_feature + 1, 2 * l_out + 1)
                messages.append(jnp.einsum("nkam,nkac->nmc", edge, weight[:, :, None] * gathered[l_feature]))
            return jnp.concatenate(messages, axis=1)

        gathered = {ell: x[neighbors] for ell, x in features.items()}  # [nodes, slots, 2 l + 1, channels]
        block = max(1, 32768 // (max(slots, 1) * config.num_channels))
        summed = map_node_blocks(sum_neighbors, (gathered, harmonics, radial), block)
        by_path = jnp.split(summed, np.cumsum([2 * path[2] + 1 for path in paths])[:-1], axis=1)
        messages: dict[int, list[jax.Array]] = {}
        for (_, _, l_out), message in zip(paths, by_path, strict=True):
            messages.setdefault(l_out, []).append(message)
        return {ell: jnp.concatenate(messages[ell], axis=-1) for ell in sorted(messages)}


class SymmetricContraction(nn.Module):
    """Element-weighted equivariant polynomials of the density A: Eqs. 10 and 11 (see `symmetric.py`)."""

    l_max: int
    l_out: int
    correlation: int

    @nn.compact
    def __call__(self, density: jax.Array, species: jax.Array) -> Features:
        """[nodes, (l_max + 1)^2, channels] -> features up to `l_out`."""
        channels, elements = density.shape[-1], species.shape[-1]
        tables, sizes = [], []
        for ell in range(self.l_out + 1):
            counts = path_counts(self.l_max, ell, self.correlation)
            widths = np.concatenate([np.full(count, 1.0 / count) for count in counts if count])
            weights = self.param(f"degree_{ell}", _scaled_normal(widths), (elements, len(widths), channels))
            for contraction in symmetric_contractions(self.l_max, ell, self.correlation):
                coefficients = jnp.asarray(contraction.coefficients, density.dtype)
                tables.append((contraction.factors, jnp.einsum("zpc,pt->ztc", weights, coefficients)))
            sizes.append(2 * ell + 1)

        def contract(arrays: tuple[jax.Array, jax.Array]) -> jax.Array:
            density, species = arrays
            extended = jnp.concatenate([density, jnp.ones_like(density[:, :1])], axis=1)
            components = []
            for factors, table in tables:
                products = reduce(operator.mul, (extended[:, column] for column in factors.T))
                components.append(jnp.sum(products * jnp.einsum("nz,ztc->ntc", species, table), axis=1))
            return jnp.stack(components, axis=1)

        out = map_node_blocks(contract, (density, species), max(1, 1024 // channels))
        return dict(enumerate(jnp.split(out, np.cumsum(sizes)[:-1], axis=1)))


class Linear(nn.Module):
    """Equivariant linear map: mixes the channels of each degree, scaled by 1 / sqrt(inputs)."""

    channels: int

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """[nodes, 2 l + 1, inputs] -> [nodes, 2 l + 1, channels]."""
        out = {}
        for ell, x in features.items():
            kernel = self.param(f"degree_{ell}", unit_normal, (x.shape[-1], self.channels))
            out[ell] = x @ (kernel / x.shape[-1] ** 0.5)
        return out


class ElementLinear(nn.Module):
    """Equivariant linear map with one matrix per element, scaled by 1 / sqrt(inputs * elements)."""

    channels: int

    @nn.compact
    def __call__(self, features: Features, species: jax.Array) -> Features:
        """[nodes, 2 l + 1, inputs] and one-hot [nodes, elements] -> [nodes, 2 l + 1, channels]."""
        out = {}
        elements = species.shape[-1]
        for ell, x in features.items():
            kernel = self.param(f"degree_{ell}", unit_normal, (elements, x.shape[-1], self.channels))
            expanded = jnp.einsum("nmc,nz->nmzc", x, species).reshape(*x.shape[:2], -1)
            out[ell] = expanded @ (kernel / (x.shape[-1] * elements) ** 0.5).reshape(-1, self.channels)
        return out


class ReadoutHead(nn.Module):
    """Node energies of one head: linear readouts of all layers but the last, a one-layer network for the last (Eq. 12).

    The parameters that act last are named `output`: with those at zero, the head is silent but can be trained.
    """

    hidden: int

    @nn.compact
    def __call__(self, layer_features: list[jax.Array]) -> jax.Array:
        """Invariant features of each layer, [nodes, channels] -> [nodes]."""
        *earlier, last = layer_features
        energy = jnp.zeros_like(last[:, 0])
        for number, x in enumerate(earlier):
            output = self.param(f"layer_{number}_output", unit_normal, (x.shape[-1],))
            energy += x @ (output / x.shape[-1] ** 0.5)
        kernel = self.param(f"layer_{len(earlier)}_hidden", unit_normal, (last.shape[-1], self.hidden))
        output = self.param(f"layer_{len(earlier)}_output", unit_normal, (self.hidden,))
        hidden = scaled_silu(last @ (kernel / last.shape[-1] ** 0.5))
        return energy + hidden @ (output / self.hidden**0.5)


def _scaled_normal(widths: np.ndarray) -> nn.initializers.Initializer:
    """Normal weights with the standard deviation `widths` along the second axis."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(widths, dtype)[None, :, None]

    return init
