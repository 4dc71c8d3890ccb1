"""The spread of a committee: against its members one by one, in the calculator, and from training data to result."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import jax
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from ase.md.verlet import VelocityVerlet
from conftest import INFO, build_zoo
from toy_data import leaves, toy_committee, toy_examples, toy_force_field, toy_frames

from ase_mlip import calculator as calculator_module
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.finetune import fine_tune
from ase_mlip.force_field import ForceField
from ase_mlip.graph import PadShape, batch
from ase_mlip.level_data import bootstrap
from ase_mlip.transfer import add_heads
from ase_mlip.uncertainty import deviation, has_committee, member_predictions

MEMBERS = ("new_1", "new_2", "new_3")
NAMES = ("bulk", "molecule", "wire", "left_handed", "atom")
SHAPE = PadShape(7, 28, 60)


@pytest.fixture(scope="module")
def committee() -> ForceField:
    """Three random heads above a base, for the elements of the zoo."""
    return toy_committee(INFO, seed=4)


@pytest.fixture(scope="module")
def one_by_one(committee: ForceField) -> ForceField:
    """The same network without a committee: each member is a level of its own."""
    levels = tuple((name, ("base", name)) for name in MEMBERS)
    return replace(committee, predictor=replace(committee.predictor, levels=levels, committees=()))


def test_members_against_levels_of_their_own(committee: ForceField, one_by_one: ForceField) -> None:
    structures = [build_zoo()[name] for name in NAMES]
    graph = batch([committee.graph(atoms) for atoms in structures], SHAPE)
    members = member_predictions(committee, graph, dtype="float64")
    assert members.energy.shape == (3, 7)
    separate = [
        one_by_one(batch([one_by_one.graph(atoms, name) for atoms in structures], SHAPE), dtype="float64")
        for name in MEMBERS
    ]
    level, spread, atoms = committee(graph, dtype="float64"), deviation(members), sum(map(len, structures))
    for field, count in {"energy": 5, "forces": atoms, "stress": 5, "node_energies": atoms}.items():
        got = getattr(members, field)[:, :count]
        expected = np.stack([getattr(prediction, field)[:count] for prediction in separate])
        np.testing.assert_allclose(got, expected, atol=1e-10)
        np.testing.assert_allclose(got.mean(axis=0), getattr(level, field)[:count], atol=1e-10)
    energies = np.stack([prediction.energy for prediction in separate])[:, : len(structures)]
    forces = np.stack([prediction.forces for prediction in separate])[:, :atoms]
    squares = sum(np.linalg.norm(member - forces.mean(axis=0), axis=1) ** 2 for member in forces)
    np.testing.assert_allclose(spread.energy[: len(structures)], np.std(energies, axis=0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(spread.forces[:atoms], np.sqrt(squares / 2), rtol=1e-8, atol=1e-12)
    assert spread.energy[:5].min() > 1e-2
    assert np.median(spread.forces[:atoms]) > 1e-2


def test_silent_members_agree() -> None:
    """At step 0 all members are the level below: no deviation at all."""
    grown, _ = add_heads(toy_force_field(), ["new"], members=3)
    spread = deviation(member_predictions(grown, grown.graph(toy_frames(1)[0]), dtype="float64"))
    np.testing.assert_allclose(spread.energy, 0.0, atol=1e-12)
    np.testing.assert_allclose(spread.forces, 0.0, atol=1e-12)


def test_levels_without_committee(committee: ForceField, one_by_one: ForceField) -> None:
    assert [has_committee(committee.predictor, level) for level in (None, "new", "base")] == [True, True, False]
    assert not has_committee(one_by_one.predictor)
    with pytest.raises(ValueError, match="no level 'old'"):
        has_committee(committee.predictor, "old")
    with pytest.raises(ValueError, match="'base' has no committee of heads; fine-tune with n_heads > 1"):
        member_predictions(committee, committee.graph(build_zoo()["atom"]), "base")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the calculator predicts the level, and its members."""
    counted: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        function = getattr(calculator_module, name)

        def call(*arguments: Any) -> Any:
            counted[name] += 1
            return function(*arguments)

        return call

    for name in ("compiled_interaction", "member_predictions"):
        monkeypatch.setattr(calculator_module, name, counting(name))
    return counted


def with_calculator(force_field: ForceField, level: str | None = None) -> ase.Atoms:
    """Methanol with a calculator in float64."""
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=1)
    atoms.calc = MLIPCalculator(force_field, level=level, dtype="float64")
    return atoms


def test_calculator_gives_deviations(committee: ForceField) -> None:
    atoms = with_calculator(committee)
    spread = deviation(member_predictions(committee, committee.graph(atoms), dtype="float64"))
    energy, forces = (atoms.calc.get_property(name, atoms) for name in ("energy_std", "forces_std"))
    assert isinstance(energy, float)
    assert energy == pytest.approx(spread.energy[0], rel=1e-9)
    np.testing.assert_allclose(forces, spread.forces, rtol=1e-9)
    assert {"energy", "forces", "energy_std", "forces_std"} <= set(atoms.calc.results)
    assert set(atoms.calc.implemented_properties) - set(MLIPCalculator.implemented_properties) == {
        "energy_std",
        "forces_std",
    }
    empty = ase.Atoms(calculator=atoms.calc)
    assert atoms.calc.get_property("energy_std", empty) == 0.0
    assert atoms.calc.get_property("forces_std", empty).shape == (0,)


def test_deviations_are_computed_on_demand(committee: ForceField, calls: Counter[str]) -> None:
    atoms = with_calculator(committee)
    VelocityVerlet(atoms, 0.1).run(3)
    steps = calls["compiled_interaction"]
    assert calls == {"compiled_interaction": steps}
    assert "energy_std" not in atoms.calc.results
    before = atoms.calc.get_property("energy_std", atoms), atoms.calc.get_property("forces_std", atoms)
    assert calls == {"compiled_interaction": steps, "member_predictions": 1}
    energy = atoms.get_potential_energy()
    assert calls["compiled_interaction"] == steps
    atoms.positions[0] += 0.1
    assert atoms.calc.get_property("energy_std", atoms, allow_calculation=False) is None
    assert atoms.get_potential_energy() != energy
    assert calls == {"compiled_interaction": steps + 1, "member_predictions": 1}
    after = atoms.calc.get_property("energy_std", atoms), atoms.calc.get_property("forces_std", atoms)
    assert calls == {"compiled_interaction": steps + 1, "member_predictions": 2}
    assert after[0] != before[0]
    assert (after[1] != before[1]).all()


def test_the_order_of_questions_does_not_matter(committee: ForceField) -> None:
    """Also between two structures that share a calculator."""
    first, other = with_calculator(committee), with_calculator(committee)
    first.calc.get_property("energy_std", first)
    other.get_potential_energy()
    moved = first.copy()
    moved.rattle(0.1, seed=5)
    assert first.calc.get_property("energy_std", moved) != first.calc.get_property("energy_std", first)
    for name in ("energy", "energy_std", "forces", "forces_std"):
        answers = [atoms.calc.get_property(name, atoms) for atoms in (first, other)]
        np.testing.assert_array_equal(*answers)
    broken = first.copy()
    broken.positions[1] = np.nan
    for _ in range(2):
        with pytest.raises(CalculationFailed, match="positions must be finite"):
            first.calc.get_property("energy_std", broken)


def test_no_committee_no_deviation(committee: ForceField) -> None:
    atoms = with_calculator(committee, "base")
    assert atoms.calc.implemented_properties is MLIPCalculator.implemented_properties
    for name in ("energy_std", "forces_std"):
        message = rf"{name} needs a committee of heads and level 'base' has none; fine-tune with n_heads="
        with pytest.raises(PropertyNotImplementedError, match=message):
            atoms.calc.get_property(name, atoms)
        with pytest.raises(PropertyNotImplementedError, match=message):
            atoms.calc.calculate(atoms, [name])
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="charges property not implemented"):
        atoms.get_charges()


def test_ase_still_works_with_deviations_in_the_results(committee: ForceField, tmp_path: Path) -> None:
    atoms = with_calculator(committee)
    atoms.calc.get_property("forces_std", atoms)
    energy = atoms.get_potential_energy()
    for name in ("frames.traj", "frames.extxyz", "frames.json"):
        ase.io.write(tmp_path / name, atoms)
        read = ase.io.read(tmp_path / name)
        assert read.get_potential_energy() == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(read.get_forces(), atoms.get_forces(), atol=1e-6)
        assert "energy_std" not in read.calc.results
    with ase.db.connect(tmp_path / "frames.db") as database:
        database.write(atoms, energy_std=atoms.calc.get_property("energy_std", atoms))
        assert database.get(1).energy_std == atoms.calc.results["energy_std"]
    for other in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        assert other.implemented_properties == atoms.calc.implemented_properties
        moved = atoms.copy()
        moved.positions[0] += 0.1
        other.get_property("energy_std", moved)
        assert other.results["energy_std"] != atoms.calc.results["energy_std"]
    assert atoms.get_properties(["energy", "forces"])["energy"] == energy
    mixed = atoms.copy()
    mixed.calc = SumCalculator([atoms.calc, LennardJones()])
    assert np.isfinite(mixed.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError):
        mixed.calc.get_property("energy_std", mixed)


def test_bootstrap_draws_as_many_frames_for_each_member(committee: ForceField) -> None:
    base = toy_force_field()
    examples = toy_examples(base, toy_frames(20))
    members = np.eye(3) + 10.0
    drawn = bootstrap(examples, members, seed=1)
    counts = {}
    for number, weights in enumerate(members):
        own = [example for example in drawn if np.array_equal(example.graph.head_weights[0], weights)]
        times = {example.graph.positions.tobytes(): float(example.targets.weight[0]) for example in own}
        assert len(own) == len(times) < 20
        assert sum(times.values()) == 20
        assert set(times) <= {example.graph.positions.tobytes() for example in examples}
        counts[number] = times
    assert counts[0] != counts[1] != counts[2] != counts[0]
    again = bootstrap(examples, members, seed=1)
    assert [e.targets.weight for e in again] == [e.targets.weight for e in drawn]
    assert [e.targets.weight for e in bootstrap(examples, members, seed=2)] != [e.targets.weight for e in drawn]
    assert all(example.targets.weight == 1.0 for example in examples)


def test_fine_tuning_a_committee() -> None:
    """Members that saw different draws of the frames differ; their mean is the level, and only heads were trained."""
    base, frames = toy_force_field(), toy_frames(8)
    options = {"level": "new", "n_heads": 2, "epochs": 2, "batch_size": 4, "learning_rate": 0.05}
    tuned = fine_tune(base, frames, frames[:2], log=lambda line: None, **options).force_field
    assert tuned.levels == {"base": ("base",), "new": ("base", "new_1", "new_2")}
    assert tuned.predictor.committees == (("new_1", "new_2"),)
    graph = batch([tuned.graph(atoms) for atoms in frames])
    members = member_predictions(tuned, graph, dtype="float64")
    level = tuned(graph, dtype="float64", per_head=True)
    np.testing.assert_allclose(members.energy.mean(axis=0), level.energy, atol=1e-10)
    by_hand = level.head_energies[:, 0] + level.head_energies[:, 1:].mean(axis=1)
    np.testing.assert_allclose(level.energy, by_hand, atol=1e-10)
    assert (np.abs(level.head_energies[:, 1] - level.head_energies[:, 2]) > 1e-5).all()
    assert deviation(members).forces.max() > 1e-4
    old, new = leaves(base), leaves(tuned)
    assert all(jax.tree.leaves([np.array_equal(old[name], new[name]) for name in old]))
