"""Neighbours of all atoms, in C++."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from ase_mlip.kernels.build import compile_library, failure

NAME = "neighbor_list"
SPARE = 1.3  # room for more neighbours than a uniform density gives


@cache
def available() -> bool:
    """Whether it can be compiled here; compiles it where that has not been done yet."""
    return failure(_function) is None


def list_neighbors(
    positions: np.ndarray, wrap: np.ndarray, box: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense table of all neighbours closer than `cutoff`.

    Args:
        positions: [nodes, 3] within the box, whose corner is the origin, Angstrom.
        wrap: [nodes, 3] whole box vectors that were taken off to put them there; any number that a float64 holds.
        box: [3, 3] rows are vectors that span space.
        pbc: [3] along which of them it is periodic.
        cutoff: Angstrom.

    Returns:
        neighbors [nodes, slots], whose unused slots hold the row's own number, shifts [nodes, slots, 3] in whole box
        vectors between the positions before they were wrapped, and the number of neighbours [nodes].
    """
    nodes = len(positions)
    inputs: list[np.ndarray] = [
        np.ascontiguousarray(np.linalg.solve(box.T, positions.T).T),
        np.ascontiguousarray(positions, float),
        np.ascontiguousarray(wrap, float),
        np.ascontiguousarray(box, float),
        np.ascontiguousarray(pbc, np.uint8),
    ]
    density = nodes / abs(np.linalg.det(box))
    slots = min(int(SPARE * density * 4.19 * cutoff**3), nodes * 27) + 8
    while True:
        tables: list[np.ndarray] = [
            np.empty((nodes, slots), np.int32),
            np.empty((nodes, slots, 3)),
            np.empty(nodes, np.int32),
        ]
        arguments = [array.ctypes.data_as(ctypes.c_void_p) for array in (*inputs, *tables)]
        found = _function()(nodes, *arguments[:5], cutoff, slots, *arguments[5:])
        if found <= slots:
            return tables[0][:, :found], tables[1][:, :found], tables[2]
        slots = int(found)


@cache
def _function() -> Any:
    function = ctypes.CDLL(str(compile_library(NAME, "float64"))).ase_mlip_neighbor_list
    function.restype = ctypes.c_int64
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [count, *[pointer] * 5, ctypes.c_double, count, *[pointer] * 3]
    return function
