"""The deviation of a committee along a trajectory, with the selected frames marked."""

from __future__ import annotations

import os
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ase_mlip.select import Scan, Selected

ALL, CHOSEN, FAULTY = "#b0b0b0", "#1f5fa8", "#d1701c"


def plot_selection(path: str | os.PathLike[str], scan: Scan, selected: Sequence[Selected]) -> None:
    """Deviation along the trajectory with the selected frames marked, as one picture; the ending says the format."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        forces, energy = figure.subplots(2, 1, sharex=True)
        _plot_deviation(forces, scan.max_forces_std, scan, selected, "forces, meV/Å")
        _plot_deviation(energy, scan.energy_std_per_atom, scan, selected, "energy, meV/atom")
        forces.set_title("standard deviation over the committee", loc="left")
        forces.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0, ncols=3)
        energy.set_xlabel("frame")
        figure.savefig(path, dpi=150)


def _plot_deviation(axes: Axes, values: np.ndarray, scan: Scan, selected: Sequence[Selected], label: str) -> None:
    """One quantity; values of faulty frames are not shown, only where they are."""
    faulty, chosen = list(scan.faults), [one.index for one in selected]
    shown = 1e3 * values
    shown[faulty] = np.nan
    axes.plot(shown, ".", ms=2, color=ALL, label="all frames", rasterized=True)
    axes.plot(chosen, shown[chosen], "o", ms=4, color=CHOSEN, label="selected")
    if faulty:
        axes.plot(faulty, np.zeros(len(faulty)), "x", ms=4, color=FAULTY, label="faulty")
    axes.set(ylabel=label, ylim=(0, None))
