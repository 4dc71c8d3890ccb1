"""Train with mlip and time its steps: `python mlip_train.py molecules.extxyz --channels 64`.

Run it with the Python of an environment that has mlip 0.2. The step is the one that mlip's `TrainingLoop` makes for
itself, on batches of its own dataset, which are as tight as the frames allow.
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import version

import jax
import numpy as np
import optax
from ase.neighborlist import neighbor_list
from mlip.data.chemical_systems_readers.ase_atoms_reader import ASEAtomsReader
from mlip.data.configs import GraphDatasetBuilderConfig
from mlip.data.dataset_info import DatasetInfo
from mlip.data.single_graph_dataset_builder import SingleGraphDatasetBuilder
from mlip.models import ForceField, Mace
from mlip.models.loss import MSELoss
from mlip.training.ema import exponentially_moving_average
from mlip.training.training_state import init_training_state
from mlip.training.training_step import make_train_step
from shared import CUTOFF, EMA, LEARNING_RATE, Task, cycle, parser, read_task, time_steps


def make_force_field(task: Task) -> ForceField:
    """The network, with random parameters."""
    info = DatasetInfo(
        atomic_energies_map=task.atomic_energies,
        graph_cutoff_angstrom=CUTOFF,
        avg_num_neighbors=task.neighbors,
        scaling_stdev=task.force_scale,
    )
    config = Mace.Config(
        num_channels=task.channels,
        num_layers=2,
        l_max=3,
        node_symmetry=1,
        correlation=3,
        readout_irreps=("16x0e", "0e"),
        num_rbf=8,
        radial_mlp_hidden=[64, 64, 64],
        residual_connection_first_layer=True,
    )
    return ForceField.from_mlip_network(Mace(config, info))


def make_batches(task: Task) -> list:
    """Batches of mlip's own dataset, with room for the frames and for little else."""
    edges = max(len(neighbor_list("i", atoms, CUTOFF)) for atoms in task.frames)
    config = GraphDatasetBuilderConfig(
        graph_cutoff_angstrom=CUTOFF,
        batch_size=task.batch_size,
        max_n_node=max(map(len, task.frames)),
        max_n_edge=-(-edges // 2),  # it counts pairs once
    )
    builder = SingleGraphDatasetBuilder(ASEAtomsReader(task.frames), config, dataset_info=False)
    return list(builder.get_dataset())


def main() -> None:
    """Prepare the batches, then take the steps that `TrainingLoop` takes."""
    task = read_task(parser(__doc__).parse_args())
    force_field, batches = make_force_field(task), cycle(make_batches(task), task.warmup + task.steps)
    optimizer, average = optax.adam(LEARNING_RATE), exponentially_moving_average(EMA)
    state = init_training_state(force_field.params, optimizer, average)
    train_step = make_train_step(
        force_field.predictor, partial(MSELoss(), eval_metrics=False), optimizer, average, task.batch_size
    )

    def step(number: int) -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, batches[number], 1))
        return metrics["loss"]

    time_steps(
        task,
        step,
        [int(np.sum(batch.graph_mask())) for batch in batches],
        package="mlip",
        version=version("mlip"),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(force_field.params)),
        pairs=len(batches[0].senders),
    )


if __name__ == "__main__":
    main()
