"""One configuration for Python, shell and YAML: what it refuses, and that all three say the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import ase
import numpy as np
import pytest
import yaml

from ase_mlip.config import CHOICES, FineTuneConfig, TrainConfig
from ase_mlip.options import Options


def test_yaml_round_trip(tmp_path: Path) -> None:
    config = FineTuneConfig().changed(
        {
            "train": {"pbe": "a.xyz", "scan": Path("b.xyz")},
            "valid": 0.2,
            "method": "lora",
            "freeze": ["embedding"],
            "rank": 4,
            "e0": "H=-13.5,O=-430",
            "learning_rate": 1,
            "epochs": 7,
        }
    )
    config.save(tmp_path / "job.yaml")
    again = FineTuneConfig.load(tmp_path / "job.yaml")
    assert again.to_dict() == config.to_dict()
    assert again.e0 == {"H": -13.5, "O": -430.0}
    assert again.freeze == ("embedding",)
    assert again.preset.rank == 4
    assert again.preset.learning_rate == 1
    plain = yaml.safe_load((tmp_path / "job.yaml").read_text())
    assert plain["train"] == {"pbe": "a.xyz", "scan": "b.xyz"}
    assert set(plain) == {f.name for f in fields(FineTuneConfig)}


def test_frames_in_memory_cannot_be_written(tmp_path: Path) -> None:
    config = FineTuneConfig(train=[ase.Atoms("H"), ase.Atoms("O")])
    assert config.to_dict()["train"] == "<2 frames in memory>"
    with pytest.raises(ValueError, match="train is <2 frames in memory>: only a run on files"):
        config.save(tmp_path / "job.yaml")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "lora"}, "there is no option 'methods'; the options are base, train, valid"),
        ({"method": "head"}, "method='head': give one of 'heads', 'freeze', 'lora', 'full'"),
        ({"epochs": "ten"}, "epochs='ten': expected a whole number or nothing"),
        ({"epochs": 1.5}, "epochs=1.5: expected a whole number"),
        ({"epochs": True}, "epochs=True: expected a whole number"),
        ({"learning_rate": "fast"}, "learning_rate='fast': expected a number or nothing"),
        ({"stacked": "yes"}, "stacked='yes': expected true or false"),
        ({"seed": None}, "seed=None: expected a whole number"),
        ({"freeze": "embedding", "method": "freeze"}, "freeze='embedding': expected a list of text or nothing"),
        ({"rank": 4}, "rank has no effect with method='heads'"),
        ({"freeze": ["embedding"], "method": "full"}, "freeze has no effect with method='full'"),
        ({"replay": "auto"}, "replay has no effect with method='heads'"),
        ({"e0": "mean"}, "e0='mean': give one of 'estimated', 'isolated', 'keep', or energies in eV"),
        ({"n_heads": 0}, "n_heads=0"),
        ({"replay_weight": 0}, "replay_weight=0: give a positive number"),
        ({"replay_ratio": -1.0}, "replay_ratio=-1.0"),
        ({"replay_ratio": 2.0}, "replay_ratio=2.0 has no effect without replay"),
        ({"replay_labels": "old"}, "replay_labels='old': give one of 'model', 'file'"),
        ({"schedule": "linear"}, "schedule='linear': give one of 'cosine', 'plateau', 'constant'"),
        ({"optimizer": "sgd"}, "optimizer='sgd': give one of 'amsgrad', 'muon'"),
        ({"matmul_precision": "half"}, "matmul_precision='half': give one of 'float32', 'tensorfloat32'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuneConfig().changed(options)


@pytest.mark.parametrize(("name", "word"), [("schedule", "linear"), ("optimizer", "sgd")])
def test_a_training_refuses_unknown_words_before_it_reads_data(name: str, word: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{word}': give one of"):
        TrainConfig(**{name: word})


def test_replay_slows_down_what_moves_freely() -> None:
    """At its own rate `full` lost the old level; a rate or an optimiser that is given counts as it is."""
    for method, rate in (("full", 1e-3), ("lora", FineTuneConfig(method="lora").preset.learning_rate)):
        alone, beside = (FineTuneConfig(method=method, replay=replay).preset for replay in (None, "auto"))
        assert (alone.optimizer, beside.optimizer, beside.learning_rate) == ("muon", "amsgrad", rate)
    assert FineTuneConfig(method="full", replay="auto", optimizer="muon").preset.optimizer == "muon"
    assert FineTuneConfig(method="full", replay="auto", learning_rate=0.02).preset.learning_rate == 0.02


@pytest.mark.parametrize("text", ["- a\n- b\n", "method: [\n"])
def test_broken_yaml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"job\.yaml (holds no mapping|is not YAML)"):
        FineTuneConfig.load(tmp_path / "job.yaml")


def test_numpy_numbers_are_numbers() -> None:
    assert FineTuneConfig().changed({"learning_rate": np.float64(0.5)}).learning_rate == 0.5


@pytest.mark.parametrize(("command", "config"), [("finetune", FineTuneConfig), ("train", TrainConfig)])
def test_the_command_has_every_option(command: str, config: type[Options]) -> None:
    """The options are listed without loading JAX, which takes seconds."""
    code = (
        "import sys\nfrom ase_mlip.cli import app\nfrom typer.main import get_command\n"
        f"names = [p.name for p in get_command(app).commands['{command}'].params]\n"
        "assert 'jax' not in sys.modules\nprint(*names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(config.types()) < set(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": 8}, "there is no option 'channel'; the options are train, valid, output"),
        ({"radial_mlp": [64, "x"]}, "radial_mlp=.*: expected a list of whole numbers"),
        ({"radial_mlp": 64}, "radial_mlp=64: expected a list of whole numbers"),
        ({"train": {"a": "a.xyz", "b": "b.xyz"}}, "a training has one level"),
        ({"repulsion_exponent": 0.2}, "repulsion_exponent has no effect without repulsion=True"),
        ({"start": "default", "cutoff": 4.0}, "cutoff has no effect with start"),
        ({"start": "default", "repulsion": True, "repulsion_order": 5}, "repulsion has no effect with start"),
    ],
)
def test_what_a_training_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig().changed(options)


def test_yaml_round_trip_of_a_training(tmp_path: Path) -> None:
    options = {"train": Path("a.xyz"), "radial_mlp": [32, 16], "repulsion": True, "repulsion_prefactor": 0.5}
    config = TrainConfig().changed({**options, "patience": 3, "max_minutes": 5})
    config.save(tmp_path / "job.yaml")
    assert TrainConfig.load(tmp_path / "job.yaml") == config
    assert set(yaml.safe_load((tmp_path / "job.yaml").read_text())) == {f.name for f in fields(TrainConfig)}
    assert (config.network.radial_mlp, config.pair_repulsion.prefactor, config.pair_repulsion.exponent) == (
        (32, 16), 0.5, 0.3,
    )  # fmt: skip
    assert (config.settings.patience, config.settings.max_minutes) == (3, 5)


def test_every_option_of_a_training_is_used() -> None:
    """Each changes the network, the repulsion, the loop or the data, or is read where the training is put together."""
    config = TrainConfig(repulsion=True)
    parts = ("network", "pair_repulsion", "settings", "keys")
    before = [getattr(config, part) for part in parts]
    source = Path("ase_mlip/from_scratch.py").read_text()
    for name, kind, default, _ in TrainConfig.options():
        if f"config.{name}" in source or f'"{name}"' in source:
            continue
        value = {int: 2, float: 0.5, str: CHOICES.get(name, (None, "REF"))[1], tuple: (8,)}
        other = config.changed({name: value[get_args(kind)[0] if default is None else type(default)]})
        assert [getattr(other, part) for part in parts] != before, name
