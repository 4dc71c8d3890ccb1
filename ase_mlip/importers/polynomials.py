"""Weights of the symmetric contraction in another package's basis, carried over to ours."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement, product

import numpy as np

from ase_mlip.networks.symmetric import path_counts, symmetric_contractions


def contraction_weights(
    l_max: int, l_out: int, couplings: Mapping[int, np.ndarray], weights: Mapping[int, np.ndarray]
) -> np.ndarray:
    """Weights of our independent polynomials that give the same function.

    Other packages contract the density with generalised Clebsch-Gordan tensors. Products commute, so only the part that
    is symmetric in the density's indices acts; it lies in the span of our polynomials, and the coefficients follow from
    a least-squares fit that is exact up to rounding.

    Args:
        l_max: of the density.
        l_out: of the result.
        couplings: by degree 1 ... correlation, [2 l_out + 1, (l_max + 1)^2, ..., paths], the density's index repeated.
        weights: by degree, [elements, paths, channels].

    Returns:
        [elements, independent polynomials, channels], as `SymmetricContraction` orders them.

    Raises:
        ValueError: a tensor that is not equivariant, or not of natural parity.
    """
    correlation, size = max(couplings), (l_max + 1) ** 2
    ends = np.cumsum([0, *path_counts(l_max, l_out, correlation)]).tolist()
    ours = symmetric_contractions(l_max, l_out, correlation)
    found = []
    for degree in range(1, correlation + 1):
        orderings = [tuple(sorted(index)) for index in product(range(size), repeat=degree)]
        monomials = list(combinations_with_replacement(range(size), degree))
        place = {monomial: number for number, monomial in enumerate(monomials)}
        theirs = couplings[degree].reshape(2 * l_out + 1, size**degree, -1)
        target = np.zeros((2 * l_out + 1, len(monomials), theirs.shape[-1]))
        columns = np.array([place[index] for index in orderings])
        np.add.at(target, np.s_[:, columns], theirs)  # type: ignore[arg-type]
        basis = np.zeros((2 * l_out + 1, len(monomials), ends[degree] - ends[degree - 1]))
        for m, contraction in enumerate(ours):
            for factors, column in zip(contraction.factors, contraction.coefficients.T, strict=True):
                if (factors < size).sum() == degree:
                    place_of = place[tuple(sorted(factors[factors < size]))]
                    basis[m, place_of] = column[ends[degree - 1] : ends[degree]]
        matrix, flat = basis.reshape(-1, basis.shape[-1]), target.reshape(-1, target.shape[-1])
        change = np.linalg.lstsq(matrix, flat)[0]
        if not np.allclose(matrix @ change, flat, atol=1e-5 * max(1.0, np.abs(flat).max(initial=0.0))):
            raise ValueError(
                f"the coupling tensor of degree {degree} onto l = {l_out} is not an equivariant polynomial"
            )
        found.append(np.einsum("ok,zkc->zoc", change, weights[degree]))
    return np.concatenate(found, axis=1)
