"""What `info` shows of every kind of file."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ase_mlip.describe import UNKNOWN, describe
from ase_mlip.force_field import ForceField
from ase_mlip.model_file import file_sha256

GOLDEN = Path(__file__).parent / "golden"
FILES = {
    "mace_two_heads.safetensors": (
        "Mace",
        ["level pbe", "level rpa"],
        "two_heads.model",
        "mace-torch (ScaleShiftMACE)",
    ),
    "mlip_pairs.zip": ("Mace", ["level mlip"], "mlip_pairs.zip", "mlip 0.1"),
    "mlip_heads.zip": ("Mace", ["level omol", "level spice"], "mlip_heads.zip", "mlip 0.2"),
    "nequix_norm.nqx": ("Nequip", ["level nequix"], "nequix_norm.nqx", "nequix"),
}


@pytest.mark.parametrize("name", FILES)
def test_foreign_files(name: str) -> None:
    """Architecture, size, elements, cutoff, levels, where it comes from; what is unknown is said to be."""
    path = GOLDEN / name
    architecture, levels, source, package = FILES[name]
    force_field = ForceField.load(path)
    rows = describe(force_field, path)
    assert rows["architecture"] == architecture
    assert rows["parameters"] == f"{force_field.num_params:,}"
    assert rows["elements"] == "4: H C O Cu"
    assert rows["cutoff"] == "3.6 Angstrom"
    assert [title for title in rows if title.startswith("level ") and title != "level of theory"] == levels
    assert rows[levels[-1]].endswith("(default)")
    assert (rows["source file"], rows["source package"]) == (source, package)
    assert rows["SHA-256"] == file_sha256(path)
    assert len(rows["source SHA-256"]) == 64
    assert rows["licence"] == rows["level of theory"] == UNKNOWN
    assert all(isinstance(text, str) for text in rows.values())


def test_what_files_tell(tmp_path: Path) -> None:
    """Names of data sets, and a licence that lies in the archive, which conversion keeps."""
    assert (
        describe(ForceField.load(GOLDEN / "mlip_heads.zip"), GOLDEN / "mlip_heads.zip")["training data"]
        == "spice, omol"
    )
    path = tmp_path / "licensed.zip"
    path.write_bytes((GOLDEN / "mlip_heads.zip").read_bytes())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("LICENSE.txt", "Do as you like.\nBut be kind.")
    force_field = ForceField.load(path)
    force_field.save(tmp_path / "out.safetensors")
    rows = describe(ForceField.load(tmp_path / "out.safetensors"), tmp_path / "out.safetensors")
    assert list(rows.items())[-1] == ("licence text", "Do as you like.\nBut be kind.")
    content = (GOLDEN / "nequix_norm.nqx").read_bytes()
    (tmp_path / "told.nqx").write_bytes(content.replace(b"{", b'{"train_path": ["/x/data/a", "/x/data/a", "b"], ', 1))
    rows = describe(ForceField.load(tmp_path / "told.nqx"), tmp_path / "told.nqx")
    assert rows["training data"] == "data/a, b"


def test_own_files() -> None:
    """Name, theory and licence given at training; rounds of fine-tuning beside the levels that they made."""
    path = GOLDEN / "mlip_heads.zip"
    record = {"level": "spice", "method": "full", "frames": 40, "epochs": 3, "seed": 0}
    told = {"name": "mine, PBE", "licence": "MIT", "fine_tuning": [record], "weather": "fine"}
    rows = describe(replace(ForceField.load(path), provenance=told), path)
    assert rows["level of theory"] == "mine, PBE"
    assert rows["licence"] == "MIT"
    assert rows["level spice"] == "sum of spice (default); fine-tuned by full, 40 frames, 3 epochs"
    assert rows["level omol"] == "sum of omol"
    assert rows["weather"] == "fine"
    published = {"note": "89 elements, PBE+U", "name": "some", "source_file": "some.nqx"}
    assert describe(replace(ForceField.load(path), provenance=published), path)["level of theory"] == published["note"]
