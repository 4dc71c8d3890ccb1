"""The training loop: from scratch and fine-tuning take the same road."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from ase_mlip.batches import Batches
from ase_mlip.dataset import Example, Targets
from ase_mlip.evaluate import Errors, LossWeights, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph
from ase_mlip.predictor import Params, Predictor

Log = Callable[[str], None]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        epochs: passes over the training set.
        batch_size: graphs in a batch.
        ema: decay of the moving average of the parameters, which is what is evaluated and kept.
        loss: weights of energy, forces and stress.
        eval_every: epochs between evaluations (and checkpoints).
        max_shapes: pad shapes, at most; each costs a compilation.
        seed: order of the data.
    """

    epochs: int = 100
    batch_size: int = 8
    ema: float = 0.99
    loss: LossWeights = field(default_factory=LossWeights)
    eval_every: int = 1
    max_shapes: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_every", "max_shapes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        if self.epochs < 0:
            raise ValueError(f"epochs={self.epochs}: give zero or a positive number")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: give a decay from 0 (no averaging) to below 1")


@dataclass(frozen=True)
class TrainResult:
    """A trained force field and how it came about.

    Attributes:
        force_field: the parameters of the best evaluation on the validation set, step 0 included.
        history: one record per evaluation.
        best: the record of the best one.
    """

    force_field: ForceField
    history: list[dict[str, Any]]
    best: dict[str, Any]


@dataclass
class _State:
    """Everything that resuming needs, besides the data and the settings."""

    params: Params
    average: Params
    best_params: Params
    optimizer_state: Any
    epoch: int = 0
    step: int = 0


def loss_function(
    params: Params, predictor: Predictor, graph: Graph, targets: Targets, weights: LossWeights
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted mean of squared errors over the labels that are present.

    Args:
        targets: energies without the reference energies E0.

    Returns:
        The loss, and its unweighted parts by label.
    """
    prediction = predictor.interaction(params, graph)
    ones = jnp.ones_like(prediction.node_energies)
    counts = jnp.maximum(jax.ops.segment_sum(ones, graph.node_graph, graph.num_graphs), 1)
    node_weight = jnp.asarray(targets.weight).at[graph.node_graph].get(mode="fill", fill_value=0.0)

    def squares(error: jax.Array) -> jax.Array:
        """Twice Huber's function, averaged over the components."""
        inside = jnp.minimum(jnp.abs(error), weights.huber_delta)
        huber = inside * (2 * jnp.abs(error) - inside)
        return jnp.mean(huber.reshape(len(error), -1), axis=1)

    def mean(values: jax.Array, mask: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(mask, weight * values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)

    energy = squares((prediction.energy - targets.energy) / counts)
    parts = {
        "energy": mean(energy, targets.energy_mask, targets.weight),
        "forces": mean(squares(prediction.forces - targets.forces), targets.forces_mask, node_weight),
        "stress": mean(squares(prediction.stress - targets.stress), targets.stress_mask, targets.weight),
    }
    return sum(getattr(weights, name) * parts[name] for name in weights.wanted), parts


def make_train_step(
    predictor: Predictor, optimizer: optax.GradientTransformation, settings: TrainSettings
) -> Callable[..., tuple[Params, Params, Any, jax.Array]]:
    """One compiled step: (params, average, optimizer_state, graph, targets) -> the same three and the loss."""

    def step(
        params: Params, average: Params, optimizer_state: Any, graph: Graph, targets: Targets
    ) -> tuple[Params, Params, Any, jax.Array]:
        gradient_function = jax.value_and_grad(loss_function, has_aux=True)
        (loss, _), gradient = gradient_function(params, predictor, graph, targets, settings.loss)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        # in this form the average of a parameter that never moves keeps its bits
        average = jax.tree.map(lambda old, new: old + (1 - settings.ema) * (new - old), average, params)
        return params, average, optimizer_state, loss

    return jax.jit(step, donate_argnums=(0, 1, 2))


def without_reference(predictor: Predictor, example: Example) -> tuple[Graph, Targets]:
    """The batch in float32 with the reference energies taken off its labels, in float64 beforehand."""
    graph, targets = example.graph, example.targets
    reference = np.zeros(graph.num_graphs + 1)
    np.add.at(reference, graph.node_graph, predictor.reference(graph))
    energy = np.where(targets.energy_mask, targets.energy - reference[: graph.num_graphs], 0.0)
    arrays = {**targets.__dict__, "energy": energy}
    cast = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in arrays.items()}
    return graph.astype("float32"), Targets(**cast)


def train(
    force_field: ForceField,
    examples: Sequence[Example],
    valid: Sequence[Example],
    optimizer: optax.GradientTransformation,
    settings: TrainSettings,
    *,
    folder: Path | None = None,
    log: Log = print,
) -> TrainResult:
    """Train a force field and keep the best parameters by validation loss.

    Interrupted with a `folder`, the same call goes on from the last evaluation and gives the same result as if it had
    never stopped.

    Args:
        force_field: start of the training.
        examples: training set; energies in total eV.
        valid: validation set.
        optimizer: any optax transformation.
        folder: where checkpoints and `history.jsonl` go; nothing is written if None.
        log: called with one line for each evaluation.
    """
    predictor = force_field.predictor
    batches, valid_batches = (Batches(e, settings.batch_size, settings.max_shapes) for e in (examples, valid))
    params = jax.tree.map(jnp.array, dict(force_field.params))  # a copy: the steps consume what they are given
    copy = jax.tree.map(jnp.copy, (params, params))
    state = _State(params, copy[0], copy[1], optimizer.init(params))
    history: list[dict[str, Any]] = []
    checkpoints = _Checkpoints(folder) if folder else None
    if checkpoints and (saved := checkpoints.restore(state)):
        state, history = saved
        log(f"resuming after epoch {state.epoch} from {folder}")
    step_function = make_train_step(predictor, optimizer, settings)
    started, first_epoch = time.monotonic(), state.epoch

    def assess(train_loss: float | None) -> None:
        errors = evaluate(ForceField(predictor, state.average), valid_batches)
        record = {"epoch": state.epoch, "step": state.step, "train_loss": train_loss, **errors.summary()}
        record["valid_loss"] = errors.loss(settings.loss)
        history.append(record)
        if record is best_record(history):
            state.best_params = jax.tree.map(jnp.copy, state.average)
        log(_progress_line(record, history, settings, time.monotonic() - started, state.epoch - first_epoch))
        if checkpoints:
            checkpoints.save(state, history)

    if not history:
        assess(None)
    while state.epoch < settings.epochs:
        losses = []
        for example in batches.epoch((settings.seed, state.epoch)):
            graph, targets = without_reference(predictor, example)
            state.params, state.average, state.optimizer_state, loss = step_function(
                state.params, state.average, state.optimizer_state, graph, targets
            )
            losses.append(loss)
            state.step += 1
        state.epoch += 1
        train_loss = float(np.mean(jax.device_get(losses)))
        if not np.isfinite(train_loss):
            raise FloatingPointError(f"the loss became {train_loss} in epoch {state.epoch}; lower the learning rate")
        if state.epoch % settings.eval_every == 0 or state.epoch == settings.epochs:
            assess(train_loss)
    best = ForceField(predictor, jax.tree.map(np.asarray, state.best_params), force_field.provenance)
    return TrainResult(best, history, best_record(history))


def best_record(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The evaluation with the lowest validation loss; the first of equals."""
    return min(history, key=lambda record: record["valid_loss"])


def _progress_line(
    record: dict[str, Any], history: list[dict[str, Any]], settings: TrainSettings, seconds: float, epochs: int
) -> str:
    """Errors in meV and the time left, one line."""
    left = seconds / epochs * (settings.epochs - record["epoch"]) if epochs else float("nan")
    errors = "  ".join(
        f"{title} {1e3 * record[key]:8.2f} {unit}" for key, (title, unit) in Errors.SHOWN.items() if key in record
    )
    star = "*" if record is best_record(history) else " "
    eta = "" if np.isnan(left) else f"  {left / 60:.1f} min left"
    return f"epoch {record['epoch']:4d}/{settings.epochs}{star} {errors}{eta}"


class _Checkpoints:
    """Orbax checkpoints of the last evaluations, the history beside them as JSON lines."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        self.history_file = folder / "history.jsonl"
        self.manager = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)

    def save(self, state: _State, history: list[dict[str, Any]]) -> None:
        """Write a checkpoint; a run killed meanwhile still has the one before."""
        arrays = {k: v for k, v in state.__dict__.items() if k not in ("epoch", "step")}
        self.manager.save(
            state.epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays),
                counters=ocp.args.JsonSave({"epoch": state.epoch, "step": state.step, "history": history}),
            ),
        )
        self.manager.wait_until_finished()
        self.history_file.write_text("".join(json.dumps(record) + "\n" for record in history))

    def restore(self, like: _State) -> tuple[_State, list[dict[str, Any]]] | None:
        """The latest checkpoint, or None."""
        latest = self.manager.latest_step()
        if latest is None:
            return None
        template = {k: v for k, v in like.__dict__.items() if k not in ("epoch", "step")}
        saved = self.manager.restore(
            latest,
            args=ocp.args.Composite(arrays=ocp.args.StandardRestore(template), counters=ocp.args.JsonRestore()),
        )
        counters = saved["counters"]
        state = _State(**saved["arrays"], epoch=counters["epoch"], step=counters["step"])
        return state, counters["history"]
