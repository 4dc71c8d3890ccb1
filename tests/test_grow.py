"""A model that grows says what it said before, and what is new in it can learn."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
from ase.build import bulk, molecule
from conftest import random_force_field
from flax.traverse_util import flatten_dict

from ase_mlip import ForceField, MLIPCalculator

sys.path.insert(0, "data")

from grow import grow

ALL = {"channels": 6, "l_max": 3, "radial_mlp": (12,)}


@pytest.fixture(scope="module")
def small() -> ForceField:
    """Random weights."""
    return random_force_field()


@pytest.mark.parametrize("shape", [{"radial_mlp": (12,)}, ALL], ids=["radial", "all"])
def test_a_larger_model_says_the_same(small: ForceField, shape: dict[str, object]) -> None:
    large = grow(small, **shape)
    assert large.num_params > small.num_params
    for atoms in (molecule("CH3COOH"), bulk("Cu", cubic=True)):
        atoms.rattle(0.1, seed=0)
        said = []
        for model in (small, large):
            atoms.calc = MLIPCalculator(model, dtype="float64")
            said.append((atoms.get_potential_energy(), atoms.get_forces()))
        (energy, forces), (new_energy, new_forces) = said
        assert np.ptp(forces) > 0.1
        assert new_energy == pytest.approx(energy, abs=1e-5 * np.abs(forces).max())  # weights are float32
        np.testing.assert_allclose(new_forces, forces, atol=1e-5 * np.abs(forces).max())


def test_what_reads_the_new_channels_has_a_gradient(small: ForceField) -> None:
    """Zeros that nothing moves would make the larger network useless."""
    large, channels = grow(small, **ALL), small.predictor.network.config.num_channels
    graph = large.graph(molecule("CH3COOH")).astype("float32")
    gradient = jax.grad(lambda params: large.predictor.interaction(params, graph).energy.sum())(large.params)
    for name in (("head_base", "layer_0_output"), ("head_base", "layer_1_hidden")):
        assert not np.any(flatten_dict(large.params)[name][channels:])
        assert np.all(np.abs(flatten_dict(gradient)[name][channels:]) > 0)


def test_a_smaller_shape_is_refused(small: ForceField) -> None:
    with pytest.raises(ValueError, match=r"not larger .* in every respect: give more"):
        grow(small, channels=8, l_max=1)
