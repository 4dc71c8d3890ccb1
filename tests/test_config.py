"""One configuration for Python, shell and YAML: what it refuses, and that all three say the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import ase
import numpy as np
import pytest
import yaml

from ase_mlip.config import FineTuneConfig, option_types


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
        ({"replay_labels": "old"}, "replay_labels='old': give one of 'model', 'file'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuneConfig().changed(options)


@pytest.mark.parametrize("text", ["- a\n- b\n", "method: [\n"])
def test_broken_yaml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"job\.yaml (holds no mapping|is not YAML)"):
        FineTuneConfig.load(tmp_path / "job.yaml")


def test_numpy_numbers_are_numbers() -> None:
    assert FineTuneConfig().changed({"learning_rate": np.float64(0.5)}).learning_rate == 0.5


def test_the_command_has_every_option() -> None:
    """The options are listed without loading JAX, which takes seconds."""
    code = (
        "import sys\nfrom ase_mlip.cli import app\nfrom typer.main import get_command\n"
        "names = [p.name for p in get_command(app).commands['finetune'].params]\n"
        "assert 'jax' not in sys.modules\nprint(*names)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(option_types()) < set(done.stdout.split())
