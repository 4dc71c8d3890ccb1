"""The symmetric contraction and its first and second derivatives, in C++."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from ase_mlip.kernels.build import call

VALUES, DENSITY, TABLE, SECOND = range(4)  # known to contraction.cc
MAX_DEGREE = 4


@dataclass(frozen=True)
class Terms:
    """The monomials of all output components, one after the other.

    Attributes:
        factors: [terms * 4] components of the density, flat; those beyond a term's degree are not read.
        runs: (output row, degree, first term, one past the last term) of each run of terms, flat.
    """

    factors: tuple[int, ...]
    runs: tuple[int, ...]

    @classmethod
    def from_factors(cls, by_row: Sequence[np.ndarray], one: int) -> Terms:
        """From each output row's factors [terms, correlation], ordered by degree; `one` stands for no factor."""
        factors, runs, first = [], [], 0
        for row, table in enumerate(by_row):
            degrees = (table != one).sum(axis=1)
            padded = np.zeros((len(table), MAX_DEGREE), np.int32)
            padded[:, : table.shape[1]] = np.where(table == one, 0, table)
            factors.append(padded)
            for degree in np.unique(degrees):
                places = np.flatnonzero(degrees == degree)
                runs += [row, int(degree), first + int(places[0]), first + int(places[-1]) + 1]
            first += len(table)
        return cls(tuple(np.concatenate(factors).ravel().tolist()), tuple(runs))

    @property
    def rows(self) -> int:
        """Number of output components."""
        return max(self.runs[::4]) + 1


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(terms: Terms, density: jax.Array, table: jax.Array, species: jax.Array) -> jax.Array:
    """Sum of the terms of each output row, [nodes, rows, channels]; twice differentiable.

    Args:
        terms: the monomials.
        density: [nodes, components, channels].
        table: coefficient of each term, [elements, terms, channels].
        species: [nodes] row of the table.
    """
    shape = (len(density), terms.rows, density.shape[-1])
    return _call(terms, VALUES, [shape], species, density, table)[0]


def _call(
    terms: Terms, result: int, shapes: list[tuple[int, ...]], species: jax.Array, *arrays: jax.Array
) -> list[jax.Array]:
    constants = {"runs": np.array(terms.runs, np.int32), "factors": np.array(terms.factors, np.int32)}
    return call("contraction", arrays[0].dtype, shapes, (species, *arrays), result=np.int64(result), **constants)


def _forward(terms: Terms, density: jax.Array, table: jax.Array, species: jax.Array) -> tuple[jax.Array, Any]:
    return contract(terms, density, table, species), (density, table, species)


def _backward(terms: Terms, saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    density, table, species = saved
    by_table = _by_table(terms, len(table), density, gradient, species)
    return _by_density(terms, density, table, gradient, species), by_table, None


contract.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_density(
    terms: Terms, density: jax.Array, table: jax.Array, gradient: jax.Array, species: jax.Array
) -> jax.Array:
    """Derivative of <gradient, contract> by the density."""
    return _call(terms, DENSITY, [density.shape], species, density, table, gradient)[0]


def _forward_density(terms: Terms, density: Any, table: Any, gradient: Any, species: Any) -> tuple[jax.Array, Any]:
    return _by_density(terms, density, table, gradient, species), (density, table, gradient, species)


def _backward_density(terms: Terms, saved: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    density, table, gradient, species = saved
    shapes = [density.shape, table.shape, gradient.shape]
    return *_call(terms, SECOND, shapes, species, density, table, gradient, cotangent), None


_by_density.defvjp(_forward_density, _backward_density)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_table(terms: Terms, elements: int, density: jax.Array, gradient: jax.Array, species: jax.Array) -> jax.Array:
    """Derivative of <gradient, contract> by the table."""
    shape = (elements, len(terms.factors) // MAX_DEGREE, density.shape[-1])
    return _call(terms, TABLE, [shape], species, density, gradient)[0]


def _forward_table(terms: Terms, elements: int, density: Any, gradient: Any, species: Any) -> tuple[jax.Array, Any]:
    return _by_table(terms, elements, density, gradient, species), (density, gradient, species)


def _backward_table(terms: Terms, elements: int, saved: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    density, gradient, species = saved
    by_density = _by_density(terms, density, cotangent, gradient, species)
    return by_density, contract(terms, density, cotangent, species), None


_by_table.defvjp(_forward_table, _backward_table)
