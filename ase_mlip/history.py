"""The record of a training's evaluations: the best of them, and what is printed of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ase_mlip.evaluate import Errors


def best_record(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation with the lowest validation loss; the first of equals."""
    return min(history, key=lambda record: record["valid_loss"])


def progress_line(
    record: dict[str, Any], history: Sequence[dict[str, Any]], epochs: int, seconds: float, done: int
) -> str:
    """Errors in meV and the time left, one line.

    Args:
        record: the evaluation.
        history: all so far, this one included.
        epochs: of the whole training.
        seconds: since the process began.
        done: epochs since then.
    """
    left = seconds / done * (epochs - record["epoch"]) if done else float("nan")
    errors = "  ".join(
        f"{title} {1e3 * record[key]:8.2f} {unit}" for key, (title, unit) in Errors.SHOWN.items() if key in record
    )
    star = "*" if record is best_record(history) else " "
    eta = "" if np.isnan(left) else f"  {left / 60:.1f} min left"
    return f"epoch {record['epoch']:4d}/{epochs}{star} {errors}{eta}"
