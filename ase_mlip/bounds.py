"""Bounds of the network's energies of atoms: none runs away from all that the network has been trained on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from ase_mlip.batches import Batches
    from ase_mlip.force_field import ForceField

LEVEL = 0.1  # over how much of the width between its bounds the energy of an atom levels off beyond them

DIGITS = 3  # of the bounds, rounded outwards

Bounds = tuple[tuple[float, float] | None, ...]  # lowest and highest of each element, eV; None: unbounded


def bounded_energies(energies: jax.Array, bounds: jax.Array) -> jax.Array:
    """The network's energies of atoms, none far below all that it has been trained on.

    A product of neighbour densities grows without end where atoms crowd, upwards or downwards, and downwards no
    repulsion holds against it. Between its bounds an energy is what it is, to the last bit. Below, it levels off within
    `LEVEL` times the width between them, so that the repulsion alone tells how a structure goes on; above, it goes on
    rising, but as a logarithm. Both ways twice continuously differentiable.

    Args:
        energies: [nodes, heads] eV.
        bounds: [nodes, heads, 2] lowest and highest, eV; infinite where there is no bound.

    Returns:
        [nodes, heads] eV.
    """
    lowest, highest = bounds[..., 0], bounds[..., 1]
    width = jnp.where(jnp.isfinite(highest), LEVEL * (highest - lowest), 1.0)
    inside = jnp.clip(energies, lowest, highest)
    beyond = (energies - inside) / width
    return inside + width * jnp.where(beyond < 0, jnp.tanh(beyond), jnp.arcsinh(beyond))


def centred(bounds: Bounds | None) -> Bounds | None:
    """Bounds of a head that corrects another one: as far either way as the atoms of that one differ at most."""
    return None if bounds is None else tuple(pair and (pair[0] - pair[1], pair[1] - pair[0]) for pair in bounds)


def without_bounds(force_field: ForceField) -> ForceField:
    """The force field as its network says, without bounds: beyond them there is little for training to follow."""
    from ase_mlip.reference_energies import with_heads

    return with_heads(force_field, [replace(head, bounds=None) for head in force_field.predictor.heads])


def fitted_bounds(force_field: ForceField, batches: Batches, before: ForceField) -> ForceField:
    """The force field with bounds around all that its network says of the atoms of these structures.

    They are also around those that the force field had `before` training. Only heads with a pair repulsion get new
    bounds; other heads, and an element that is in no structure, have those of before.
    """
    from ase_mlip.reference_energies import with_heads

    predictor = force_field.predictor.with_kernels()
    wanted = any(head.repulsion for head in predictor.heads)
    shape = (len(force_field.elements), len(predictor.heads))
    lowest, highest = np.full(shape, np.inf), np.full(shape, -np.inf)
    energies, params = jax.jit(predictor.network_energies), force_field.cast_params("float32")
    for example in batches.epoch(None) if wanted else ():
        graph = example.graph.astype("float32")
        real = np.asarray(graph.node_graph) < graph.num_graphs
        values, species = np.asarray(energies(params, graph))[real], np.asarray(graph.species)[real]
        np.minimum.at(lowest, species, values)
        np.maximum.at(highest, species, values)
    heads = []
    for place, (head, old) in enumerate(zip(force_field.predictor.heads, before.predictor.heads, strict=True)):
        found = zip(lowest[:, place], highest[:, place], old.bounds or (None,) * len(old.atomic_energies), strict=True)
        bounds = tuple(_around(*each) for each in found)
        heads.append(replace(head, bounds=bounds if head.repulsion else old.bounds))
    return with_heads(force_field, heads)


def _around(lowest: float, highest: float, before: tuple[float, float] | None) -> tuple[float, float] | None:
    """Bounds around new energies, none of them if the lowest is above the highest, and around the old bounds."""
    if lowest > highest:
        return before
    unit = 10.0**-DIGITS
    low, high = unit * np.floor(lowest / unit), unit * np.ceil(highest / unit)
    if before is not None:
        low, high = min(low, before[0]), max(high, before[1])
    return round(float(low), DIGITS), round(float(high if high > low else low + unit), DIGITS)
