"""Fine-tuning as one call: what is kept exactly, what is fitted, what moves, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import predict
from toy_data import INFO, leaves, same_bits, toy_examples, toy_force_field, toy_frames

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.evaluate import evaluate_frames
from ase_mlip.finetune import FineTuneResult, fine_tune
from ase_mlip.force_field import ForceField
from ase_mlip.reference_energies import fit_energy_correction
from ase_mlip.transfer import add_heads

NEW_E0 = {"H": -3.4, "O": -7.9}
SHIFT = {1: 0.37, 8: -1.25}


@pytest.fixture(scope="module")
def base() -> ForceField:
    """A one-head model whose random energies are of the size of the labels."""
    return toy_force_field(info=INFO.with_heads([replace(INFO.heads[0], scale=20.0)]))


@pytest.fixture(scope="module")
def frames() -> list[ase.Atoms]:
    """Eight frames at another level of theory."""
    return toy_frames(8, seed=1, e0=NEW_E0)


def tune(base: ForceField, frames: list[ase.Atoms], **options: object) -> FineTuneResult:
    """A very short fine-tuning, validated on its own six frames so that a few steps show."""
    options = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "log": lambda _: None, **options}
    return fine_tune(base, frames[:6], frames[:6], **options)


def energies(force_field: ForceField, level: str, frames: list[ase.Atoms]) -> np.ndarray:
    """Energies at a level, in float64."""
    return np.array([force_field(force_field.graph(a, level), dtype="float64").energy[0] for a in frames])


def relabel(force_field: ForceField, frames: list[ase.Atoms], shift: dict[int, float]) -> list[ase.Atoms]:
    """Frames labelled by the model itself plus a known energy per element."""
    out = []
    for atoms in frames:
        prediction = force_field(force_field.graph(atoms), dtype="float64")
        labelled = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        energy = prediction.energy[0] + sum(shift[z] for z in atoms.numbers)
        labelled.calc = SinglePointCalculator(labelled, energy=energy, forces=prediction.forces)
        out.append(labelled)
    return out


@pytest.fixture(scope="module")
def tuned(base: ForceField, frames: list[ase.Atoms], tmp_path_factory: pytest.TempPathFactory) -> FineTuneResult:
    """Two epochs of the new head alone, written to a file."""
    return tune(base, frames, output=tmp_path_factory.mktemp("tuned") / "tuned.safetensors")


@pytest.fixture(scope="module")
def rounds(tuned: FineTuneResult) -> list[ForceField]:
    """Three fine-tunings, each on top of the last, each for labels of its own."""
    made = [tuned.force_field]
    for level, shift in (("second", 0.5), ("third", 1.0)):
        labels = toy_frames(8, seed=1, e0={"H": -3.0, "O": -7.0 + shift})
        made.append(tune(made[-1], labels, level=level, epochs=1).force_field)
    return made


def test_the_new_head_trains_and_nothing_else(base: ForceField, tuned: FineTuneResult) -> None:
    old, new = leaves(base), leaves(tuned.force_field)
    assert all(same_bits(new[name], old[name]) for name in old)
    assert set(new) - set(old) == {"head_fine-tuned/layer_0_hidden", "head_fine-tuned/layer_0_output"}
    assert np.abs(new["head_fine-tuned/layer_0_output"]).min() > 0  # zero at the start
    assert min(record["valid_loss"] for record in tuned.history[1:]) < tuned.history[0]["valid_loss"]


def test_the_base_level_is_the_base(base: ForceField, tuned: FineTuneResult, frames: list[ase.Atoms]) -> None:
    force_field = tuned.force_field
    assert force_field.levels == {"base": ("base",), "fine-tuned": ("base", "fine-tuned")}
    for dtype in ("float32", "float64"):
        before = base(base.graph(frames[0]), dtype=dtype)
        after = force_field(force_field.graph(frames[0], "base"), dtype=dtype)
        newest = force_field(force_field.graph(frames[0]), dtype=dtype)
        for name in ("energy", "forces", "stress"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
            assert np.abs(getattr(newest, name) - getattr(before, name)).max() > 1e-7


def test_energies_of_levels_are_sums_of_heads(tuned: FineTuneResult, frames: list[ase.Atoms]) -> None:
    force_field = tuned.force_field
    for atoms in frames[:2]:
        graph = force_field.graph(atoms)
        heads = force_field(graph, per_head=True, dtype="float64").head_energies[0]
        by_level = {level: energies(force_field, level, [atoms])[0] for level in force_field.levels}
        assert by_level["base"] == pytest.approx(heads[0], abs=1e-10)
        assert by_level["fine-tuned"] == pytest.approx(heads.sum(), abs=1e-10)
        # the new head carries the change of level: 0.4 eV per H and 0.9 eV per O were taken off the labels
        assert abs(heads[1]) > 0.1


def test_the_file_is_the_result(tuned: FineTuneResult, frames: list[ase.Atoms]) -> None:
    assert tuned.path is not None
    loaded = ForceField.load(tuned.path)
    assert energies(loaded, "fine-tuned", frames[:1]) == energies(tuned.force_field, "fine-tuned", frames[:1])
    assert loaded.levels == tuned.force_field.levels
    assert loaded.provenance["name"] == "toy"
    (record,) = loaded.provenance["fine_tuning"]
    assert {"level": "fine-tuned", "method": "heads", "frames": 6}.items() <= record.items()
    assert tuned.path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(tuned.path.with_suffix(".history.jsonl").read_text().splitlines()) == len(tuned.history) == 4


def test_the_result_is_an_ase_calculator(tuned: FineTuneResult, frames: list[ase.Atoms]) -> None:
    atoms = ase.Atoms(frames[0].numbers, positions=frames[0].positions, cell=frames[0].cell, pbc=True)
    atoms.calc = tuned.calculator(dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(energies(tuned.force_field, "fine-tuned", [atoms])[0])


def test_errors_before_and_after_are_those_of_the_levels(tuned: FineTuneResult, frames: list[ase.Atoms]) -> None:
    labels = np.array([atoms.get_potential_energy() / len(atoms) for atoms in frames[:6]])
    sizes = np.array([len(atoms) for atoms in frames[:6]])
    found = energies(tuned.force_field, "fine-tuned", frames[:6]) / sizes
    np.testing.assert_allclose(tuned.errors.energy, [labels, found], atol=1e-5)
    head = tuned.force_field.dataset_info.head("fine-tuned")
    shift = np.array([sum(head.atomic_energies[int(z == 8)] for z in atoms.numbers) for atoms in frames[:6]])
    start = (energies(tuned.force_field, "base", frames[:6]) + shift) / sizes
    np.testing.assert_allclose(tuned.base_errors.energy, [labels, start], atol=1e-5)


def test_step_zero_is_the_base_plus_the_fitted_correction(base: ForceField, frames: list[ase.Atoms]) -> None:
    """The founding identity, exact in float64; the correction itself is checked against known shifts."""
    labelled = relabel(base, frames, SHIFT)
    lines: list[str] = []
    result = tune(base, labelled, epochs=0, log=lines.append)
    e0 = dict(zip((1, 8), result.force_field.dataset_info.head("fine-tuned").atomic_energies, strict=True))
    assert e0 == pytest.approx(SHIFT, abs=1e-4)
    assert any("H +0.3700 O -1.2500" in line for line in lines)
    for atoms in frames:
        before = base(base.graph(atoms), dtype="float64")
        after = result.force_field(result.force_field.graph(atoms), dtype="float64")
        shifted = before.energy + sum(e0[z] for z in atoms.numbers)
        np.testing.assert_allclose(after.energy, shifted, rtol=0, atol=1e-10)
        np.testing.assert_allclose(after.forces, before.forces, rtol=0, atol=1e-10)
    assert result.errors.summary()["energy_mae"] < 1e-4
    assert result.history[0]["epoch"] == 0
    assert len(result.history) == 1


def test_a_run_that_got_nowhere_says_so(base: ForceField, frames: list[ase.Atoms]) -> None:
    """A rate that is far too high: the start is kept, and the way out named; a run that learned says nothing of it."""
    for rate, said in ((3.0, True), (3e-3, False)):
        lines: list[str] = []
        result = tune(base, frames, method="full", learning_rate=rate, log=lines.append)
        assert (min(result.history, key=lambda record: record["valid_loss"])["epoch"] == 0) == said
        assert any("NOTHING WAS LEARNED" in line and "try 0.6" in line for line in lines) == said


def test_a_single_composition_takes_the_smallest_correction(base: ForceField, frames: list[ase.Atoms]) -> None:
    """2 H + O = d has the solution of least norm (2, 1) d / 5."""
    water = relabel(base, frames[::2], SHIFT)
    correction, rank = fit_energy_correction(base, toy_examples(base, water), batch_size=4)
    d = 2 * SHIFT[1] + SHIFT[8]
    assert rank == 1
    assert correction == pytest.approx({1: 2 * d / 5, 8: d / 5}, abs=1e-4)


def test_no_energies_no_correction(base: ForceField, frames: list[ase.Atoms]) -> None:
    bare = [ase.Atoms(atoms.numbers, positions=atoms.positions) for atoms in frames]
    assert fit_energy_correction(base, toy_examples(base, bare)) == ({}, 0)


def test_three_rounds_keep_every_level(base: ForceField, rounds: list[ForceField], frames: list[ase.Atoms]) -> None:
    last = rounds[-1]
    assert last.levels["third"] == ("base", "fine-tuned", "second", "third")
    assert list(last.levels) == ["base", "fine-tuned", "second", "third"]
    assert [record["level"] for record in last.provenance["fine_tuning"]] == ["fine-tuned", "second", "third"]
    for earlier in (base, *rounds[:2]):
        old, new = leaves(earlier), leaves(last)
        assert all(same_bits(new[name], old[name]) for name in old)
        level = list(earlier.levels)[-1]
        found = energies(last, level, frames[:2])
        np.testing.assert_allclose(found, energies(earlier, level, frames[:2]), rtol=0, atol=1e-10)
    final = [energies(last, level, frames[:1])[0] for level in last.levels]
    assert len({round(energy, 2) for energy in final}) == 4


def test_predictions_of_one_batch_may_mix_levels(rounds: list[ForceField], frames: list[ase.Atoms]) -> None:
    last = rounds[-1]
    alone = predict(last, [frames[0], frames[1]])
    np.testing.assert_allclose(alone.energy, energies(last, "third", frames[:2]), atol=1e-10)


@pytest.fixture(scope="module")
def full(base: ForceField, frames: list[ase.Atoms]) -> FineTuneResult:
    """Every parameter trains."""
    return tune(base, frames, method="full", learning_rate=1e-3, epochs=60)


@pytest.fixture(scope="module")
def replayed(base: ForceField, frames: list[ase.Atoms]) -> FineTuneResult:
    """The same with replay of unlabelled structures."""
    bare = [ase.Atoms(a.numbers, positions=a.positions, cell=a.cell, pbc=a.pbc) for a in toy_frames(6, seed=2)]
    return tune(base, frames, method="full", learning_rate=1e-3, epochs=60, replay=bare, replay_weight=20.0)


def test_full_moves_the_trunk(base: ForceField, full: FineTuneResult, frames: list[ase.Atoms]) -> None:
    old, new = leaves(base), leaves(full.force_field)
    moved = [name for name in old if not same_bits(new[name], old[name])]
    assert {"element_embedding", "layer_0/linear_up/degree_0", "head_base/layer_0_output"} <= set(moved)
    drift = energies(full.force_field, "base", frames[:2]) - energies(base, "base", frames[:2])
    assert np.abs(drift).max() > 1e-4


def test_replay_keeps_the_old_level_better(base: ForceField, full: FineTuneResult, replayed: FineTuneResult) -> None:
    assert full.replay_errors is None
    assert replayed.replay_errors is not None
    before, after = replayed.replay_errors
    unseen = relabel(base, toy_frames(6, seed=2), {1: 0.0, 8: 0.0})
    without = evaluate_frames(full.force_field, unseen, level="base").summary()
    assert before.summary()["energy_mae"] < 1e-5  # the labels are the base's own
    assert 1e-5 < after.summary()["energy_mae"] < without["energy_mae"]
    ours, theirs = leaves(replayed.force_field), leaves(full.force_field)
    assert not same_bits(ours["element_embedding"], theirs["element_embedding"])


def test_replay_labels_from_the_file(base: ForceField, frames: list[ase.Atoms]) -> None:
    shifted = relabel(base, frames[:2], {1: 1.0, 8: 1.0})
    result = tune(base, frames, method="full", epochs=0, replay=shifted, replay_labels="file")
    assert result.replay_errors is not None
    assert result.replay_errors[0].summary()["energy_mae"] == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adapt"}, r"method='adapt': give one of 'heads', 'freeze', 'lora', 'full'"),
        ({"replay": [ase.Atoms("H")]}, r"replay has no effect with method='heads'"),
        ({"replay": [ase.Atoms("H")], "method": "full", "replay_labels": "x"}, r"give one of 'model', 'file'"),
        ({"level": "base"}, r"already has a level or head 'base'.*choose another name"),
    ],
)
def test_what_cannot_work_is_refused(
    options: dict[str, object], message: str, base: ForceField, frames: list[ase.Atoms], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tune(base, frames, output=tmp_path / "model.safetensors", **options)
    assert not list(tmp_path.iterdir())


def test_a_taken_name_is_refused_whether_head_or_level(tuned: FineTuneResult) -> None:
    predictor = replace(tuned.force_field.predictor, levels=(("other", ("base", "fine-tuned")),))
    renamed = replace(tuned.force_field, predictor=predictor)
    for name in ("other", "base", "fine-tuned"):
        with pytest.raises(ValueError, match=f"already has a level or head '{name}'"):
            add_heads(renamed, [name])


MANY = {
    "H": -3.0,
    "He": -1.0,
    "Li": 0.5,
    "Be": 0.2,
    "B": 0.1,
    "C": -4.0,
    "N": -5.0,
    "O": -7.0,
    "F": 1.0,
    "Ne": 2.0,
    "Na": 3.0,
}


@pytest.mark.parametrize("method", ["heads", "full"])
def test_a_model_of_many_elements_keeps_them(method: str, frames: list[ase.Atoms], tmp_path: Path) -> None:
    """Training sees the elements of the data alone; the file has all of them, the others' rows bit by bit."""
    info = DatasetInfo.create(MANY, cutoff=4.0, avg_num_neighbors=2.0, scale=20.0)
    base = toy_force_field(info=info)
    result = tune(base, frames, method=method, output=tmp_path / "tuned.safetensors")
    tuned = ForceField.load(tmp_path / "tuned.safetensors")
    assert tuned.elements == base.elements
    old, new = leaves(base), leaves(tuned)
    others = [n for n, z in enumerate(base.elements) if z not in (1, 8)]
    for name, leaf in old.items():
        per_element = name.split("/")[-1].startswith("element_")
        if method == "heads":
            assert same_bits(leaf, new[name])
        elif per_element:
            assert same_bits(leaf[others], new[name][others])
            assert not np.array_equal(leaf, new[name])
    correction = tuned.predictor.reference_energies[1]
    assert not correction[others].any()
    assert correction[[0, 7]].all()
    again = evaluate_frames(result.force_field, frames[:6]).summary()
    assert again == pytest.approx(result.errors.summary(), rel=1e-5)
    lithium = ase.Atoms("LiH", positions=[[0, 0, 0], [0, 0, 1.6]])
    if method == "heads":
        assert energies(tuned, "base", [lithium]) == energies(base, "base", [lithium])


def test_the_level_to_build_on(two_head_force_field: ForceField) -> None:
    """A new level sums the heads of the level it is told to build on."""
    grown, _ = add_heads(two_head_force_field, ["new"], base_level="base")
    assert grown.levels["new"] == ("base", "new")
    with pytest.raises(ValueError, match="there is no level 'none'"):
        add_heads(two_head_force_field, ["new"], base_level="none")
