"""Ziegler-Biersack-Littmark pair repulsion, for any architecture: keeps atoms apart where training data are silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii

from ase_mlip.networks.radial import polynomial_cutoff

# Universal screening function: weights and inverse lengths (Ziegler, Biersack, Littmark 1985).
SCREENING = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4028), (0.02817, 0.2016))
COULOMB = 14.3996  # e^2 / (4 pi eps0), eV Angstrom
BOHR = 0.529  # Angstrom, to the digits that published models use
SOFT = 0.2  # share of the floor, below it, over which the network stops to see a pair coming closer


@dataclass(frozen=True)
class Repulsion:
    """Constants of the screened nuclear repulsion COULOMB Z_i Z_j / r phi(r / a), a = prefactor BOHR / sum Z^exponent.

    It ends with a polynomial cutoff where the covalent radii touch.

    Attributes:
        order: p of the polynomial cutoff.
        prefactor: of the screening length.
        exponent: of the nuclear charges in the screening length.
        floor: times the sum of the covalent radii: the network sees closer pairs at about this distance, so that the
            repulsion alone tells how they go on. 0: it sees every distance as it is.
    """

    order: int = 6
    prefactor: float = 0.4543
    exponent: float = 0.3
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor={self.floor}: give at least 0 (off) and less than 1, where bonds are")


def touching_distances(numbers: np.ndarray, species: jax.Array, neighbors: jax.Array, dtype: Any) -> jax.Array:
    """Sums of the covalent radii of each node and its neighbours, [nodes, slots] Angstrom."""
    radius = jnp.asarray(covalent_radii[numbers], dtype)[species]
    return radius[:, None] + radius[neighbors]


def floored_vectors(repulsion: Repulsion, vectors: jax.Array, distances: jax.Array, touching: jax.Array) -> jax.Array:
    """The neighbour vectors as the network sees them: none much shorter than the floor of its pair.

    From `floor` (times the covalent radii) upwards a length is what it is, to the last bit; from there to `1 - SOFT` of
    it, the derivative of the length that is seen falls from 1 to 0 as the quintic smoothstep does. The length seen is
    never the smaller one: if network and repulsion together rise inwards down to half of that way, they rise all the
    way to zero, as the slope of the repulsion, which is convex, only grows.

    Args:
        repulsion: the constants.
        vectors: [nodes, slots, 3] Angstrom.
        distances: [nodes, slots] their lengths, Angstrom.
        touching: [nodes, slots] sums of the covalent radii, Angstrom.

    Returns:
        [nodes, slots, 3] Angstrom.
    """
    if not repulsion.floor:
        return vectors
    floor = repulsion.floor * touching
    x = jnp.clip((distances / floor - 1.0) / SOFT + 1.0, 0.0, 1.0)
    seen = floor * (1.0 - SOFT * (0.5 - x**4 * (2.5 - 3.0 * x + x**2)))
    return vectors * jnp.where(distances < floor, seen / distances, 1.0)[..., None]


def repulsion_energies(
    repulsion: Repulsion,
    distances: jax.Array,
    touching: jax.Array,
    cutoff: float,
    numbers: np.ndarray,
    species: jax.Array,
    neighbors: jax.Array,
) -> jax.Array:
    """Half of each pair's repulsion, summed over the neighbours of each node.

    Args:
        repulsion: the constants.
        distances: [nodes, slots] Angstrom; what is not closer than `cutoff` counts nothing.
        touching: [nodes, slots] sums of the covalent radii, Angstrom.
        cutoff: of the network, Angstrom.
        numbers: [elements] atomic numbers.
        species: [nodes] index into `numbers`.
        neighbors: [nodes, slots] index of the neighbouring node.

    Returns:
        [nodes] eV.
    """
    dtype = distances.dtype
    charge = jnp.asarray(numbers, dtype)[species]
    power = jnp.asarray(np.power(numbers.astype(float), repulsion.exponent), dtype)[species]
    length = repulsion.prefactor * BOHR / (power[:, None] + power[neighbors])
    screening = sum(weight * jnp.exp(-rate * distances / length) for weight, rate in SCREENING)
    pairs = COULOMB * charge[:, None] * charge[neighbors] / distances * screening
    envelope = polynomial_cutoff(distances, touching, repulsion.order)
    return 0.5 * jnp.sum(jnp.where(distances < cutoff, pairs * envelope, 0.0), axis=1)
