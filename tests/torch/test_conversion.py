"""The real conversion, with torch and mace-torch installed: fresh random weights, every variant.

Run by itself (`pytest tests/torch`) where the extra "torch" is installed.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn unpickles its own constants
sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    from make_mace_golden import MODELS, build, reference, structures

from ase_mlip.convert import convert_model
from ase_mlip.graph import batch
from ase_mlip.importers.mace_torch import read_mace_torch
from ase_mlip.model_file import ModelFileError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", MODELS)
def test_fresh_weights(name: str, tmp_path: Path) -> None:
    """Energies and forces of every level and structure, compared with mace-torch in the same process."""
    model, path = build(name, seed=7), tmp_path / "fresh.model"
    torch.save(model, path)
    force_field = read_mace_torch(path, trust=True)
    frames = structures()
    found = force_field(
        batch([force_field.graph(a, level) for level in force_field.levels for a in frames]), dtype="float64"
    )
    start = 0
    for number, (level, atoms) in enumerate((level, atoms) for level in force_field.levels for atoms in frames):
        expected, rows = reference(model, level, atoms), slice(start, start := start + len(atoms))
        np.testing.assert_allclose(found.energy[number], expected["energy"], atol=1e-9)
        np.testing.assert_allclose(found.forces[rows], expected["forces"], atol=1e-9)


def test_convert_compares_with_the_original(tmp_path: Path) -> None:
    """The command's own check, and what it says of files that are no models."""
    path, lines = tmp_path / "some.model", list[str]()
    torch.save(build("plain"), path)
    convert_model(path, tmp_path / "out.safetensors", trust=True, log=lines.append)
    (last,) = [line for line in lines if line.startswith("largest difference")]
    assert float(last.split()[2]) < 1e-10
    assert any("crystal" in line for line in lines)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    """Weights alone, a truncated file, one with a flipped bit, and an architecture that is not here."""
    weights, cut, flipped, other = (tmp_path / name for name in ("weights", "cut", "flipped", "other"))
    torch.save(build("plain").state_dict(), weights)
    torch.save(build("plain"), cut)
    cut.write_bytes(cut.read_bytes()[:-4000])
    torch.save(torch.nn.Linear(2, 2), other)
    torch.save(model := build("plain"), flipped)
    content = bytearray(flipped.read_bytes())
    content[content.index(next(model.parameters()).detach().numpy().tobytes())] ^= 1
    flipped.write_bytes(content)
    cases = [(weights, "training checkpoint"), (cut, "damaged"), (flipped, "checksum"), (other, "holds a Linear")]
    for path, message in cases:
        with pytest.raises(ModelFileError, match=message) as caught:
            read_mace_torch(path, trust=True)
        assert "\n" not in str(caught.value).strip()


def test_what_is_not_here_is_named(tmp_path: Path) -> None:
    """A part that this package lacks is refused by its name, never left out silently."""
    model = build("plain")
    model.joint_embedding = torch.nn.Linear(2, 2)
    path = tmp_path / "charged.model"
    torch.save(model, path)
    with pytest.raises(ModelFileError, match="joint_embedding"):
        read_mace_torch(path, trust=True)
    model = build("plain")
    model.readouts[0].extra = torch.nn.Linear(2, 2)
    torch.save(model, path)
    with pytest.raises(ModelFileError, match=r"the parameters readouts\.0\.extra"):
        read_mace_torch(path, trust=True)
