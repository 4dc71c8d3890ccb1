"""The symmetric contraction and its derivative by the density on a GPU: one Pallas kernel, one program for each row.

Both are sums of products of three rows of a node and a coefficient. Their indices are read from a list: written out,
the hundreds of terms would take minutes to compile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from ase_mlip.kernels.contraction import MAX_DEGREE, Terms
from ase_mlip.kernels.launch import launch

FACTORS = 3  # rows in a product: a term's factors, or the gradient's row in place of one of them
ROW_BITS = 6  # of a row's number in a packed product
WARPS = 1


@dataclass(frozen=True)
class Products:
    """What is summed for each row of the result.

    Attributes:
        packed: [products] the coefficient's number, then those of the rows, `ROW_BITS` each.
        starts: [rows + 1] first product of each row.
    """

    packed: np.ndarray
    starts: np.ndarray

    @classmethod
    def from_lists(cls, rows: list[list[tuple[int, tuple[int, ...]]]], one: int) -> Products:
        """From each row's (coefficient, factors); the row `one` stands where there are fewer than `FACTORS`."""
        packed = []
        for term, factors in (product for row in rows for product in row):
            for factor in (*factors, *(one,) * (FACTORS - len(factors))):
                term = term << ROW_BITS | factor
            packed.append(term)
        return cls(np.array(packed, np.int32), np.cumsum([0, *map(len, rows)], dtype=np.int32))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(terms: Terms, density: jax.Array, table: jax.Array, species: jax.Array) -> jax.Array:
    """As `contraction.contract`, for a correlation of at most three; once differentiable, and by the density alone."""
    one = density.shape[1]
    rows: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(terms.rows)]
    for term, row, factors in _each(terms):
        rows[row].append((term, factors))
    return _sum(Products.from_lists(rows, one), _with_ones(density), table, species)


def _forward(terms: Terms, density: jax.Array, table: jax.Array, species: jax.Array) -> tuple[jax.Array, Any]:
    return contract(terms, density, table, species), (density, table, species)


def _backward(terms: Terms, saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    density, table, species = saved
    one = density.shape[1]
    rows: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(one)]
    for term, row, factors in _each(terms):
        for place, factor in enumerate(factors):
            others = factors[:place] + factors[place + 1 :]
            rows[factor].append((term, (one + 1 + row, *others)))
    values = jnp.concatenate([_with_ones(density), gradient], axis=1)
    return _sum(Products.from_lists(rows, one), values, table, species), None, None


contract.defvjp(_forward, _backward)


def _with_ones(density: jax.Array) -> jax.Array:
    return jnp.concatenate([density, jnp.ones_like(density[:, :1])], axis=1)


def _each(terms: Terms) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    """Number, output row and factors of every term."""
    for run in range(0, len(terms.runs), 4):
        row, degree, first, last = terms.runs[run : run + 4]
        for term in range(first, last):
            yield term, row, terms.factors[MAX_DEGREE * term : MAX_DEGREE * term + degree]


def _sum(products: Products, values: jax.Array, table: jax.Array, species: jax.Array) -> jax.Array:
    """[nodes, rows, channels] from values [nodes, ..., channels] and coefficients [elements, terms, channels]."""
    nodes, _, channels = values.shape
    shape = (nodes, len(products.starts) - 1, channels)
    arrays = (species, jnp.asarray(products.packed), jnp.asarray(products.starts), values, table)
    return launch(_sum_products, [shape], (nodes, channels, shape[1]), arrays, WARPS)[0]


def _sum_products(channels: Any, species: Any, packed: Any, starts: Any, values: Any, table: Any, out: Any) -> None:
    """One row of a node."""
    node, row = pl.program_id(0), pl.program_id(2)
    element = species[node]

    def add(number: Any, total: Any) -> Any:
        product = packed[number]
        coefficient = table[element, product >> (FACTORS * ROW_BITS), channels]
        for place in range(FACTORS):
            factor = product >> (place * ROW_BITS) & (2**ROW_BITS - 1)
            coefficient *= values[node, factor, channels]
        return total + coefficient

    zeros = jnp.zeros(channels.size, jnp.float32)
    out[node, row, channels] = jax.lax.fori_loop(starts[row], starts[row + 1], add, zeros)
