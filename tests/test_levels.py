"""Several new levels at once, where their E0 come from, and replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from toy_data import INFO, leaves, same_bits, toy_force_field, toy_frames

from ase_mlip.dataset import read_frames
from ase_mlip.finetune import FineTuneResult, fine_tune
from ase_mlip.force_field import ForceField
from ase_mlip.replay import make_structures
from ase_mlip.transfer import add_heads

QUIET = {"epochs": 2, "batch_size": 4, "log": lambda _: None}
FIRST, SECOND = {"H": -3.4, "O": -7.9}, {"H": -2.0, "O": -9.0}


@pytest.fixture(scope="module")
def base() -> ForceField:
    """A one-head model with random weights."""
    return toy_force_field(info=INFO.with_heads([replace(INFO.heads[0], scale=20.0)]))


def energy(force_field: ForceField, level: str, atoms: ase.Atoms) -> float:
    """Energy at a level, in float64."""
    return float(force_field(force_field.graph(atoms, level), dtype="float64").energy[0])


def two_levels(base: ForceField, **options: object) -> FineTuneResult:
    """Two new levels whose labels differ by energies of atoms."""
    data = {"first": toy_frames(6, seed=1, e0=FIRST), "second": toy_frames(4, seed=2, e0=SECOND)}
    return fine_tune(base, data, data, **{**QUIET, **options})


@pytest.fixture(scope="module")
def side_by_side(base: ForceField) -> FineTuneResult:
    """Both on the base."""
    return two_levels(base, epochs=12)


@pytest.fixture(scope="module")
def stacked(base: ForceField) -> FineTuneResult:
    """The second on the first."""
    return two_levels(base, stacked=True, epochs=0)


def test_levels_side_by_side(base: ForceField, side_by_side: FineTuneResult) -> None:
    force_field = side_by_side.force_field
    assert force_field.levels == {"base": ("base",), "first": ("base", "first"), "second": ("base", "second")}
    assert list(side_by_side.before) == list(side_by_side.after) == ["first", "second"]
    assert [side_by_side.after[level].frames for level in ("first", "second")] == [6, 4]
    old, new = leaves(base), leaves(force_field)
    assert all(same_bits(old[name], new[name]) for name in old)
    (record,) = force_field.provenance["fine_tuning"]
    assert record["levels"] == ["first", "second"]
    assert set(side_by_side.history[-1]["levels"]) == {"first", "second"}


def test_each_level_learns_from_its_own_frames(base: ForceField, side_by_side: FineTuneResult) -> None:
    """The head of a level is what it would be without the other's frames at step 0: its E0 differ as the labels do."""
    first, second = (side_by_side.force_field.dataset_info.head(name).atomic_energies for name in ("first", "second"))
    water = ase.Atoms("OH2")
    sums = [sum(e0[int(z == 8)] for z in water.numbers) for e0 in (first, second)]
    expected = sum(FIRST[s] - SECOND[s] for s in water.symbols)
    assert sums[0] - sums[1] == pytest.approx(expected, abs=0.5)
    losses = [record["valid_loss"] for record in side_by_side.history]
    both = [record["levels"] for record in side_by_side.history]
    assert min(losses[1:]) < losses[0]
    assert all(set(record) == {"first", "second"} for record in both)


def test_stacked_levels_correct_each_other(base: ForceField, stacked: FineTuneResult) -> None:
    force_field = stacked.force_field
    assert force_field.levels["second"] == ("base", "first", "second")
    atoms = toy_frames(1)[0]
    e0 = [dict(zip((1, 8), force_field.dataset_info.head(n).atomic_energies, strict=True)) for n in ("first", "second")]
    start = energy(base, "base", atoms)
    for level, heads in (("first", e0[:1]), ("second", e0)):
        expected = start + sum(head[z] for head in heads for z in atoms.numbers.tolist())
        assert energy(force_field, level, atoms) == pytest.approx(expected, abs=1e-10)
    # the second level's E0 come on top of the first's, which already hold most of the difference to the base
    total = {z: e0[0][z] + e0[1][z] for z in (1, 8)}
    water = 2 * total[1] + total[8]
    alone = two_levels(base, epochs=0).force_field.dataset_info.head("second").atomic_energies
    assert water == pytest.approx(2 * alone[0] + alone[1], abs=1e-4)


def test_levels_can_be_left_out(side_by_side: FineTuneResult, tmp_path: Path) -> None:
    """The one that stays predicts what it did, from a file too, and another can be built on it."""
    whole, atoms = side_by_side.force_field, toy_frames(1)[0]
    whole.with_levels(["first"]).save(tmp_path / "first.safetensors")
    kept = ForceField.load(tmp_path / "first.safetensors")
    assert kept.levels == {"first": ("base", "first")}
    assert energy(kept, "first", atoms) == energy(whole, "first", atoms)
    with pytest.raises(ValueError, match="there is no level 'base'"):
        kept.graph(atoms, "base")
    with pytest.raises(ValueError, match="give at least one of 'first'"):
        kept.with_levels([])
    tuned = fine_tune(kept, toy_frames(4), toy_frames(2), level="third", **QUIET).force_field
    assert tuned.levels == {"first": ("base", "first"), "third": ("base", "first", "third")}


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (["new", "new"], "have a name twice"),
        (["a/b"], "contains '/'"),
        (["base"], "already has a level or head 'base'"),
    ],
)
def test_names_that_cannot_be(levels: list[str], message: str, base: ForceField) -> None:
    with pytest.raises(ValueError, match=message):
        add_heads(base, levels)


def test_validation_frames_for_each_level(base: ForceField) -> None:
    data = {"first": toy_frames(2), "second": toy_frames(2)}
    with pytest.raises(ValueError, match=r"valid has the levels \['first'\] and train \['first', 'second'\]"):
        fine_tune(base, data, {"first": toy_frames(2)}, **QUIET)
    with pytest.raises(ValueError, match="with several levels give a file for each"):
        fine_tune(base, data, toy_frames(2), **QUIET)


def with_atoms(frames: Sequence[ase.Atoms], energies: dict[str, float]) -> list[ase.Atoms]:
    """The frames and a one-atom frame of each element."""
    found = list(frames)
    for symbol, value in energies.items():
        atom = ase.Atoms(symbol)
        atom.calc = SinglePointCalculator(atom, energy=value, forces=np.zeros((1, 3)))
        found.append(atom)
    return found


@pytest.mark.parametrize("choice", ["isolated", {"H": -13.5, "O": -430.0}])
def test_energies_of_isolated_atoms(choice: object, base: ForceField) -> None:
    """The new level gives an isolated atom the energy that its labels give it, at step 0."""
    frames = with_atoms(toy_frames(4), {"H": -13.5, "O": -430.0})
    result = fine_tune(base, frames, frames, e0=choice, **{**QUIET, "epochs": 0})
    for symbol, expected in (("H", -13.5), ("O", -430.0)):
        assert energy(result.force_field, "fine-tuned", ase.Atoms(symbol)) == pytest.approx(expected, abs=1e-4)


def test_energies_kept(base: ForceField) -> None:
    result = fine_tune(base, toy_frames(4), toy_frames(4), e0="keep", **{**QUIET, "epochs": 0})
    atoms = toy_frames(1)[0]
    assert energy(result.force_field, "fine-tuned", atoms) == energy(base, "base", atoms)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("isolated", "no one-atom frame with an energy for H, O; add it, or use 'estimated'"),
        ({"H": -13.5}, "no energy is given for O"),
    ],
)
def test_energies_that_are_missing(choice: object, message: str, base: ForceField) -> None:
    with pytest.raises(ValueError, match=message):
        fine_tune(base, toy_frames(4), toy_frames(4), e0=choice, **QUIET)


def test_one_atom_frames_are_kept(base: ForceField) -> None:
    frames = with_atoms(toy_frames(4), {"H": -13.5})
    lines: list[str] = []
    result = fine_tune(base, frames, frames, **{**QUIET, "epochs": 0, "log": lines.append})
    assert result.errors.frames == 5
    assert any("training data: 5 frames" in line for line in lines)


def test_made_structures() -> None:
    """Half are distorted copies of the frames, half molecules and crystals of known elements; none has labels."""
    frames = toy_frames(2)
    made = make_structures(frames, (1, 6, 8), 20, seed=3)
    assert len(made) == 20
    assert all(atoms.calc is None for atoms in made)
    copies, others = made[::2], made[1::2]
    assert {str(atoms.symbols) for atoms in copies} == {"OH2", "OH"}
    shipped = {str(atoms.symbols) for atoms in read_frames("data/replay.extxyz.xz")}
    assert {str(atoms.symbols) for atoms in others} <= shipped
    assert {symbol for atoms in others for symbol in atoms.symbols} == set("HCO")
    assert len({str(atoms.symbols) for atoms in others}) > 5
    changes = []
    for atoms in copies:
        original = frames[0] if len(atoms) == 3 else frames[1]
        changes.append(np.abs(atoms.get_all_distances() - original.get_all_distances()).max())
    assert 0 < min(changes) <= max(changes) < 1.0
    assert np.median(changes) > 0.01
    again = make_structures(frames, (1, 6, 8), 20, seed=3)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(made, again, strict=True))
    metals = make_structures([ase.Atoms("Cu", cell=[3, 3, 3], pbc=True)], (29,), 4)
    assert [atoms.pbc.all() for atoms in metals] == [True] * 4


def test_few_made_structures_cover_the_elements() -> None:
    """Few molecules hold phosphorus, and sodium only those of the G2 set: twelve at random would miss the rare ones."""
    elements = (1, 3, 6, 7, 8, 9, 11, 14, 15, 16, 17, 35)
    for seed in range(3):
        made = make_structures(toy_frames(2), elements, 24, seed)
        assert set(elements) <= {z for atoms in made[1::2] for z in atoms.numbers.tolist()}
        assert min(map(len, made)) > 1


@pytest.mark.parametrize(
    ("pool", "ratio", "trained", "watching"),
    [(60, 1.0, 8, 40), (30, 1.0, 8, 22), (10, 1.0, 5, 5), (150, None, 100, 40), (60, None, 30, 30)],
)
def test_given_replay_keeps_its_ratio(
    pool: int, ratio: float | None, trained: int, watching: int, base: ForceField
) -> None:
    """At most so many frames for each of the eight new ones train; forty watch, of a small pool half at least."""
    options = {**QUIET, "epochs": 0, "method": "full", "replay_ratio": ratio}
    plan = fine_tune(base, toy_frames(8), toy_frames(4), replay=toy_frames(pool, seed=5), **options).plan
    assert plan.replay_frames == trained
    assert [len(v.examples) for v in plan.valid if v.level == "base"] == [watching]


def test_generated_replay_keeps_the_old_level(base: ForceField) -> None:
    frames = toy_frames(8, seed=1, e0=FIRST)
    options = {**QUIET, "method": "full", "learning_rate": 1e-3, "epochs": 40}
    without = fine_tune(base, frames, frames, **options)
    replayed = fine_tune(base, frames, frames, replay="auto", replay_ratio=2.0, replay_weight=10.0, **options)
    assert replayed.plan.replay_frames == 16  # twice the frames; forty more watch
    assert without.replay_errors is None
    assert replayed.replay_errors is not None
    assert list(replayed.after) == list(without.after) == ["fine-tuned", "base"]
    unseen = toy_frames(4, seed=7)
    drift = [
        np.mean([abs(energy(r.force_field, "base", a) - energy(base, "base", a)) for a in unseen])
        for r in (without, replayed)
    ]
    assert 0 < drift[1] < 0.5 * drift[0]


def test_the_weight_of_replay_counts(base: ForceField) -> None:
    """The loss of a pure replay batch grows with the weight (that its gradient does: tests/test_training.py)."""
    options = {**QUIET, "method": "full", "replay": "auto", "replay_ratio": 1.0, "epochs": 1}
    results = [fine_tune(base, toy_frames(4), toy_frames(4), replay_weight=w, **options) for w in (1.0, 1e4)]
    losses = [result.history[-1]["train_loss"] for result in results]
    assert losses[1] > 2 * losses[0]
