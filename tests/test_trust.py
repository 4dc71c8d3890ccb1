"""Ways in which fine-tuning goes wrong unnoticed elsewhere, each seen here: an error, a printed line or a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from toy_data import INFO, leaves, same_bits, toy_force_field, toy_frames

from ase_mlip.data_checks import BadLabels
from ase_mlip.dataset import MissingLabel
from ase_mlip.finetune import FineTuneResult, fine_tune
from ase_mlip.force_field import ForceField
from ase_mlip.structure import InvalidStructure

OTHER = {"H": -3.4, "O": -7.9}


@pytest.fixture(scope="module")
def base() -> ForceField:
    """A one-head model with random weights."""
    return toy_force_field(info=INFO.with_heads([replace(INFO.heads[0], scale=20.0)]))


def tune(base: ForceField, frames: list[ase.Atoms], **options: object) -> FineTuneResult:
    """A short fine-tuning, validated on its own frames."""
    options = {"epochs": 1, "batch_size": 4, "log": lambda _: None, "check_ps": 0, **options}
    return fine_tune(base, frames, frames, **options)


def relabel(frames: list[ase.Atoms], change: Callable[[dict[str, object]], dict[str, object]]) -> list[ase.Atoms]:
    """Copies whose labels went through a function."""
    out = []
    for atoms in frames:
        copy = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        copy.calc = SinglePointCalculator(copy, **change(dict(atoms.calc.results)))
        out.append(copy)
    return out


def predicted(base: ForceField, count: int, amplitude: float = 0.2) -> list[ase.Atoms]:
    """Frames labelled by the base itself, with forces large enough to compare."""
    frames = []
    for number, atoms in enumerate(toy_frames(count, seed=3)):
        atoms.rattle(amplitude, seed=number)
        found = base(base.graph(atoms), dtype="float64")
        atoms.calc = SinglePointCalculator(atoms, energy=found.energy[0], forces=found.forces, stress=found.stress[0])
        frames.append(atoms)
    return frames


@pytest.mark.parametrize("labels", [("energy",), ("forces",), ("energy", "forces"), ("energy", "stress")])
def test_any_labels_will_do(labels: tuple[str, ...], base: ForceField) -> None:
    """Energies alone, forces alone, and some frames with and some without: masks say which."""
    frames = toy_frames(4, e0=OTHER)
    some = relabel(frames[:2], lambda found: {name: found[name] for name in labels})
    weights = {f"{name}_weight": 1.0 if name in labels else 0.0 for name in ("energy", "forces", "stress")}
    result = tune(base, [*some, *relabel(frames[2:], lambda found: {labels[0]: found[labels[0]]})], **weights)
    assert set(result.errors.summary()) == {f"{name}_{kind}" for name in labels for kind in ("mae", "rmse")}
    counts = {"energy": 4, "forces": 15 if "energy" in labels else 30, "stress": 18}
    assert all(getattr(result.errors, name).shape[1] == counts[name] for name in labels)


def test_a_label_of_weight_zero_need_not_be_there(base: ForceField) -> None:
    bare = relabel(toy_frames(4), lambda found: {"energy": found["energy"]})
    with pytest.raises(MissingLabel, match="no frame has forces in the attached calculator; the frames have energy"):
        tune(base, bare)
    assert tune(base, bare, forces_weight=0.0).errors.frames == 4


@pytest.mark.parametrize("factor", [-1.0, 1 / 51.422, 23.06])
def test_forces_of_another_unit_or_sign_stop(factor: float, base: ForceField) -> None:
    wrong = relabel(predicted(base, 12), lambda found: {**found, "forces": factor * found["forces"]})
    with pytest.raises(ValueError, match=r"forces: expected .* give accept_units=True"):
        tune(base, wrong)
    lines: list[str] = []
    assert tune(base, wrong, accept_units=True, log=lines.append).history
    assert any(line.startswith("error: forces: expected") for line in lines)


def test_right_units_do_not_stop(base: ForceField) -> None:
    lines: list[str] = []
    result = tune(base, predicted(base, 12), log=lines.append)
    assert result.plan.findings == ()
    assert not any(line.startswith(("error", "note")) for line in lines)


def test_foreign_zero_of_energy_is_said(base: ForceField) -> None:
    """With E0 kept as they are, energies of another code are far off, and that is said."""
    far = relabel(predicted(base, 6), lambda found: {**found, "energy": found["energy"] - 500.0})
    lines: list[str] = []
    tune(base, far, e0="keep", log=lines.append)
    assert any("off by +" in line and "eV/atom on average" in line for line in lines)
    lines.clear()
    tune(base, far, log=lines.append)
    assert not any("eV/atom on average" in line for line in lines)


def test_labels_that_cannot_be_true_stop_or_are_left_out(base: ForceField) -> None:
    frames = toy_frames(8)
    frames[5].calc.results["forces"][0, 1] = np.nan
    frames[2].calc.results["forces"] = frames[2].calc.results["forces"] + 5e3
    with pytest.raises(BadLabels, match=r"2 of 8 frames cannot be trained on: 2 \(.*5 \(.*skip_bad_frames=True"):
        tune(base, frames)
    result = tune(base, frames, skip_bad_frames=True)
    assert result.errors.frames == 6
    assert result.force_field.provenance["fine_tuning"][0]["frames"] == 6


def test_duplicates_are_named(base: ForceField) -> None:
    frames = toy_frames(4)
    lines: list[str] = []
    tune(base, [*frames, frames[1].copy()], energy_weight=1.0, epochs=0, log=lines.append)
    assert any("duplicate: 1 frame, 4 (of 1)" in line for line in lines)


def test_an_element_that_the_base_lacks_is_named(base: ForceField) -> None:
    frames = toy_frames(3)
    alien = ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]])
    alien.calc = SinglePointCalculator(alien, energy=-1.0, forces=np.zeros((2, 3)))
    with pytest.raises(InvalidStructure, match=r"frame 3: the model does not know C \(Z=6\); it knows H, O"):
        tune(base, [*frames, alien])


def test_no_step_changes_nothing(base: ForceField, tmp_path: Path) -> None:
    """Zero epochs by any method: a file that loads, with the base's bits, whose new level is the base's plus E0."""
    frames = toy_frames(4, e0=OTHER)
    for method in ("heads", "freeze", "lora", "full"):
        output = str(tmp_path / f"{method}.safetensors")
        tune(base, frames, method=method, epochs=0, output=output)
        loaded = ForceField.load(output)
        old, new = leaves(base), leaves(loaded)
        assert all(same_bits(old[name], new[name]) for name in old)
        e0 = loaded.dataset_info.head("fine-tuned").atomic_energies
        before, after = (m(m.graph(frames[0]), dtype="float64") for m in (base, loaded))
        assert after.energy[0] == pytest.approx(before.energy[0] + 2 * e0[0] + e0[1], abs=1e-10)
        np.testing.assert_allclose(after.forces, before.forces, rtol=0, atol=1e-10)


def test_a_dry_run_tells_everything_and_trains_nothing(base: ForceField, tmp_path: Path) -> None:
    lines: list[str] = []
    output = str(tmp_path / "never.safetensors")
    result = tune(base, toy_frames(6), method="lora", rank=2, dry_run=True, output=output, log=lines.append)
    printed = "\n".join(lines)
    for text in (
        "training data: 6 frames, 15 atoms (H:9 O:6); energy in 6, forces in 6",
        "energy: -",
        "E0 in eV of the level below, correction, and sum",
        "layer_0/linear_up",
        "head_fine-tuned",
        "pad shape: ",
        "memory of the largest step: ",
        "before training, level 'fine-tuned': 6 frames; E: MAE ",
    ):
        assert text in printed
    listed = [line for line in lines if " copied " in line or " new " in line]
    assert sum(int(line.split()[1].replace(",", "")) for line in listed) == result.plan.start.num_params
    assert all(line.endswith(("frozen", "free", "rank 2")) for line in listed)
    assert not list(tmp_path.iterdir())


def test_compilations_are_counted(base: ForceField) -> None:
    """One for each pad shape, however many structures and epochs."""
    lines: list[str] = []
    tune(base, toy_frames(8), epochs=3, log=lines.append)
    assert any("the training step was compiled 1 times" in line for line in lines)


def test_a_report_is_beside_the_model(base: ForceField, tmp_path: Path) -> None:
    frames = toy_frames(8, e0=OTHER)
    ase.io.write(tmp_path / "train.traj", frames)
    lines: list[str] = []
    result = fine_tune(
        base,
        str(tmp_path / "train.traj"),
        frames[:4],
        output=str(tmp_path / "mine.safetensors"),
        method="full",
        epochs=2,
        check_ps=0.01,
        log=lines.append,
    )
    assert result.page == tmp_path / "mine_report" / "report.html"
    text = result.page.read_text()
    for word in ("fine-tuned", "train.traj", "mine.safetensors", "full", "</html>"):
        assert word in text
    assert (tmp_path / "mine_report" / "report.json").is_file()
    assert any(line.startswith("fine-tuned on 4 validation frames: energy ") for line in lines)
    assert any(line.startswith("base on 4 validation") for line in lines)
