"""Foreign model files: told apart by content, usable wherever a model is expected, refused with one line."""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from test_cli import failure, run
from toy_data import leaves, same_bits

from ase_mlip import importers, registry
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.force_field import ForceField
from ase_mlip.graph import batch
from ase_mlip.importers import foreign_kind, published_as
from ase_mlip.importers.mace_torch import check_archive
from ase_mlip.model_file import ModelFileError, file_sha256
from ase_mlip.registry import PublishedModel

NEQUIX = Path(__file__).parent / "golden" / "nequix_norm.nqx"


def pickled(path: Path, archive: bool) -> Path:
    """A file that runs code when it is unpickled, as torch writes them now (zip) or long ago."""
    content = pickle.dumps(Trap())
    if not archive:
        path.write_bytes(content)
        return path
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", content)
    return path


class Trap:
    """Betrays that it was unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_foreign_file_is_a_model_like_any_other(tmp_path: Path) -> None:
    """By path in the calculator, by `load`, and after conversion: the same energy."""
    atoms = molecule("CH3OH")
    assert foreign_kind(NEQUIX) == "nequix"
    energies = []
    converted = tmp_path / "out.safetensors"
    text = run("convert", NEQUIX, converted)
    assert "not compared with the original" in text
    assert str(converted) in text
    for model in (NEQUIX, ForceField.load(NEQUIX), str(converted)):
        atoms.calc = MLIPCalculator(model, dtype="float64")
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1] == energies[2]
    shown = run("info", converted)
    for part in ("Nequip", "nequix_norm.nqx", file_sha256(NEQUIX), "level nequix", "cutoff"):
        assert part in shown


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_are_not_opened_without_trust(
    archive: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says why and how; with trust but without torch, what to install."""
    path = pickled(tmp_path / "some.model", archive)
    assert foreign_kind(path) == "mace-torch"
    with pytest.raises(ModelFileError, match="--trust"):
        ForceField.load(path)
    assert "runs code" in failure(capsys, monkeypatch, "convert", path, tmp_path / "out.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    message = failure(capsys, monkeypatch, "convert", path, tmp_path / "out.safetensors", "--trust")
    assert "pip install 'ase-mlip[torch]'" in message
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and then nothing", "truncated or damaged zip"),
        (b"\x89PNG\r\n\x1a\n and a picture", "no model that ase_mlip reads"),
        (b"<html>login please</html>", "no model that ase_mlip reads"),
        (b"", "empty"),
        (b"{}\n", "nequix"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    """One line that says what it is not."""
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=message) as caught:
        ForceField.load(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_directory_of_a_zip_archive(tmp_path: Path) -> None:
    """Whatever it says, it is refused with one short line, or what it leads to is whole."""
    archive, bad = NEQUIX.with_name("mlip_plain.zip"), tmp_path / "bad.zip"
    payload, whole = archive.read_bytes(), ForceField.load(archive)
    expected = dict(leaves(whole))
    messages = []
    for place in range(payload.rindex(b"PK\x01\x02", 0, payload.rindex(b"PK\x01\x02")), len(payload), 2):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << place // 2 % 8
        bad.write_bytes(damaged)
        try:
            found = leaves(ForceField.load(bad))
        except ModelFileError as error:
            messages.append(str(error))
        else:
            assert all(same_bits(expected[name], found[name]) for name in expected)
    assert len(messages) > 30
    assert all(len(text.splitlines()) == 1 and len(text) < 400 + len(str(bad)) for text in messages)


def test_a_flipped_bit_in_a_torch_archive(tmp_path: Path) -> None:
    """Torch itself does not look at the checksums."""
    path = pickled(tmp_path / "some.model", archive=True)
    check_archive(path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"SystemExit")] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ModelFileError, match=r"data\.pkl does not match its checksum"):
        check_archive(path)
    path.write_bytes(damaged[:-30])
    check_archive(path)  # no zip archive any more: torch will say so


def test_messages_quote_little(tmp_path: Path) -> None:
    """What a damaged file says does not spread over the screen."""
    bad = tmp_path / "bad.nqx"
    content = NEQUIX.read_bytes()
    longer = json.dumps({f"key\n{number}": 0 for number in range(999)}).encode()
    nested = b'{"a": ' + b"[" * 100_000 + b"\n"
    first = content.index(b"\x93NUMPY") + 9  # high byte of the length of the array's header
    arrays = content[:first] + b"\x05" + content[first + 1 :]
    for broken in (content.replace(b"{", longer[:-1] + b", ", 1), nested, arrays):
        bad.write_bytes(broken)
        with pytest.raises(ModelFileError) as caught:
            ForceField.load(bad)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 600 + len(str(bad))


def test_a_published_name_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name alone loads the file in the cache, and its licence and citation come along."""
    monkeypatch.setenv("ASE_MLIP_CACHE", str(tmp_path))
    import hashlib

    digest = hashlib.sha256(NEQUIX.read_bytes()).hexdigest()
    known = PublishedModel(
        "tiny-nequix", "http://127.0.0.1:9/tiny.nqx", "nequix", "a licence", "a paper", "a note", digest
    )
    monkeypatch.setitem(registry.PUBLISHED, known.name, known)
    with pytest.raises(OSError, match=str(tmp_path / "tiny.nqx")):  # offline: where to put it by hand
        ForceField.load(known.name)
    (tmp_path / "tiny.nqx").write_bytes(NEQUIX.read_bytes())
    force_field = ForceField.load(known.name)
    assert force_field.provenance["licence"] == "a licence"
    assert published_as(tmp_path / "tiny.nqx") is known
    assert "tiny-nequix" in run("info", "tiny-nequix")
    with pytest.raises(FileNotFoundError, match="did you mean tiny-nequix"):
        ForceField.load("tiny-nequi")


def test_a_published_pickle_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch reads it on first use only; the SHA-256 of the registry stands in for trust."""
    monkeypatch.setenv("ASE_MLIP_CACHE", str(tmp_path))
    path, readings = pickled(tmp_path / "tiny.model", archive=True), []

    def reader(source: Path, trust: bool) -> ForceField:
        readings.append((source, trust))
        return ForceField.load(NEQUIX)

    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = PublishedModel("tiny-mace", "http://127.0.0.1:9/tiny.model", "mace-torch", "MIT", "a paper", "", digest)
    monkeypatch.setitem(registry.PUBLISHED, known.name, known)
    monkeypatch.setattr("ase_mlip.importers.mace_torch.read_mace_torch", reader)
    first, second = ForceField.load("tiny-mace"), ForceField.load("tiny-mace")
    assert readings == [(path, True)]
    assert first.provenance == second.provenance
    assert first.provenance["cite"] == "a paper"
    monkeypatch.setitem(registry.PUBLISHED, known.name, replace(known, sha256="0" * 64))
    assert importers.published_as(path) is None


def test_many_elements_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calculator of a model of many elements keeps those it has met, and adds to them."""
    monkeypatch.setattr("ase_mlip.force_field.MANY_ELEMENTS", 2)
    whole = ForceField.load(NEQUIX.with_name("mace_one_layer.safetensors"))
    assert len(whole.elements) > 2
    calculator = MLIPCalculator(whole, dtype="float64")
    molecules = [molecule("H2O"), molecule("CH4")]
    expected = whole(batch([whole.graph(atoms) for atoms in molecules]), dtype="float64")
    for number, (atoms, known, rows) in enumerate(zip(molecules, (2, 3), (slice(0, 3), slice(3, 8)), strict=True)):
        atoms.calc = calculator
        np.testing.assert_allclose(atoms.get_potential_energy(), expected.energy[number], rtol=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), expected.forces[rows], atol=1e-12)
        assert len(calculator.neighbors.elements) == known
