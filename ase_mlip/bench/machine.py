"""The machine that a benchmark runs on: what it is, how fast it can be, and how much memory was used."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ase_mlip.force_field import precision
from ase_mlip.report.content import package_versions

PACKAGES = ("ase-mlip", "jax", "jaxlib", "numpy", "ase", "matscipy")
PEAK_ROUNDS = 10


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches at best, measured.

    Attributes:
        operations_per_s: of a product of large matrices, full precision.
        bytes_per_s: read and written by a pass over a large array.
    """

    operations_per_s: float
    bytes_per_s: float


def measure_peaks(dtype: str = "float32", size: int | None = None, megabytes: int | None = None) -> Peaks:
    """Time a compiled matrix product and a pass over a large array; the best of a few rounds counts.

    Args:
        dtype: "float32" or "float64".
        size: rows of the square matrices; by default what takes the device a tenth of a second or less.
        megabytes: size of the array; by default more than any cache holds.
    """
    small = jax.default_backend() == "cpu"
    size, megabytes = size or (2048 if small else 8192), megabytes or (256 if small else 2048)
    with precision(dtype):
        matrix = jnp.full((size, size), 0.5, dtype)
        product = jax.jit(lambda x: jnp.matmul(x, x, precision="highest"))  # no shortened numbers on a GPU
        array = jnp.zeros(megabytes * 2**20 // matrix.itemsize, dtype)
        in_place = jax.jit(lambda x: x + 1, donate_argnums=0)  # new memory would be slow for other reasons
        moved = 2.0 * array.nbytes
        operations = 2.0 * size**3 / _shortest(lambda _: product(matrix), matrix)
        return Peaks(operations, moved / _shortest(in_place, array))


def _shortest(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The shortest time of a few runs, each on the result of the one before, seconds; the first one compiles."""
    times = []
    for _ in range(1 + PEAK_ROUNDS):
        started = time.perf_counter()
        x = function(x).block_until_ready()
        times.append(time.perf_counter() - started)
    return min(times[1:])


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, device and how busy the machine is."""
    device = jax.devices()[0]
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": device.platform,
        "device": device.device_kind,
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
    }


def cpu_name() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of what decides the speed; what is not installed as a package is left out."""
    return {"python": platform.python_version(), **package_versions(PACKAGES)}


def reset_host_peak() -> None:
    """Forget the peak so far, where the system can: Linux, for a process of one's own."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def host_peak() -> int:
    """Most memory that this process has held since the last reset, bytes; since its start where it cannot be reset."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_peak() -> int | None:
    """Most memory of the device in use since the start, bytes; None where the device does not say, as CPUs do not."""
    stats = jax.devices()[0].memory_stats()
    return None if stats is None else stats.get("peak_bytes_in_use")
