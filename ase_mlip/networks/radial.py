"""Radial functions: distance transforms, Bessel basis, and the networks that turn them into path weights."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

CutoffFunction = Literal["polynomial", "soft", "cosine"]

# 1 / sqrt(E[f(z)^2]) for normal z: keeps the second moment at one through an activation f.
SILU_NORM = 1.6765324703310907
# SILU_NORM as e3nn-jax samples it: 2e-5 from the integral, but what the weights of nequix and mlip expect.
SAMPLED_SILU_NORM = 1.6765620560798837
SIGMOID_NORM = 1.8462285453387506
AGNESI = (1.0805, 0.9183, 4.5791)  # a, q, p of all published models
SOFT_STEEPNESS = 4.0


def scaled_silu(x: jax.Array) -> jax.Array:
    """SiLU scaled to unit second moment for a unit normal argument."""
    return SILU_NORM * jax.nn.silu(x)


def scaled_sigmoid(x: jax.Array) -> jax.Array:
    """Sigmoid scaled to unit second moment for a unit normal argument."""
    return SIGMOID_NORM * jax.nn.sigmoid(x)


def bessel_basis(distances: jax.Array, cutoff: float, count: int) -> jax.Array:
    """sqrt(2/c) sin(n pi r / c) / r for n = 1 ... count (DimeNet, arXiv:2003.03123, Eq. 7).

    Args:
        distances: [...] Angstrom, not zero.

    Returns:
        [..., count].
    """
    n = jnp.arange(1, count + 1, dtype=distances.dtype)
    r = distances[..., None]
    return (2 / cutoff) ** 0.5 * jnp.sin(n * (jnp.pi / cutoff) * r) / r


def cutoff_envelope(function: CutoffFunction, distances: jax.Array, cutoff: jax.Array | float, order: int) -> jax.Array:
    """The envelope of that name; `order` is of the polynomial one."""
    if function == "polynomial":
        return polynomial_cutoff(distances, cutoff, order)
    return soft_cutoff(distances, cutoff) if function == "soft" else cosine_cutoff(distances, cutoff)


def polynomial_cutoff(distances: jax.Array, cutoff: jax.Array | float, order: int) -> jax.Array:
    """Envelope 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = r/c (arXiv:2003.03123, Eq. 8).

    It falls to zero at the cutoff with two continuous derivatives, and is exactly zero from there on.
    """
    x, p = distances / cutoff, order
    inside = 1 - x**p * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * (p * (p + 1) / 2)))
    return jnp.where(x < 1, inside, 0.0)


def soft_cutoff(distances: jax.Array, cutoff: jax.Array | float) -> jax.Array:
    """Envelope 1.2 exp(1/2 - 1/u), u = 2 (1 - r/c): all derivatives vanish at the cutoff (option of e3nn and mlip)."""
    u = 2 * (1 - distances / cutoff)
    inside = u > 0
    return jnp.where(inside, 1.2 * jnp.exp(0.5 - 1 / jnp.where(inside, u, 1.0)), 0.0)


def cosine_cutoff(distances: jax.Array, cutoff: jax.Array | float) -> jax.Array:
    """Envelope (1 + cos(pi r/c)) / 2 (Behler and Parrinello, doi:10.1103/PhysRevLett.98.146401, Eq. 3)."""
    return jnp.where(distances < cutoff, 0.5 * (1 + jnp.cos(jnp.pi * distances / cutoff)), 0.0)


def agnesi_transform(distances: jax.Array, scale: jax.Array) -> jax.Array:
    """1 / (1 + a x^q / (1 + x^(q - p))), x = r / scale (ACEpotentials.jl, doi:10.1063/5.0158783).

    Args:
        distances: [...] Angstrom, positive.
        scale: [...] Angstrom, half the sum of the covalent radii.
    """
    a, q, p = AGNESI
    x = distances / scale
    return 1 / (1 + a * x**q / (1 + x ** (q - p)))


def soft_transform(distances: jax.Array, contact: jax.Array) -> jax.Array:
    """Distances that level off smoothly below 3/4 of the contact distance, as MACE's "Soft" option defines them.

    Args:
        distances: [...] Angstrom.
        contact: [...] Angstrom, the sum of the covalent radii.
    """
    low, high = 0.75 * contact, 4 / 3 * contact
    switch = jax.nn.sigmoid(2 * SOFT_STEEPNESS / (high - low) * (distances - 0.5 * (low + high)))
    return low + (distances - low) * switch


def layer_norm(x: jax.Array, gain: jax.Array, bias: jax.Array) -> jax.Array:
    """Zero mean and unit variance along the last axis, then an affine map (arXiv:1607.06450)."""
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(jnp.mean(centered**2, axis=-1, keepdims=True) + 1e-5) * gain + bias
