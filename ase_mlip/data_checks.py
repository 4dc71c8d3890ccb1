"""What a set of labelled frames looks like before it is trained on: ranges, impossible labels, outliers, duplicates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ase
import numpy as np

from ase_mlip.dataset import LABELS, Census, LabelKeys, read_labels, take_census
from ase_mlip.outliers import outlying, robust_fit

ABSURD_FORCE = 1e3  # eV/Angstrom; a strongly compressed dimer has some 100
SMALLEST_SPREAD = {"energy": 1e-3, "forces": 1e-2}  # eV/atom, eV/Angstrom: below it nothing is an outlier
NET_FORCE = 0.01  # eV/Angstrom per atom; no potential can fit the mean force on the atoms
SAME_LABEL = {"energy": 1e-3, "forces": 0.05, "stress": 1e-3}  # eV/atom, eV/Angstrom, eV/Angstrom^3
CHUNK = 256  # frames held at once
SHOWN = 10  # frames named in a line


class BadLabels(ValueError):
    """Frames that must not be trained on; the message names them."""


@dataclass(frozen=True)
class DataReport:
    """What was found in a set of frames; every dictionary's keys are frame indices.

    Attributes:
        census: frames, atoms, elements and labels.
        ranges: (least, median, largest) over the frames of the energy per atom (eV), of the largest force component
            (eV/Angstrom) and of the largest stress component (eV/Angstrom^3), of each label that is present.
        not_finite: the labels, positions or cells that are not finite.
        absurd_forces: largest force component above 1,000 eV/Angstrom.
        energy_outliers: eV per atom from the energy that the composition suggests.
        force_outliers: largest force component, eV/Angstrom.
        duplicates: the earlier frame with the same elements, cell, periodicity and positions to 1e-6 Angstrom.
        contradictions: those duplicates whose labels differ from the earlier frame's.
        net_forces: eV/Angstrom per atom, where the forces do not add up to zero.
    """

    census: Census
    ranges: dict[str, tuple[float, float, float]]
    not_finite: dict[int, tuple[str, ...]] = field(default_factory=dict)
    absurd_forces: dict[int, float] = field(default_factory=dict)
    energy_outliers: dict[int, float] = field(default_factory=dict)
    force_outliers: dict[int, float] = field(default_factory=dict)
    duplicates: dict[int, int] = field(default_factory=dict)
    contradictions: tuple[int, ...] = ()
    net_forces: dict[int, float] = field(default_factory=dict)

    def __str__(self) -> str:
        titles = {
            "energy": ("energy", "eV/atom"),
            "forces": ("largest force component", "eV/Angstrom"),
            "stress": ("largest stress component", "eV/Angstrom^3"),
        }
        lines = [str(self.census)]
        for label, (low, middle, high) in self.ranges.items():
            title, unit = titles[label]
            lines.append(f"{title}: {low:.6g} to {high:.6g}, median {middle:.6g} {unit}")
        repeats = {i: f"of {first}" for i, first in self.duplicates.items()}
        other = {i: repeats[i] for i in self.contradictions}
        lines += [
            f"{title}: {len(found)} frame{'s' * (len(found) > 1)}, {_listed(found)}"
            for title, found in (
                ("not finite", {i: " and ".join(names) for i, names in self.not_finite.items()}),
                (f"force component above {ABSURD_FORCE:g} eV/Angstrom", self.absurd_forces),
                ("energy far from what the composition suggests, eV/atom", self.energy_outliers),
                ("unusually large force component, eV/Angstrom", self.force_outliers),
                ("duplicate", repeats),
                ("duplicate with other labels", other),
                ("forces do not add up to zero, net force in eV/Angstrom per atom", self.net_forces),
            )
            if found
        ]
        return "\n".join(lines)


def inspect_frames(frames: Sequence[ase.Atoms], keys: LabelKeys) -> DataReport:
    """Read every frame once and report what its labels look like.

    Only a few numbers per frame are kept, so `frames` may load lazily; a duplicate and the frame that it repeats are
    read a second time to compare their labels. An outlier is more than 20 robust standard deviations (1.48 times the
    median absolute deviation) away: an energy per atom from a robust fit by composition, a largest force component
    from the median. Single atoms are no energy outliers: they lack all binding, and rightly so.

    Raises:
        ValueError: a label of a wrong shape; the message names the frame.

    Example:
        >>> frames = [ase.Atoms("H", info={"dft": energy}) for energy in (-13.6, float("nan"))]
        >>> bad_frames(inspect_frames(frames, LabelKeys(energy="dft")))
        {1: 'energy not finite'}
    """
    census: Census | None = None
    rows: list[_Row] = []
    for chunk in _chunks(frames):
        rows += [_read_row(len(rows) + i, atoms, keys) for i, atoms in enumerate(chunk)]
        census = _join(census, take_census(chunk, keys))
    if census is None:
        raise ValueError("there are no frames to inspect; give at least one")
    bad = [i for i, row in enumerate(rows) if row.not_finite or row.values.get("forces", 0.0) > ABSURD_FORCE]
    good = np.ones(len(rows), bool)
    good[bad] = False
    duplicates = _find_duplicates(rows)
    values = {label: _column(rows, label) for label in (*LABELS, "net")}
    return DataReport(
        census=census,
        ranges={
            label: (float(known.min()), float(np.median(known)), float(known.max()))
            for label in LABELS
            if len(known := values[label][np.isfinite(values[label])])
        },
        not_finite={i: row.not_finite for i, row in enumerate(rows) if row.not_finite},
        absurd_forces=_above(values["forces"], ABSURD_FORCE),
        energy_outliers=_energy_outliers(rows, np.where(good, values["energy"], np.nan)),
        force_outliers=_force_outliers(np.where(good, values["forces"], np.nan)),
        duplicates=duplicates,
        contradictions=tuple(i for i, first in duplicates.items() if _contradict(frames[first], frames[i], keys)),
        net_forces=_above(np.where(good, values["net"], np.nan), NET_FORCE),
    )


def bad_frames(report: DataReport) -> dict[int, str]:
    """Frames that must not be trained on, and why: something is not finite, or a force is above 1,000 eV/Angstrom."""
    reasons = {i: f"{' and '.join(names)} not finite" for i, names in report.not_finite.items()}
    for i, force in report.absurd_forces.items():
        reasons[i] = "; ".join(
            [*([reasons[i]] if i in reasons else []), f"a force component of {force:.4g} eV/Angstrom"]
        )
    return dict(sorted(reasons.items()))


def good_frames(report: DataReport, skip_bad: bool = False) -> list[int]:
    """Indices of the frames to train on.

    Args:
        report: what `inspect_frames` found.
        skip_bad: leave out the bad frames instead of refusing them all.

    Raises:
        BadLabels: there are bad frames and they are not to be skipped, or no other is left.
    """
    bad = bad_frames(report)
    count = report.census.frames
    if bad and not skip_bad:
        raise BadLabels(
            f"{len(bad)} of {count} frames cannot be trained on: {_listed(bad)}. Correct their labels or units, or "
            "leave them out with skip_bad_frames=True (--skip-bad-frames)"
        )
    if len(bad) == count:
        raise BadLabels(f"none of the {count} frames can be trained on: {_listed(bad)}. Correct their labels or units")
    return [i for i in range(count) if i not in bad]


@dataclass(frozen=True)
class _Row:
    """The few numbers kept of a frame."""

    composition: tuple[tuple[int, int], ...]  # atomic number, count
    values: dict[str, float]  # energy per atom, largest components, net force per atom: those that are present
    not_finite: tuple[str, ...]
    digest: bytes  # of the structure


def _read_row(index: int, atoms: ase.Atoms, keys: LabelKeys) -> _Row:
    """Condense one frame."""
    try:
        labels = read_labels(atoms, keys)
    except ValueError as error:
        raise ValueError(f"frame {index}: {error}") from error
    number = max(len(atoms), 1)
    fields = {"positions": atoms.positions, "cell": atoms.cell.array, **labels}
    largest = {label: float(np.abs(value).max(initial=0.0)) for label, value in labels.items()}
    values = {label: largest[label] for label in largest if label != "energy"}
    if "energy" in labels:
        values["energy"] = float(labels["energy"]) / number
    if "forces" in labels:
        values["net"] = float(np.linalg.norm(labels["forces"].sum(axis=0))) / number
    numbers, counts = np.unique(atoms.numbers, return_counts=True)
    return _Row(
        composition=tuple(zip(numbers.tolist(), counts.tolist(), strict=True)),
        values=values,
        not_finite=tuple(name for name, value in fields.items() if not np.isfinite(value).all()),
        digest=_digest(atoms),
    )


def _digest(atoms: ase.Atoms) -> bytes:
    """Hash of a structure, its coordinates rounded to 1e-6 Angstrom."""
    made = hashlib.blake2b(digest_size=16)
    for part in (atoms.numbers.astype(np.int64), np.asarray(atoms.pbc, bool)):
        made.update(part.tobytes())
    for part in (atoms.cell.array, atoms.positions):
        made.update((np.round(part, 6) + 0.0).tobytes())  # + 0.0: -0.0 and 0.0 are the same place
    return made.digest()


def _chunks(frames: Sequence[ase.Atoms]) -> Iterator[list[ase.Atoms]]:
    """The frames in order, a few at a time."""
    for start in range(0, len(frames), CHUNK):
        yield [frames[i] for i in range(start, min(start + CHUNK, len(frames)))]


def _join(first: Census | None, second: Census) -> Census:
    """The census of two sets together."""
    if first is None:
        return second
    elements = dict(first.elements)
    for symbol, count in second.elements.items():
        elements[symbol] = elements.get(symbol, 0) + count
    numbers = ase.Atoms(list(elements)).numbers
    return Census(
        first.frames + second.frames,
        first.atoms + second.atoms,
        {symbol: elements[symbol] for _, symbol in sorted(zip(numbers, elements, strict=True))},
        {label: first.labels[label] + second.labels[label] for label in first.labels},
        tuple(sorted({*first.keys, *second.keys})),
    )


def _column(rows: Sequence[_Row], name: str) -> np.ndarray:
    """One number of every frame, NaN where it is missing."""
    return np.array([row.values.get(name, np.nan) for row in rows])


def _above(values: np.ndarray, limit: float) -> dict[int, float]:
    """Frames whose finite value is above a limit."""
    return {int(i): float(values[i]) for i in np.flatnonzero(np.isfinite(values) & (values > limit))}


def _energy_outliers(rows: Sequence[_Row], energies: np.ndarray) -> dict[int, float]:
    """Deviation of the energy per atom, eV, of those frames that are far from the fit by composition."""
    atoms = np.array([sum(count for _, count in row.composition) for row in rows])
    members = np.flatnonzero(np.isfinite(energies) & (atoms > 1)).tolist()
    elements = sorted({number for i in members for number, _ in rows[i].composition})
    if len(members) < len(elements) + 5:
        return {}
    place = {number: column for column, number in enumerate(elements)}
    shares = np.zeros((len(members), len(elements)))
    for row, i in enumerate(members):
        for number, count in rows[i].composition:
            shares[row, place[number]] = count / atoms[i]
    residual = energies[members] - shares @ robust_fit(shares, energies[members])
    return {int(members[k]): float(residual[k]) for k in np.flatnonzero(outlying(residual, SMALLEST_SPREAD["energy"]))}


def _force_outliers(largest: np.ndarray) -> dict[int, float]:
    """Largest force component of those frames where it is far above the others'."""
    members = np.flatnonzero(np.isfinite(largest))
    if len(members) < 6:
        return {}
    far = members[outlying(largest[members], SMALLEST_SPREAD["forces"], sign=1)]
    return {int(i): float(largest[i]) for i in far}


def _find_duplicates(rows: Sequence[_Row]) -> dict[int, int]:
    """Frames whose structure was there before, and the first frame that had it."""
    seen: dict[bytes, int] = {}
    return {i: seen[row.digest] for i, row in enumerate(rows) if seen.setdefault(row.digest, i) != i}


def _contradict(first: ase.Atoms, second: ase.Atoms, keys: LabelKeys) -> bool:
    """Whether two frames of the same structure differ in a label that both have."""
    mine, other = read_labels(first, keys), read_labels(second, keys)
    allowed = {**SAME_LABEL, "energy": SAME_LABEL["energy"] * max(len(first), 1)}
    # written so that a label that is not finite contradicts, too
    return any(not np.abs(mine[k] - other[k]).max(initial=0.0) <= allowed[k] for k in mine.keys() & other.keys())


def _listed(found: Mapping[int, Any]) -> str:
    """The first few frames with what was found, and the number of the rest."""
    parts = [
        f"{i} ({f'{value:.4g}' if isinstance(value, float) else value})" for i, value in list(found.items())[:SHOWN]
    ]
    rest = len(found) - len(parts)
    return ", ".join(parts) + (f" and {rest} more" if rest else "")
