"""What a training leaves behind: the model, its history, and a page that shows what it did.

A folder gets `report.json`, with every number, and `report.html`, one page to look at.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ase_mlip.report.content import (
    FileRecord,
    GroupErrors,
    LevelErrors,
    ReferenceEnergy,
    Report,
    flat_settings,
    installed_versions,
    plain,
)
from ase_mlip.report.page import render_page
from ase_mlip.report.picture import write_results
from ase_mlip.report.text import Finding, findings, headline, methods_sentence
from ase_mlip.stability import DimerScan, NveResult

__all__ = [
    "FileRecord",
    "Finding",
    "GroupErrors",
    "LevelErrors",
    "ReferenceEnergy",
    "Report",
    "findings",
    "headline",
    "installed_versions",
    "methods_sentence",
    "report_data",
    "write_report",
    "write_results",
]

FORMAT_VERSION = 1
MOST_POINTS = 400  # of a curve of dynamics in report.json


def write_report(folder: str | os.PathLike[str], report: Report) -> Path:
    """Write `report.json` and `report.html` into a folder, which is made if needed.

    Returns:
        The page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report_data(report), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(render_page(report), encoding="utf-8")
    return page


def report_data(report: Report) -> dict[str, Any]:
    """The report as plain data: all but the predictions themselves; eV and Angstrom, None for what is unknown."""
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "title": report.title,
        "method": report.method,
        "date": report.date,
        "findings": [finding.__dict__ for finding in findings(report)],
        "methods_sentence": methods_sentence(report),
        "levels": [_level_data(level) for level in report.levels],
        "kept": report.best,
        "history": list(report.history),
        "reference_energies": [row.__dict__ for row in report.reference_energies],
        "reference_rank": report.reference_rank,
        "nve": {when: _nve_data(run) for when, run in zip(("base", "result"), report.nve, strict=True)},
        "dimers": {
            when: [_dimer_data(scan) for scan in scans]
            for when, scans in zip(("base", "result"), report.dimers, strict=True)
        },
        "trainable": report.trainable,
        "parameters": report.parameters,
        "seconds": report.seconds,
        "settings": flat_settings(report.settings),
        "files": [file.__dict__ for file in report.files],
        "versions": report.versions,
    }
    data: dict[str, Any] = plain(found)
    return data


def _level_data(level: LevelErrors) -> dict[str, Any]:
    """Summaries of one level's errors."""
    return {
        "level": level.level,
        "headline": headline(level),
        "kept": level.kept,
        "frames": level.frames,
        "count": level.after.frames,
        "before": None if level.before is None else level.before.summary(),
        "after": level.after.summary(),
        "elements": [group.__dict__ for group in level.elements],
        "config_types": [group.__dict__ for group in level.config_types],
    }


def _nve_data(run: NveResult | None) -> dict[str, Any] | None:
    """A run at constant energy, thinned."""
    if run is None:
        return None
    every = slice(None, None, max(1, -(-len(run.times) // MOST_POINTS)))
    return {
        "formula": run.formula,
        "timestep": run.timestep,
        "drift": run.drift,
        "broke": run.broke,
        "times": run.times[every],
        "energy": run.energy[every],
        "temperature": run.temperature[every],
    }


def _dimer_data(scan: DimerScan) -> dict[str, Any]:
    """A scan with what was concluded from it."""
    return {
        "pair": scan.pair,
        "monotonic_wall": scan.monotonic_wall,
        "turn": scan.turn,
        "barrier": scan.barrier,
        "equilibrium": scan.equilibrium,
        "distances": scan.distances,
        "energies": scan.energies,
    }
