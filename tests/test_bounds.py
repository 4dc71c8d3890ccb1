"""Bounds of the network's energies of atoms: nothing within them, a levelled hole and a slower wall beyond them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from numpy.testing import assert_allclose, assert_array_equal
from toy_data import INFO, toy_force_field, toy_frames

from ase_mlip import ForceField, MLIPCalculator, train_from_scratch
from ase_mlip.bounds import LEVEL, bounded_energies, centred
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.reference_energies import with_heads
from ase_mlip.transfer import add_heads

LOW, HIGH = -7.3, 2.9
SMALL = {"channels": 4, "layers": 1, "l_max": 1, "hidden_l_max": 0, "correlation": 2, "radial_mlp": [8]}


def bounded(energies: np.ndarray, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """Energies of one head, each of an atom with these bounds."""
    values = jnp.asarray(energies)[:, None]
    return np.asarray(bounded_energies(values, jnp.broadcast_to(jnp.asarray([low, high]), (*values.shape, 2))))[:, 0]


def test_nothing_changes_within_the_bounds_or_without_any() -> None:
    energies = np.linspace(LOW, HIGH, 1001, dtype=np.float32)
    assert_array_equal(bounded(energies[1:-1]), energies[1:-1])
    wide = np.array([-1e30, -1e6, -1.0, 0.0, 1e6, 1e30], np.float32)
    assert_array_equal(bounded(wide, -np.inf, np.inf), wide)


def test_a_hole_is_levelled_and_a_wall_goes_on_rising() -> None:
    width = LEVEL * (HIGH - LOW)
    energies = np.concatenate([-np.geomspace(1e-3, 1e6, 200)[::-1] + LOW, np.geomspace(1e-3, 1e6, 200) + HIGH])
    result = bounded(energies)
    assert (np.diff(result) >= 0).all()
    assert result.min() >= LOW - width * (1 + 1e-6)
    assert (np.diff(result[200:]) > 0).all()
    assert result.max() == pytest.approx(HIGH + width * np.log(2e6 / width), rel=1e-6)


@pytest.mark.parametrize("end", [LOW, HIGH])
def test_value_slope_and_curvature_go_on_at_the_bounds(end: float) -> None:
    """By jax.grad on both sides of a bound, in float64."""
    with jax.enable_x64(True):

        def level(energy: jax.Array) -> jax.Array:
            return bounded_energies(energy[None, None], jnp.asarray([[[LOW, HIGH]]]))[0, 0]

        for order, function in enumerate((level, jax.grad(level), jax.grad(jax.grad(level)))):
            near, at, far = (function(jnp.asarray(end + step)) for step in (-1e-7, 0.0, 1e-7))
            expected = (end, 1.0, 0.0)[order]
            assert_allclose([near, at, far], expected, rtol=0, atol=1e-5)


def narrowed(force_field: ForceField, atoms: ase.Atoms) -> ForceField:
    """The force field with bounds that leave out about half of what it says of the atoms."""
    graph = force_field.graph(atoms)
    energies = np.asarray(force_field.predictor.network_energies(force_field.cast_params("float32"), graph))[:, 0]
    pairs = []
    for place in range(len(force_field.elements)):
        own = np.sort(energies[np.asarray(graph.species) == place])
        pairs.append((float(own[len(own) // 3]), float(own[2 * len(own) // 3])) if len(own) > 2 else None)
    return with_heads(force_field, [replace(force_field.predictor.heads[0], bounds=tuple(pairs))])


def crowd() -> ase.Atoms:
    """Water molecules on top of each other in a small box."""
    atoms = molecule("H2O", cell=(3.1, 3.3, 3.7), pbc=True)
    for shift in ([0.9, 0.2, 1.1], [1.3, 1.6, 0.3], [0.2, 1.4, 2.0]):
        other = molecule("H2O")
        other.rotate(37 * sum(shift), "x")
        other.positions += shift
        atoms += other
    return atoms


def test_forces_and_stress_are_slopes_where_energies_are_levelled() -> None:
    """Central differences of the energy over positions and strain, most atoms beyond their bounds."""
    atoms = crowd()
    free = toy_force_field()
    model = narrowed(free, atoms)
    atoms.calc = MLIPCalculator(model, dtype="float64")
    energies = atoms.get_potential_energies()
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    atoms.calc = MLIPCalculator(free, dtype="float64")
    assert (np.abs(energies - atoms.get_potential_energies()) > 1e-9).sum() >= 4
    atoms.calc = MLIPCalculator(model, dtype="float64")
    for number, axis in ((0, 0), (4, 2), (7, 1)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = atoms.copy()
            moved.positions[number, axis] += step
            moved.calc = atoms.calc
            ends.append(moved.get_potential_energy())
        assert_allclose(forces[number, axis], (ends[1] - ends[0]) / 2e-5, rtol=1e-5, atol=1e-6)
    ends = []
    for step in (1e-6, -1e-6):
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ (np.eye(3) + step * np.diag([1.0, 0.0, 0.0])), scale_atoms=True)
        strained.calc = atoms.calc
        ends.append(strained.get_potential_energy())
    assert_allclose(stress[0, 0], (ends[0] - ends[1]) / 2e-6 / atoms.get_volume(), rtol=1e-4, atol=1e-7)


def test_bounds_are_kept_in_files_and_follow_the_elements(tmp_path: Path) -> None:
    head = replace(INFO.heads[0], bounds=((-1.5, 2.0), None))
    model = toy_force_field(info=INFO.with_heads([head]))
    model.save(tmp_path / "bounded.safetensors")
    loaded = ForceField.load(tmp_path / "bounded.safetensors")
    assert loaded.predictor.heads == (head,)
    assert_array_equal(loaded.predictor.bounds, [[[-1.5, 2.0]], [[-np.inf, np.inf]]])
    assert loaded.with_elements([8]).predictor.heads[0].bounds == (None,)
    assert loaded.with_elements([1, 9], {9: 1}).predictor.heads[0].bounds == ((-1.5, 2.0), (-1.5, 2.0))
    assert DatasetInfo.from_dict(model.dataset_info.to_dict()) == model.dataset_info


@pytest.mark.parametrize("bounds", [((-1.0, 1.0),), ((1.0, -1.0), None), ((0.0, 0.0), None), ((np.nan, 1.0), None)])
def test_impossible_bounds(bounds: tuple[tuple[float, float] | None, ...]) -> None:
    with pytest.raises(ValueError, match="give for each of the 2 elements a lower and a higher energy, or None"):
        INFO.with_heads([replace(INFO.heads[0], bounds=bounds)])


def test_a_new_level_begins_as_the_base_and_has_bounds_as_wide() -> None:
    atoms = crowd()
    base = narrowed(toy_force_field(), atoms)
    grown, _ = add_heads(base, ["new"])
    own = base.predictor.heads[0].bounds
    assert own is not None
    assert grown.predictor.heads[1].bounds == centred(own)
    energies = []
    for model in (base, grown):
        atoms.calc = MLIPCalculator(model, dtype="float64")
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1]


def test_training_with_a_repulsion_bounds_what_it_has_seen(tmp_path: Path) -> None:
    """Its training structures are within them, whatever comes later; going on keeps those of before."""
    frames = toy_frames(12)
    options = {"epochs": 2, "log": lambda line: None, **SMALL}
    free = train_from_scratch(frames, 0.25, **options).force_field
    assert free.predictor.bounds is None
    model = train_from_scratch(frames, frames[:3], repulsion=True, **options).force_field
    bounds = model.predictor.bounds
    energies = []
    for atoms in frames:
        graph = model.graph(atoms)
        own = np.asarray(model.predictor.network_energies(model.cast_params("float32"), graph))[:, 0]
        energies += list(zip(np.asarray(graph.species), own, strict=True))
    for place in range(2):
        seen = [energy for species, energy in energies if species == place]
        assert_allclose([min(seen), max(seen)], bounds[place, 0], rtol=0, atol=2e-3)
        assert bounds[place, 0, 0] <= min(seen)
        assert max(seen) <= bounds[place, 0, 1]
    more = train_from_scratch(frames[:2], frames[:2], start=model, epochs=1, log=lambda line: None).force_field
    assert (more.predictor.bounds[..., 0] <= bounds[..., 0]).all()
    assert (more.predictor.bounds[..., 1] >= bounds[..., 1]).all()


def test_going_on_keeps_the_bounds_of_heads_without_a_repulsion() -> None:
    frames = toy_frames(4)
    grown, _ = add_heads(narrowed(toy_force_field(), crowd()), ["new"])
    more = train_from_scratch(frames, frames[:2], start=grown, epochs=1, log=lambda line: None).force_field
    assert [head.bounds for head in more.predictor.heads] == [head.bounds for head in grown.predictor.heads]
