"""The symmetric contraction of MACE: many-body features from the density of each node."""

from __future__ import annotations

import operator
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ase_mlip.kernels import pick_contraction
from ase_mlip.kernels.contraction import Terms
from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.layers import Features
from ase_mlip.networks.symmetric import path_counts, symmetric_contractions


class SymmetricContraction(nn.Module):
    """Element-weighted equivariant polynomials of the density A: Eqs. 10 and 11 (see `symmetric.py`).

    Attributes:
        l_max: highest degree of the density.
        l_out: highest degree of the result.
        correlation: highest degree of the polynomials.
        by_element: whether each element has its own weights.
        kernels: whether the kernel runs.
    """

    l_max: int
    l_out: int
    correlation: int
    by_element: bool = True
    kernels: bool = False

    @nn.compact
    def __call__(self, density: jax.Array, one_hot: jax.Array, species: jax.Array) -> Features:
        """Features up to `l_out`.

        Args:
            density: [nodes, (l_max + 1)^2, channels].
            one_hot: [nodes, elements], the element of each node.
            species: [nodes], the same as an index.
        """
        channels, elements = density.shape[-1], one_hot.shape[-1]
        factors: list[np.ndarray] = []
        tables: list[jax.Array] = []  # [elements, terms, channels] for each component of the result
        sizes = []
        for ell in range(self.l_out + 1):
            counts = path_counts(self.l_max, ell, self.correlation)
            widths = np.concatenate([np.full(count, 1.0 / count) for count in counts if count])
            name, rows = (f"element_degree_{ell}", elements) if self.by_element else (f"degree_{ell}", 1)
            weights = self.param(name, _scaled_normal(widths), (rows, len(widths), channels))
            for contraction in symmetric_contractions(self.l_max, ell, self.correlation):
                coefficients = jnp.asarray(contraction.coefficients, density.dtype)
                factors.append(contraction.factors)
                tables.append(jnp.einsum("zpc,pt->ztc", weights, coefficients))
            sizes.append(2 * ell + 1)
        if self.kernels:
            terms = Terms.from_factors(factors, one=density.shape[1])
            element = species if self.by_element else jnp.zeros_like(species)
            out = pick_contraction()(terms, density, jnp.concatenate(tables, axis=1), element)
        else:
            block = max(1, 1024 // channels)
            out = map_node_blocks(partial(_contract, factors, tables, self.by_element), (density, one_hot), block)
        return dict(enumerate(jnp.split(out, np.cumsum(sizes)[:-1], axis=1)))


def _contract(
    factors: list[np.ndarray], tables: list[jax.Array], by_element: bool, arrays: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Components of the result, [nodes, components, channels]: for each the sum of its monomials."""
    density, one_hot = arrays
    extended = jnp.concatenate([density, jnp.ones_like(density[:, :1])], axis=1)
    components = []
    for columns, table in zip(factors, tables, strict=True):
        products = reduce(operator.mul, (extended[:, column] for column in columns.T))
        table = jnp.einsum("nz,ztc->ntc", one_hot, table) if by_element else table
        components.append(jnp.sum(products * table, axis=1))
    return jnp.stack(components, axis=1)


def _scaled_normal(widths: np.ndarray) -> nn.initializers.Initializer:
    """Normal weights with the standard deviation `widths` along the second axis."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.normal(key, shape, dtype) * jnp.asarray(widths, dtype)[None, :, None]

    return init
