"""The charts of a report: what is drawn on which axes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from ase_mlip.report.charts import SMALL, Axis, Frame
from ase_mlip.report.content import LevelErrors, Report
from ase_mlip.report.text import QUANTITIES, REACHABLE, number, within_reach
from ase_mlip.stability import DimerScan, NveResult

Curve = tuple[str, str, np.ndarray, np.ndarray]  # title, style, x, y


def figure(title: str, chart: str, legend: Sequence[tuple[str, str]] = (), note: str = "", kind: str = "") -> str:
    """A chart under its title and the meaning of its colours."""
    keys = "".join(f'<span class="key {style}">{escape(text)}</span>' for text, style in legend)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<figure class="{kind}"><figcaption><b>{escape(title)}</b> {keys}</figcaption>{chart}{below}</figure>'


def learning_curves(report: Report) -> list[str]:
    """Validation errors against epochs, one chart for each quantity with one line for each level, and the loss."""
    charts = [
        (title, f"MAE, {unit}", _level_curves(report, f"{name}_mae", factor))
        for name, (title, unit, factor) in QUANTITIES.items()
    ]
    epochs, (train, valid) = _history(report, "train_loss", "valid_loss")
    charts.append(("loss", "eV units", [("training", "before", epochs, train), ("validation", "after", epochs, valid)]))
    found = []
    for title, label, every in charts:
        curves = [curve for curve in every if np.isfinite(curve[3]).any()]
        if not curves:
            continue
        frame = Frame(
            Axis.around([curve[2] for curve in curves], "epoch"),
            Axis.around([curve[3] for curve in curves], label, log=True),
        )
        marks = [frame.line(x, y, style) for _, style, x, y in curves]
        if report.best is not None and "epoch" in report.best:
            kept = report.best["epoch"]
            marks.insert(0, frame.vertical(kept, "quiet"))
            marks += [
                frame.dot(kept, y[list(x).index(kept)], style)
                for _, style, x, y in curves
                if kept in x and style != "before"
            ]
        legend = [(name, style) for name, style, _, _ in curves]
        found.append(figure(title.capitalize(), frame.draw(f"learning curve of {title}", marks), legend))
    return found


def _history(report: Report, *keys: str, level: str | None = None) -> tuple[np.ndarray, list[np.ndarray]]:
    """Epochs, and some values of each record, or of a level within it; NaN where there are none."""
    records = [record for record in report.history if "epoch" in record]
    epochs = np.array([record["epoch"] for record in records], float)
    parts = records if level is None else [record.get("levels", {}).get(level, {}) for record in records]
    values = [[np.nan if part.get(key) is None else part[key] for part in parts] for key in keys]
    return epochs, [np.array(value, float) for value in values]


def _level_curves(report: Report, key: str, factor: float) -> list[Curve]:
    """One error of each level: the new level's at the top of the records, the others' under "levels"."""
    new = report.levels[0].level if report.levels else "validation"
    others = dict.fromkeys(level for record in report.history for level in record.get("levels", {}) if level != new)
    named: list[tuple[str, str, str | None]] = [(new, "after", None)]
    named += [(level, f"kept{place % 3}", level) for place, level in enumerate(others)]
    curves = []
    for title, style, level in named:
        epochs, (values,) = _history(report, key, level=level)
        curves.append((title, style, epochs, factor * values))
    return curves


def parity(level: LevelErrors, name: str) -> str:
    """Prediction against label; energies less what the composition or the mean explains, or nothing could be seen."""
    title, unit, factor = QUANTITIES[name]
    labels = getattr(level.after, name)[0]
    if not labels.size:
        return ""
    origin: np.ndarray | float = 0.0
    if name == "energy":
        origin = labels.mean() if level.origin is None else level.origin
        reference = " from " + ("the mean label" if level.origin is None else "a fit to composition")
    else:
        reference = ""
    spread = float(np.abs(labels - origin).max())
    if spread * factor > 2000:
        factor, unit = factor / 1e3, unit.removeprefix("m")
    sets = [
        (when, factor * (getattr(errors, name) - origin))
        for when, errors in (("before", level.before), ("after", level.after))
        if errors is not None
    ]
    low, high = sets[-1][1][0].min(), sets[-1][1][0].max()
    room = 0.5 * (high - low) or 1.0  # what is farther out is counted, not shown: it would squeeze the rest
    shown = [np.clip(values, low - room, high + room) for _, values in sets]
    outside = int(sum((values != kept).any(axis=0).sum() for (_, values), kept in zip(sets, shown, strict=True)))
    frame = Frame(
        Axis.around([values[0] for values in shown], f"label, {unit}{reference}"),
        Axis.around(shown, f"prediction, {unit}"),
    )
    ends = [frame.x.low, frame.x.high]
    marks = [frame.line(ends, ends, "quiet"), *(frame.dots(values[0], values[1], when) for when, values in sets)]
    note = f"{outside:,} predictions lie outside" if outside else ""
    legend = [(when, when) for when, _ in sets]
    return figure(f"{title.capitalize()} parity", frame.draw(f"parity of {title}", marks), legend, note)


def distribution(level: LevelErrors, name: str) -> str:
    """Share of the predictions with an error below each size."""
    title, unit, factor = QUANTITIES[name]
    errors = {
        when: factor * np.sort(np.abs(np.subtract(*getattr(errors, name))))
        for when, errors in (("before", level.before), ("after", level.after))
        if errors is not None and getattr(errors, name).size
    }
    if not errors:
        return ""
    tails = [values[int(0.02 * len(values)) :] for values in errors.values()]  # the smallest errors are accidents
    frame = Frame(Axis.around(tails, f"absolute error, {unit}", log=True), Axis(0.0, 100.0, "share below, %"))
    marks = []
    for when, values in errors.items():
        chosen = np.unique(np.linspace(0, len(values) - 1, 240).astype(int))
        height = 100 * (chosen + 1) / len(values)
        marks.append(frame.line([max(v, frame.x.low) for v in values[chosen]], height, when))
    legend = [(when, when) for when in errors]
    return figure(f"{title.capitalize()} errors", frame.draw(f"errors of {title}", marks), legend)


def nve_charts(nve: tuple[NveResult | None, NveResult | None]) -> list[str]:
    """Total energy and temperature along the runs at constant energy."""
    runs = [
        (when, run) for when, run in zip(("base", "result"), nve, strict=True) if run is not None and len(run.times)
    ]
    if not runs:
        return []
    styles = {"base": "before", "result": "after"}
    legend = [(when, styles[when]) for when, _ in runs]
    times = Axis.around([run.times for _, run in runs], "time, ps")
    found = []
    for title, label, values in (
        ("Total energy", "meV/atom from the start", [1e3 * (run.energy - run.energy[0]) for _, run in runs]),
        ("Temperature", "K", [run.temperature for _, run in runs]),
    ):
        axis = Axis.around(values, label)
        if title == "Total energy" and axis.high - axis.low < 2:  # do not blow up noise
            middle = 0.5 * (axis.high + axis.low)
            axis = Axis(middle - 1, middle + 1, label)
        frame = Frame(times, axis)
        marks = [
            frame.line(*_thin(run.times, line), styles[when]) for (when, run), line in zip(runs, values, strict=True)
        ]
        found.append(figure(title, frame.draw(f"{title} in dynamics at constant energy", marks), legend))
    return found


def _thin(xs: np.ndarray, ys: np.ndarray, most: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Every so many points, such that at most `most` remain."""
    step = -(-len(xs) // most)
    return xs[::step], ys[::step]


def dimer_chart(after: DimerScan, before: DimerScan | None) -> str:
    """Energy of two atoms against their distance, base and result."""
    scans = [scan for scan in (before, after) if scan is not None]
    contact = [np.interp(np.linspace(0.9, 1.1, 9) * s.equilibrium, s.distances, s.energies) for s in scans]
    deep = min(min(float(values.min()) for values in contact), -1.0)
    window = Axis(1.25 * deep, max(REACHABLE, -0.75 * deep), "eV")
    frame = Frame(Axis.around([after.distances], "Å"), window, SMALL)
    marks, note = [frame.horizontal(0.0, "quiet")], ""
    if after.turn is not None:
        marks.append(frame.band(frame.x.low, after.turn, "bad" if within_reach(after) else "quiet"))
        note = f"ends at {number(after.turn)} Å, {number(max(after.barrier, 0.0), 2)} eV up"
    styles = ("before", "after") if before is not None else ("after",)
    kind = "hole" if within_reach(after) else ""
    marks += [frame.line(scan.distances, scan.energies, style) for scan, style in zip(scans, styles, strict=True)]
    return figure("–".join(after.pair), frame.draw(f"energy of {'–'.join(after.pair)}", marks), (), note, kind)
