"""The command line: each command on toy data, and errors that are one line with exit status 1."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from toy_data import leaves, toy_force_field, toy_frames
from typer.testing import CliRunner

from ase_mlip import cli
from ase_mlip.config import TrainConfig
from ase_mlip.force_field import ForceField

SIZES = ["--channels", 4, "--layers", 1, "--l-max", 1, "--hidden-l-max", 0, "--correlation", 2]
SIZES += ["--radial-mlp", 8, "--cutoff", 4]


def run(*arguments: object) -> str:
    """What a command prints; its error is raised."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """The one line that a failing command leaves, through the console entry point."""
    monkeypatch.setattr(sys, "argv", ["ase-mlip", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames with labels in the attached calculator."""
    path = tmp_path_factory.mktemp("data") / "toy.traj"
    ase.io.write(path, toy_frames(8))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights."""
    path = tmp_path_factory.mktemp("model") / "base.safetensors"
    toy_force_field().save(path)
    return path


def test_train(data: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "new.safetensors", tmp_path / "run"
    options = ["--epochs", 2, "--batch-size", 4, "--valid", f"{data}@:2", "--name", "toy Morse"]
    printed = run("train", f"{data}@2:", "-o", output, *SIZES, *options, "--folder", folder)
    assert "training data: 6 frames, 15 atoms (H:9 O:6)" in printed
    assert "epoch    2/2" in printed
    assert f"wrote {output}" in printed
    trained = ForceField.load(output)
    config = trained.predictor.network.config
    assert (config.num_channels, config.num_layers, config.l_max, config.hidden_l_max) == (4, 1, 1, 0)
    assert (config.correlation, config.radial_mlp, trained.cutoff) == (2, (8,), 4.0)
    said = trained.provenance
    assert (said["training_data"], said["name"]) == ("toy.traj@2:", "toy Morse")
    (done,) = said["training"]
    assert {"frames": 6, "channels": 4, "radial_mlp": [8], "epochs": 2, "start": None}.items() <= done.items()
    assert not {"output", "folder", "max_minutes"} & set(done)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"new.safetensors", "new.history.jsonl", "new.png", "new_report", "run"}
    assert (folder / "history.jsonl").is_file()


def test_the_recipe_of_the_fast_model(data: Path, tmp_path: Path) -> None:
    """Its first line draws what it trains on; with a toy network and toy data in place of its own, the rest runs."""
    recipe = Path("data/base_fast.yaml")
    config = TrainConfig.load(recipe)
    assert recipe.read_text().startswith(f"# python data/draw_frames.py {config.train} ")
    assert (config.channels, config.l_max, config.hidden_l_max, config.cutoff) == (64, 2, 1, 4.5)
    assert Path(config.valid).is_file()
    output = tmp_path / "toy.safetensors"
    run("train", data, "--config", recipe, "--valid", data, *SIZES, "--epochs", 0, "-o", output, "--folder", tmp_path)
    trained = ForceField.load(output)
    assert trained.dataset_info.repulsion == config.pair_repulsion
    assert trained.provenance["licence"] == "MIT"
    assert trained.provenance["training"][0]["huber_delta"] == 0.2


def test_the_recipe_of_the_accurate_model(model: Path, data: Path, tmp_path: Path) -> None:
    """Its first lines make what it begins with; with toys in place of that, the rest of it runs."""
    recipe = Path("data/base_accurate.yaml")
    config = TrainConfig.load(recipe)
    first_lines = "#".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    assert f"draw_frames.py {config.train} " in first_lines
    assert recipe.read_text().splitlines()[0] == Path("data/base_fast.yaml").read_text().splitlines()[0]  # same frames
    assert Path(config.valid).is_file()
    assert f"grow.py default {config.start} " in first_lines
    output = tmp_path / "toy.safetensors"
    given = [data, "--config", recipe, "--valid", data, "--start", model, "--epochs", 0]
    run("train", *given, "-o", output, "--folder", tmp_path / "run")
    trained = ForceField.load(output)
    assert trained.provenance["licence"] == "MIT"
    assert trained.provenance["training"][-1]["energy_weight"] == 150.0


def test_training_goes_on_from_a_model(model: Path, data: Path, tmp_path: Path) -> None:
    """The shape, constants and parameters are the model's; the file says that there were two rounds."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    common = [data, "--valid", data, "--start"]
    run("train", *common, model, "-o", first, "--epochs", 0)
    started, trained = ForceField.load(model), ForceField.load(first)
    assert trained.dataset_info == started.dataset_info
    assert leaves(started).keys() == leaves(trained).keys()
    for name, value in leaves(started).items():
        np.testing.assert_array_equal(leaves(trained)[name], value)
    run("train", *common, first, "-o", second, "--epochs", 1, "--name", "toy again")
    rounds = ForceField.load(second).provenance["training"]
    assert [r["start"] for r in rounds] == ["base.safetensors", "first.safetensors"]
    assert [r["name"] for r in rounds] == [None, "toy again"]
    assert not {"channels", "cutoff", "repulsion"} & {*rounds[1]}  # those of the model, not the options' defaults


def test_finetune(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "tuned.safetensors"
    options = ["--level", "morse", "--epochs", 1, "--batch-size", 4, "--learning-rate", 0.1, "--energy-weight", 1]
    printed = run("finetune", model, data, "-o", output, "--valid", data, *options)
    assert "E0 correction, eV: H " in printed
    assert "before training, level 'morse': 8 frames" in printed
    assert printed.endswith(f"wrote {output}\n")
    tuned = ForceField.load(output)
    assert tuned.levels == {"base": ("base",), "morse": ("base", "morse")}
    assert tuned.provenance["fine_tuning"][0]["method"] == "heads"


def test_evaluate_against_labels_by_hand(model: Path, data: Path, tmp_path: Path) -> None:
    printed = run("evaluate", model, data, "--json", tmp_path / "errors.json", "--dtype", "float64")
    record = json.loads((tmp_path / "errors.json").read_text())
    force_field = ForceField.load(model)
    frames = ase.io.read(data, ":")
    predictions = [force_field(force_field.graph(atoms), dtype="float64") for atoms in frames]
    energy = [
        (p.energy[0] - atoms.get_potential_energy()) / len(atoms) for p, atoms in zip(predictions, frames, strict=True)
    ]
    forces = np.concatenate([(p.forces - a.get_forces()).ravel() for p, a in zip(predictions, frames, strict=True)])
    assert record["energy_mae"] == pytest.approx(np.mean(np.abs(energy)), rel=1e-6)
    assert record["energy_rmse"] == pytest.approx(np.linalg.norm(energy) / len(energy) ** 0.5, rel=1e-6)
    assert record["forces_mae"] == pytest.approx(np.mean(np.abs(forces)), rel=1e-6)
    assert {"level": "base", "frames": 8, "model": str(model), "data": str(data)}.items() <= record.items()
    assert printed.startswith("level 'base': 8 frames; E: MAE ")
    assert f"{1e3 * record['forces_mae']:.2f}" in printed


def test_info(model: Path) -> None:
    printed = run("info", model)
    rows = dict(line.split(maxsplit=1) for line in printed.splitlines() if not line.startswith("level"))
    assert rows["SHA-256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert rows["elements"] == "2: H O"
    assert rows["cutoff"] == "4 Angstrom"
    assert rows["name"] == "toy"
    sizes = [leaf.size for leaf in ForceField.load(model).params["head_base"].values()]
    assert int(rows["parameters"].replace(",", "")) > sum(sizes)
    assert "sum of base (default)" in printed


def test_errors_are_one_line(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "note.txt"
    note.write_text("no structures here\n")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(model.read_bytes()[:-5])
    out = ["-o", tmp_path / "out.safetensors"]
    cases = {
        ("info", "nothing.safetensors"): "Shipped with the package: default, accurate, r2scan. Published",
        ("info", broken): "truncated",
        ("evaluate", model, tmp_path / "gone.traj"): "there is no file",
        ("evaluate", model, note): "note.txt",
        ("evaluate", model, data, "--level", "dft"): "there is no level 'dft'; this model has 'base'",
        ("evaluate", model, data, "--dtype", "float16"): "float16",
        ("finetune", model, data, *out, "--method", "adapt"): "'heads', 'freeze', 'lora', 'full'",
        ("finetune", model, data, *out, "--level", "base"): "already has a level or head 'base'",
        ("finetune", model, data, *out, "--replay", data): "replay has no effect",
        ("finetune", model, data, *out, "--forces-key", "REF_forces"): "did you mean forces='forces'?",
        ("finetune", model, data, *out, "--valid", data, "--energy-weight", "-1"): "loss weights",
        ("train", data, *out, "--radial-mlp", "64;64"): "radial_mlp='64;64': expected a list of whole numbers",
        ("train", data): "--output: give the model file to write",
        ("train", *out): "train: give the training frames",
        ("train", *out, "--train", f"a={data}", "--train", f"b={data}"): "a training has one level",
        ("train", data, *out, "--start", model, "--channels", 8): "channels has no effect with start",
        ("train", data, *out, "--correlation", "9"): "correlation=9",
    }
    for arguments, message in cases.items():
        assert message in failure(capsys, monkeypatch, *arguments), arguments
    assert not Path(out[1]).exists()


def test_a_real_process_prints_one_line_and_fails() -> None:
    command = [sys.executable, "-m", "ase_mlip.cli", "info", "nothing.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 'nothing.safetensors' is neither a file nor the name of a model. Shipped")


def test_help_names_every_command() -> None:
    printed = run("--help")
    assert all(name in printed for name in ("demo", "train", "finetune", "evaluate", "select", "convert", "info"))
