"""The symmetric contraction of MACE: many-body features from the density of each node."""

from __future__ import annotations

import operator
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.layers import Features
from ase_mlip.networks.symmetric import path_counts, symmetric_contractions


class SymmetricContraction(nn.Module):
    """Element-weighted equivariant polynomials of the density A: Eqs. 10 and 11 (see `symmetric.py`)."""

    l_max: int
    l_out: int
    correlation: int
    by_element: bool = True

    @nn.compact
    def __call__(self, density: jax.Array, species: jax.Array) -> Features:
        """[nodes, (l_max + 1)^2, channels] -> features up to `l_out`."""
        channels, elements = density.shape[-1], species.shape[-1]
        tables, sizes = [], []
        for ell in range(self.l_out + 1):
            counts = path_counts(self.l_max, ell, self.correlation)
            widths = np.concatenate([np.full(count, 1.0 / count) for count in counts if count])
            name, rows = (f"element_degree_{ell}", elements) if self.by_element else (f"degree_{ell}", 1)
            weights = self.param(name, _scaled_normal(widths), (rows, len(widths), channels))
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
                table = jnp.einsum("nz,ztc->ntc", species, table) if self.by_element else table
                components.append(jnp.sum(products * table, axis=1))
            return jnp.stack(components, axis=1)

        out = map_node_blocks(contract, (density, species), max(1, 1024 // channels))
        return dict(enumerate(jnp.split(out, np.cumsum(sizes)[:-1], axis=1)))


def _scaled_normal(widths: np.ndarray) -> nn.initializers.Initializer:
    """Normal weights with the standard deviation `widths` along the second axis."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(widths, dtype)[None, :, None]

    return init
