"""Building blocks that MACE shares with other equivariant networks.

Node features are one array per degree l, `[nodes, 2 l + 1, channels]`, channels last so that every linear map is one
matrix product. A parameter with one row per chemical element has the elements as its first axis and a name that begins
with `element_`; no formula depends on the number of elements, so a model can be cut down to some of them.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ase_mlip.networks.radial import scaled_sigmoid, scaled_silu

Features = dict[int, jax.Array]  # degree l -> [nodes, 2 l + 1, channels]
unit_normal = nn.initializers.normal(1.0)


class Linear(nn.Module):
    """Equivariant linear map: mixes the channels of each degree, scaled by 1 / sqrt(inputs).

    Attributes:
        channels: width of every degree of the output.
        scalar_channels: width of degree 0, if another.
    """

    channels: int
    scalar_channels: int | None = None

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """[nodes, 2 l + 1, inputs] -> [nodes, 2 l + 1, channels]."""
        out = {}
        for ell, x in features.items():
            width = self.channels if ell or self.scalar_channels is None else self.scalar_channels
            kernel = self.param(f"degree_{ell}", unit_normal, (x.shape[-1], width))
            out[ell] = x @ (kernel / x.shape[-1] ** 0.5)
        return out


class ElementLinear(nn.Module):
    """Equivariant linear map with one matrix per element, scaled by 1 / sqrt(inputs)."""

    channels: int

    @nn.compact
    def __call__(self, features: Features, species: jax.Array) -> Features:
        """[nodes, 2 l + 1, inputs] and one-hot [nodes, elements] -> [nodes, 2 l + 1, channels]."""
        out = {}
        elements = species.shape[-1]
        for ell, x in features.items():
            kernel = self.param(f"element_degree_{ell}", spread_normal, (elements, x.shape[-1], self.channels))
            expanded = jnp.einsum("nmc,nz->nmzc", x, species).reshape(*x.shape[:2], -1)
            out[ell] = expanded @ (kernel / x.shape[-1] ** 0.5).reshape(-1, self.channels)
        return out


class Gate(nn.Module):
    """Equivariant non-linearity: SiLU on scalars, a sigmoid of further scalars times each channel of higher degree."""

    channels: int

    @nn.compact
    def __call__(self, features: Features) -> Features:
        """Degree 0 of width channels * (1 + number of higher degrees): scalars, then the gates by ascending degree."""
        scalars, *gates = jnp.split(features[0], features[0].shape[-1] // self.channels, axis=-1)
        higher = [ell for ell in sorted(features) if ell > 0]
        gated = {ell: features[ell] * scaled_sigmoid(gate) for ell, gate in zip(higher, gates, strict=True)}
        return {0: scaled_silu(scalars)} | gated


class ElementGate(nn.Module):
    """Each channel of each degree times an element-dependent affine function of the node's scalars (mlip)."""

    @nn.compact
    def __call__(self, features: Features, species: jax.Array) -> Features:
        """Features of equal width and one-hot [nodes, elements] -> features of the same shape."""
        width = features[0].shape[-1] * len(features)
        bias = self.param("element_bias", unit_normal, (species.shape[-1], width))
        gates = ElementLinear(width, name="kernel")({0: features[0]}, species)[0] + (species @ bias)[:, None]
        by_degree = jnp.split(gates, len(features), axis=-1)
        return {ell: features[ell] * gate for ell, gate in zip(sorted(features), by_degree, strict=True)}


def spread_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Normal weights that shrink with the number of elements, the first axis."""
    return jax.random.normal(key, shape, dtype) / shape[0] ** 0.5
