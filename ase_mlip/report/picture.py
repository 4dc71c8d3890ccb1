"""A model file with its history, learning curve and parity plots beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ase_mlip.evaluate import Errors
from ase_mlip.force_field import ForceField

BEFORE, AFTER = "#b0b0b0", "#1f5fa8"


def write_results(
    path: Path,
    force_field: ForceField,
    history: Sequence[dict[str, Any]],
    errors: Errors,
    before: Errors | None = None,
) -> Path:
    """Save a model, and its history and plots beside it as NAME.history.jsonl and NAME.png.

    Raises:
        OSError: the model does not read back with the same bits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    force_field.save(path)
    loaded = ForceField.load(path)
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), dict(loaded.params), dict(force_field.params))
    if not all(jax.tree.leaves(same)):
        raise OSError(f"{path} does not read back as written; check the disk")
    path.with_suffix(".history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))
    plot_report(path.with_suffix(".png"), history, errors, before)
    return path


def plot_report(path: Path, history: Sequence[dict[str, Any]], errors: Errors, before: Errors | None = None) -> None:
    """Learning curves and parity of energies and forces, as one picture.

    Args:
        path: file to write; the ending says the format.
        history: records of `train`.
        errors: on the validation frames, of the model kept.
        before: on the same frames, of the model the training began with.
    """
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        curves, energy, forces = figure.subplots(1, 3)
        _plot_curves(curves, history)
        _plot_parity(energy, errors.energy, before.energy if before else None, "energy", "meV/atom", relative=True)
        _plot_parity(forces, errors.forces, before.forces if before else None, "forces", "meV/Å", relative=False)
        figure.savefig(path, dpi=150)


def _plot_curves(axes: Axes, history: Sequence[dict[str, Any]]) -> None:
    epochs = [record["epoch"] for record in history]
    for key, title, color in (("forces_mae", "forces, meV/Å", AFTER), ("energy_mae", "energy, meV/atom", "#d1701c")):
        if key in history[0]:
            axes.plot(epochs, [1e3 * record[key] for record in history], label=title, color=color)
    best = min(history, key=lambda record: record["valid_loss"])
    axes.axvline(best["epoch"], color="k", lw=0.8, ls=":", label=f"kept: epoch {best['epoch']}")
    axes.set(yscale="log", xlabel="epoch", ylabel="validation MAE", title="learning curve")
    axes.legend(frameon=False)


def _plot_parity(
    axes: Axes, pairs: np.ndarray, before: np.ndarray | None, name: str, unit: str, relative: bool
) -> None:
    """Prediction against label; energies relative to the mean label, where the differences can be seen."""
    axes.set_title(f"{name}: no labels")
    if not pairs.shape[1]:
        return
    origin = pairs[0].mean() if relative else 0.0
    for values, color, when in ((before, BEFORE, "before"), (pairs, AFTER, "after")):
        if values is not None:
            mae = 1e3 * np.mean(np.abs(values[1] - values[0]))
            shown = (values - origin) * (1e3 if relative else 1.0)
            axes.plot(*shown, ".", ms=3, color=color, label=f"{when}: MAE {mae:.2f} {unit}", rasterized=True)
    low, high = (pairs[0].min() - origin), (pairs[0].max() - origin)
    ends = np.array([low, high]) * (1e3 if relative else 1.0)
    axes.plot(ends, ends, "k-", lw=0.8)
    axes.set(title=name, xlabel="label" + (", meV/atom from mean" if relative else ", eV/Å"), ylabel="prediction")
    axes.legend(frameon=False)
