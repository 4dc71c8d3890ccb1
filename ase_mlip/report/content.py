"""What a report holds: plain data, whoever shows it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np

from ase_mlip.dataset import LabelKeys, Source, read_labels
from ase_mlip.evaluate import Errors
from ase_mlip.model_file import file_sha256
from ase_mlip.stability import DimerScan, NveResult

PACKAGES = ("ase-mlip", "jax", "flax", "optax", "ase", "numpy")


@dataclass(frozen=True)
class FileRecord:
    """A file that took part, such that it can be recognised again.

    Attributes:
        role: what it was for: "base", "training", "validation", "replay", "result".
        name: of the file or the model, without folders.
        sha256: of its bytes, hexadecimal; empty where there was no file.
        frames: how many structures were used; None for a model.
    """

    role: str
    name: str
    sha256: str = ""
    frames: int | None = None

    @classmethod
    def of(cls, role: str, source: Source, frames: int | None = None) -> FileRecord:
        """The record of a file, with or without `@INDEX`, or of structures in memory."""
        if not isinstance(source, str | os.PathLike):
            return cls(role, "structures in memory", "", frames)
        path = Path(source)
        file = path if path.is_file() else Path(os.fspath(source).rsplit("@", 1)[0])
        return cls(role, path.name, file_sha256(file) if file.is_file() else "", frames)


@dataclass(frozen=True)
class GroupErrors:
    """Mean absolute errors of one element or one configuration type, before and after; None where there are no labels.

    Attributes:
        name: symbol of the element, or the `config_type`.
        count: force components of an element, frames of a configuration type.
        energy: eV/atom.
        forces: eV/Angstrom.
    """

    name: str
    count: int
    energy: tuple[float | None, float | None] = (None, None)
    forces: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class LevelErrors:
    """One level of a model on one set of frames, before and after.

    Attributes:
        level: its name.
        frames: what the frames are, such as "validation".
        after: errors of the result.
        before: errors of what the training began with, on the same frames.
        kept: an old level that should stay what it was, rather than the new one.
        elements: force errors by element.
        config_types: errors by `atoms.info["config_type"]`; empty if no frame has one.
        origin: [frames] eV per atom, of each composition, by a fit to the labels: what is left can be compared between
            molecules. Without it the mean label serves.
    """

    level: str
    frames: str
    after: Errors
    before: Errors | None = None
    kept: bool = False
    elements: tuple[GroupErrors, ...] = ()
    config_types: tuple[GroupErrors, ...] = ()
    origin: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        level: str,
        frames: str,
        after: Errors,
        before: Errors | None = None,
        *,
        kept: bool = False,
        structures: Sequence[ase.Atoms] = (),
        keys: LabelKeys | None = None,
    ) -> LevelErrors:
        """Errors with their breakdown by element and configuration type.

        Args:
            structures: the frames that both errors are about, in their order; no breakdown without them.
            keys: where their labels are.

        Raises:
            ValueError: the errors are not about these frames.
        """
        if not structures:
            return cls(level, frames, after, before, kept)
        labels = [read_labels(atoms, keys or LabelKeys()) for atoms in structures]
        with_energy = [a for a, found in zip(structures, labels, strict=True) if "energy" in found]
        with_forces = [a for a, found in zip(structures, labels, strict=True) if "forces" in found]
        energy = np.array(
            [float(f["energy"]) / len(a) for a, f in zip(structures, labels, strict=True) if "energy" in f]
        )
        forces = np.concatenate([np.zeros(0), *(f["forces"].ravel() for f in labels if "forces" in f)])
        for errors in (after, before):
            if errors is not None and not (_same(errors.forces[0], forces) and _same(errors.energy[0], energy)):
                raise ValueError(
                    f"the labels of the {len(structures)} structures are not those of the errors; give the frames that "
                    "were evaluated, in that order, and the same keys"
                )
        elements = _by_element(before, after, with_forces)
        config_types = _by_config_type(before, after, structures, with_energy, with_forces)
        origin = _composition_energies(with_energy, energy)
        return cls(level, frames, after, before, kept, elements, config_types, origin)


@dataclass(frozen=True)
class ReferenceEnergy:
    """E0 of one element, eV: what the base has, and what the new level adds."""

    element: str
    before: float
    correction: float


@dataclass(frozen=True)
class Report:
    """Everything that is known of a training; all but the first three may be left out.

    Attributes:
        title: one line.
        method: how it was trained, such as "lora", or "scratch".
        levels: errors, the new level first.
        history: one record per evaluation: "epoch", "step", "valid_loss", "energy_mae" and so on of the new level, and
            under "levels" the same of every other level by its name.
        settings: of the training; plain data, frozen dataclasses or nested mappings.
        files: the base, the data and the result.
        reference_energies: E0 of each element in the data.
        reference_rank: how many of them the data determine; None if that is not known.
        nve: runs at constant energy, of base and result.
        dimers: scans of the same pairs, of base and result.
        trainable: number of parameters that were trained.
        parameters: number of all parameters.
        seconds: wall time.
        versions: of the software, and the device.
        notes: warnings of the caller's own.
        date: when, such as "2026-03-01".
    """

    title: str
    method: str
    levels: tuple[LevelErrors, ...]
    history: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[FileRecord, ...] = ()
    reference_energies: tuple[ReferenceEnergy, ...] = ()
    reference_rank: int | None = None
    nve: tuple[NveResult | None, NveResult | None] = (None, None)
    dimers: tuple[Sequence[DimerScan], Sequence[DimerScan]] = ((), ())
    trainable: int | None = None
    parameters: int | None = None
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    date: str = ""

    def file(self, role: str) -> FileRecord | None:
        """The first file with a role."""
        return next((file for file in self.files if file.role == role), None)

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The record of the parameters that were kept: the lowest validation loss, the first of equals."""
        scored = [record for record in self.history if record.get("valid_loss") is not None]
        return min(scored, key=lambda record: record["valid_loss"], default=None)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that decide the numbers, of Python, and the device."""
    import platform

    found = {name.replace("-", "_"): number for name, number in package_versions(PACKAGES).items()}
    return {**found, "python": platform.python_version(), "device": jax.devices()[0].device_kind}


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of those that are installed as packages."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as one level of plain values; names of nested ones joined by dots."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if is_dataclass(value) and not isinstance(value, type):
            value = {part.name: getattr(value, part.name) for part in fields(value)}
        if isinstance(value, Mapping):
            out.update(flat_settings(value, f"{name}."))
        else:
            out[name] = plain(value)
    return out


def plain(value: Any) -> Any:
    """Plain data that JSON can hold; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _composition_energies(structures: Sequence[ase.Atoms], energy: np.ndarray) -> np.ndarray:
    """Energies per atom that depend on the composition alone, by least squares, [frames] eV."""
    symbols = sorted({symbol for atoms in structures for symbol in atoms.symbols})
    shares = [[float(np.mean(atoms.symbols == symbol)) for symbol in symbols] for atoms in structures]
    matrix = np.array(shares).reshape(len(structures), len(symbols))
    return np.asarray(matrix @ np.linalg.lstsq(matrix, energy, rcond=None)[0]) if len(energy) else np.zeros(0)


def _by_element(before: Errors | None, after: Errors, with_forces: Sequence[ase.Atoms]) -> tuple[GroupErrors, ...]:
    """Force errors of the atoms of each element."""
    symbol = np.concatenate([np.zeros(0, str), *(np.repeat(list(atoms.symbols), 3) for atoms in with_forces)])
    return tuple(
        GroupErrors(str(name), int((symbol == name).sum()), forces=_pair(before, after, "forces", symbol == name))
        for name in np.unique(symbol)
    )


def _by_config_type(
    before: Errors | None,
    after: Errors,
    structures: Sequence[ase.Atoms],
    with_energy: Sequence[ase.Atoms],
    with_forces: Sequence[ase.Atoms],
) -> tuple[GroupErrors, ...]:
    """Errors of the frames of each configuration type."""
    kinds = [_kind(atoms) for atoms in structures]
    if not any(kinds):
        return ()
    of_energy = np.array([_kind(atoms) for atoms in with_energy], str)
    of_forces = np.concatenate([np.zeros(0, str), *(np.repeat(_kind(atoms), 3 * len(atoms)) for atoms in with_forces)])
    return tuple(
        GroupErrors(
            name or "(none)",
            kinds.count(name),
            _pair(before, after, "energy", of_energy == name),
            _pair(before, after, "forces", of_forces == name),
        )
        for name in sorted(set(kinds))
    )


def _pair(before: Errors | None, after: Errors, quantity: str, chosen: np.ndarray) -> tuple[float | None, float | None]:
    """Mean absolute errors of some entries of both, None where there are none."""
    first, last = (
        None
        if errors is None or not chosen.any()
        else float(np.mean(np.abs(np.subtract(*getattr(errors, quantity)[:, chosen]))))
        for errors in (before, after)
    )
    return first, last


def _kind(atoms: ase.Atoms) -> str:
    return str(atoms.info.get("config_type", ""))


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal up to rounding in float64."""
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-9, atol=1e-9)
