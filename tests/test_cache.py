"""What is kept on disk between processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import jax, jax.numpy as jnp
jnp.ones(3).block_until_ready()  # a process that has compiled something already
{own}
from ase_mlip.cache import keep_compiled
keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))(jnp.ones(7)).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


def run(folder: Path, own: str = "") -> str:
    """A process with its own cache folder; returns where it keeps what it compiles."""
    environment = {**os.environ, "ASE_MLIP_CACHE": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(own=own)], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_compiled_code_is_kept_and_found_again(tmp_path: Path) -> None:
    folder = Path(run(tmp_path))
    assert folder.parent == tmp_path
    files = {path.name for path in folder.iterdir() if path.name.endswith("-cache")}
    assert files
    assert Path(run(tmp_path)) == folder
    assert {path.name for path in folder.iterdir() if path.name.endswith("-cache")} == files


def test_the_users_own_choice_stands(tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert run(tmp_path / "ours", f"jax.config.update('jax_compilation_cache_dir', {str(own)!r})") == str(own)
    assert run(tmp_path / "ours", "jax.config.update('jax_enable_compilation_cache', False)") == "None"
    assert not (tmp_path / "ours").exists()
