"""The report as one HTML page that needs nothing else: style inline, charts as SVG, no scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

import numpy as np

from ase_mlip.evaluate import Errors
from ase_mlip.report import figures
from ase_mlip.report.charts import bar
from ase_mlip.report.content import GroupErrors, LevelErrors, Report, flat_settings
from ase_mlip.report.text import QUANTITIES, change, findings, formula, mean_errors, methods_sentence, number, worse

MOST_DIMERS = 30  # charts of pairs on the page; report.json has all of them
SIGNS = {"warning": "!", "note": "i", "good": "✓"}


def render_page(report: Report) -> str:
    """The whole page as text."""
    style = (resources.files("ase_mlip.report") / "page.css").read_text(encoding="utf-8")
    sections = [
        _findings(report, ("warning",)),
        _verdict(report),
        _findings(report, ("note", "good")),
        _learning(report),
        *(_level(level) for level in report.levels),
        _dynamics(report),
        _dimers(report),
        _making(report),
        _sentence(report),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{_header(report)}\n" + "\n".join(filter(None, sections)) + "\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    """Title, and the facts that fit on a line."""
    base, data = report.file("base"), report.file("training")
    facts = [f"method {report.method}"]
    facts += [f"from {base.name}"] if base is not None else []
    facts += [f"{data.frames:,} training frames"] if data is not None and data.frames is not None else []
    if report.parameters is not None:
        trained = "" if report.trainable is None else f"{report.trainable:,} of "
        facts.append(f"{trained}{report.parameters:,} parameters trained")
    facts += [_duration(report.seconds)] if report.seconds is not None else []
    facts += [report.date] if report.date else []
    line = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    eyebrow = "Fine-tuning" if base is not None else "Training"
    title = f'<p class="eyebrow">{eyebrow}</p><h1>{escape(report.title)}</h1>'
    return f'<header>{title}<p class="facts">{line}</p></header>'


def _duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _verdict(report: Report) -> str:
    """One card for each level: its mean absolute errors before and after, large."""
    cards = []
    for level in report.levels:
        rows = []
        for name, (title, unit, _) in QUANTITIES.items():
            before, after = mean_errors(level, name)
            if after is None:
                continue
            words = change(before, after)
            tone = "bad" if name in worse(level) else "soft"
            start = "" if before is None else f'<span class="was">{number(before)}</span><span class="arrow">→</span>'
            rows.append(
                f'<div class="score"><span class="what">{title}</span><span class="numbers">{start}'
                f'<strong>{number(after)}</strong> <span class="unit">{unit}</span></span>'
                f'<span class="change {tone}">{words}</span></div>'
            )
        role = "old level, kept" if level.kept else "new level"
        where = f"{role} · mean absolute errors on {level.after.frames:,} {level.frames} frames"
        style = "card kept" if level.kept else "card"
        cards.append(f'<div class="{style}"><h2>{escape(level.level)}</h2><p>{escape(where)}</p>{"".join(rows)}</div>')
    return f'<section class="verdict">{"".join(cards)}</section>'


def _findings(report: Report, severities: Sequence[str]) -> str:
    """What was found, of some severities."""
    items = "".join(
        f'<li class="{found.severity}"><b aria-label="{found.severity}">{SIGNS[found.severity]}</b>'
        f"<span>{escape(found.text)}</span></li>"
        for found in findings(report)
        if found.severity in severities
    )
    return f'<section class="found"><ul class="findings">{items}</ul></section>' if items else ""


def _section(title: str, lead: str, cells: Iterable[str], kind: str = "grid") -> str:
    """A heading, a sentence and a grid of cells; nothing where there are no cells."""
    body = "".join(cells)
    if not body:
        return ""
    return (
        f'<section><h2>{escape(title)}</h2><p class="lead">{escape(lead)}</p><div class="{kind}">{body}</div></section>'
    )


def _learning(report: Report) -> str:
    """How the errors fell."""
    lead = "Errors on held-out frames while training"
    if report.best is not None and "epoch" in report.best:
        lead += f"; the dots are epoch {report.best['epoch']}, which was kept"
    return _section("Learning curves", lead + ".", figures.learning_curves(report))


def _level(level: LevelErrors) -> str:
    """Tables and charts of one level's errors."""
    names = [name for name in QUANTITIES if getattr(level.after, name).size]
    cells = [
        _error_table(level, names),
        *(figures.parity(level, name) for name in names),
        _group_table("Forces by element, MAE", level.elements, "components", ("forces",)),
        *(figures.distribution(level, name) for name in names),
        _group_table("By configuration type, MAE", level.config_types, "frames", ("energy", "forces")),
    ]
    lead = f"On {level.after.frames:,} {level.frames} frames" + (", before and after." if level.before else ".")
    return _section(f"Errors of level {level.level}", lead, cells)


def table(
    title: str, header: Sequence[str], bodies: Iterable[tuple[str, Sequence[Sequence[str]]]], kind: str = ""
) -> str:
    """A table in parts, each with a title or none; the first column names the rows. Cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    titled, parts = ' class="titled"', []
    for name, rows in bodies:
        first = f'<tr><th colspan="{len(header)}">{name}</th></tr>' if name else ""
        lines = (f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
        parts.append(f"<tbody{titled if name else ''}>{first}{''.join(lines)}</tbody>")
    top = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    caption = f"<figcaption><b>{escape(title)}</b></figcaption>"
    return f'<figure class="table {kind}">{caption}<table>{top}{"".join(parts)}</table></figure>'


def _error_table(level: LevelErrors, names: Sequence[str]) -> str:
    """Three measures of each quantity's errors."""
    bodies = []
    for name in names:
        title, unit, factor = QUANTITIES[name]
        measures = (_measures(errors, name) for errors in (level.before, level.after))
        rows = [
            [
                measure,
                *([] if level.before is None else [number(_times(old, factor))]),
                f"<b>{number(_times(new, factor))}</b>",
            ]
            for measure, old, new in zip(("MAE", "RMSE", "95 % below", "largest"), *measures, strict=True)
        ]
        bodies.append((f'{title} <span class="unit">{unit}</span>', rows))
    return table("Errors", ("", "before", "after") if level.before is not None else ("", ""), bodies)


def _measures(errors: Errors | None, name: str) -> list[float | None]:
    """Mean, root mean square, 95th percentile and largest of the absolute errors."""
    if errors is None:
        return [None] * 4
    absolute = np.abs(np.subtract(*getattr(errors, name)))
    return [absolute.mean(), np.sqrt(np.mean(absolute**2)), np.quantile(absolute, 0.95), absolute.max()]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _group_table(title: str, groups: Sequence[GroupErrors], counted: str, names: Sequence[str]) -> str:
    """Mean absolute errors of groups, before and after, with bars of the forces."""
    if not groups:
        return ""
    kind = "groups wide" if len(names) > 1 else "groups"
    names = [name for name in names if any(getattr(group, name)[1] is not None for group in groups)]
    longest = max((error or 0.0 for group in groups for error in group.forces), default=0.0) or 1.0
    header = [
        "",
        counted,
        *(f"{QUANTITIES[name][0]}<br><span class='unit'>{QUANTITIES[name][1]}</span>" for name in names),
    ]
    rows = []
    for group in groups:
        cells = [escape(group.name), f"{group.count:,}"]
        for name in names:
            before, after = (_times(error, QUANTITIES[name][2]) for error in getattr(group, name))
            start = "" if before is None else f'<span class="was">{number(before)}</span><span class="arrow">→</span>'
            cells.append(f'<span class="pair">{start}<b>{number(after)}</b></span>')
        before, after = group.forces
        bars = [
            bar(error / longest, style) for error, style in ((before, "before"), (after, "after")) if error is not None
        ]
        rows.append([*cells, "".join(bars)])
    return table(title, [*header, ""], [("", rows)], kind)


def _dynamics(report: Report) -> str:
    """The runs at constant energy."""
    rows = []
    for title, run in zip(("base", "result"), report.nve, strict=True):
        if run is not None:
            mean = number(float(run.temperature.mean())) if len(run.times) else "–"
            end = "broke" if run.broke else "stable"
            length = number(run.times[-1] if len(run.times) else 0.0)
            rows.append([title, number(run.drift), length, mean, f'<span class="{end}">{end}</span>'])
    if not rows:
        return ""
    header = (
        "",
        "drift<br><span class='unit'>meV/atom/ps</span>",
        "length<br><span class='unit'>ps</span>",
        "mean<br><span class='unit'>K</span>",
        "",
    )
    runs = [run for run in report.nve if run is not None]
    run = runs[-1]
    lead = f"{formula(run.formula)} at constant energy, in steps of {run.timestep:g} fs: the total energy must stay."
    return _section("Dynamics", lead, [*figures.nve_charts(report.nve), table("Runs", header, [("", rows)])])


def _dimers(report: Report) -> str:
    """Scans of pairs of atoms, those with a hole first."""
    before = {scan.pair: scan for scan in report.dimers[0]}
    scans = sorted(report.dimers[1], key=lambda scan: (scan.monotonic_wall, scan.barrier if scan.turn else 0.0))
    cells = [figures.dimer_chart(scan, before.get(scan.pair)) for scan in scans[:MOST_DIMERS]]
    lead = (
        "Energy of two atoms, less the two atoms alone: grey the base, blue the result. Where atoms come close the "
        "energy must rise all the way in; where it falls again (shaded), a hot enough pair would fuse."
    )
    if len(scans) > MOST_DIMERS:
        lead += f" {MOST_DIMERS} of {len(scans)} pairs; report.json has all."
    return _section("Pairs of atoms", lead, cells, "grid small")


def _making(report: Report) -> str:
    """Reference energies, settings, software and files."""
    unit = "<br><span class='unit'>eV</span>"
    energies = [
        [
            escape(row.element),
            f"{row.before:,.4f}",
            f"{row.correction:+,.4f}",
            f"<b>{row.before + row.correction:,.4f}</b>",
        ]
        for row in report.reference_energies
    ]
    energies = [[cell.replace("-", "−") for cell in row] for row in energies]
    settings = [
        [escape(key), escape(f"{value:g}" if isinstance(value, float) else str(value))]
        for key, value in flat_settings(report.settings).items()
        if value is not None
    ]
    versions = [[escape(key), escape(value)] for key, value in report.versions.items()]
    files = [
        [
            escape(f.role),
            escape(f.name),
            "" if f.frames is None else f"{f.frames:,}",
            f"<code>{escape(f.sha256)}</code>",
        ]
        for f in report.files
    ]
    cells = [
        table("Reference energies E0", ("", f"base{unit}", f"correction{unit}", f"result{unit}"), [("", energies)])
        if energies
        else "",
        table("Settings", ("", ""), [("", settings)], "plain") if settings else "",
        table("Software", ("", ""), [("", versions)], "plain") if versions else "",
    ]
    listed = table("Files", ("", "name", "frames", "SHA-256"), [("", files)], "files") if files else ""
    return _section("How it was made", "What is needed to make it again.", [*cells, listed])


def _sentence(report: Report) -> str:
    """The sentence to copy."""
    return (
        '<section><h2>For the methods section</h2><p class="lead">Free to copy.</p>'
        f"<blockquote>{escape(methods_sentence(report))}</blockquote></section>"
    )
