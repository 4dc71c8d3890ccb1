"""The floor of the pair repulsion: what the network sees of atoms that are pushed into each other."""

from __future__ import annotations

from dataclasses import replace

import ase
import jax.numpy as jnp
import numpy as np
import pytest
from ase.data import covalent_radii

from ase_mlip import ForceField, MLIPCalculator
from ase_mlip.repulsion import SOFT, Repulsion, floored_vectors

FLOOR = 0.42


def seen(distances: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """Lengths that the network sees of C-P pairs along x."""
    lengths = jnp.asarray(distances)[None]
    touching = jnp.full_like(lengths, covalent_radii[6] + covalent_radii[15])
    return np.asarray(floored_vectors(Repulsion(floor=floor), lengths[..., None] * jnp.eye(3)[0], lengths, touching))[
        0, :, 0
    ]


def test_lengths_above_the_floor_are_untouched_and_none_is_far_below() -> None:
    floor = FLOOR * (covalent_radii[6] + covalent_radii[15])
    distances = np.linspace(0.05, 2.0, 400)
    lengths = seen(distances)
    np.testing.assert_array_equal(lengths[distances > floor], jnp.asarray(distances)[distances > floor])
    assert (lengths >= distances * (1 - 1e-6)).all()
    np.testing.assert_allclose(lengths.min(), floor * (1 - SOFT / 2), rtol=1e-6)
    slopes = np.diff(lengths) / np.diff(distances)
    assert slopes.min() > -1e-3
    assert slopes.max() < 1 + 1e-3
    np.testing.assert_array_equal(seen(distances, floor=0.0), jnp.asarray(distances))


@pytest.mark.parametrize("floor", [-0.1, 1.0, float("nan")])
def test_impossible_floor(floor: float) -> None:
    with pytest.raises(ValueError, match=f"floor={floor}: give at least 0"):
        Repulsion(floor=floor)


@pytest.mark.parametrize("pair", ["CP", "HH", "OH", "ClBr"])
def test_shipped_model_rises_all_the_way_in(pair: str) -> None:
    """Down to a tenth of the covalent radii, far below every label, and the forces are the slope."""
    atoms = ase.Atoms(pair, positions=[[0, 0, 0], [0, 0, 1]])
    radii = covalent_radii[atoms.numbers].sum()
    distances = np.linspace(0.1, 0.6, 51) * radii
    atoms.calc = MLIPCalculator(dtype="float64")
    energies, forces = [], []
    for distance in distances:
        atoms.positions[1, 2] = distance
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces()[1, 2])
    assert (np.diff(energies) < 0).all()
    for distance, force in list(zip(distances, forces, strict=True))[::10]:
        ends = []
        for step in (1e-4, -1e-4):
            atoms.positions[1, 2] = distance + step
            ends.append(atoms.get_potential_energy())
        np.testing.assert_allclose(force, (ends[1] - ends[0]) / 2e-4, rtol=1e-3, atol=1e-3)


def test_floor_changes_nothing_at_ordinary_distances() -> None:
    model = ForceField.load("default")
    info, network = model.dataset_info, model.predictor.network
    assert info.repulsion is not None
    assert info.repulsion.floor == FLOOR
    without = network.rebuild(network.config, replace(info, repulsion=replace(info.repulsion, floor=0.0)))
    bare = ForceField(replace(model.predictor, network=without), model.params)
    atoms = ase.Atoms("COHH", [[0, 0, 0], [0, 0, 1.21], [0, 0.94, -0.59], [0, -0.94, -0.59]])
    forces = []
    for field in (model, bare):
        atoms.calc = MLIPCalculator(field, dtype="float64")
        forces.append(atoms.get_forces())
    np.testing.assert_allclose(*forces, rtol=0, atol=1e-12)
