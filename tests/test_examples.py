"""The examples run as a user would run them, in an empty folder, on fewer steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from ase.io import write

from ase_mlip import ForceField
from ase_mlip.dataset import read_frames
from ase_mlip.demo import demo_data

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trajectory(tmp_path: Path) -> str:
    """Forty frames of the shipped DFT set."""
    path = tmp_path / "dft.traj"
    write(path, read_frames(demo_data())[:40])
    return str(path)


def test_examples_are_short() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert len(lengths) == 4
    assert max(lengths.values()) <= 60


def test_relaxation() -> None:
    assert load("relaxation").main() < 0.01


def test_molecular_dynamics() -> None:
    assert 50 < load("molecular_dynamics").main(steps=200) < 600
    assert Path("md.traj").stat().st_size > 0


def test_fine_tune(trajectory: str) -> None:
    before, after = load("fine_tune").main(trajectory, epochs=15)
    assert after < 0.7 * before
    assert ForceField.load("mine.safetensors").levels.keys() == {"base", "fine-tuned"}
    assert Path("mine.png").read_bytes().startswith(b"\x89PNG")


def test_fine_tune_by_hand(trajectory: str) -> None:
    tuned = load("fine_tune_by_hand").main(trajectory, epochs=2)
    base = ForceField.load("default")
    frame = read_frames(trajectory)[0]
    assert tuned.levels == {"base": ("base",), "head_1": ("base", "head_1")}
    old, new = base(base.graph(frame)), tuned(tuned.graph(frame, "base"))
    np.testing.assert_allclose(new.energy, old.energy, rtol=0, atol=1e-4)
    np.testing.assert_allclose(new.forces, old.forces, rtol=0, atol=1e-4)
