"""Spherical harmonics and Clebsch-Gordan coefficients, in e3nn's order and "component" normalisation."""

from __future__ import annotations

from functools import lru_cache

import e3nn_jax as e3nn
import jax
import numpy as np


def spherical_harmonics(directions: jax.Array, l_max: int) -> jax.Array:
    """Real spherical harmonics of unit vectors, [..., (l_max + 1)^2], mean square one ("component" normalisation)."""
    vectors = e3nn.IrrepsArray("1o", directions)
    return e3nn.spherical_harmonics(range(l_max + 1), vectors, normalize=False, normalization="component").array


def coupling_paths(l_features: tuple[int, ...], l_max: int) -> list[tuple[int, int, int]]:
    """All (feature, edge, output) degrees that couple with natural parity, ordered by output, feature, edge."""
    return sorted(
        ((a, b, c) for a in l_features for b in range(l_max + 1) for c in range(l_max + 1)
         if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0),
        key=lambda path: (path[2], path[0], path[1]),
    )  # fmt: skip


@lru_cache(maxsize=64)
def coupling_table(paths: tuple[tuple[int, int, int], ...], l_max: int) -> tuple[np.ndarray, np.ndarray]:
    """Clebsch-Gordan coefficients of all paths as one matrix, "component" normalisation.

    Returns:
        [(l_max + 1)^2, sum over paths of (2 l_feature + 1)(2 l_out + 1)], and the columns where a new path begins.
    """
    columns = []
    for l_feature, l_edge, l_out in paths:
        coupling = np.asarray(e3nn.clebsch_gordan(l_feature, l_edge, l_out)) * (2 * l_out + 1) ** 0.5
        column = np.zeros(((l_max + 1) ** 2, coupling.shape[0], coupling.shape[2]))
        column[l_edge**2 : (l_edge + 1) ** 2] = coupling.transpose(1, 0, 2)
        columns.append(column.reshape(len(column), -1))
    return np.concatenate(columns, axis=1), np.cumsum([column.shape[1] for column in columns])[:-1]
