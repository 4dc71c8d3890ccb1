"""Elements that a base lacks: added from a known one, learned by the new level, refused by every level before it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import molecule
from conftest import random_weights
from toy_data import INFO, toy_force_field, toy_frames

from ase_mlip import MLIPCalculator, relax
from ase_mlip.config import FineTuneConfig
from ase_mlip.describe import describe
from ase_mlip.evaluate import evaluate_frames
from ase_mlip.finetune import FineTuneResult, fine_tune
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph
from ase_mlip.networks.nequip import Nequip, NequipConfig
from ase_mlip.replay import make_structures
from ase_mlip.structure import InvalidStructure
from ase_mlip.transfer import add_heads, restore_elements

E0 = {"H": -3.0, "C": -5.0, "O": -7.0}
LIKE = {6: 8}
REFUSED = r"the level 'base' has never been trained on C; the level 'fine-tuned' has"


@pytest.fixture(scope="module")
def base() -> ForceField:
    """Knows H and O; random weights."""
    return toy_force_field(info=INFO.with_heads([replace(INFO.heads[0], scale=20.0)]))


def carbon_frames(count: int, seed: int = 0) -> list[ase.Atoms]:
    """Of H, C and O, one molecule after another."""
    return toy_frames(count, seed, E0, ("CH3OH", "CO", "CH4", "H2O"))


def tune(base: ForceField, frames: list[ase.Atoms], **options: object) -> FineTuneResult:
    """A short fine-tuning with carbon, validated on its own frames."""
    chosen = {"method": "full", "new_elements": {"C": "O"}, "epochs": 1, "batch_size": 4, "check_ps": 0}
    return fine_tune(base, frames, frames, log=lambda _: None, **{**chosen, **options})


@pytest.fixture(scope="module")
def tuned(base: ForceField) -> FineTuneResult:
    """Twenty epochs on a few frames."""
    return tune(base, carbon_frames(8), epochs=20)


@pytest.mark.parametrize("network", ["mace", "nequip"])
def test_a_new_element_starts_as_the_one_it_is_like(network: str, base: ForceField) -> None:
    """Where it stands in for that one the energies are the same; what was known before is not touched."""
    if network == "nequip":
        base = random_weights(Nequip(NequipConfig((4, 2), 2, 1, 4, element_skip=True), INFO))
    grown = base.with_elements([1, 6, 8], LIKE)
    assert grown.elements == (1, 6, 8)
    water = molecule("H2O", vacuum=3.0)
    before = base(base.graph(water), dtype="float64")
    same = grown(grown.graph(water), dtype="float64")
    np.testing.assert_allclose(same.forces, before.forces, atol=1e-12)
    np.testing.assert_allclose(same.energy, before.energy, atol=1e-12)
    carbon = water.copy()
    carbon.symbols[carbon.numbers == 8] = "C"
    graph = Graph.from_atoms(carbon, grown.elements, grown.cutoff, grown.predictor.head_weights())
    np.testing.assert_allclose(grown(graph, dtype="float64").energy, before.energy, atol=1e-12)


def test_training_starts_from_the_base_and_learns_the_new_element(base: ForceField, tuned: FineTuneResult) -> None:
    untrained = tune(base, carbon_frames(8), epochs=0)
    assert untrained.plan.corrections["fine-tuned"].rank == 3
    e0 = dict(zip((1, 6, 8), untrained.force_field.dataset_info.head("fine-tuned").atomic_energies, strict=True))
    assert e0[6] == pytest.approx(untrained.plan.corrections["fine-tuned"].energies[6])
    assert tuned.errors.summary()["forces_mae"] < 0.8 * tuned.base_errors.summary()["forces_mae"]
    frame = next(atoms for atoms in carbon_frames(2) if 6 in atoms.numbers)
    assert np.isfinite(tuned.force_field(tuned.force_field.graph(frame)).energy).all()


def test_levels_that_never_saw_it_refuse_it(tuned: FineTuneResult, tmp_path: Path) -> None:
    """By the calculator, in an evaluation and in a batch; also after the file was written and read."""
    tuned.force_field.save(tmp_path / "m.safetensors")
    model = ForceField.load(tmp_path / "m.safetensors")
    assert model.predictor.unknown_elements("base") == (6,)
    assert model.predictor.unknown_elements() == ()
    assert describe(model, tmp_path / "m.safetensors")["level base"] == "sum of base; never trained on C"
    methane, water = carbon_frames(4)[2:]
    methane.calc, labelled = MLIPCalculator(model, level="base"), carbon_frames(4)
    with pytest.raises(InvalidStructure, match=REFUSED):
        methane.get_potential_energy()
    with pytest.raises(InvalidStructure, match="frame 0: " + REFUSED):
        evaluate_frames(model, labelled, level="base")
    with pytest.raises(InvalidStructure, match=REFUSED):
        model.graph(methane, "base")
    result = relax(model, [methane, water], level="base", steps=1, log=None)
    assert "has never been trained on C" in str(result.problems[0])
    assert "not converged" in str(result.problems[1])
    methane.calc = MLIPCalculator(model)
    assert np.isfinite(methane.get_potential_energy())
    cut = model.with_elements([6, 8])
    assert cut.predictor.unknown_elements("base") == (6,)
    assert cut.with_elements([8]).predictor.unknown_elements("base") == ()


def test_another_level_on_the_base_does_not_know_it_either(tuned: FineTuneResult) -> None:
    """Unless it is trained on it, too, or builds on the level that was."""
    options = {"epochs": 0, "method": "heads", "new_elements": None}
    side = tune(tuned.force_field, toy_frames(4), level="side", base_level="base", **options).force_field
    with pytest.raises(InvalidStructure, match=r"'side' has never been trained on C; the level 'fine-tuned' has"):
        side.graph(molecule("CH4"))
    above = tune(tuned.force_field, toy_frames(4), level="above", **options).force_field
    assert above.predictor.unknown_elements() == ()
    again = tune(tuned.force_field, carbon_frames(4), level="again", base_level="base", **{**options, "method": "full"})
    assert again.force_field.predictor.unknown_elements() == ()


def test_what_was_cut_away_stays_unknown(base: ForceField) -> None:
    """Fine-tuned on elements in use alone, and put back among all of them."""
    grown = base.with_elements([1, 6, 8], LIKE)
    tuned, _ = add_heads(grown.with_elements([1, 8]), ["side"])
    assert tuned.predictor.unknown_elements() == ()
    assert restore_elements(tuned, grown).predictor.unknown_elements("side") == (6,)


def test_replay_leaves_the_new_element_to_the_new_level(base: ForceField) -> None:
    result = tune(base, carbon_frames(6), replay="auto", replay_ratio=1.0)
    assert result.plan.replay_frames > 0
    made = make_structures(carbon_frames(6), (1, 8), 10)
    assert len(made) == 10
    assert {z for atoms in made for z in atoms.numbers.tolist()} == {1, 8}
    with pytest.raises(InvalidStructure, match="the level 'base' has never been trained on C"):
        tune(base, carbon_frames(6), replay=carbon_frames(6))


def test_the_report_compares_what_the_base_knows(base: ForceField, tmp_path: Path) -> None:
    result = tune(base, carbon_frames(4), check_ps=0.002, output=str(tmp_path / "m.safetensors"))
    report = json.loads((tmp_path / "m_report" / "report.json").read_text())
    assert result.page is not None
    assert report["nve"]["base"] is None
    assert report["nve"]["result"] is not None
    assert len(report["dimers"]["base"]) == 3  # H-H, H-O, O-O
    assert len(report["dimers"]["result"]) == 6


def test_labels_of_isolated_atoms_fit_a_new_element(base: ForceField) -> None:
    result = tune(base, carbon_frames(4), e0={"H": -3.0, "C": -5.0, "O": -7.0}, epochs=0)
    model = result.force_field
    atom = model(model.graph(ase.Atoms("C")), dtype="float64")
    assert float(atom.energy[0]) == pytest.approx(-5.0, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"new_elements": None}, r"frame 0: the model does not know C \(Z=6\); it knows H, O. Give new_elements"),
        ({"new_elements": {"C": "N"}}, "new_elements: C=N, but the base knows H, O"),
        ({"new_elements": {"C": "O", "Cu": "O"}}, "new_elements: Cu=O"),
        ({"new_elements": {"C": "O", "H": "O"}}, "new_elements: H=O"),
        ({"method": "heads"}, "a new head alone cannot tell them"),
        ({"new_elements": "C:O"}, "give NEW=KNOWN"),
    ],
)
def test_what_cannot_be_is_refused(base: ForceField, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tune(base, carbon_frames(4), **options)


def test_the_option_is_written_and_read(tmp_path: Path) -> None:
    config = FineTuneConfig(train="a.xyz", method="full", new_elements="Na=F, K=F")
    assert config.new_elements == {"Na": "F", "K": "F"}
    config.save(tmp_path / "job.yaml")
    assert FineTuneConfig.load(tmp_path / "job.yaml") == config
