"""NequIP: equivariant message passing (Batzner et al., Nat. Commun. 13, 2453 (2022), arXiv:2101.03164).

In the variant of the published Nequix models: natural parity only, and an optional layer norm before each gate.

Node features are one array per degree l, `[nodes, 2 l + 1, channels]`, channels last. A parameter with one row per
chemical element has the elements as its first axis and a name that begins with `element_`; no formula depends on the
number of elements, so a model can be cut down to some of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import flax.linen as nn
import jax
import jax.numpy as jnp

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.graph import Graph
from ase_mlip.kernels import on_gpu, usable
from ase_mlip.kernels.build import VECTOR
from ase_mlip.networks.coupling import spherical_harmonics
from ase_mlip.networks.heads import MultiHeadNetwork, Params, check_head_names
from ase_mlip.networks.layers import Features, unit_normal
from ase_mlip.networks.neighbor_sum import Edges, Kernels
from ase_mlip.networks.nequip_sum import NeighborSum, channel_groups, radial_features
from ase_mlip.networks.radial import SAMPLED_SILU_NORM, bessel_basis, polynomial_cutoff

NORM_EPSILON = 1e-12


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
    kernels: Kernels | None = None

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

    @property
    def has_kernels(self) -> bool:
        """Whether the C++ kernels cover this shape and run here; there are none for a GPU."""
        return self.config.l_max <= 3 and not on_gpu() and usable(VECTOR)

    @property
    def has_tables(self) -> bool:
        """Wherever there are kernels: the radial weights depend on the distance alone."""
        return self.has_kernels

    @nn.nowrap
    def radial_weights(self, layer: str, params: Params, edges: Edges) -> list[jax.Array]:
        """The weights of all pairs for each group of channels, see `tabulate.RadialModel`."""
        config, number = self.config, int(layer.removeprefix("layer_"))
        widths = dict(enumerate(config.channels)) if number else {0: config.embedding_channels}
        l_out = 0 if number == config.num_layers - 1 else len(config.channels) - 1
        hidden = [params[f"hidden_{n}"] for n in range(len(config.radial_mlp))]
        x = radial_features(hidden, edges.radial)
        return [group.weights(x, params["output"]) for group in channel_groups(widths, config.l_max, l_out)]

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
        edges = self.edges(vectors, graph)
        species = jax.nn.one_hot(graph.species, len(info.elements), dtype=vectors.dtype)
        features: Features = {}
        for number in range(config.num_layers):
            layer = NequipLayer(
                config,
                info.avg_num_neighbors,
                first=number == 0,
                last=number == config.num_layers - 1,
                kernels=self.kernels,
                name=f"layer_{number}",
            )
            features = layer(features, species, edges)
        scalars = features[0][:, 0]
        return jnp.stack([LinearReadout(name=f"head_{name}")(scalars) for name in self.head_names], axis=-1)

    @nn.nowrap
    def edges(self, vectors: jax.Array, graph: Graph) -> Edges:
        """Harmonics and radial basis of all pairs."""
        config, cutoff = self.config, self.dataset_info.cutoff
        distances = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        harmonics = spherical_harmonics(vectors / distances[..., None], config.l_max)
        envelope = polynomial_cutoff(distances, cutoff, config.cutoff_order)
        # Eq. 8 of arXiv:2101.03164 has the factor 2/c in front of the Bessel functions.
        basis = (2 / cutoff) ** 0.5 * bessel_basis(distances, cutoff, config.num_bessel)
        radial, inside = basis * envelope[..., None], distances < cutoff
        edges = Edges(graph.neighbors, graph.species, harmonics, radial, distances, inside, None)
        return edges._replace(shared=graph.pair_rows()) if self.kernels and len(graph.pairs) else edges


class NequipLayer(nn.Module):
    """One interaction block: messages, skip connection, layer norm, gate (Fig. 1 and Eq. 9 of arXiv:2101.03164).

    The first layer sees elements alone; the last one leaves scalars alone.
    """

    config: NequipConfig
    avg_num_neighbors: float
    first: bool
    last: bool
    kernels: Kernels | None

    @nn.compact
    def __call__(self, features: Features, species: jax.Array, edges: Edges) -> Features:
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
        neighbor_sum = NeighborSum(config.l_max, len(widths) - 1, config.radial_mlp, self.kernels, name="neighbor_sum")
        message = neighbor_sum(sent, edges)
        message = {ell: x / self.avg_num_neighbors**0.5 for ell, x in message.items()}
        message = Linear(widths, name="linear_message")(message)
        features = {ell: x + skip[ell] if ell in skip else x for ell, x in message.items()}
        if config.layer_norm:
            features = LayerNorm(name="layer_norm")(features)
        return gate(features, kept)

    def _element_features(self, name: str, species: jax.Array, channels: int) -> jax.Array:
        """A learned row per element, [nodes, 1, channels]."""
        return (species @ self.param(name, unit_normal, (species.shape[-1], channels)))[:, None]


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
