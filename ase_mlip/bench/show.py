"""A report as tables for people, and the scaling as a picture."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.table import Table

from ase_mlip.bench.first_call import Start
from ase_mlip.bench.floor import Floor
from ase_mlip.bench.machine import Peaks
from ase_mlip.bench.measure import Speed
from ase_mlip.bench.run import Report
from ase_mlip.bench.timing import Timing

FEW_REPS = 20
WIDTH = 200  # at most, of a table that does not go to a terminal


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the tables: what ran where, times by size, new processes, training, and what the floor is made of."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH)
    hardware = report.hardware
    console.print(f"[bold]{report.model}[/bold], {report.settings.dtype}, path: {report.path}", highlight=False)
    console.print(
        f"{hardware['cpu']}, {hardware['cores']} cores; device {hardware['device']}; load {hardware['load']}; "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        highlight=False,
    )
    if hardware["load"] > hardware["cores"] / 2:
        console.print("other work was running before this began: these times are too long", highlight=False)
    if report.speeds:
        console.print(speed_table(report))
    for accuracy in report.accuracies:
        console.print(
            f"{accuracy.system}, {accuracy.atoms} atoms, {report.settings.dtype} against plain formulas in float64: "
            f"energy {accuracy.energy_per_atom:.1e} eV/atom, forces {accuracy.forces:.1e} eV/Angstrom "
            f"(largest {accuracy.largest_force:.2g})",
            highlight=False,
        )
    if report.first_calls:
        console.print(start_table(report))
    if report.training:
        console.print(training_table(report))
    if report.speeds and (floor := report.floors[-1]):
        console.print(floor_table(report.speeds[-1], floor, report.peaks))


def speed_table(report: Report) -> Table:
    """One row for each structure."""
    reps = report.settings.reps
    few = f" (fewer than {FEW_REPS})" if reps < FEW_REPS else ""
    titles = ("system", "atoms", "pairs", "model ms", "MD step ms", "mean", "floor ms", "model/floor", "first s")
    more = ("compile s", "compiled", "lists", "host MiB", "device MiB")
    table = _table(f"medians of {reps} runs{few}, quartiles in brackets", *titles, *more)
    for speed, floor in zip(report.speeds, report.floors, strict=True):
        least = floor.total.seconds(report.peaks) if floor else None
        table.add_row(
            speed.system,
            f"{speed.atoms:,}",
            f"{speed.pairs:,}",
            _milliseconds(speed.model),
            _milliseconds(speed.md),
            "-" if speed.md is None else _digits(1e3 * speed.md.mean),
            "-" if least is None else _digits(1e3 * least),
            "-" if least is None or speed.model is None else f"{speed.model.median / least:.1f}",
            f"{speed.first_s:.2f}",
            f"{speed.compile_s:.2f}",
            f"{speed.compilations}+{speed.later_compilations}",
            "-" if speed.rebuilds is None else str(speed.rebuilds),
            _mebibytes(speed.host_peak),
            _mebibytes(speed.device_peak),
        )
    table.caption = (
        "mean: of the MD steps; compiled: programs for the first call + later; lists: neighbour lists built "
        "during the MD steps; floor: operations and bytes at the machine's measured "
        f"{report.peaks.operations_per_s / 1e9:.0f} GFLOP/s and {report.peaks.bytes_per_s / 1e9:.1f} GB/s"
    )
    return table


def start_table(report: Report) -> Table:
    """The time to the first forces in a new process."""
    titles = ("system", "atoms", "compiled before", "in all", "imports", "model", "forces")
    table = _table("first forces in a new process, s", *titles)
    for call in report.first_calls:
        cases: tuple[tuple[str, Start], ...] = (("no", call.cold), ("yes", call.warm))
        for known, start in cases:
            times = (start.process, start.imports, start.model, start.forces)
            table.add_row(call.system, f"{call.atoms:,}", known, *(f"{seconds:.2f}" for seconds in times))
    return table


def training_table(report: Report) -> Table:
    """Training steps."""
    titles = ("system", "atoms", "frames", "step ms", "frames/s", "compile s", "host MiB")
    table = _table("training step: energies and forces, float32, all parameters", *titles)
    for row in report.training:
        table.add_row(
            row.system,
            str(row.atoms),
            str(row.frames),
            _milliseconds(row.step),
            _digits(row.frames_per_s),
            f"{row.compile_s:.1f}",
            _mebibytes(row.host_peak),
        )
    return table


def floor_table(speed: Speed, floor: Floor, peaks: Peaks) -> Table:
    """What the floor of one structure is made of, per atom, and its time for the whole structure."""
    titles = ("part", "kFLOP/atom", "kB/atom", "kB/atom gathered", "ms")
    table = _table(f"floor of {speed.system}, {speed.atoms:,} atoms", *titles)
    last = {"sum": floor.total, "the radial network instead of tables": floor.radial_network}
    for number, (name, work) in enumerate({**floor.parts, **last}.items()):
        per_atom = (work.operations, work.moved, work.gathered)
        cells = [f"{value / speed.atoms / 1e3:.1f}" for value in per_atom]
        table.add_row(name, *cells, _digits(1e3 * work.seconds(peaks)), end_section=number == len(floor.parts) - 1)
    table.caption = "a part's time is the longer of operations and bytes, the sum's too: it can be less than its parts'"
    return table


def plot_scaling(report: Report, path: Path) -> None:
    """Time against the number of atoms, both logarithmic, with a line of slope one.

    Args:
        report: with at least one size; slopes are between the two largest of each system.
        path: file to write; the ending says the format.

    Raises:
        ValueError: nothing was measured that depends on the size.
    """
    if not report.speeds:
        raise ValueError("there is nothing to plot: measure the part model or md")
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(6, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots()
        highest: list[tuple[float, float]] = []
        first = report.speeds[0].system
        for color, system in enumerate(dict.fromkeys(speed.system for speed in report.speeds)):
            rows = [pair for pair in zip(report.speeds, report.floors, strict=True) if pair[0].system == system]
            atoms = [speed.atoms for speed, _ in rows]
            lines: dict[str, tuple[str, list[float | None]]] = {
                "model alone": ("o-", [speed.model.median if speed.model else None for speed, _ in rows]),
                "ASE MD step": ("s--", [speed.md.median if speed.md else None for speed, _ in rows]),
                "floor": (":", [floor.total.seconds(report.peaks) if floor else None for _, floor in rows]),
            }
            for name, (style, seconds) in lines.items():
                if None not in seconds:
                    times = 1e3 * np.array(seconds, float)
                    label = f"{system}: {name}{_slope(atoms, times)}"
                    axes.plot(atoms, times, style, color=f"C{color}", label=label, ms=4)
                    highest.append((atoms[-1], times[-1]))
        (last, top), smallest = max(highest), min(speed.atoms for speed in report.speeds)
        axes.plot([smallest, last], [top * smallest / last, top], "-", color="0.8", lw=3, zorder=0, label="linear")
        axes.set(xscale="log", yscale="log", xlabel="atoms", ylabel="time, ms")
        axes.set_xticks(ticks := sorted({speed.atoms for speed in report.speeds if speed.system == first}))
        axes.set_xticklabels([f"{tick:,}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        title = f"{report.model}, {report.settings.dtype}, {report.hardware['device']}, {report.path}"
        axes.set_title("\n".join(wrap(title, 80)), fontsize="medium")
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
        figure.savefig(path, dpi=150)


def _table(title: str, first: str, *others: str) -> Table:
    """An empty table; numbers, in all columns but the first, end at the right."""
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _slope(atoms: list[int], times: np.ndarray) -> str:
    """The exponent between the two largest sizes."""
    if len(atoms) < 2 or atoms[-1] == atoms[-2]:
        return ""
    return f", N^{np.log(times[-1] / times[-2]) / np.log(atoms[-1] / atoms[-2]):.2f}"


def _milliseconds(timing: Timing | None) -> str:
    if timing is None:
        return "-"
    return f"{_digits(1e3 * timing.median)} ({_digits(1e3 * timing.lower)}-{_digits(1e3 * timing.upper)})"


def _digits(value: float) -> str:
    """About three digits, never an exponent."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.0f}"
