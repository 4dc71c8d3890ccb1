"""Spherical harmonics and Clebsch-Gordan coefficients, in e3nn's order and "component" normalisation.

Written out here because importing e3nn-jax takes longer than loading a model and predicting; the tests compare with it.
"""

from __future__ import annotations

from functools import lru_cache
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np


def spherical_harmonics(directions: jax.Array, l_max: int) -> jax.Array:
    """Real spherical harmonics of unit vectors, [..., (l_max + 1)^2], mean square one ("component" normalisation).

    Each degree is the coupling of the one before with the vector.
    """
    vector = [directions[..., axis] for axis in range(3)]
    degree = [jnp.ones_like(vector[0])]
    components = list(degree)
    for ell in range(l_max):
        terms = _raising_terms(ell)
        degree = [
            sum(factor * degree[i] * vector[j] for i, j, factor in terms[m])  # type: ignore[misc]
            for m in range(2 * ell + 3)
        ]
        components += degree
    return jnp.stack(components, axis=-1)


@lru_cache(maxsize=64)
def _raising_terms(ell: int) -> list[list[tuple[int, int, float]]]:
    """For each component of degree ell + 1: (component of degree ell, axis, factor) of the terms that make it up."""
    table = clebsch_gordan(ell, 1, ell + 1) * (2 * ell + 3) / (ell + 1) ** 0.5
    return [
        [(int(i), int(j), float(table[i, j, m])) for i, j in np.argwhere(np.abs(table[:, :, m]) > 1e-12)]
        for m in range(2 * ell + 3)
    ]


@lru_cache(maxsize=256)
def clebsch_gordan(l_1: int, l_2: int, l_3: int) -> np.ndarray:
    """Coefficients of the coupling of two real degrees to a third, [2 l_1 + 1, 2 l_2 + 1, 2 l_3 + 1], of unit norm.

    Those of complex harmonics (Racah's formula) in the basis of real ones; e3nn's phases and signs.
    """
    complex_table = np.zeros((2 * l_1 + 1, 2 * l_2 + 1, 2 * l_3 + 1))
    for m_1 in range(-l_1, l_1 + 1):
        for m_2 in range(-l_2, l_2 + 1):
            if abs(m_1 + m_2) <= l_3:
                complex_table[l_1 + m_1, l_2 + m_2, l_3 + m_1 + m_2] = _racah(l_1, m_1, l_2, m_2, l_3)
    first, second, third = (_real_basis(ell) for ell in (l_1, l_2, l_3))
    table = np.einsum("ia,jb,kc,ijk->abc", first, second, third.conj(), complex_table).real
    return table / np.linalg.norm(table)


def _racah(l_1: int, m_1: int, l_2: int, m_2: int, l_3: int) -> float:
    """<l_1 m_1 l_2 m_2 | l_3 m_1+m_2> (Racah, Phys. Rev. 62, 438 (1942), Eq. 16)."""
    if not abs(l_1 - l_2) <= l_3 <= l_1 + l_2:
        return 0.0
    m_3 = m_1 + m_2
    triangle = factorial(l_1 + l_2 - l_3) * factorial(l_1 - l_2 + l_3) * factorial(-l_1 + l_2 + l_3)
    moments = [factorial(ell + sign * m) for ell, m in ((l_1, m_1), (l_2, m_2), (l_3, m_3)) for sign in (1, -1)]
    scale = (2 * l_3 + 1) * triangle / factorial(l_1 + l_2 + l_3 + 1) * float(np.prod([float(x) for x in moments]))
    total = 0.0
    for k in range(l_1 + l_2 - l_3 + 1):
        parts = (k, l_1 + l_2 - l_3 - k, l_1 - m_1 - k, l_2 + m_2 - k, l_3 - l_2 + m_1 + k, l_3 - l_1 - m_2 + k)
        if min(parts) >= 0:
            total += (-1) ** k / float(np.prod([float(factorial(part)) for part in parts]))
    return float(scale**0.5 * total)


def _real_basis(ell: int) -> np.ndarray:
    """Columns: real harmonics in terms of complex ones, with the phase (-i)^l that makes couplings real."""
    basis = np.zeros((2 * ell + 1, 2 * ell + 1), complex)
    basis[ell, ell] = 1.0
    for m in range(1, ell + 1):
        basis[ell - m, ell + m], basis[ell - m, ell - m] = 1 / 2**0.5, -1j / 2**0.5
        basis[ell + m, ell + m], basis[ell + m, ell - m] = (-1) ** m / 2**0.5, 1j * (-1) ** m / 2**0.5
    return (-1j) ** ell * basis


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
        coupling = clebsch_gordan(l_feature, l_edge, l_out) * (2 * l_out + 1) ** 0.5
        column = np.zeros(((l_max + 1) ** 2, coupling.shape[0], coupling.shape[2]))
        column[l_edge**2 : (l_edge + 1) ** 2] = coupling.transpose(1, 0, 2)
        columns.append(column.reshape(len(column), -1))
    return np.concatenate(columns, axis=1), np.cumsum([column.shape[1] for column in columns])[:-1]
