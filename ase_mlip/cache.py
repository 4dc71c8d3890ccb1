"""What is kept on the user's disk between runs: downloads, and what JAX has compiled."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

CPU_FACTS = ("model name", "flags", "Features")


def cache_folder() -> Path:
    """Where things are kept: `$ASE_MLIP_CACHE`, else `ase_mlip` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    if folder := os.environ.get("ASE_MLIP_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ase_mlip"


def keep_compiled() -> None:
    """Let JAX keep what it compiles on disk, so that the next process does not compile it again.

    Whoever has chosen a folder (`JAX_COMPILATION_CACHE_DIR` or `jax.config`) or switched the cache off
    (`JAX_ENABLE_COMPILATION_CACHE=false`) is left alone. Each kind of processor has its own folder: compiled code would
    crash on another one that shares the same home.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    config: Any = jax.config
    if config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache:
        config.update("jax_compilation_cache_dir", str(cache_folder() / f"compiled-{processor()}"))
        compilation_cache.reset_cache()  # else a process that has compiled something would never look


def processor() -> str:
    """A short name for the kind of processor."""
    facts = [platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().splitlines()
        facts += sorted({line for line in lines if line.startswith(CPU_FACTS)})
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
