"""A run that is killed and started again ends in the same file as one left alone; Ctrl-C and time limits save."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import optax
import pytest
from toy_data import leaves, same_bits, toy_examples, toy_force_field, toy_frames

from ase_mlip.config import FineTuneConfig, TrainConfig
from ase_mlip.finetune import fine_tune
from ase_mlip.from_scratch import train_from_scratch
from ase_mlip.training import TrainSettings, Validation, train

SETTINGS = TrainSettings(epochs=6, batch_size=4)


def command(folder: Path, name: str) -> list[str]:
    """The same fine-tuning, with checkpoints in a folder of its own."""
    options = ["--method", "full", "--epochs", "40", "--batch-size", "2", "--check-ps", "0", "--learning-rate", "1e-3"]
    places = ["--folder", str(folder / name), "-o", str(folder / f"{name}.safetensors")]
    start = [sys.executable, "-m", "ase_mlip.cli", "finetune", str(folder / "base.safetensors")]
    return [*start, str(folder / "train.traj"), "--valid", "0.25", *options, *places]


def evaluations(folder: Path) -> int:
    """How many a run has written down."""
    history = folder / "history.jsonl"
    return len(history.read_text().splitlines()) if history.is_file() else 0


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """Killed twice, at whatever it was doing once a few more evaluations were there."""
    toy_force_field().save(tmp_path / "base.safetensors")
    ase.io.write(tmp_path / "train.traj", toy_frames(8))
    subprocess.run(command(tmp_path, "whole"), check=True, capture_output=True)
    for least in (3, 15):
        process = subprocess.Popen(command(tmp_path, "killed"), stdout=subprocess.DEVNULL)
        while evaluations(tmp_path / "killed") < least and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.003 * least)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed.safetensors").exists()
    done = subprocess.run(command(tmp_path, "killed"), check=True, capture_output=True, text=True)
    assert "resuming after epoch" in done.stdout
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "whole") == 41
    whole, killed = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_another_run_does_not_resume_here(tmp_path: Path) -> None:
    options = {"epochs": 1, "folder": str(tmp_path / "run"), "log": lambda _: None}
    base, frames = toy_force_field(), toy_frames(4)
    fine_tune(base, frames, frames, **options)
    for change in ({"seed": 1}, {"learning_rate": 0.5}, {"method": "full"}, {"energy_weight": 3.0}):
        with pytest.raises(ValueError, match="holds the checkpoints of a run with another base, other data or other"):
            fine_tune(base, frames, frames, **{**options, **change})
    with pytest.raises(ValueError, match="other data"):
        fine_tune(base, toy_frames(4, seed=9), frames, **options)
    with pytest.raises(ValueError, match="another base"):
        fine_tune(toy_force_field(seed=4), frames, frames, **options)


def test_interruption_keeps_the_best_so_far(tmp_path: Path) -> None:
    """Ctrl-C in the third epoch: the call returns, and the same call goes on to the same end."""
    force_field = toy_force_field()
    examples = toy_examples(force_field, toy_frames(6))
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch    2/") and not any("resuming" in line for line in lines):
            raise KeyboardInterrupt  # what Python makes of Ctrl-C

    def run(log: object, folder: Path | None) -> object:
        watched = [Validation("base", examples)]
        return train(force_field, examples, watched, optax.adam(1e-2), SETTINGS, folder=folder, log=log)

    broken = run(interrupt, tmp_path / "run")
    assert [record["epoch"] for record in broken.history] == [0, 1, 2]
    assert any("interrupted in epoch 3: keeping the best evaluation so far" in line for line in lines)
    resumed = run(interrupt, tmp_path / "run")
    whole = run(lambda line: None, None)
    assert resumed.history == whole.history
    ours, theirs = leaves(resumed.force_field), leaves(whole.force_field)
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)


def test_time_limit_and_patience() -> None:
    force_field = toy_force_field()
    examples = toy_examples(force_field, toy_frames(6))
    lines: list[str] = []

    def run(optimizer: optax.GradientTransformation, **options: object) -> list[int]:
        settings, watched = replace(SETTINGS, **options), [Validation("base", examples)]
        result = train(force_field, examples, watched, optimizer, settings, log=lines.append)
        return [record["epoch"] for record in result.history]

    assert run(optax.adam(1e-2), max_minutes=1e-9) == [0]
    assert any("1e-09 minutes are over in epoch 1" in line for line in lines)
    assert run(optax.sgd(-1e-3), patience=2) == [0, 1, 2]  # uphill
    assert any("no better evaluation in 2" in line for line in lines)
    assert run(optax.adam(1e-2), patience=100) == list(range(7))


def test_levels_without_weight_do_not_decide() -> None:
    """The level that is only watched gets worse and worse, and is reported; the other decides."""
    force_field = toy_force_field()
    examples = toy_examples(force_field, toy_frames(6))
    watched = [Validation("base", examples), Validation("shown", toy_examples(force_field, toy_frames(3, seed=2)), 0.0)]
    result = train(force_field, examples, watched, optax.adam(1e-2), SETTINGS, log=lambda _: None)
    for record in result.history:
        assert set(record["levels"]) == {"base", "shown"}
        assert record["levels"]["base"]["forces_mae"] == record["forces_mae"]
    alone = train(force_field, examples, watched[:1], optax.adam(1e-2), SETTINGS, log=lambda _: None)
    assert [r["valid_loss"] for r in alone.history] == [r["valid_loss"] for r in result.history]
    both = [watched[0], replace(watched[1], weight=2.0)]
    summed = train(force_field, examples, both, optax.adam(1e-2), SETTINGS, log=lambda _: None)
    assert np.all(np.array([r["valid_loss"] for r in summed.history]) > [r["valid_loss"] for r in alone.history])


def test_what_a_training_saves_does_not_depend_on_where(tmp_path: Path) -> None:
    """Two trainings with other outputs and folders write the same bytes."""
    frames = toy_frames(4)
    config = TrainConfig(epochs=1, channels=4, layers=1, l_max=1, hidden_l_max=0, correlation=2, radial_mlp=(8,))
    for name in ("a", "b"):
        places = {"folder": tmp_path / name, "output": tmp_path / f"{name}.safetensors", "max_minutes": 60 + ord(name)}
        train_from_scratch(frames, frames, config=config, log=lambda _: None, **places)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_what_is_saved_does_not_depend_on_where(tmp_path: Path) -> None:
    """Two runs with other outputs and folders write the same bytes."""
    frames = toy_frames(4)
    for name in ("a", "b"):
        config = FineTuneConfig(folder=str(tmp_path / name), epochs=1, check_ps=0, max_minutes=60 + ord(name))
        output = str(tmp_path / f"{name}.safetensors")
        fine_tune(toy_force_field(), frames, frames, config=config, output=output, log=lambda _: None)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
