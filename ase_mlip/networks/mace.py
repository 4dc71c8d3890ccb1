"""MACE: higher-order equivariant message passing (Batatia et al., NeurIPS 2022, arXiv:2206.07697)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.graph import Graph
from ase_mlip.kernels import on_gpu, usable
from ase_mlip.networks.contraction import SymmetricContraction
from ase_mlip.networks.coupling import spherical_harmonics
from ase_mlip.networks.heads import MultiHeadNetwork, Params, check_head_names
from ase_mlip.networks.layers import ElementGate, ElementLinear, Features, Gate, Linear, unit_normal
from ase_mlip.networks.neighbor_sum import Edges, Kernels, NeighborDensity, NeighborSum, RadialNetwork
from ase_mlip.networks.radial import CutoffFunction, agnesi_transform, bessel_basis, cutoff_envelope, soft_transform
from ase_mlip.networks.readout import ReadoutHead, ReadoutKind

Interaction = Literal["mean", "density", "gated"]
FirstLayer = Literal["residual", "plain"]
DistanceTransform = Literal["none", "agnesi", "soft"]
Envelope = Literal["basis", "messages"]
Readouts = Literal["every_layer", "last_layer"]
GATED_DENSITY_WIDTH = 64  # hidden width of the gated interaction's count of neighbours


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
        cutoff_function: shape of the envelope.
        cutoff_order: p of the polynomial cutoff.
        radial_mlp: hidden widths of the radial network.
        readout_mlp: hidden width of the last layer's readout.
        first_layer: "residual" adds the element-dependent skip connection in the first layer too; "plain" applies the
            element-dependent map to the message instead.
        interaction: how messages are normalised: "mean" divides by the mean number of neighbours, "density" by one plus
            a learned count of them (MACE-MP-0b and later), "gated" by a learned multiple of it in a non-linear block
            whose radial weights know both elements (MACE-MH).
        edge_channels: width of the features that each layer sends to neighbours; `num_channels` in all if None.
        distance_transform: of the argument of the radial basis, by the covalent radii of the pair.
        envelope: whether the cutoff multiplies the radial "basis" or the "messages".
        element_products: whether the product's weights depend on the element.
        gated_products: whether an element-dependent gate follows the product (mlip's "gate_nodes").
        pair_embedding: width of an embedding of the elements, which scales the radial weights by a network of both
            atoms' embeddings and their product (mlip's "species_embedding_dim"); none if None.
        readouts: which layers are read out.
        readout: kind of the last layer's readout.
        num_readout_heads: number of readout heads.
        head_names: their names; by default those of the dataset's heads, then head_1, head_2, ...
    """

    num_channels: int = 128
    num_layers: int = 2
    l_max: int = 3
    hidden_l_max: int = 1
    correlation: int = 3
    num_bessel: int = 8
    cutoff_function: CutoffFunction = "polynomial"
    cutoff_order: int = 5
    radial_mlp: tuple[int, ...] = (64, 64, 64)
    readout_mlp: int = 16
    first_layer: FirstLayer = "residual"
    interaction: Interaction = "mean"
    edge_channels: tuple[int, ...] | None = None
    distance_transform: DistanceTransform = "none"
    envelope: Envelope = "basis"
    element_products: bool = True
    gated_products: bool = False
    pair_embedding: int | None = None
    readouts: Readouts = "every_layer"
    readout: ReadoutKind = "mlp"
    num_readout_heads: int = 1
    head_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "radial_mlp", tuple(self.radial_mlp))
        if self.head_names is not None:
            object.__setattr__(self, "head_names", tuple(self.head_names))
        check_head_names(self.head_names, self.num_readout_heads)
        positive = ("num_channels", "num_layers", "num_bessel", "cutoff_order", "readout_mlp", "num_readout_heads")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        if not 0 <= self.hidden_l_max <= self.l_max:
            raise ValueError(f"hidden_l_max={self.hidden_l_max}: give 0 to l_max={self.l_max}")
        if not 1 <= self.correlation <= 4:
            raise ValueError(f"correlation={self.correlation}: give 1, 2, 3 or 4")
        if self.edge_channels is not None:
            object.__setattr__(self, "edge_channels", tuple(self.edge_channels))
            if len(self.edge_channels) != self.num_layers or min(self.edge_channels) < 1:
                raise ValueError(f"edge_channels={self.edge_channels}: give one positive width for each layer, or None")
        if self.pair_embedding is not None and self.pair_embedding < 1:
            raise ValueError(f"pair_embedding={self.pair_embedding}: give a whole number of at least 1, or None")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(map(repr, choices))}")
        if self.interaction == "gated" and (self.first_layer == "plain" or not self.radial_mlp):
            raise ValueError("interaction='gated' needs first_layer='residual' and at least one width in radial_mlp")


CHOICES = {
    "first_layer": get_args(FirstLayer),
    "interaction": get_args(Interaction),
    "distance_transform": get_args(DistanceTransform),
    "cutoff_function": get_args(CutoffFunction),
    "envelope": get_args(Envelope),
    "readouts": get_args(Readouts),
    "readout": get_args(ReadoutKind),
}


class Mace(MultiHeadNetwork):
    """MACE with any number of additive readout heads: neighbour vectors -> node energies per head.

    Example:
        >>> info = DatasetInfo.create({1: 0.0, 8: 0.0}, cutoff=4.0, avg_num_neighbors=5.0)
        >>> Mace(Mace.Config(num_readout_heads=2), info).head_names
        ('base', 'head_1')
    """

    config: MaceConfig
    dataset_info: DatasetInfo
    kernels: Kernels | None = None

    Config = MaceConfig

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Embedding, interactions (Eqs. 8-9), products (Eqs. 10-11) and readouts (Eq. 12)."""
        products = ("contraction", "gate", "linear_product")
        interactions = ("linear_up", "linear_message", "linear_residual", "linear_gated", "neighbor_sum", "density")
        return {
            "embedding": ("element_embedding", "element_pair_embedding"),
            "interactions": (
                *(f"layer_*/{name}/*" for name in (*interactions, "skip")),
                "layer_*/alpha",
                "layer_*/beta",
            ),
            "products": tuple(f"layer_*/{name}/*" for name in products),
            "readouts": ("head_*",),
        }

    @property
    def has_kernels(self) -> bool:
        """Whether the kernels cover this shape and run here, with the two derivatives that training takes."""
        return self._covered(tabulated=False)

    @property
    def has_tables(self) -> bool:
        """Whether the kernels run here with tables in place of the radial networks, for predictions in float32."""
        config = self.config
        only_distance = config.distance_transform == "none" and config.pair_embedding is None
        return only_distance and config.interaction != "gated" and self._covered(tabulated=True)

    @nn.nowrap
    def _covered(self, tabulated: bool) -> bool:
        config = self.config
        widths = (config.num_channels, *(config.edge_channels or ()))
        small = config.l_max <= 3 and config.hidden_l_max <= 2
        return small and all(usable(width, config.correlation, tabulated) for width in widths)

    @nn.nowrap
    def radial_weights(self, layer: str, params: Params, edges: Edges) -> list[jax.Array]:
        """The weights of all pairs in one array, see `tabulate.RadialModel`; every layer's are of one kind."""
        del layer
        _, paths, channels = params["radial"]["output"].shape
        module = RadialNetwork(self.config.radial_mlp, paths, channels, None)
        return [module.apply({"params": params["radial"]}, edges).stacked()]

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
        if config.pair_embedding is not None:
            table = self.param("element_pair_embedding", unit_normal, (len(info.elements), config.pair_embedding))
            neighbor, center = jnp.broadcast_arrays(table[:, None], table[None])
            edges = edges._replace(pairs=jnp.concatenate([neighbor, center, neighbor * center], axis=-1))
        species = jax.nn.one_hot(graph.species, len(info.elements), dtype=vectors.dtype)
        embedding = self.param("element_embedding", unit_normal, (len(info.elements), config.num_channels))
        features: Features = {0: (species @ embedding)[:, None]}
        layer_features = []
        for number in range(config.num_layers):
            last = number == config.num_layers - 1
            layer = MaceLayer(
                config,
                info.avg_num_neighbors,
                edge_channels=config.edge_channels[number] if config.edge_channels else config.num_channels,
                hidden_l_max=0 if last else config.hidden_l_max,
                residual=number > 0 or config.first_layer == "residual",
                kernels=self.kernels,
                name=f"layer_{number}",
            )
            features = layer(features, species, edges)
            layer_features.append(features[0][:, 0])
        if config.readouts == "last_layer":
            layer_features = layer_features[-1:]
        heads = [
            ReadoutHead(config.readout, config.readout_mlp, name=f"head_{name}")(layer_features)
            for name in self.head_names
        ]
        return jnp.stack(heads, axis=-1)

    @nn.nowrap
    def edges(self, vectors: jax.Array, graph: Graph) -> Edges:
        """Harmonics and radial basis of all pairs, Eq. 7."""
        config, info = self.config, self.dataset_info
        distances = jnp.sqrt(jnp.sum(vectors**2, axis=-1))
        harmonics = spherical_harmonics(vectors / distances[..., None], config.l_max)
        envelope = cutoff_envelope(config.cutoff_function, distances, info.cutoff, config.cutoff_order)
        radius = jnp.asarray(covalent_radii[np.array(info.elements)], distances.dtype)[graph.species]
        contact = radius[:, None] + radius[graph.neighbors]
        transformed = distances
        if config.distance_transform == "agnesi":
            transformed = agnesi_transform(distances, contact / 2)
        elif config.distance_transform == "soft":
            transformed = soft_transform(distances, contact)
        radial = bessel_basis(transformed, info.cutoff, config.num_bessel)
        inside = distances < info.cutoff
        factor = envelope if config.envelope == "messages" else None
        if config.envelope == "basis":
            radial *= envelope[..., None]
            if config.interaction == "gated":  # biases in the radial network: what is beyond the cutoff ends here
                factor = inside.astype(radial.dtype)
        edges = Edges(graph.neighbors, graph.species, harmonics, radial, distances, inside, factor)
        if self.kernels and on_gpu():
            return edges._replace(reverse=graph.reverse_slots())
        return edges._replace(shared=graph.pair_rows()) if self.kernels and len(graph.pairs) else edges


class MaceLayer(nn.Module):
    """One interaction and product: Eqs. 8-11 of arXiv:2206.07697 with the residual update of Eq. 11."""

    config: MaceConfig
    avg_num_neighbors: float
    edge_channels: int
    hidden_l_max: int
    residual: bool
    kernels: Kernels | None

    @nn.compact
    def __call__(self, features: Features, species: jax.Array, edges: Edges) -> Features:
        """Features of the next layer; `species` is one-hot [nodes, elements]."""
        config = self.config
        channels = config.num_channels
        kept = {ell: x for ell, x in features.items() if ell <= self.hidden_l_max}
        sent = Linear(self.edge_channels, name="linear_up")(features)
        skip: Features = {}
        if config.interaction == "gated":
            message, skip = self._gated_message(sent, species, edges), Linear(channels, name="skip")(kept)
        else:
            message = NeighborSum(config.l_max, config.radial_mlp, kernels=self.kernels, name="neighbor_sum")(
                sent, edges
            )
            message = Linear(channels, name="linear_message")(message)
            count: jax.Array | float = self.avg_num_neighbors
            if config.interaction == "density":
                count = 1 + NeighborDensity(name="density")(edges)
            message = {ell: x / count for ell, x in message.items()}
            if self.residual:
                skip = ElementLinear(channels, name="skip")(kept, species)
            else:
                message = ElementLinear(channels, name="skip")(message, species)
        contraction = SymmetricContraction(
            config.l_max,
            self.hidden_l_max,
            config.correlation,
            config.element_products,
            self.kernels is not None,
            name="contraction",
        )
        density = jnp.concatenate([message[ell] for ell in range(config.l_max + 1)], axis=1)
        products = contraction(density, species, edges.species)
        if config.gated_products:
            products = ElementGate(name="gate")(products, species)
        products = Linear(channels, name="linear_product")(products)
        return {ell: x + skip[ell] if ell in skip else x for ell, x in products.items()}

    def _gated_message(self, sent: Features, species: jax.Array, edges: Edges) -> Features:
        """The non-linear block of MACE-MH (arXiv:2510.25380): element-dependent radial weights, residual, gate."""
        config, elements = self.config, species.shape[-1]
        channels, scalars = config.num_channels, config.num_channels * (1 + config.l_max)
        message = NeighborSum(config.l_max, config.radial_mlp, elements, self.kernels, name="neighbor_sum")(sent, edges)
        message = Linear(channels, scalars, name="linear_message")(message)
        density = NeighborDensity((GATED_DENSITY_WIDTH,), elements, name="density")(edges)
        alpha = self.param("alpha", nn.initializers.constant(self.avg_num_neighbors), ())
        beta = self.param("beta", nn.initializers.zeros, ())
        own = Linear(channels, scalars, name="linear_residual")(sent)
        message = {ell: x / (alpha + beta * density) + own.get(ell, 0.0) for ell, x in message.items()}
        return Linear(channels, name="linear_gated")(Gate(channels)(message))
