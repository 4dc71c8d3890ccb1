"""Statistics that a few wrong values do not move."""

from __future__ import annotations

import numpy as np

OUTLIER = 20.0  # robust standard deviations; real sets have heavy tails, their spread must not fill the list


def robust_fit(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Coefficients of least absolute deviations, by reweighted least squares; of minimum norm where undetermined.

    Args:
        rows: [values, coefficients].
        values: [values].
    """
    weights, fitted = np.ones(len(values)), np.full(len(values), np.inf)
    for _ in range(60):  # one value that is off by 1e30 takes 20 steps, decent data ten
        # normal equations: a hundred thousand rows cost little, and the columns are counts of atoms
        weighted = rows.T * weights
        solution = np.linalg.lstsq(weighted @ rows, weighted @ values, rcond=1e-12)[0]
        previous, fitted = fitted, rows @ solution
        size = np.abs(values - fitted)
        least = 1e-3 * float(np.median(size)) + 1e-12
        if np.abs(fitted - previous).max(initial=0.0) < 10 * least:
            break
        weights = 1 / np.maximum(size, least)
    return solution


def outlying(values: np.ndarray, least: float, sign: int | None = None) -> np.ndarray:
    """Which values are far from their median, on both sides or above it alone."""
    away = values - np.median(values)
    limit = OUTLIER * max(1.4826 * float(np.median(np.abs(away))), least)
    return away > limit if sign else np.abs(away) > limit
