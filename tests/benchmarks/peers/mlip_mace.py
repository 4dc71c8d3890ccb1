"""mlip: the worker, see `shared.py`.

It cannot read mace-torch's files: it has a network of the same shape with random weights of its own, written to the
work folder as `mlip.zip`, so that others can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version

import jax
from ase import Atoms
from mlip.data.dataset_info import DatasetInfo
from mlip.models import ForceField, Mace
from mlip.models.model_io import save_model_to_zip
from mlip.simulation.ase.mlip_ase_calculator import MLIPForceFieldASECalculator
from shared import CUTOFF, ENERGIES, NEIGHBORS, Call, Task, serve

SPARE = 1.2  # edges that the padded graph has room for, as a multiple of those it starts with


@dataclass
class Mlip:
    """The network with random weights."""

    force_field: ForceField
    name: str = "mlip"

    @property
    def version(self) -> str:
        """Its own and JAX's."""
        return f"{version('mlip')}, jax {jax.__version__}"

    def calculator(self, atoms: Atoms) -> MLIPForceFieldASECalculator:
        """For this structure."""
        return MLIPForceFieldASECalculator(atoms, SPARE, self.force_field)

    def model_call(self, atoms: Atoms) -> Call:
        """Energies and forces."""
        graph, function = atoms.calc._prepare_graph(atoms), atoms.calc.model_apply_fun
        return lambda: jax.block_until_ready(function(graph))


def make(task: Task) -> Mlip:
    """Draw the weights, and keep them."""
    if task.dtype != "float32":
        raise SystemExit("mlip is timed in float32 alone")
    info = DatasetInfo(atomic_energies_map=ENERGIES, graph_cutoff_angstrom=CUTOFF, avg_num_neighbors=NEIGHBORS)
    config = Mace.Config(
        num_channels=task.channels,
        num_layers=2,
        l_max=3,
        node_symmetry=task.hidden_l_max,
        correlation=3,
        readout_irreps=("16x0e", "0e"),
        num_rbf=8,
        radial_mlp_hidden=[64, 64, 64],
        residual_connection_first_layer=True,
    )
    force_field = ForceField.from_mlip_network(Mace(config, info))
    save_model_to_zip(task.work / "mlip.zip", force_field)
    return Mlip(force_field)


if __name__ == "__main__":
    serve(make)
