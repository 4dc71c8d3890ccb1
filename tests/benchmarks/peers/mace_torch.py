"""mace-torch: the worker, see `shared.py`."""

from __future__ import annotations

import os

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # its models are whole pickles

from dataclasses import dataclass
from importlib.metadata import version

import torch
from ase import Atoms
from mace.calculators import MACECalculator
from shared import Call, Task, processors, serve


@dataclass
class MaceTorch:
    """The network from a file."""

    task: Task

    @property
    def name(self) -> str:
        """With what accelerates it."""
        return "mace-torch + cuEquivariance" if self.task.cueq else "mace-torch"

    @property
    def version(self) -> str:
        """Its own and torch's."""
        return f"{version('mace-torch')}, torch {torch.__version__}"

    @property
    def device(self) -> str:
        """The GPU if there is one."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def calculator(self, atoms: Atoms) -> MACECalculator:
        """In eager mode, its default."""
        return MACECalculator(
            model_paths=[str(self.task.model)],
            device=self.device,
            default_dtype=self.task.dtype,
            enable_cueq=self.task.cueq,
        )

    def model_call(self, atoms: Atoms) -> Call:
        """Energies and forces; the batch is copied, because a call leaves gradients in it."""
        (model,), batch = atoms.calc.models, atoms.calc._atoms_to_batch(atoms).to_dict()

        def call() -> None:
            copied = {key: value.clone() if torch.is_tensor(value) else value for key, value in batch.items()}
            model(copied, compute_stress=False, training=False)
            if self.device == "cuda":
                torch.cuda.synchronize()

        return call


def make(task: Task) -> MaceTorch:
    """With all processors."""
    torch.set_num_threads(processors())
    return MaceTorch(task)


if __name__ == "__main__":
    serve(make)
