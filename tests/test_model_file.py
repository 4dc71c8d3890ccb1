"""Model files: what is written comes back with its bits, and anything else is refused with a reason."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import ase
import numpy as np
import pytest
import safetensors.numpy
from conftest import random_force_field
from toy_data import CONFIG, INFO, leaves, same_bits, toy_force_field

from ase_mlip import model_file
from ase_mlip.dataset_info import Head
from ase_mlip.force_field import ForceField
from ase_mlip.model_file import ModelFileError, load_model
from ase_mlip.predictor import Predictor

PROVENANCE = {"name": "toy", "functional": "r²SCAN", "fine_tuning": [{"level": "delta", "frames": 3}]}


@pytest.fixture(scope="module")
def model() -> ForceField:
    """Two heads with constants that binary fractions cannot write, custom levels, and every awkward float."""
    heads = (*INFO.heads, Head("delta", (0.1, -1 / 3), scale=0.7, shift=1e-17, unknown=(8,)))
    made = random_force_field(replace(CONFIG, num_readout_heads=2), INFO.with_heads(heads))
    params = dict(made.params)
    params["element_embedding"] = np.float32([[0.0, -0.0, 1e-42, 3.4e38], [np.pi, -1e-45, 1 / 3, 1.0]])
    levels = (("base", ("base",)), ("alone", ("delta",)), ("both", ("base", "delta")))
    return ForceField(Predictor(made.predictor.network, levels), params, PROVENANCE)


@pytest.fixture(scope="module")
def path(model: ForceField, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in a file."""
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    model.save(path)
    return path


@pytest.fixture
def payload(path: Path) -> bytes:
    """The file's bytes."""
    return path.read_bytes()


def refuse(folder: Path, payload: bytes) -> str:
    """The message with which a file of these bytes is refused."""
    target = folder / "broken.safetensors"
    target.write_bytes(payload)
    with pytest.raises(ModelFileError) as caught:
        load_model(target)
    assert str(target) in str(caught.value)
    return str(caught.value)


def test_parameters_keep_their_bits(model: ForceField, path: Path) -> None:
    loaded, saved = leaves(ForceField.load(path)), leaves(model)
    assert list(loaded) == list(saved)
    assert all(same_bits(loaded[name], saved[name]) for name in saved)
    assert {array.dtype for array in loaded.values()} == {np.dtype("float32"), np.dtype("float64")}


def test_description_survives(model: ForceField, path: Path) -> None:
    loaded = ForceField.load(path)
    assert loaded.predictor == model.predictor
    assert hash(loaded.predictor) == hash(model.predictor)
    assert loaded.levels == {"base": ("base",), "alone": ("delta",), "both": ("base", "delta")}
    assert loaded.heads == ("base", "delta")
    assert asdict(loaded.dataset_info) == asdict(model.dataset_info)
    assert asdict(loaded.dataset_info.heads[1]) == {
        "name": "delta", "atomic_energies": (0.1, -1 / 3), "scale": 0.7, "shift": 1e-17, "repulsion": 0.0,
        "unknown": (8,), "bounds": None,
    }  # fmt: skip
    assert loaded.predictor.network.config == model.predictor.network.config
    assert loaded.provenance == PROVENANCE


def test_predictions_survive(tmp_path: Path) -> None:
    model = toy_force_field()
    model.save(tmp_path / "model.safetensors")
    loaded = ForceField.load(tmp_path / "model.safetensors")
    graph = model.graph(ase.Atoms("OH2", positions=[[0, 0, 0], [0.9, 0.1, 0], [0, 1.0, 0.2]]))
    for force_field in (loaded, pickle.loads(pickle.dumps(model))):
        ours, theirs = model(graph), force_field(graph)
        assert np.ptp(ours.forces) > 0
        assert same_bits(ours.energy, theirs.energy)
        assert same_bits(ours.forces, theirs.forces)
    assert "_cast" not in pickle.loads(pickle.dumps(model)).__dict__


def test_other_programs_can_read_it(model: ForceField, path: Path, payload: bytes) -> None:
    tensors, expected = safetensors.numpy.load_file(path), leaves(model)
    assert tensors.keys() == expected.keys()
    assert same_bits(tensors["layer_0/skip/element_degree_0"], expected["layer_0/skip/element_degree_0"])
    (length,) = struct.unpack("<Q", payload[:8])
    description = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["ase_mlip"])
    assert description["dataset_info"]["elements"] == [1, 8]


def test_truncated_anywhere(payload: bytes, tmp_path: Path) -> None:
    ends = [*range(20), *range(20, len(payload), 97), *range(len(payload) - 20, len(payload))]
    messages = [refuse(tmp_path, payload[:end]) for end in ends]
    assert "empty" in messages[0]
    assert all("truncated" in message for message in messages[9:])


def test_any_flipped_bit_is_noticed(payload: bytes, tmp_path: Path) -> None:
    """Every byte of the length, header and weights once, with a bit drawn at random."""
    bits = np.random.default_rng(0).integers(0, 8, len(payload))
    for number, bit in enumerate(bits):
        damaged = bytearray(payload)
        damaged[number] ^= 1 << int(bit)
        refuse(tmp_path, bytes(damaged))


def test_appended_bytes_are_noticed(payload: bytes, tmp_path: Path) -> None:
    refuse(tmp_path, payload + b"\0")


def a_zip() -> bytes:
    """A PyTorch checkpoint is a zip archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"", "but empty"),
        (pickle.dumps({"params": np.zeros(3)}), "a pickle"),
        (a_zip(), "a zip archive"),
        (b"3\nenergy=-1.0\nO 0 0 0\n", "not a model file of ase_mlip"),
        (b"<!DOCTYPE html><html>404</html>", "not a model file of ase_mlip"),
        (safetensors.numpy.save({"w": np.ones(3)}), "a safetensors file, but not a model of ase_mlip"),
        (safetensors.numpy.save({"w": np.ones(3)}, {"format": "pt"}), "a safetensors file, but not a model"),
    ],
)
def test_foreign_files_are_named(payload: bytes, kind: str, tmp_path: Path) -> None:
    assert kind in refuse(tmp_path, payload)


def rewritten(payload: bytes, **changes: object) -> bytes:
    """A file with another description under a checksum that is right; `...` removes an entry."""
    (length,) = struct.unpack("<Q", payload[:8])
    description = json.loads(json.loads(payload[8 : 8 + length])["__metadata__"]["ase_mlip"])
    description = {key: value for key, value in {**description, **changes}.items() if value is not ...}
    text, tensors = json.dumps(description), safetensors.numpy.load(payload)
    digest = model_file._digest(text, tensors)
    return safetensors.numpy.save(tensors, {"ase_mlip": text, "sha256": digest})


def test_newer_version_says_upgrade(payload: bytes, tmp_path: Path) -> None:
    (tmp_path / "same.safetensors").write_bytes(rewritten(payload))
    assert load_model(tmp_path / "same.safetensors").provenance == PROVENANCE
    message = refuse(tmp_path, rewritten(payload, format_version=7))
    assert "format version 7" in message
    assert "upgrade" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"num_channels": 4, "attention": True}}, "attention"),
        ({"config": {"num_channels": "four"}}, "'<' not supported"),
        ({"config": ...}, "lacks 'config'"),
        ({"provenance": ...}, "lacks 'provenance'"),
        ({"dataset_info": {}}, "lacks 'heads'"),
        ({"levels": [["base", ["ba\nse"]]]}, "level 'base' sums the heads"),
        ({"architecture": "Nowhere"}, "the architecture 'Nowhere'; known are Mace, Nequip"),
        ({"architecture": ["Mace"]}, "unhashable"),
        ({"format_version": None}, "format version None"),
    ],
)
def test_what_is_not_understood_is_one_line(
    changes: dict[str, object], message: str, payload: bytes, tmp_path: Path
) -> None:
    """Files of other versions that carry the same format version."""
    found = refuse(tmp_path, rewritten(payload, **changes))
    assert message in found
    assert "upgrade" in found
    assert len(found.splitlines()) == 1


def test_failed_save_keeps_the_old_file(
    model: ForceField, payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model.safetensors"
    target.write_bytes(payload)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save(target)
    assert target.read_bytes() == payload
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("name", ["defualt", "nowhere/model.safetensors", "."])
def test_missing_file_lists_the_models(name: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"Shipped with the package: default, accurate, r2scan\. Published.*mace-mpa-0-medium"
    ):
        ForceField.load(name)
