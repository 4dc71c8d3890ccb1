"""Which kernels run on this machine, for which networks."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import jax

from ase_mlip.kernels import build

OLDEST_GPU = 8.0  # compute capability that Triton needs
LONGEST_ON_GPU = 3  # correlation order


def on_gpu() -> bool:
    """Whether XLA compiles for a GPU."""
    return jax.default_backend() == "gpu"


def usable(channels: int, correlation: int = 1, tabulated: bool = False) -> bool:
    """Whether kernels run here for a network.

    Args:
        channels: width of the features.
        correlation: order of the symmetric contraction.
        tabulated: with tabulated radial weights in float32, for predictions; otherwise for training too.
    """
    if channels % build.VECTOR:
        return False
    if on_gpu():
        return tabulated and correlation <= LONGEST_ON_GPU and gpu_problem() is None
    return build.problem() is None


def describe(network: Any = None) -> str:
    """Which path runs the hot loops of a network on this machine (of any, if None), one line."""
    reason, covers = (gpu_problem(), "has_tables") if on_gpu() else (build.problem(), "has_kernels")
    if reason is None and network is not None and not getattr(network, covers, False):
        reason = "the kernels do not cover this architecture or shape"
    if reason:
        return f"plain JAX: {reason}"
    if on_gpu():
        return f"Pallas kernels on {jax.devices()[0].device_kind} (float32 predictions; else plain JAX)"
    return f"C++ kernels compiled here by {build.compiler_name()}"


@cache
def gpu_problem() -> str | None:
    """Why the kernels cannot run on this GPU, or None if they can."""
    if os.environ.get(build.SWITCH, "on") == "off":
        return f"switched off by {build.SWITCH}=off"
    device = jax.devices()[0]
    try:
        capability = float(device.compute_capability)
    except (AttributeError, ValueError):
        return f"the kernels were written for NVIDIA, and this is {device.device_kind}"
    return None if capability >= OLDEST_GPU else f"compute capability {capability}; the kernels need {OLDEST_GPU}"


def pick_sum() -> Callable[..., jax.Array]:
    """`neighbor_sum.sum_tabulated` for this device."""
    if on_gpu():
        from ase_mlip.kernels.gpu_neighbor_sum import sum_tabulated as pallas  # slow to import

        return pallas
    from ase_mlip.kernels.neighbor_sum import sum_tabulated

    return sum_tabulated


def pick_contraction() -> Callable[..., jax.Array]:
    """`contraction.contract` for this device."""
    if on_gpu():
        from ase_mlip.kernels.gpu_contraction import contract as pallas

        return pallas
    from ase_mlip.kernels.contraction import contract

    return contract
