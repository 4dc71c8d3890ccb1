"""nequix: the worker, see `shared.py`. The model is a published file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ase import Atoms
from nequix.calculator import NequixCalculator
from shared import Task, serve


@dataclass
class NequixJax:
    """The network from its file."""

    path: Path
    name: str = "nequix"

    @property
    def version(self) -> str:
        """With the library that computes."""
        return f"nequix {version('nequix')}, jax {version('jax')}"

    def calculator(self, atoms: Atoms) -> NequixCalculator:
        """With its JAX backend; its kernels are for GPUs."""
        return NequixCalculator(model_path=str(self.path), backend="jax", use_kernel=False)

    def model_call(self, atoms: Atoms) -> None:
        """The calculator is all that it offers."""


def make(task: Task) -> NequixJax:
    """From the file; it computes in float32."""
    return NequixJax(task.model)


if __name__ == "__main__":
    serve(make)
