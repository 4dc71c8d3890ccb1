"""Symmetrix-XL: the worker, see `shared.py`. It compiles kernels for a network when it first sees it: minutes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from ase import Atoms
from shared import Task, serve
from symmetrix import Symmetrix


@dataclass
class SymmetrixXL:
    """The network extracted from mace-torch's file."""

    path: Path
    dtype: str
    name: str = "Symmetrix-XL"

    @property
    def version(self) -> str:
        """Of whichever build is installed."""
        found = {
            name: made.version
            for made in distributions()
            if (name := made.metadata["Name"] or "").startswith("symmetrix")
        }
        return ", ".join(f"{name} {number}" for name, number in found.items())

    def calculator(self, atoms: Atoms) -> Symmetrix:
        """With its default options."""
        return Symmetrix(str(self.path), dtype=self.dtype)

    def model_call(self, atoms: Atoms) -> None:
        """The calculator is all that it offers."""


def make(task: Task) -> SymmetrixXL:
    """Extract the network once."""
    path = task.work / f"{task.model.stem}.symmetrix.json"
    if not path.exists():
        tool = Path(sys.executable).with_name("symmetrix_extract_mace")
        subprocess.run([tool, "--model", task.model, "--output", path], check=True)
    return SymmetrixXL(path, task.dtype)


if __name__ == "__main__":
    serve(make)
