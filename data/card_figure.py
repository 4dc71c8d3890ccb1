"""The figure of the model card: one sheet that can be read without the text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

matplotlib.use("Agg")
from matplotlib import pyplot

REFERENCE, MODEL, BAD = "black", "tab:blue", "tab:red"
Found = dict[str, Any]


def draw(found: Found, path: Path) -> None:
    """Draw all parts that are done; the others are left empty and say so."""
    figure = pyplot.figure(figsize=(17, 15), layout="constrained")
    grid = figure.add_gridspec(4, 12)

    def panel(row: int, columns: slice, part: str, title: str, paint: Callable[[Axes, Found], None]) -> None:
        axes = figure.add_subplot(grid[row, columns])
        axes.set_title(title, fontsize=10)
        if part in found:
            paint(axes, found[part])
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])

    panel(0, slice(0, 6), "errors", "Errors on held-out molecules, by category of frames", categories)
    panel(0, slice(6, 9), "errors", "Force error by element, all held-out frames", elements)
    panel(0, slice(9, 12), "random", "Random structures, relaxed: closest atoms", closest)
    scans(figure, grid, found.get("scans"))
    panel(3, slice(0, 3), "walls", "Two atoms pushed together, all pairs of elements", walls)
    panel(3, slice(3, 6), "geometry", "Harmonic frequencies of held-out molecules", frequencies)
    panel(3, slice(6, 9), "nvt", "Constant temperature: time without a broken bond", lifetimes)
    panel(3, slice(9, 12), "nve", "Constant energy: change of the total", drift)
    model = found["model"]
    figure.suptitle(
        f"{model['name']}: {model['parameters']:,} parameters, {' '.join(model['elements'])}, cutoff {model['cutoff']} "
        "Angstrom, against GFN2-xTB",
        fontsize=14,
    )
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def categories(axes: Axes, part: Found) -> None:
    """Bars of the force error, and the energy error on the right axis."""
    groups = part["groups"]
    names = sorted(groups, key=lambda name: groups[name]["force_mae"])
    axes.bar(names, [groups[name]["force_mae"] for name in names], color=MODEL, alpha=0.7)
    axes.set(ylabel="force MAE, meV/Angstrom (bars)", yscale="log")
    axes.set_xticks(range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor")
    right = axes.twinx()
    right.plot(names, [groups[name]["energy_mae"] for name in names], "o", color="tab:orange")
    right.set(ylabel="energy MAE, meV/atom (dots)", yscale="log")


def elements(axes: Axes, part: Found) -> None:
    """Bars of the force error of each element's atoms."""
    rows = part["elements"]
    axes.bar(list(rows), [row["force_mae"] for row in rows.values()], color=MODEL, alpha=0.7)
    axes.set(ylabel="force MAE, meV/Angstrom")


def closest(axes: Axes, part: Found) -> None:
    """Histogram of the smallest distance in each relaxed structure."""
    edges, counts = np.array(part["edges"]), np.array(part["counts"])
    axes.stairs(counts, edges, fill=True, color=MODEL, alpha=0.7)
    axes.axvline(0.5, color=BAD, linestyle="--")
    note = f"{part['count']} structures, {len(part['failed'])} fail"
    axes.text(0.97, 0.95, note, ha="right", va="top", transform=axes.transAxes)
    axes.set(xlabel="closest / sum of covalent radii (limit 0.5)", ylabel="structures")


def scans(figure: pyplot.Figure, grid: Any, part: Found | None) -> None:
    """Six torsions and six dimers, reference and model."""
    for row, kind, unit in ((1, "torsions", "dihedral, degrees"), (2, "dimers", "closest atoms, Angstrom")):
        rows = part[kind]["rows"] if part else {}
        for place, (name, scan) in enumerate(list(rows.items())[:6]):
            axes = figure.add_subplot(grid[row, 2 * place : 2 * place + 2])
            reference, model = 1e3 * np.array(scan["reference"]), 1e3 * np.array(scan["model"])
            axes.plot(scan["x"], reference, "-", color=REFERENCE, label="GFN2-xTB")
            axes.plot(scan["x"], model, "o-", color=MODEL, markersize=3, linewidth=1, label="model")
            held_out = ", held out" if scan["held_out"] else ""
            title = name.replace(".", " + ") if kind == "dimers" else name
            axes.set_title(f"{title} ({kind[:-1]}{held_out})", fontsize=9)
            axes.set_xlabel(unit)
            if kind == "dimers":
                axes.set_ylim(1.6 * min(reference.min(), model.min()) - 10, 2 * abs(reference.min()) + 60)
                axes.axhline(0, color="grey", linewidth=0.6)
            if place == 0:
                axes.set_ylabel("energy, meV")
                axes.legend(fontsize=8)


def walls(axes: Axes, part: Found) -> None:
    """Energy of each pair above its equilibrium; those that turn are red."""
    rows = part["rows"]
    for name, row in rows.items():
        colour, width = (MODEL, 0.7) if row["rises"] else (BAD, 1.5)
        axes.plot(row["x"], row["energy"], color=colour, linewidth=width)
        if not row["rises"]:
            axes.annotate(name, (row["x"][0], row["energy"][0]), fontsize=8, color=BAD)
    fails = sum(not row["rises"] for row in rows.values())
    axes.axvspan(0.4, 0.9, color="grey", alpha=0.12)
    axes.text(0.97, 0.95, f"{len(rows)} pairs, {fails} fail", ha="right", va="top", transform=axes.transAxes)
    axes.set(xlabel="distance / equilibrium (tested: grey)", ylabel="energy above equilibrium, eV")
    axes.set_yscale("symlog", linthresh=1.0)


def frequencies(axes: Axes, part: Found) -> None:
    """Model against reference, every mode of every molecule."""
    rows = part["rows"].values()
    reference = np.concatenate([row["reference"] for row in rows])
    model = np.concatenate([row["model"] for row in rows])
    axes.plot([0, 4000], [0, 4000], color="grey", linewidth=0.8)
    axes.plot(reference, model, ".", color=MODEL, markersize=4)
    note = f"{len(rows)} molecules, MAE {np.abs(model - reference).mean():.0f} 1/cm"
    axes.text(0.03, 0.95, note, va="top", transform=axes.transAxes)
    axes.set(xlabel="GFN2-xTB, 1/cm", ylabel="model, 1/cm (imaginary: negative)")


def lifetimes(axes: Axes, part: Found) -> None:
    """Bars as long as the bonds held, red where one broke or the run stopped."""
    for shift, (kelvin, rows) in enumerate(part["kelvin"].items()):
        held = [min(row["ps"], row["ps"] if row["broken_ps"] is None else row["broken_ps"]) for row in rows.values()]
        good = [row["broken"] is None and row["problem"] is None for row in rows.values()]
        places = np.arange(len(rows)) + 0.4 * shift
        colours = [("tab:blue", "tab:orange")[shift] if fine else BAD for fine in good]
        axes.barh(places, held, 0.38, color=colours)
        for place, fine in zip(places, good, strict=True):
            axes.text(0.0, place, f" {kelvin} K{'' if fine else ', broken'}", va="center", fontsize=7)
        axes.set_yticks(np.arange(len(rows)) + 0.2, list(rows), fontsize=8)
    axes.set(xlabel="ps", xlim=(0, part["asked_ps"]))


def drift(axes: Axes, part: Found) -> None:
    """Total energy against time."""
    for name, row in part["rows"].items():
        axes.plot(row["ps"], row["change"], linewidth=1, label=name)
    axes.legend(fontsize=6, ncols=2)
    axes.set(xlabel="ps", ylabel="meV/atom")
