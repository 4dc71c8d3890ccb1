"""The training loop: from scratch and fine-tuning take the same road."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ase_mlip.batches import Batches, prefetch
from ase_mlip.checkpoints import Checkpoints, fingerprint
from ase_mlip.dataset import Example, Targets
from ase_mlip.evaluate import LossWeights, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph
from ase_mlip.history import best_record, progress_line
from ase_mlip.loss import loss_function, without_reference
from ase_mlip.predictor import Params, Predictor
from ase_mlip.tuning import TrainAll, Tuning, Variables

Log = Callable[[str], None]


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        epochs: passes over the training set.
        batch_size: graphs in a batch.
        ema: decay of the moving average of the variables, which is what is evaluated and kept.
        loss: weights of energy, forces and stress.
        eval_every: epochs between evaluations (and checkpoints).
        max_shapes: pad shapes, at most; each costs a compilation.
        seed: order of the data.
        patience: evaluations without a new best after which the training ends; None trains all epochs.
        max_minutes: wall time after which the training ends at the next batch; None has no limit.
        matmul_precision: of the network's matrix products in the steps, "float32" or "tensorfloat32"; evaluations are
            float32 proper.
    """

    epochs: int = 100
    batch_size: int = 8
    ema: float = 0.99
    loss: LossWeights = field(default_factory=LossWeights)
    eval_every: int = 1
    max_shapes: int = 4
    seed: int = 0
    patience: int | None = None
    max_minutes: float | None = None
    matmul_precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_every", "max_shapes", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: give a whole number of at least 1")
        if self.epochs < 0:
            raise ValueError(f"epochs={self.epochs}: give zero or a positive number")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: give a decay from 0 (no averaging) to below 1")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes={self.max_minutes}: give a positive number")

    def identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed: everything but how long it lasts."""
        return {k: v for k, v in asdict(self).items() if k not in ("epochs", "patience", "max_minutes")}


@dataclass(frozen=True)
class Validation:
    """Frames that one level is watched on.

    Attributes:
        level: name of the level, for people; the head weights are in the examples.
        examples: the frames.
        weight: what the level counts in the loss that decides which evaluation is kept; 0 only reports it.
    """

    level: str
    examples: Sequence[Example]
    weight: float = 1.0


@dataclass(frozen=True)
class TrainResult:
    """A trained force field and how it came about.

    Attributes:
        force_field: the parameters of the best evaluation on the validation set, step 0 included.
        history: one record per evaluation.
        best: the record of the best one.
        compilations: of the training step: one for each pad shape.
    """

    force_field: ForceField
    history: list[dict[str, Any]]
    best: dict[str, Any]
    compilations: int = 0


@dataclass
class _State:
    """Everything that resuming needs, besides the data and the settings."""

    variables: Variables
    average: Variables
    best: Variables
    optimizer_state: Any
    epoch: int = 0
    step: int = 0

    def arrays(self) -> dict[str, Any]:
        """All but the counters."""
        return {name: value for name, value in vars(self).items() if name not in ("epoch", "step")}


def make_train_step(
    predictor: Predictor,
    optimizer: optax.GradientTransformation,
    settings: TrainSettings,
    tuning: Tuning | None = None,
) -> Callable[..., tuple[Variables, Variables, Any, jax.Array]]:
    """One compiled step: (variables, average, optimizer_state, params, graph, targets) -> the first three and the loss.

    Only the variables are differentiated, so that a step costs no more than what trains.
    """
    tuning, optimizer = tuning or TrainAll(), optax.with_extra_args_support(optimizer)

    def loss(variables: Variables, params: Params, graph: Graph, targets: Targets) -> jax.Array:
        merged = tuning.merge(params, variables)
        return loss_function(merged, predictor, graph, targets, settings.loss, settings.matmul_precision)[0]

    def step(
        variables: Variables, average: Variables, optimizer_state: Any, params: Params, graph: Graph, targets: Targets
    ) -> tuple[Variables, Variables, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(variables, params, graph, targets)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, variables, value=value)
        variables = optax.apply_updates(variables, updates)
        # in this form the average of a variable that never moves keeps its bits
        average = jax.tree.map(lambda old, new: old + (1 - settings.ema) * (new - old), average, variables)
        return variables, average, optimizer_state, value

    return jax.jit(step, donate_argnums=(0, 1, 2))


def train(
    force_field: ForceField,
    examples: Sequence[Example],
    valid: Sequence[Validation],
    optimizer: optax.GradientTransformation,
    settings: TrainSettings,
    *,
    tuning: Tuning | None = None,
    folder: Path | None = None,
    identity: str = "",
    log: Log = print,
) -> TrainResult:
    """Train a force field and keep the best parameters by validation loss, summed over the levels.

    Interrupted with a `folder`, the same call goes on from the last evaluation and gives the same result as if it had
    never stopped. Ctrl-C ends the training as if its time were over: the best evaluation so far is returned.

    Args:
        force_field: start of the training.
        examples: training set; energies in total eV.
        valid: validation sets, the level that matters most first.
        optimizer: any optax transformation.
        tuning: what moves; every parameter if None.
        folder: where checkpoints and `history.jsonl` go; nothing is written if None.
        identity: whatever else must be the same when the run is resumed.
        log: called with one line for each evaluation.

    Raises:
        FloatingPointError: the loss is no longer finite.
        ValueError: the folder holds another run, or a precision that this device does not have.
    """
    if settings.matmul_precision != "float32" and jax.default_backend() == "cpu":
        raise ValueError(
            f"matmul_precision={settings.matmul_precision!r} has no effect on a CPU, which multiplies in float32; "
            "leave it out, or train on a GPU"
        )
    run = _Run(force_field, examples, valid, optimizer, settings, tuning or TrainAll(), log)
    if folder:
        run.open(folder, identity)
    if not run.history:
        run.assess(None)
    try:
        while run.state.epoch < settings.epochs and not run.stalled():
            train_loss = run.epoch()
            if run.state.epoch % settings.eval_every == 0 or run.state.epoch == settings.epochs:
                run.assess(train_loss)
    except (KeyboardInterrupt, _TimeIsOver) as reason:
        why = "interrupted" if isinstance(reason, KeyboardInterrupt) else f"{settings.max_minutes:g} minutes are over"
        again = f"; the same call with the folder {folder} goes on from the last evaluation" if folder else ""
        log(f"{why} in epoch {run.state.epoch + 1}: keeping the best evaluation so far{again}")
    return run.result()


class _TimeIsOver(Exception):
    """The wall time that was allowed has passed."""


class _Run:
    """A training in progress."""

    def __init__(
        self,
        force_field: ForceField,
        examples: Sequence[Example],
        valid: Sequence[Validation],
        optimizer: optax.GradientTransformation,
        settings: TrainSettings,
        tuning: Tuning,
        log: Log,
    ):
        self.force_field, self.settings, self.tuning, self.log = force_field, settings, tuning, log
        self.batches = Batches(examples, settings.batch_size, settings.max_shapes)
        self.valid = [(v, Batches(v.examples, settings.batch_size, settings.max_shapes)) for v in valid]
        self.params = jax.tree.map(jnp.asarray, dict(force_field.params))
        self.host_params = jax.tree.map(np.asarray, dict(force_field.params))
        variables = tuning.start(force_field.params)
        average, best = jax.tree.map(jnp.copy, (variables, variables))
        self.state = _State(variables, average, best, optimizer.init(variables))
        self.step = make_train_step(force_field.predictor, optimizer, settings, tuning)
        self.history: list[dict[str, Any]] = []
        self.checkpoints: Checkpoints | None = None
        self.started, self.first_epoch = time.monotonic(), 0

    def open(self, folder: Path, identity: str) -> None:
        """Keep checkpoints in a folder, and go on from the latest one there."""
        examples = self.batches.examples
        self.checkpoints = Checkpoints(
            folder, fingerprint(self.force_field, examples, self.settings.identity(), identity)
        )
        if saved := self.checkpoints.restore(self.state.arrays()):
            arrays, counters = saved
            self.state = _State(**arrays, epoch=counters["epoch"], step=counters["step"])
            self.history, self.first_epoch = counters["history"], self.state.epoch
            self.log(f"resuming after epoch {self.state.epoch} from {folder}")

    def epoch(self) -> float:
        """Train on all examples once; the mean loss."""
        state, losses = self.state, []
        prepare = partial(without_reference, self.force_field.predictor)
        with closing(prefetch(self.batches.epoch((self.settings.seed, state.epoch)), prepare)) as batches:
            for graph, targets in batches:
                if self.settings.max_minutes and time.monotonic() - self.started > 60 * self.settings.max_minutes:
                    raise _TimeIsOver
                state.variables, state.average, state.optimizer_state, loss = self.step(
                    state.variables, state.average, state.optimizer_state, self.params, graph, targets
                )
                losses.append(loss)
                state.step += 1
        state.epoch += 1
        train_loss = float(np.mean(jax.device_get(losses)))
        if not np.isfinite(train_loss):
            raise FloatingPointError(f"the loss became {train_loss} in epoch {state.epoch}; lower the learning rate")
        return train_loss

    def assess(self, train_loss: float | None) -> None:
        """Evaluate the moving average on every level, keep it if it is the best, write a checkpoint."""
        state, settings = self.state, self.settings
        current = self.merged(state.average)
        errors = {v.level: evaluate(current, batches) for v, batches in self.valid}
        record: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "train_loss": train_loss}
        record |= errors[self.valid[0][0].level].summary()
        if len(errors) > 1:
            record["levels"] = {level: found.summary() for level, found in errors.items()}
        record["valid_loss"] = sum(v.weight * errors[v.level].loss(settings.loss) for v, _ in self.valid if v.weight)
        self.history.append(record)
        if record is best_record(self.history):
            state.best = jax.tree.map(jnp.copy, state.average)
        seconds, done = time.monotonic() - self.started, state.epoch - self.first_epoch
        self.log(progress_line(record, self.history, settings.epochs, seconds, done))
        if self.checkpoints:
            counters = {"epoch": state.epoch, "step": state.step, "history": self.history}
            self.checkpoints.save(state.epoch, state.arrays(), counters)

    def stalled(self) -> bool:
        """Whether patience has run out."""
        best = self.history.index(best_record(self.history))
        patience = self.settings.patience
        if patience is None or len(self.history) - 1 - best < patience:
            return False
        self.log(f"no better evaluation in {patience}: ending in epoch {self.state.epoch}")
        return True

    def merged(self, variables: Variables) -> ForceField:
        """The force field that variables stand for, as it would be saved."""
        params = self.tuning.merge(self.host_params, jax.tree.map(np.asarray, variables))
        return ForceField(self.force_field.predictor, params, self.force_field.provenance)

    def result(self) -> TrainResult:
        """The best evaluation."""
        compilations = self.step._cache_size()  # type: ignore[attr-defined]
        return TrainResult(self.merged(self.state.best), self.history, best_record(self.history), compilations)
