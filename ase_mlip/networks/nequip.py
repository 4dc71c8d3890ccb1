"""NequIP: equivariant message passing (Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv:2101.03164).

In the variant of the published Nequix models: natural parity only, and an optional layer norm before each gate.

Node features are one array per degree l, `[nodes, 2 l + 1, channels]`, channels last. A parameter with one row per
chemical element has the elements as its first axis and a name that begins with `element_`; no formula depends on the
number of elements, so a model can be cut down to some of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.graph import Graph
from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.coupling import coupling_paths, coupling_table, spherical_harmonics
from ase_mlip.networks.heads import MultiHeadNetwork, check_head_names
from ase_mlip.networks.radial import SAMPLED_SILU_NORM, bessel_basis, polynomial_cutoff

Features = dict[int, jax.Array]  # degree l -> [nodes, 2 l + 1, channels]
unit_normal = nn.initializers.normal(1.0)

NORM_EPSILON = 1e-12
RADIAL_GAIN = 2.0  # of the radial network's hidden layers at the start: SiLU halves small numbers


@dataclass(frozen=True)
class NequipConfig:
    """Shape of a NequIP network; the defaults are the published Nequix models.

    Attributes:
        channels: width of the features of degree 0, 1, ... between layers.
        num_layers: message-passing layers.
        l_max: highest degree of the spherical harmonics.
        embedding_channels: width of the element embedding that the first layer sends to neighbours.
        num_bessel: radial basis functions.
        cutoff_order: p of the polynomial cutoff.
        radial_mlp: hidden widths of the radial network.
        layer_norm: normalise the features of each node before the gate.
        element_skip: one matrix per element in the skip connections, instead of one for all.
        num_readout_heads: number of readout heads.
        head_names: their names; by default those of the dataset's heads, then head_1, head_2, ...
    """

    channels: tuple[int, ...] = (128, 64, 32, 32)
    num_layers: int = 4
    l_max: int = 3
    embedding_channels: int = 64
    num_bessel: int = 8
    cutoff_order: int = 6
    radial_mlp: tuple[int, ...] = (64, 64)
    layer_norm: bool = True
    element_skip: bool = False
    num_readout_heads: int = 1
    head_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("channels", "radial_mlp"):
            widths = tuple(getattr(self, name))
            object.__setattr__(self, name, widths)
            if any(not isinstance(width, int) or width < 1 for width in widths):
                raise ValueError(f"{name}={widths}: give whole numbers of at least 1")
        if self.head_names is not None:
            object.__setattr__(self, "head_names", tuple(self.head_names))
        check_head_names(self.head_names, self.num_readout_heads)
        for name in ("num_layers", "embedding_channels", "num_bessel", "cutoff_order", "num_readout_heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value}: give a whole number of at least 1")
        if not 1 <= len(self.channels) <= self.l_max + 1:
            raise ValueError(f"channels={self.channels}: give the widths of degrees 0 up to at most l_max={self.l_max}")


class Nequip(MultiHeadNetwork):
    """NequIP with any number of additive readout heads: neighbour vectors -> node energies per head.

    Example:
        >>> info = DatasetInfo.create({1: 0.0, 8: 0.0}, cutoff=4.0, avg_num_neighbors=5.0)
        >>> Nequip(Nequip.Config(num_readout_heads=2), info).head_names
        ('base', 'head_1')
    """

    config: NequipConfig
    dataset_info: DatasetInfo

    Config = NequipConfig

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Embedding (the first layer's tables), interactions and readouts."""
        names = ("linear_up", "linear_message", "neighbor_sum", "skip", "layer_norm")
        return {
            "embedding": ("layer_0/element_embedding", "layer_0/element_skip"),
            "interactions": tuple(f"layer_*/{name}/*" for name in names),
            "readouts": ("head_*",),
        }

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
        # Eq. 8 of arXiv:2101.03164 has the factor 2/c in front of the Bessel functions.
        basis = (2 / info.cutoff) ** 0.5 * bessel_basis(distances, info.cutoff, config.num_bessel)
        radial = basis * envelope[..., None]

        species = jax.nn.one_hot(graph.species, len(info.elements), dtype=vectors.dtype)
        features: Features = {}
        for number in range(config.num_layers):
            layer = NequipLayer(
                config,
                info.avg_num_neighbors,
                first=number == 0,
                last=number == config.num_layers - 1,
                name=f"layer_{number}",
            )
            features = layer(features, species, graph.neighbors, harmonics, radial)
        scalars = features[0][:, 0]
        return jnp.stack([LinearReadout(name=f"head_{name}")(scalars) for name in self.head_names], axis=-1)


class NequipLayer(nn.Module):
    """One interaction block: messages, skip connection, layer norm, gate (Fig. 1 and Eq. 9 of arXiv:2101.03164).

    The first layer sees elements alone; the last one leaves scalars alone.
    """

    config: NequipConfig
    avg_num_neighbors: float
    first: bool
    last: bool

    @nn.compact
    def __call__(
        self, features: Features, species: jax.Array, neighbors: jax.Array, harmonics: jax.Array, radial: jax.Array
    ) -> Features:
        """Features of the next layer; `species` is one-hot [nodes, elements]."""
        config = self.config
        kept = config.channels[:1] if self.last else config.channels
        widths = (kept[0] + sum(kept[1:]), *kept[1:])  # scalars carry a gate for each channel of higher degree
        if self.first:
            sent = {0: self._element_features("element_embedding", species, config.embedding_channels)}
            skip = {0: self._element_features("element_skip", species, widths[0])}
        else:
            sent = Linear(config.channels, name="linear_up")(features)
            features = {ell: x for ell, x in features.items() if ell < len(widths)}
            if config.element_skip:
                skip = ElementLinear(widths, name="skip")(features, species)
            else:
                skip = Linear(widths, name="skip")(features)
        message = NeighborSum(config.l_max, len(widths) - 1, config.radial_mlp, name="neighbor_sum")(
            sent, neighbors, harmonics, radial
        )
        message = {ell: x / self.avg_num_neighbors**0.5 for ell, x in message.items()}
        message = Linear(widths, name="linear_message")(message)
        features = {ell: x + skip[ell] if ell in skip else x for ell, x in message.items()}
        if config.layer_norm:
            features = LayerNorm(name="layer_norm")(features)
        return gate(features, kept)

    def _element_features(self, name: str, species: jax.Array, channels: int) -> jax.Array:
        """A learned row per element, [nodes, 1, channels]."""
        return (species @ self.param(name, unit_normal, (species.shape[-1], channels)))[:, None]


class NeighborSum(nn.Module):
    """Sum over neighbours of radial weight x features x spherical harmonics, coupled to each degree: Eq. 9."""

    l_max: int
    l_out: int
    radial_mlp: tuple[int, ...]

    @nn.compact
    def __call__(self, features: Features, neighbors: jax.Array, harmonics: jax.Array, radial: jax.Array) -> Features:
        """Message of each degree, [nodes, 2 l + 1, paths' channels], before it is mixed and normalised."""
        slots = neighbors.shape[1]
        paths = [path for path in coupling_paths(tuple(features), self.l_max) if path[2] <= self.l_out]
        channels = [features[l_feature].shape[-1] for l_feature, _, _ in paths]
        widths = (radial.shape[-1], *self.radial_mlp)
        hidden = [
            self.param(f"radial_{number}", nn.initializers.normal(RADIAL_GAIN / shape[0] ** 0.5), shape)
            for number, shape in enumerate(pairwise(widths))
        ]
        output = self.param("radial_output", nn.initializers.normal(widths[-1] ** -0.5), (widths[-1], sum(channels)))
        by_path = jnp.split(output, list(accumulate(channels))[:-1], axis=-1)
        couplings, edge_widths = coupling_table(tuple(paths), self.l_max)

        def sum_neighbors(arrays: tuple[Features, jax.Array, jax.Array]) -> jax.Array:
            gathered, harmonics, radial = arrays
            for kernel in hidden:  # without biases: messages vanish with the radial basis at the cutoff
                radial = jax.nn.silu(radial @ kernel)
            # Couple the harmonics first: they carry no channels. The sum over neighbours is then a matrix product.
            coupled = jnp.split(harmonics @ jnp.asarray(couplings, harmonics.dtype), edge_widths, axis=-1)
            messages = []
            for (l_feature, _, l_out), kernel, edge in zip(paths, by_path, coupled, strict=True):
                edge = edge.reshape(*edge.shape[:2], 2 * l_feature + 1, 2 * l_out + 1)
                weighted = (radial @ kernel)[:, :, None] * gathered[l_feature]
                messages.append(jnp.einsum("nkam,nkac->nmc", edge, weighted).reshape(len(edge), -1))
            return jnp.concatenate(messages, axis=-1)

        gathered = {ell: x[neighbors] for ell, x in features.items()}  # [nodes, slots, 2 l + 1, channels]
        block = max(1, 32768 // (max(slots, 1) * max(channels)))
        summed = map_node_blocks(sum_neighbors, (gathered, harmonics, radial), block)
        sizes = [(2 * path[2] + 1) * count for path, count in zip(paths, channels, strict=True)]
        messages: dict[int, list[jax.Array]] = {}
        for (_, _, l_out), message in zip(paths, jnp.split(summed, np.cumsum(sizes)[:-1], axis=-1), strict=True):
            messages.setdefault(l_out, []).append(message.reshape(len(message), 2 * l_out + 1, -1))
        return {ell: jnp.concatenate(messages[ell], axis=-1) for ell in sorted(messages)}


class Linear(nn.Module):
    """Equivariant linear map: mixes the channels of each degree, scaled by 1 / sqrt(inputs)."""

    widths: tuple[int, ...]  # channels of each degree of the output

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """[nodes, 2 l + 1, inputs] -> [nodes, 2 l + 1, widths[l]]."""
        out = {}
        for ell, x in features.items():
            kernel = self.param(f"degree_{ell}", unit_normal, (x.shape[-1], self.widths[ell]))
            out[ell] = x @ (kernel / x.shape[-1] ** 0.5)
        return out


class ElementLinear(nn.Module):
    """Equivariant linear map with one matrix per element, scaled by 1 / sqrt(inputs)."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, features: Features, species: jax.Array) -> Features:
        """[nodes, 2 l + 1, inputs] and one-hot [nodes, elements] -> [nodes, 2 l + 1, widths[l]]."""
        out = {}
        elements = species.shape[-1]
        for ell, x in features.items():
            kernel = self.param(f"element_degree_{ell}", unit_normal, (elements, x.shape[-1], self.widths[ell]))
            expanded = jnp.einsum("nmc,nz->nmzc", x, species).reshape(*x.shape[:2], -1)
            out[ell] = expanded @ (kernel / x.shape[-1] ** 0.5).reshape(-1, self.widths[ell])
        return out


class LayerNorm(nn.Module):
    """Divide the features of a node by their common size, then scale each channel.

    The square of the size is the mean over degrees of sum over channels and mean over components of x^2 / (2 l + 1).
    A textbook norm has the mean over channels; published weights expect the sum.
    """

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """[nodes, 2 l + 1, channels] of each degree."""
        square = sum(jnp.sum(x**2, axis=(1, 2), keepdims=True) / x.shape[1] ** 2 for x in features.values())
        factor = jax.lax.rsqrt(square / len(features) + NORM_EPSILON)
        # At the start each channel has mean square one, as everywhere else in a random network.
        start = nn.initializers.constant(
            (sum(x.shape[2] / x.shape[1] for x in features.values()) / len(features)) ** 0.5
        )
        gains = {ell: self.param(f"degree_{ell}", start, x.shape[-1:]) for ell, x in features.items()}
        return {ell: x * gains[ell] * factor for ell, x in features.items()}


class LinearReadout(nn.Module):
    """Node energies of one head. With `output` at zero the head is silent but can be trained."""

    @nn.compact
    def __call__(self, scalars: jax.Array) -> jax.Array:
        """[nodes, channels] -> [nodes]."""
        output = self.param("output", unit_normal, scalars.shape[-1:])
        return scalars @ (output / scalars.shape[-1] ** 0.5)


def gate(features: Features, widths: tuple[int, ...]) -> Features:
    """SiLU of the scalars; every other channel is multiplied by the SiLU of its own gate.

    Args:
        features: degree 0 has the `widths[0]` scalars, then the gates of degree 1, 2, ...
        widths: channels of each degree of the output.
    """
    active = SAMPLED_SILU_NORM * jax.nn.silu(features[0])
    parts = jnp.split(active, list(accumulate(widths))[:-1], axis=-1)
    return {ell: part if ell == 0 else part * features[ell] for ell, part in enumerate(parts)}
