"""The symmetric contraction against character theory and explicit rotations; harmonics written out as polynomials."""

from __future__ import annotations

from math import factorial, sqrt

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ase_mlip.networks import symmetric
from ase_mlip.networks.coupling import clebsch_gordan, spherical_harmonics
from ase_mlip.networks.symmetric import path_counts, symmetric_contractions

CASES = [(0, 0, 4), (1, 0, 4), (1, 1, 4), (2, 0, 4), (2, 1, 4), (2, 2, 4), (3, 0, 4), (3, 1, 4), (3, 2, 3), (3, 3, 3)]


def harmonics(directions: np.ndarray) -> np.ndarray:
    """Real spherical harmonics up to degree 3 in e3nn's order (y is the polar axis), mean square one; closed form."""
    x, y, z = directions.T
    q = x * x + z * z
    s20, s24 = sqrt(3) * x * z, sqrt(3) / 2 * (z * z - x * x)
    degrees = [
        [np.ones_like(x)],
        [x, y, z],
        [s20, sqrt(3) * x * y, y * y - q / 2, sqrt(3) * y * z, s24],
        [
            sqrt(5 / 6) * (s20 * z + s24 * x),
            sqrt(5) * s20 * y,
            sqrt(3 / 8) * (4 * y * y - q) * x,
            y / 2 * (2 * y * y - 3 * q),
            sqrt(3 / 8) * z * (4 * y * y - q),
            sqrt(5) * s24 * y,
            sqrt(5 / 6) * (s24 * z - s20 * x),
        ],
    ]
    return np.stack([sqrt(2 * ell + 1) * t for ell, ts in enumerate(degrees) for t in ts], axis=-1)


def random_directions(count: int, seed: int = 0) -> np.ndarray:
    """Points on the unit sphere, [count, 3]."""
    points = np.random.default_rng(seed).normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def wigner(matrix: np.ndarray, ell: int) -> np.ndarray:
    """D with Y(matrix r) = D Y(r), fitted to the closed forms; `matrix` may include the inversion."""
    points, columns = random_directions(40), slice(ell**2, (ell + 1) ** 2)
    return np.linalg.lstsq(harmonics(points)[:, columns], harmonics(points @ matrix.T)[:, columns])[0].T


def multiplicity(l_max: int, l_out: int, degree: int) -> int:
    """Copies of (l_out, (-1)^l_out) in the symmetric power of the density, by orthogonality of characters."""
    angles = np.arange(256) * 2 * np.pi / 256  # exact for the trigonometric polynomials here
    total = 0.0
    for parity in (1, -1):

        def character(ell: int, power: int, parity: int = parity) -> np.ndarray:
            terms = np.cos(np.arange(-ell, ell + 1)[:, None] * power * angles)
            return parity ** (power * ell) * terms.sum(axis=0)

        sums = [sum(character(ell, power) for ell in range(l_max + 1)) for power in range(degree + 1)]
        powers = [np.ones_like(angles)]  # Newton: n h_n = sum_k p_k h_(n-k)
        for n in range(1, degree + 1):
            powers.append(sum(sums[k] * powers[n - k] for k in range(1, n + 1)) / n)
        total += np.mean((1 - np.cos(angles)) * powers[degree] * character(l_out, 1)) / 2
    assert abs(total - round(total)) < 1e-9
    return round(total)


def evaluate(l_max: int, l_out: int, correlation: int, density: np.ndarray) -> np.ndarray:
    """All polynomials at a density, [paths, 2 l_out + 1]."""
    extended = np.append(density, 1.0)
    parts = [
        c.coefficients @ extended[c.factors].prod(axis=1) for c in symmetric_contractions(l_max, l_out, correlation)
    ]
    return np.stack(parts, axis=-1)


@pytest.mark.parametrize(("l_max", "l_out", "correlation"), CASES)
def test_multiplicities(l_max: int, l_out: int, correlation: int) -> None:
    """As many polynomials of each degree as character theory allows: complete, and none too many."""
    expected = tuple(multiplicity(l_max, l_out, degree) for degree in range(1, correlation + 1))
    assert path_counts(l_max, l_out, correlation) == expected
    for contraction in symmetric_contractions(l_max, l_out, correlation):
        assert contraction.coefficients.shape == (sum(expected), len(contraction.factors))


@pytest.mark.parametrize(("l_max", "l_out", "correlation"), CASES)
def test_equivariance(l_max: int, l_out: int, correlation: int) -> None:
    """Rotating or mirroring the density rotates or mirrors every polynomial; the oracle shares no code with e3nn."""
    rng = np.random.default_rng(l_max)
    density = rng.normal(size=(l_max + 1) ** 2)
    before = evaluate(l_max, l_out, correlation, density)
    assert np.abs(before).max(axis=1).min() > 1e-6
    for sign in (1, -1):
        matrix = sign * Rotation.random(random_state=7).as_matrix()
        blocks = [wigner(matrix, ell) for ell in range(l_max + 1)]
        rotated = np.concatenate([d @ density[ell**2 : (ell + 1) ** 2] for ell, d in enumerate(blocks)])
        after = evaluate(l_max, l_out, correlation, rotated)
        np.testing.assert_allclose(after, before @ blocks[l_out].T, atol=1e-11)


@pytest.mark.parametrize("sign", [1, -1])
def test_wigner_matrices_agree_with_e3nn(sign: int) -> None:
    """The fitted matrices are e3nn's, so that both conventions are the same."""
    matrix = sign * Rotation.random(random_state=3).as_matrix()
    with jax.enable_x64(True):
        for ell in range(4):
            irrep = e3nn.Irrep(ell, (-1) ** ell)
            theirs = np.asarray(e3nn.Irreps([(1, irrep)]).D_from_matrix(jnp.asarray(matrix)))
            np.testing.assert_allclose(wigner(matrix, ell), theirs, atol=1e-12)


def test_clebsch_gordan_coefficients_and_harmonics_agree_with_e3nn() -> None:
    """Signs and phases too: imported weights depend on them."""
    triples = [(a, b, c) for a in range(5) for b in range(5) for c in range(abs(a - b), a + b + 1)]
    for degrees in triples:
        np.testing.assert_allclose(clebsch_gordan(*degrees), e3nn.clebsch_gordan(*degrees), atol=1e-14)
    vectors = np.random.default_rng(0).normal(size=(20, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with jax.enable_x64(True):
        array = e3nn.IrrepsArray("1o", jax.numpy.asarray(vectors))
        expected = e3nn.spherical_harmonics(range(5), array, normalize=False, normalization="component").array
        np.testing.assert_allclose(spherical_harmonics(jax.numpy.asarray(vectors), 4), expected, atol=1e-14)


def test_spherical_harmonics() -> None:
    """The network's harmonics are the closed forms, in order, sign and norm."""
    points = random_directions(50)
    with jax.enable_x64(True):
        ours = np.asarray(spherical_harmonics(jnp.asarray(points), 3))
    np.testing.assert_allclose(ours, harmonics(points), atol=1e-13)
    np.testing.assert_allclose((ours[:, 9:] ** 2).sum(axis=1), 7.0)


@pytest.mark.parametrize(("l_max", "l_out", "correlation"), CASES)
def test_orthonormality(l_max: int, l_out: int, correlation: int) -> None:
    """As symmetric tensors, polynomials of one degree have the scalar product (2 l + 1) delta."""
    contractions = symmetric_contractions(l_max, l_out, correlation)
    dimension, gram = (l_max + 1) ** 2, 0.0
    for contraction in contractions:
        degrees = (contraction.factors < dimension).sum(axis=1)
        repeats = [np.unique(f[f < dimension], return_counts=True)[1] for f in contraction.factors]
        orderings = [factorial(n) / np.prod([factorial(c) for c in r]) for n, r in zip(degrees, repeats, strict=True)]
        gram = gram + contraction.coefficients / np.array(orderings) @ contraction.coefficients.T
        # one degree per row: rows of different degrees never share a monomial
        counts = path_counts(l_max, l_out, correlation)
        row_degree = np.repeat(np.arange(1, correlation + 1), counts)
        assert not contraction.coefficients[row_degree[:, None] != degrees[None]].any()
        assert np.abs(contraction.coefficients).max(axis=0).min() > 1e-12
        assert len({tuple(f) for f in contraction.factors}) == len(degrees)
    np.testing.assert_allclose(gram, (2 * l_out + 1) * np.eye(len(gram)), atol=1e-12)


def clear_caches() -> None:
    """Forget every table, so that it is made anew."""
    for function in vars(symmetric).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def test_determinism() -> None:
    """Bit-equal whatever JAX's precision and whatever was asked before: a weight must mean the same everywhere."""
    clear_caches()
    with jax.enable_x64(False):
        first = symmetric_contractions(3, 1, 3)
    clear_caches()
    with jax.enable_x64(True):
        symmetric_contractions(3, 0, 4)
        second = symmetric_contractions(3, 1, 3)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.factors, other.factors)
        np.testing.assert_array_equal(one.coefficients, other.coefficients)


PINNED = [
    [-0.1321048632913019, 0.6404226504432821, 0.10490011715303971],
    [-0.0234894843481157, 0.11387315689199709, 0.018652225198919445],
    [0.14087754983287673, 0.786900169562853, 0.40627526974970724],
    [-0.003617085643031993, 0.017535036308867016, 0.0028722084732789458],
    [-0.04488073799363225, 0.21757443642595228, 0.035638314564282125],
    [-0.3592034078148323, 1.7413590442448201, 0.28523158514201336],
    [0.030679063356884986, 0.17136413989454835, 0.08847502498285237],
    [0.33955309272914797, 0.5212156666443829, -0.12715545612365697],
]


def test_pinned_values() -> None:
    """Order and sign of the paths are part of the file format: these numbers may never change."""
    density = np.random.default_rng(0).normal(size=9)
    values = evaluate(2, 1, 3, density)
    np.testing.assert_allclose(values, PINNED, atol=1e-12)
