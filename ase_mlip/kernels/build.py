"""Compile the kernels on first use, and hand them to XLA."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ase_mlip.cache import cache_folder, processor

SWITCH = "ASE_MLIP_KERNELS"
KERNELS = ("neighbor_sum", "contraction")
REALS = {"float32": "float", "float64": "double"}
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, KEPT_BYTES = -1, -3, 2**30  # of glibc's mallopt
VECTOR = 16  # channels: a multiple of the widest vector, 64 bytes of float32


@cache
def problem() -> str | None:
    """Why the kernels cannot run here, or None if they can; compiles them where that has not been done yet."""
    if jax.default_backend() != "cpu":
        return f"XLA compiles for the {jax.default_backend()}"
    return failure(lambda: load("float32"))


def failure(build: Callable[[], Any]) -> str | None:
    """Why something cannot be compiled and loaded here, or None once it is."""
    if os.environ.get(SWITCH, "on") == "off":
        return f"switched off by {SWITCH}=off"
    if _find_compiler() is None:
        return "no C++ compiler was found: install g++ or clang++, or `pip install ziglang`, or name one in CXX"
    try:
        build()
    except (OSError, subprocess.SubprocessError) as error:
        output = (getattr(error, "stderr", None) or str(error)).strip()
        return f"{compiler_name()} could not compile them: {output.splitlines()[-1] if output else error!r}"
    return None


def call(
    kernel: str, dtype: np.dtype, shapes: Sequence[tuple[int, ...]], arrays: Sequence[Any], **constants: Any
) -> list[jax.Array]:
    """Results of a kernel, which is compiled and loaded if need be.

    Args:
        kernel: one of `KERNELS`.
        dtype: of the results.
        shapes: of the results.
        arrays: the kernel's arguments.
        constants: its attributes, NumPy numbers and arrays.
    """
    load(dtype.name)
    out = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return list(jax.ffi.ffi_call(_target(kernel, dtype.name), out, vmap_method="sequential")(*arrays, **constants))


def _target(kernel: str, dtype: str) -> str:
    """Name under which XLA knows a kernel."""
    return f"ase_mlip_{kernel}_{dtype}"


@cache
def _find_compiler() -> tuple[str, ...] | None:
    """The command of a C++ compiler: the user's choice, the system's, or that of the package ziglang."""
    if chosen := os.environ.get("CXX"):
        return tuple(shlex.split(chosen))
    found = next((path for path in map(shutil.which, ("c++", "g++", "clang++")) if path), None)
    if found is None and find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "c++")
    return None if found is None else (found,)


def compiler_name() -> str:
    """The command of the compiler in use."""
    return " ".join(_find_compiler() or ())


@cache
def load(dtype: str) -> None:
    """Compile what is missing for one precision, load it, and register it with XLA.

    Raises:
        OSError, subprocess.SubprocessError: it did not work.
    """
    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(lambda kernel: compile_library(kernel, dtype), KERNELS))
    _keep_memory()
    for kernel, path in zip(KERNELS, paths, strict=True):
        handler = getattr(ctypes.CDLL(str(path)), f"ase_mlip_{kernel}")
        jax.ffi.register_ffi_target(_target(kernel, dtype), jax.ffi.pycapsule(handler), platform="cpu")


@cache
def _folder(compiler: tuple[str, ...]) -> Path:
    """Where what this compiler makes of these sources for this processor is kept."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    here = Path(__file__).parent
    sources = [path.read_bytes() for path in sorted(here.glob("*.cc")) + sorted(here.glob("*.h"))]
    facts = [version, jax.__version__, processor(), *FLAGS]
    key = hashlib.sha256(b"\0".join([*sources, *(fact.encode() for fact in facts)])).hexdigest()[:16]
    return cache_folder() / f"kernels-{key}"


def compile_library(kernel: str, dtype: str) -> Path:
    """Path of a source's library, compiled if it is not there.

    Raises:
        OSError, subprocess.SubprocessError: it did not work.
    """
    compiler = _find_compiler()
    if compiler is None:
        raise OSError("no C++ compiler")
    folder = _folder(compiler)
    path = folder / f"{kernel}_{dtype}.so"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    native = "-mcpu=native" if platform.machine() == "arm64" else "-march=native"
    source = Path(__file__).with_name(f"{kernel}.cc")
    with tempfile.TemporaryDirectory(dir=folder) as work:  # the library appears whole, whoever else compiles it now
        part = Path(work) / path.name
        options = [native, *FLAGS, f"-DASE_MLIP_REAL={REALS[dtype]}", "-isystem", jax.ffi.include_dir()]
        command = [*compiler, *options, str(source), "-o", str(part)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
        os.replace(part, path)
    return path


def _keep_memory() -> None:
    """Let glibc keep large blocks of memory that are freed.

    XLA asks malloc for its working memory at each call. By default glibc gives large blocks back to the system at once,
    and every call pays again for having all pages zeroed: a quarter of a training step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is not None:
        for option, value in ((M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES)):
            mallopt(option, value)
