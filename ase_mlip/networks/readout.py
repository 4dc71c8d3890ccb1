"""Readout heads: node energies from the invariant features of the layers."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ase_mlip.networks.layers import unit_normal
from ase_mlip.networks.radial import scaled_silu

ReadoutKind = Literal["mlp", "biased_mlp", "linear"]


class ReadoutHead(nn.Module):
    """Node energies of one head: linear readouts of all layers but the last, a network for the last (Eq. 12 of MACE).

    The parameters that act last have names that end in `output`: with those at zero, the head is silent but can be
    trained.

    Attributes:
        kind: of the last layer's readout: "mlp" has one hidden layer without biases, "biased_mlp" two and biases.
        hidden: width of the hidden layers.
    """

    kind: ReadoutKind
    hidden: int

    @nn.compact
    def __call__(self, layer_features: list[jax.Array]) -> jax.Array:
        """Invariant features of each layer that is read out, [nodes, channels] -> [nodes]."""
        energy = jnp.zeros_like(layer_features[0][:, 0])
        for number, x in enumerate(layer_features):
            if number == len(layer_features) - 1 and self.kind != "linear":
                return energy + self._network(x, f"layer_{number}")
            output = self.param(f"layer_{number}_output", unit_normal, (x.shape[-1],))
            energy += x @ (output / x.shape[-1] ** 0.5)
        return energy

    def _network(self, x: jax.Array, name: str) -> jax.Array:
        kernel = self.param(f"{name}_hidden", unit_normal, (x.shape[-1], self.hidden))
        output = self.param(f"{name}_output", unit_normal, (self.hidden,))
        hidden = scaled_silu(x @ (kernel / x.shape[-1] ** 0.5))
        if self.kind == "mlp":
            return hidden @ (output / self.hidden**0.5)
        middle = self.param(f"{name}_middle", unit_normal, (self.hidden, self.hidden))
        bias = self.param(f"{name}_bias", nn.initializers.zeros, (self.hidden,))
        constant = self.param(f"{name}_constant_output", nn.initializers.zeros, ())
        hidden = scaled_silu(hidden @ (middle / self.hidden**0.5) + bias)
        return hidden @ (output / self.hidden**0.5) + constant
