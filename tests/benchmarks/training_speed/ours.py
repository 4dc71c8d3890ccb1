"""Train with ase_mlip and time its steps: `python ours.py molecules.extxyz --channels 64`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from shared import CUTOFF, EMA, LEARNING_RATE, cycle, parser, read_task, time_steps

from ase_mlip import DatasetInfo, ForceField, Mace
from ase_mlip.batches import Batches
from ase_mlip.dataset import LabelKeys, make_examples
from ase_mlip.loss import without_reference
from ase_mlip.training import TrainSettings, make_train_step


def main() -> None:
    """Prepare the batches, then take the steps that `ase_mlip.training.train` takes."""
    task = read_task(parser(__doc__).parse_args())
    info = DatasetInfo.create(task.atomic_energies, CUTOFF, task.neighbors, task.force_scale)
    force_field = ForceField.from_mlip_network(Mace(Mace.Config(num_channels=task.channels), info))
    predictor, settings = force_field.predictor, TrainSettings(batch_size=task.batch_size, ema=EMA)
    examples = make_examples(task.frames, force_field.elements, CUTOFF, predictor.head_weights(), LabelKeys())
    # one shape, so that nothing is compiled while the clock runs
    batches = list(Batches(examples, task.batch_size, max_shapes=1).epoch((0,)))
    batches = cycle([without_reference(predictor, batch) for batch in batches], task.warmup + task.steps)
    optimizer = optax.adam(LEARNING_RATE)
    params = jax.tree.map(jnp.asarray, dict(force_field.params))
    train_step = make_train_step(predictor, optimizer, settings)
    variables, average = jax.tree.map(jnp.copy, (params, params))
    state = (variables, average, optimizer.init(variables))

    def step(number: int) -> float:
        nonlocal state
        *state, loss = jax.block_until_ready(train_step(*state, params, *batches[number]))
        return loss

    time_steps(
        task,
        step,
        [int(targets.energy_mask.sum()) for _, targets in batches],
        package="ase_mlip",
        version=f"with jax {jax.__version__}",
        parameters=force_field.num_params,
        pairs=batches[0][0].slot_mask.size,
    )


if __name__ == "__main__":
    main()
