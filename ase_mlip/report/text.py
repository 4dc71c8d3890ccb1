"""What a report says in words: the verdict, what was found, and the sentence for a methods section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ase_mlip.report.content import FileRecord, LevelErrors, Report, flat_settings
from ase_mlip.stability import DimerScan, NveResult

# label: name, unit, factor from eV units
QUANTITIES = {
    "energy": ("energy", "meV/atom", 1e3),
    "forces": ("forces", "meV/Å", 1e3),
    "stress": ("stress", "meV/Å³", 1e3),
}
DRIFT_LIMIT = 1.0  # meV/atom/ps; float32 and half a femtosecond drift by a few hundredths
REACHABLE = 5.0  # eV; a wall that turns lower than this above the minimum can be climbed in hot dynamics
FORCE_LOSS = 0.05  # share of the mean force component by which an old level's error may grow
ENERGY_LOSS = 0.010  # eV/atom, the same for energies
FEW_FRAMES = 10

Severity = Literal["warning", "note", "good"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: "good", worth a "note", or a "warning"."""

    severity: Severity
    text: str


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, thousands separated, without exponents between 1e-4 and 1e7."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(float(f"{value:.{digits - 1}e}"))))))
    return f"{value:,.{decimals}f}".replace("-", "−")


def change(before: float | None, after: float | None) -> str:
    """How an error changed, in words."""
    if before is None or after is None:
        return ""
    if before == after:
        return "unchanged"
    if not (before > 0 and after > 0):
        return "from zero" if after > 0 else "now zero"
    word = "smaller" if after < before else "larger"
    if 1 / 1.5 < after / before < 1.5:
        return f"{number(100 * abs(after / before - 1), 2)} % {word}"
    return f"{number(max(before / after, after / before), 2)}× {word}"


def mean_errors(level: LevelErrors, name: str) -> tuple[float | None, float | None]:
    """Mean absolute errors before and after in meV units; None where there are none."""
    factor = QUANTITIES[name][2]
    found = [e.summary().get(f"{name}_mae") if e is not None else None for e in (level.before, level.after)]
    before, after = (None if value is None else factor * value for value in found)
    return before, after


def formula(text: str) -> str:
    """A chemical formula with its counts lowered."""
    return text.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def headline(level: LevelErrors) -> str:
    """One line: the mean absolute errors of a level, before and after."""
    parts = []
    for name, (title, unit, _) in QUANTITIES.items():
        before, after = mean_errors(level, name)
        if after is not None:
            start = "" if before is None else f"{number(before)} → "
            words = change(before, after)
            parts.append(f"{title} {start}{number(after)} {unit}" + (f" ({words})" if words else ""))
    return f"{level.level} on {level.after.frames} {level.frames} frames: " + ", ".join(parts)


def findings(report: Report) -> list[Finding]:
    """Everything that was checked, warnings first."""
    found = [Finding("warning", note) for note in report.notes]
    for level in report.levels:
        found += _level_findings(level)
    found += _history_findings(report)
    found += _nve_findings(*report.nve)
    found += _wall_findings(*report.dimers)
    rank, count = report.reference_rank, len(report.reference_energies)
    if rank is not None and rank < count:
        found.append(
            Finding(
                "note",
                f"The data determine {rank} of {count} reference energies; the solution of minimum norm was taken. "
                "Energies of other compositions are not comparable.",
            )
        )
    order = ("warning", "note", "good")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def worse(level: LevelErrors) -> list[str]:
    """Names of the quantities that got worse: at all for a new level, by more than a tolerance for a kept one."""
    limits = {"energy": ENERGY_LOSS, "forces": FORCE_LOSS * _mean_size(level.after.forces[0])} if level.kept else {}
    found = []
    for name, (_, _, factor) in QUANTITIES.items():
        before, after = mean_errors(level, name)
        if before is not None and after is not None and after - before > factor * limits.get(name, 0.0):
            found.append(name)
    return found


def _level_findings(level: LevelErrors) -> list[Finding]:
    """Is a new level better than what it began with, and does an old one still know what it knew?"""
    found = []
    pairs = {name: mean_errors(level, name) for name in QUANTITIES}
    compared = [pair for pair in pairs.values() if None not in pair]
    same = all(before == after for before, after in compared)
    where = f"{level.level!r} on {level.after.frames:,} {level.frames} frames"
    lost = [
        f"{QUANTITIES[name][0]} {number(pairs[name][0])} → {number(pairs[name][1])} {QUANTITIES[name][1]}"
        for name in worse(level)
    ]
    if lost:
        title = "Forgotten knowledge" if level.kept else "Worse than before the training"
        found.append(Finding("warning", f"{title}: level {where}: {', '.join(lost)}."))
    elif compared and level.kept:
        found.append(Finding("good", f"Old knowledge is kept{' exactly' if same else ''}: level {where}."))
    elif compared and same:
        found.append(Finding("warning", f"The training changed nothing: level {where}."))
    elif compared:
        found.append(Finding("good", f"No error is larger than before the training: level {where}."))
    if level.after.frames < FEW_FRAMES:
        found.append(
            Finding("note", f"Only {level.after.frames} {level.frames} frames: their errors are a rough guide.")
        )
    return found


def _history_findings(report: Report) -> list[Finding]:
    """Where in the training the best parameters were found."""
    best = report.best
    if best is None or len(report.history) < 2:
        return []
    if best is report.history[0]:
        return [Finding("warning", "No evaluation was better than the start of the training, which was kept.")]
    if best is report.history[-1]:
        return [Finding("note", "The last evaluation was the best: more epochs may help.")]
    return []


def _nve_findings(before: NveResult | None, after: NveResult | None) -> list[Finding]:
    """Does dynamics conserve energy?"""
    if after is None:
        return [Finding("note", "Stability in dynamics was not checked.")]
    base = " So did the base." if before is not None and before.broke else ""
    if after.broke:
        return [
            Finding("warning", f"Dynamics of {formula(after.formula)} at constant energy broke: {after.broke}.{base}")
        ]
    run = f"{number(abs(after.drift), 2)} meV/atom/ps over {number(after.times[-1], 2)} ps of {formula(after.formula)}"
    if not abs(after.drift) <= DRIFT_LIMIT:
        return [Finding("warning", f"Energy is not conserved: it drifts by {run}; the limit here is {DRIFT_LIMIT:g}.")]
    return [Finding("good", f"Dynamics at constant energy is stable: the energy drifts by {run}.")]


def _wall_findings(before: Sequence[DimerScan], after: Sequence[DimerScan]) -> list[Finding]:
    """Do atoms repel each other all the way in?"""
    if not after:
        return [Finding("note", "The repulsion of pairs of atoms was not checked.")]
    holes = sorted((scan for scan in after if not scan.monotonic_wall), key=lambda scan: scan.barrier)
    if not holes:
        return [Finding("good", f"The repulsive walls of all {len(after)} pairs of elements rise all the way in.")]
    base = {scan.pair: scan for scan in before}
    found = [Finding("warning", _hole(scan, base.get(scan.pair))) for scan in holes if within_reach(scan)]
    far = [scan for scan in holes if not within_reach(scan)]
    if far:
        new = [scan for scan in far if scan.pair in base and base[scan.pair].monotonic_wall]
        origin = f"; new since the base: {_pairs(new)}" if new else ("; the base's too" if base else "")
        text = (
            f"{len(far)} of {len(after)} repulsive walls end, but {number(far[0].barrier, 2)} eV or more up, out of "
            f"reach of ordinary dynamics: {_pairs(far)}{origin}."
        )
        found.append(Finding("note", text))
    return found


def _hole(scan: DimerScan, base: DimerScan | None) -> str:
    """A hole within reach, and whether the base has it."""
    if base is None:
        origin = ""
    elif base.monotonic_wall:
        origin = " In the base it rises all the way in."
    elif within_reach(base):
        origin = " The base has a hole there too."
    else:
        origin = f" In the base it rises by {number(base.barrier, 2)} eV."
    rise = f"rising only {number(scan.barrier, 2)} eV" if scan.barrier > 0 else "not rising at all"
    pair = "–".join(scan.pair)
    return f"Hole in the repulsive wall of {pair}: below {number(scan.turn)} Å the energy falls, after {rise}.{origin}"


def within_reach(scan: DimerScan) -> bool:
    """Whether the wall has a hole that hot dynamics can get to."""
    return not scan.monotonic_wall and not scan.barrier >= REACHABLE


def _pairs(scans: Sequence[DimerScan]) -> str:
    return ", ".join("–".join(scan.pair) for scan in scans)


def _mean_size(values: np.ndarray) -> float:
    return float(np.mean(np.abs(values))) if values.size else 0.0


def methods_sentence(report: Report) -> str:
    """What the methods section of a paper needs to say of this model."""
    base, data, replay = report.file("base"), report.file("training"), report.file("replay")
    settings = flat_settings(report.settings)
    details = [f"rank {settings['rank']}"] if settings.get("rank") is not None else []
    if report.parameters is not None:
        trained = "" if report.trainable is None else f"{report.trainable:,} of "
        details.append(f"{trained}{report.parameters:,} parameters")
    inside = f" ({'; '.join(details)})" if details else ""
    versions = report.versions
    software = f"ase_mlip {versions['ase_mlip']}" if "ase_mlip" in versions else "ase_mlip"
    software += f" and JAX {versions['jax']}" if "jax" in versions else ""
    if base is None:
        sentence = f"A force field{inside} was trained from random parameters with {software}"
    else:
        sentence = f"The model {_source(base)} was fine-tuned with {software} by the method '{report.method}'{inside}"
    sentence += f" on {_source(data)}" if data is not None else ""
    sentence += f", replaying {_source(replay)}," if replay is not None else ""
    sentences = [(sentence + _schedule(settings)).removesuffix(",")]
    if report.reference_energies:
        sentences.append("Per-element reference energies were re-fitted by least squares")
    sentences += [_error_sentence(level) for level in report.levels]
    return ". ".join(sentences) + "."


def _schedule(settings: Mapping[str, Any]) -> str:
    """Epochs, batches, rates and weights, as far as they are known."""
    titles = {
        "batch_size": "batches of",
        "learning_rate": "peak learning rate",
        "ema": "moving average",
        "seed": "seed",
    }
    parts = [f"{title} {settings[key]}" for key, title in titles.items() if settings.get(key) is not None]
    weights = {name: settings.get(f"{name}_weight", settings.get(f"loss.{name}")) for name in QUANTITIES}
    used = {name: weight for name, weight in weights.items() if weight}
    if used:
        parts.append(f"{':'.join(used)} weights {':'.join(f'{weight:g}' for weight in used.values())}")
    epochs = f" for {settings['epochs']} epochs" if settings.get("epochs") is not None else ""
    return epochs + (f" ({', '.join(parts)})" if parts else "")


def _error_sentence(level: LevelErrors) -> str:
    """Mean absolute errors of a level, before and after."""
    parts = []
    for name, (title, unit, _) in QUANTITIES.items():
        before, after = mean_errors(level, name)
        if after is not None:
            start = "" if before is None else f" (before: {number(before)})"
            parts.append(f"{number(after)} {unit}{start} for {title}")
    joined = " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
    where = f"On {level.after.frames:,} {level.frames} frames"
    return f"{where} the mean absolute errors of level '{level.level}' are {joined or 'unknown'}"


def _source(file: FileRecord) -> str:
    """A file by name, number of frames and the beginning of its SHA-256; the report has the whole of it."""
    frames = "" if file.frames is None else f"{file.frames:,} frames"
    if not file.sha256:
        return frames or file.name
    return f"{frames}{' of ' if frames else ''}{file.name} (SHA-256 {file.sha256[:12]}…)"
