"""ase_mlip: the worker, see `shared.py`. The model is its own file, or one that it reads."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from ase import Atoms
from shared import Call, Task, serve

from ase_mlip import ForceField, MLIPCalculator
from ase_mlip.bench.measure import device_call
from ase_mlip.kernels import describe


@dataclass
class Ours:
    """The network from a file."""

    force_field: ForceField
    dtype: str
    name: str = "ase_mlip"

    @property
    def version(self) -> str:
        """What computes."""
        return f"jax {jax.__version__}, {describe(self.force_field.predictor.network)}"

    def calculator(self, atoms: Atoms) -> MLIPCalculator:
        """For any structure."""
        return MLIPCalculator(self.force_field, dtype=self.dtype)

    def model_call(self, atoms: Atoms) -> Call:
        """Energies, forces and stress."""
        call = device_call(atoms.calc, atoms)
        return lambda: jax.block_until_ready(call())


def make(task: Task) -> Ours:
    """From the file."""
    return Ours(ForceField.load(task.model), task.dtype)


if __name__ == "__main__":
    serve(make)
