"""Conversion's comparison with the original package, which stands-ins play here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ase
import pytest

from ase_mlip.convert import convert_model
from ase_mlip.force_field import ForceField
from ase_mlip.importers.original import NotComparable, Original, original_model

ARCHIVE = Path(__file__).parent / "golden" / "mlip_heads.zip"  # of version 0.2, with two heads
E0 = {"spice": {29: -5.5, 1: -1.25, 8: -7.75, 6: -3.0}, "omol": {29: -11.0, 1: -2.5, 8: -15.5, 6: -6.0}}
SHIFT = 0.1


def lonely(atoms: ase.Atoms, level: str) -> float:
    """The archive's energy of atoms that do not meet, without its network."""
    return float(sum(E0[level][z] + SHIFT for z in atoms.numbers))


@dataclass
class Package:
    """A package that knows lonely atoms and fails for the rest."""

    error: float = 0.0  # eV per atom

    def __call__(self, atoms: ase.Atoms, level: str) -> float:
        distance = atoms.get_distance(0, 1) if len(atoms) == 2 and not atoms.pbc.any() else 0.0
        assert len(atoms) == 1 or distance > 3.6
        return lonely(atoms, level) + self.error * len(atoms)


def converted(original: Original, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What conversion prints."""
    lines = list[str]()
    monkeypatch.setattr("ase_mlip.convert.original_model", lambda path, force_field: original)
    convert_model(ARCHIVE, folder / "out.safetensors", log=lines.append)
    return lines


def test_energies_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every structure and level has a line; what the package gets wrong or cannot do is not counted."""
    lines = converted(Original("some 1.2", "float32", Package(), partly_periodic=False), tmp_path, monkeypatch)
    assert "compared with some 1.2 in float32" in lines
    rows = [line for line in lines if " omol " in line or " spice " in line]
    assert len(rows) == 14
    assert sum("AssertionError" in row for row in rows) == 2 * 3
    assert {row.split()[0] for row in rows if "wrong for this" in row} == {"slab", "wire"}
    (last,) = [line for line in lines if line.startswith("largest difference")]
    assert float(last.split()[2]) < 1e-6


def test_other_energies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the original's rounding."""
    with pytest.raises(ValueError, match=r"differs by 2\.0e-04 eV per atom from some 1"):
        converted(Original("some 1", "float64", Package(error=2e-4)), tmp_path, monkeypatch)


def test_a_package_that_can_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No difference is not a difference of zero."""
    lines = converted(Original("some 1", "float64", lambda atoms, level: 1 / 0), tmp_path, monkeypatch)
    assert any("nothing could be compared" in line for line in lines)


def install_mlip(version: str, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for mlip of some version; gives the list of calculators that it will have made."""
    made: list[Any] = []

    @dataclass
    class Model:
        inference_context: Any = None

    @dataclass
    class InferenceContext:
        dataset_idx: int

    class Calculator:
        def __init__(self, atoms: ase.Atoms, edge_capacity_multiplier: float, force_field: Model, **options: Any):
            self.model = force_field
            made.append(self)

        def get_potential_energy(self, atoms: ase.Atoms) -> float:
            return lonely(atoms, ["spice", "omol"][self.model.inference_context.dataset_idx])

    content: dict[str, dict[str, Any]] = {
        "mlip.models.model_io": {"load_model_from_zip": lambda network, path: Model()},
        "mlip.models.inference_context": {"InferenceContext": InferenceContext},
        "mlip.simulation.ase.mlip_ase_calculator": {"MLIPForceFieldASECalculator": Calculator},
        "mlip.models": {"Mace": object},
    }
    for name in ("mlip", "mlip.simulation", "mlip.simulation.ase", *content):
        module = ModuleType(name)
        module.__dict__.update(content.get(name, {}))
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("ase_mlip.importers.original.version", lambda name: version)
    return made


def test_a_head_of_mlip_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels are listed in another order than mlip's data sets; one calculator serves all structures of a level."""
    made = install_mlip("0.2.5", monkeypatch)
    original = original_model(ARCHIVE, ForceField.load(ARCHIVE))
    assert (original.package, original.dtype) == ("mlip 0.2.5", "float32")
    for level in ("omol", "spice"):
        for atoms in (ase.Atoms("O"), ase.Atoms("Cu")):
            assert original.energy(atoms, level) == lonely(atoms, level)
    assert len(made) == 2


def test_an_older_mlip_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 does not read archives of 0.2, and that is said."""
    install_mlip("0.1.9", monkeypatch)
    with pytest.raises(NotComparable, match=r"mlip 0\.1\.9, which is installed here, does not read .* of mlip 0\.2"):
        original_model(ARCHIVE, ForceField.load(ARCHIVE))
