"""Radial functions: Bessel basis, polynomial cutoff, and the network that turns them into path weights."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# 1 / sqrt(E[silu(z)^2]) for normal z: keeps the second moment at one through an activation.
SILU_NORM = 1.6765324703310907


def scaled_silu(x: jax.Array) -> jax.Array:
    """SiLU scaled to unit second moment for a unit normal argument."""
    return SILU_NORM * jax.nn.silu(x)


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


def polynomial_cutoff(distances: jax.Array, cutoff: float, order: int) -> jax.Array:
    """Envelope 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2), x = r/c (arXiv:2003.03123, Eq. 8).

    It falls to zero at the cutoff with two continuous derivatives, and is exactly zero from there on.
    """
    x, p = distances / cutoff, order
    inside = 1 - x**p * ((p + 1) * (p + 2) / 2 - x * (p * (p + 2) - x * (p * (p + 1) / 2)))
    return jnp.where(x < 1, inside, 0.0)


def radial_network(features: jax.Array, hidden: Sequence[jax.Array], output: jax.Array) -> list[jax.Array]:
    """Bias-free network from radial features to one weight per coupling path and channel.

    Without biases it maps zero to zero, so that messages vanish smoothly at the cutoff.

    Args:
        features: [..., basis].
        hidden: kernels [inputs, outputs].
        output: kernel [inputs, paths, channels].

    Returns:
        One [..., channels] per path; separate arrays, because slices of one large array are slow.
    """
    x = features
    for kernel in hidden:
        x = scaled_silu(x @ (kernel / x.shape[-1] ** 0.5))
    return [x @ (output[:, path] / x.shape[-1] ** 0.5) for path in range(output.shape[1])]
