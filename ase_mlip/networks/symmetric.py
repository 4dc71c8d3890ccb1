"""Basis of the symmetric contraction: all rotation-equivariant polynomials of a node's density A, Eq. 10 of MACE.

The many-body features of MACE (Batatia et al., NeurIPS 2022, arXiv:2206.07697, Eqs. 10-11) are polynomials of degree 1
to the correlation order in the components A_lm of one channel. Products commute, so we store each polynomial by its
monomials A_i A_j A_k with i <= j <= k, and keep only linearly independent polynomials: fewer weights and far fewer
products than the full generalised Clebsch-Gordan tensors, for the same function space.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np

from ase_mlip.networks.coupling import clebsch_gordan

# A polynomial map onto an irrep (l, parity): coefficients [paths, 2 l + 1, monomials].
Polynomials = dict[tuple[int, int], np.ndarray]


@dataclass(frozen=True)
class Contraction:
    """The non-zero monomials of one component (l, m) of the output, over all degrees.

    Attributes:
        factors: [monomials, correlation] components of A in each monomial; the index one past the last stands for 1.
        coefficients: [paths, monomials], the paths of degree 1 first.
    """

    factors: np.ndarray
    coefficients: np.ndarray


@lru_cache(maxsize=64)
def symmetric_contractions(l_max: int, l_out: int, correlation: int) -> tuple[Contraction, ...]:
    """The contractions for m = -l_out ... l_out of all equivariant polynomials of degree 1 to `correlation`.

    Within a degree the polynomials are orthonormal as vectors of symmetric-tensor components, in an order that follows
    from the coupling scheme alone, so that weights mean the same on every machine. Multiplicity and equivariance are
    tested against character theory and random rotations.

    Args:
        l_max: A has the components l = 0 ... l_max with parity (-1)^l, in e3nn's order.
        l_out: the output's degree, parity (-1)^l_out.
        correlation: highest degree, 1 to 4.
    """
    dimension = (l_max + 1) ** 2
    blocks = []
    for degree in range(1, correlation + 1):
        found = _polynomials(l_max, degree, l_out + l_max * (correlation - degree)).get((l_out, (-1) ** l_out))
        if found is not None:
            blocks.append((found, _monomials(dimension, degree)))
    contractions = []
    for m in range(2 * l_out + 1):
        factors, coefficients, first = [], [], 0
        total = sum(found.shape[0] for found, _ in blocks)
        for found, monomials in blocks:
            used = np.flatnonzero(np.abs(found[:, m]).max(axis=0) > 1e-12)
            rows = np.zeros((total, len(used)))
            rows[first : first + found.shape[0]] = found[:, m, used]
            padding = np.full((len(used), correlation - monomials.shape[1]), dimension)
            factors.append(np.concatenate([monomials[used], padding], axis=1))
            coefficients.append(rows)
            first += found.shape[0]
        contractions.append(Contraction(np.concatenate(factors), np.concatenate(coefficients, axis=1)))
    return tuple(contractions)


def path_counts(l_max: int, l_out: int, correlation: int) -> tuple[int, ...]:
    """Number of independent polynomials of each degree 1 ... correlation."""
    key = (l_out, (-1) ** l_out)
    counts = []
    for degree in range(1, correlation + 1):
        found = _polynomials(l_max, degree, l_out + l_max * (correlation - degree)).get(key)
        counts.append(0 if found is None else found.shape[0])
    return tuple(counts)


@lru_cache(maxsize=64)
def _monomials(dimension: int, degree: int) -> np.ndarray:
    """Sorted index tuples of all monomials, [monomials, degree]."""
    return np.array(list(combinations_with_replacement(range(dimension), degree)))


@lru_cache(maxsize=64)
def _multiplication_table(dimension: int, degree: int) -> np.ndarray:
    """Index of the monomial (monomial of degree - 1) times A_i, [monomials, dimension]."""
    place = {tuple(m): number for number, m in enumerate(_monomials(dimension, degree))}
    lower = _monomials(dimension, degree - 1)
    return np.array([[place[tuple(sorted((*m, i)))] for i in range(dimension)] for m in lower])


def _norms(dimension: int, degree: int) -> np.ndarray:
    """Norm of each monomial as a symmetric tensor: sqrt(1 / number of distinct orderings), [monomials]."""
    monomials = _monomials(dimension, degree)
    orderings = np.ones(len(monomials))
    run = np.ones(len(monomials))
    for place in range(1, degree):
        run = np.where(monomials[:, place] == monomials[:, place - 1], run + 1, 1)
        orderings *= (place + 1) / run
    return 1 / np.sqrt(orderings)


@lru_cache(maxsize=64)
def _polynomials(l_max: int, degree: int, l_limit: int) -> Polynomials:
    """All independent equivariant polynomials of one degree onto irreps with l <= l_limit.

    By Euler's theorem a polynomial of degree n is a sum of couplings of its (equivariant) derivative, of degree n - 1,
    with A; coupling a complete basis of degree n - 1 with A and removing dependent rows is therefore complete.
    """
    dimension = (l_max + 1) ** 2
    if degree == 1:
        eye = np.eye(dimension)
        return {(ell, (-1) ** ell): eye[None, ell**2 : (ell + 1) ** 2] for ell in range(min(l_max, l_limit) + 1)}
    table = _multiplication_table(dimension, degree)
    size = len(_monomials(dimension, degree))
    candidates: dict[tuple[int, int], list[np.ndarray]] = {}
    for (l_left, parity), left in sorted(_polynomials(l_max, degree - 1, l_limit + l_max).items()):
        for ell in range(l_max + 1):
            for l_out in range(abs(l_left - ell), min(l_left + ell, l_limit) + 1):
                coupling = clebsch_gordan(l_left, ell, l_out) * np.sqrt(2 * l_out + 1)
                products = np.einsum("pax,aic->pcxi", left, coupling)
                columns = table[:, ell**2 : (ell + 1) ** 2]
                out = np.zeros((left.shape[0], 2 * l_out + 1, size))
                np.add.at(out, np.s_[:, :, columns], products)  # type: ignore[arg-type]
                candidates.setdefault((l_out, parity * (-1) ** ell), []).append(out)
    norms = _norms(dimension, degree)
    independent = {key: _independent(np.concatenate(found), norms) for key, found in candidates.items()}
    return {key: found for key, found in independent.items() if len(found)}  # antisymmetric couplings leave none


def _independent(candidates: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Orthonormalise the paths in their given order, dropping dependent ones (Gram-Schmidt, twice for accuracy)."""
    flat = (candidates * norms).reshape(len(candidates), -1)
    basis = np.zeros((min(flat.shape), flat.shape[1]))
    found = 0
    for candidate in flat:
        residual = candidate / max(np.linalg.norm(candidate), 1e-6)  # a candidate that vanishes stays small
        for _ in range(2):
            residual = residual - (basis[:found] @ residual) @ basis[:found]
        length = np.linalg.norm(residual)
        if length > 1e-6:
            basis[found] = residual / length
            found += 1
    dimension = candidates.shape[1]
    return basis[:found].reshape(found, *candidates.shape[1:]) * np.sqrt(dimension) / norms
