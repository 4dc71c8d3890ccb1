"""Train with mace-torch and time its steps: `python mace_torch.py molecules.extxyz --channels 64`.

Run it with the Python of an environment that has mace-torch. The step is mace-torch's own `take_step` on batches of its
own loader, in eager mode as its trainer runs it, with as many threads as there are processors.
"""

from __future__ import annotations

import os

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn's constants, which torch refuses otherwise

import sys
from importlib.metadata import version
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch
from mace import data, modules, tools
from mace.tools.train import take_step
from mace_torch_network import build_network
from shared import CUTOFF, EMA, LEARNING_RATE, Task, parser, processors, read_task, time_steps
from torch_ema import ExponentialMovingAverage


def make_model(task: Task) -> torch.nn.Module:
    """The network, with random parameters."""
    return build_network(task.channels, 1, CUTOFF, task.atomic_energies, task.neighbors, task.force_scale)


def make_batches(task: Task) -> list:
    """A batch for each step; none is used twice, because a step leaves gradients in it."""
    table = tools.AtomicNumberTable(task.elements)
    keys = data.KeySpecification(info_keys={"energy": "label_energy"}, arrays_keys={"forces": "label_forces"})
    graphs = []
    for atoms in task.frames:
        atoms.info["label_energy"], atoms.arrays["label_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        configuration = data.config_from_atoms(atoms, key_specification=keys)
        graphs.append(data.AtomicData.from_config(configuration, z_table=table, cutoff=CUTOFF))
    loader = tools.torch_geometric.dataloader.DataLoader(graphs, task.batch_size, shuffle=True, drop_last=False)
    batches: list = []
    while len(batches) < task.warmup + task.steps:
        batches.extend(loader)
    return batches[: task.warmup + task.steps]


def main() -> None:
    """Prepare the batches, then take the steps that `mace_run_train` takes."""
    task = read_task(parser(__doc__).parse_args())
    torch.manual_seed(0)
    torch.set_num_threads(processors())
    torch.set_default_dtype(torch.float32)
    model, batches = make_model(task), make_batches(task)
    loss_function = modules.WeightedEnergyForcesLoss(energy_weight=1.0, forces_weight=100.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    average = ExponentialMovingAverage(model.parameters(), decay=EMA)
    wanted = {"forces": True, "virials": False, "stress": False}

    def step(number: int) -> float:
        loss, _ = take_step(
            model, loss_function, batches[number], optimizer, average, wanted, None, torch.device("cpu")
        )
        return loss.detach()

    time_steps(
        task,
        step,
        [batch.num_graphs for batch in batches],
        package="mace-torch",
        version=version("mace-torch"),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        pairs=batches[0].edge_index.shape[1],
    )


if __name__ == "__main__":
    main()
