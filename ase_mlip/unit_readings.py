"""The ways in which a label may have been written, and which of them fits a model's predictions.

With y the labels read in one way (kcal/mol, the other sign, per atom, ...) and turned into eV and Angstrom, and p the
predictions, the relative error of a reading is

    |y - p| / sqrt(|y| |p|),    | | the Euclidean norm.

It favours neither small labels nor small predictions: labels k times too large have (k - 1) / sqrt(k), and so have
labels k times too small; labels unrelated to the predictions have at least sqrt(2), and the right reading has
sqrt(2 - 2 r), where r is the cosine between y and p, a correlation through zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from ase import units

MUCH_BETTER = 5.0  # times smaller relative error: an error
BETTER = 2.0  # a note
SCALE_TOLERANCE = 2.0  # a base is too soft or too stiff by some ten percent, seldom by more
STRANGE_SCALE = 3.0
RELATED, CLOSELY_RELATED = 0.6, 0.8  # least cosine with the base for a note and for an error
SIGNIFICANT = 5.0  # least Student's t of the cosine
FEWEST = 8  # independent values; chance then looks like a unit once in a thousand times

# the number that one eV, eV/Angstrom or eV/Angstrom^3 is in another unit
ENERGY_UNITS = {
    "eV": 1.0,
    "kcal/mol": units.mol / units.kcal,
    "kJ/mol": units.mol / units.kJ,
    "Hartree": 1 / units.Hartree,
    "Rydberg": 1 / units.Rydberg,
    "meV": 1e3,
}
FORCE_UNITS = {
    "eV/Angstrom": 1.0,
    "kcal/mol/Angstrom": units.mol / units.kcal,
    "kJ/mol/Angstrom": units.mol / units.kJ,
    "Hartree/Bohr": units.Bohr / units.Hartree,
    "Hartree/Angstrom": 1 / units.Hartree,
    "Rydberg/Bohr": units.Bohr / units.Rydberg,
    "meV/Angstrom": 1e3,
}
STRESS_UNITS = {
    "eV/Angstrom^3": 1.0,
    "GPa": 1 / units.GPa,
    "kbar": 10 / units.GPa,
    "bar": 1e4 / units.GPa,
    "Hartree/Bohr^3": units.Bohr**3 / units.Hartree,
}
EXPECTED = {
    "energy": "total energies in eV",
    "forces": "forces in eV/Angstrom, minus the gradient of the energy",
    "stress": "stress in eV/Angstrom^3, positive in tension",
}
# rms of the predictions below which there is nothing to compare: eV/sqrt(atoms), eV/Angstrom, eV/Angstrom^3
SMALLEST = {"energy": 5e-3, "forces": 0.05, "stress": 1e-4}


@dataclass(frozen=True)
class Finding:
    """What is wrong with a label, or could not be checked.

    Attributes:
        label: "energy", "forces" or "stress".
        severity: "error", the evidence is overwhelming; "note", somebody should look; "unchecked", it cannot be told.
        message: what was expected, what fits, how much better, and what to do.
    """

    label: str
    severity: Literal["error", "note", "unchecked"]
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.label}: {self.message}"


@dataclass(frozen=True)
class Reading:
    """Labels read in one way.

    Attributes:
        name: what the labels would be, as in "kcal/mol per atom".
        remedy: what turns them into what is expected.
        labels: [values] eV, eV/Angstrom or eV/Angstrom^3.
        predictions: [values], same unit.
        degrees: number of independent values.
    """

    name: str
    remedy: str
    labels: np.ndarray = field(repr=False)
    predictions: np.ndarray = field(repr=False)
    degrees: int

    @cached_property
    def cosine(self) -> float:
        """Between labels and predictions."""
        size = float(np.linalg.norm(self.labels) * np.linalg.norm(self.predictions))
        return float(np.clip(self.labels @ self.predictions / size, -1, 1)) if size > 0 else 0.0

    @cached_property
    def scale(self) -> float:
        """Size of the labels relative to the predictions."""
        size = float(np.linalg.norm(self.predictions))
        return float(np.linalg.norm(self.labels)) / size if size > 0 else 0.0

    @cached_property
    def error(self) -> float:
        """Relative error, see above."""
        size = float(np.linalg.norm(self.labels) * np.linalg.norm(self.predictions))
        return float(np.linalg.norm(self.labels - self.predictions)) / size**0.5 if size > 0 else np.inf

    @property
    def is_related(self) -> bool:
        """Whether the predictions say anything about these labels, by more than chance."""
        return is_related(self.cosine, self.degrees)

    @property
    def fits(self) -> bool:
        """Whether the scale is the predictions'."""
        return self.is_related and 1 / SCALE_TOLERANCE < self.scale < SCALE_TOLERANCE


def is_related(cosine: float, degrees: int) -> bool:
    """Whether a cosine is large and, by Student's t, no chance."""
    if degrees < FEWEST or cosine < RELATED:
        return False
    return bool(cosine * np.sqrt((degrees - 1) / max(1 - cosine**2, 1e-12)) >= SIGNIFICANT)


def read_in_units(
    labels: np.ndarray,
    predictions: np.ndarray,
    degrees: int,
    scales: Mapping[str, float],
    kind: str = "",
    remedy: str = "",
) -> Iterator[Reading]:
    """Readings of labels in several units, with either sign; the first is the first unit as it is.

    Args:
        labels: [values].
        predictions: [values] in the first unit.
        degrees: number of independent values.
        scales: how many of each unit are one of the first.
        kind: what else the labels would be, as in " per atom".
        remedy: what has been done to them for that.
    """
    for sign, ending in ((1.0, ""), (-1.0, " with the opposite sign")):
        for unit, scale in scales.items():
            factor = sign / scale
            steps = [f"by {factor:.6g}"] * (factor != 1) + [remedy] * bool(remedy)
            name = unit + kind + ending
            yield Reading(name, f"multiply them {' and '.join(steps)}", factor * labels, predictions, degrees)


def severity_of(gain: float, given: float, best: float) -> Literal["error", "note"]:
    """An error if the evidence is overwhelming.

    Args:
        gain: how many times smaller the relative error of the best reading is.
        given: cosine of the labels as given; a base that is always wrong in its sign is none to start from.
        best: cosine of the best reading.
    """
    return "error" if best >= CLOSELY_RELATED and (gain > MUCH_BETTER or given <= -CLOSELY_RELATED) else "note"


def judge(label: str, readings: Sequence[Reading]) -> list[Finding]:
    """A finding if another reading than the first fits much better, or if it cannot be told.

    Args:
        label: "energy", "forces" or "stress".
        readings: the labels as given, then read in other ways.
    """
    given = readings[0]
    size = float(np.sqrt(np.mean(given.predictions**2))) if given.predictions.size else 0.0
    if given.degrees < FEWEST:
        return [_unchecked(label, f"too few independent values, {max(given.degrees, 0)} of at least {FEWEST}")]
    if size < SMALLEST[label]:
        return [_unchecked(label, f"the base predicts hardly any differences, {size:.2g} in root mean square")]
    if not given.labels.any():
        message = "all labels are zero or the same, the predictions are not; if the labels are missing, remove them"
        return [Finding(label, "note", message)]
    closest = max(readings, key=lambda reading: reading.cosine)
    if not closest.is_related:
        reason = f"the base is hardly related to the labels, cosine {given.cosine:.2f} of {given.degrees} values"
        return [_unchecked(label, reason)]
    fitting = [reading for reading in readings if reading.fits]
    if not fitting:
        return _strange_scale(label, given)
    best = min(fitting, key=lambda reading: reading.error)
    gain = given.error / max(best.error, 1e-12)
    if best is given or gain < BETTER:
        return []
    others = [r.name for r in fitting if r is not best and r.error < min(2.5 * best.error, given.error / BETTER)]
    also = f", but so might they as {' or '.join(others)}" if others else ""
    return [
        Finding(
            label,
            severity_of(gain, given.cosine, best.cosine),
            f"expected {EXPECTED[label]}; read as {best.name} the labels fit the base {gain:.1f} times better "
            f"(relative error {given.error:.3g} as given, {best.error:.3g} then, cosine {best.cosine:.3f}){also}; "
            f"{'if so, ' if others else ''}{best.remedy}",
        )
    ]


def _unchecked(label: str, reason: str) -> Finding:
    return Finding(label, "unchecked", f"expected {EXPECTED[label]}; whether they are cannot be told: {reason}")


def _strange_scale(label: str, given: Reading) -> list[Finding]:
    """A note if the labels are related to the base, yet several times its size in no unit known here."""
    usual = 1 / STRANGE_SCALE < given.scale < STRANGE_SCALE and given.cosine > 0
    if usual or abs(given.cosine) < CLOSELY_RELATED or not is_related(abs(given.cosine), given.degrees):
        return []
    factor = given.scale * np.sign(given.cosine)
    return [
        Finding(
            label,
            "note",
            f"expected {EXPECTED[label]}; the labels are about {factor:.3g} times what the base predicts (cosine "
            f"{given.cosine:.3f}), which is no unit known here; check unit and sign",
        )
    ]
