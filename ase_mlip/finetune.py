"""Fine-tuning: a new readout head on a pretrained force field, and one call that does the whole of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import optax

from ase_mlip.batches import Batches
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.dataset import (
    Example,
    LabelKeys,
    Source,
    elements_of,
    make_examples,
    read_frames,
    read_split,
    require_labels,
    take_census,
)
from ase_mlip.evaluate import Errors, LossWeights, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.reference_energies import fit_energy_correction, with_energy_correction
from ase_mlip.report import write_results
from ase_mlip.training import Log, TrainSettings, train
from ase_mlip.transfer import add_head, mask_optimizer_for_finetuning, restore_elements, transfer_params

__all__ = [
    "METHODS",
    "FineTuneResult",
    "Method",
    "fine_tune",
    "mask_optimizer_for_finetuning",
    "transfer_params",
]


@dataclass(frozen=True)
class Method:
    """A way to fine-tune: which blocks train, and the optimiser's usual settings.

    Attributes:
        trains_all: every parameter trains, not only the new head.
        learning_rate: peak of the schedule.
        ema: decay of the moving average.
        clip: largest norm of the gradient.
    """

    trains_all: bool
    learning_rate: float
    ema: float
    clip: float

    def optimizer(self, learning_rate: float | None, steps: int) -> optax.GradientTransformation:
        """AMSGrad under a clipped gradient; short warm-up, then a cosine to a hundredth of the peak."""
        peak = learning_rate if learning_rate is not None else self.learning_rate
        schedule = optax.warmup_cosine_decay_schedule(peak / 10, peak, min(100, steps // 10), max(steps, 1), peak / 100)
        return optax.chain(optax.clip_by_global_norm(self.clip), optax.amsgrad(schedule))


METHODS: dict[str, Method] = {
    "heads": Method(trains_all=False, learning_rate=1e-2, ema=0.99, clip=10.0),
    "full": Method(trains_all=True, learning_rate=5e-3, ema=0.99, clip=10.0),
}


@dataclass(frozen=True)
class FineTuneResult:
    """What `fine_tune` made.

    Attributes:
        force_field: the fine-tuned model; its newest level is the new one, the levels it came from are kept.
        base_errors: the base level on the validation frames after the E0 correction, before training.
        errors: the new level on the same frames.
        replay_errors: base level on the replay frames, before and after; None without replay.
        history: one record per evaluation.
        path: the model file, if one was written.
    """

    force_field: ForceField
    base_errors: Errors
    errors: Errors
    replay_errors: tuple[Errors, Errors] | None
    history: list[dict[str, Any]] = field(repr=False)
    path: Path | None

    def calculator(self, **options: Any) -> MLIPCalculator:
        """An ASE calculator of the fine-tuned model; options as for `MLIPCalculator`."""
        return MLIPCalculator(self.force_field, **options)


def fine_tune(
    base: ForceField | str | os.PathLike[str],
    train_set: Source,
    valid: Source | float = 0.1,
    *,
    method: str = "heads",
    output: str | os.PathLike[str] | None = None,
    level: str = "fine-tuned",
    base_level: str | None = None,
    replay: Source | None = None,
    replay_weight: float = 1.0,
    replay_labels: str = "model",
    keys: LabelKeys | None = None,
    epochs: int | None = None,
    batch_size: int = 8,
    learning_rate: float | None = None,
    loss: LossWeights | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    log: Log = print,
) -> FineTuneResult:
    """Fine-tune a force field on labelled structures.

    A new head is added on top of a level of the base; it starts silent, so training starts from that level plus a
    fitted per-element energy correction. The best parameters on the validation frames are kept, step 0 included. What
    it costs does not depend on elements that are not in the data; they are kept in the result.

    Args:
        base: a force field, a model file or the name of a shipped model.
        train_set: a file that ASE reads, or Atoms with labels (eV, eV/Angstrom, eV/Angstrom^3 positive in tension).
        valid: validation frames, or the share of `train_set` to draw at random for it.
        method: "heads" trains the new head alone, all old levels stay exactly as they were; "full" trains everything.
        output: model file to write; curves and parity plots are written beside it.
        level: name of the new level and head.
        base_level: the level to build on; by default the newest.
        replay: structures that keep the old knowledge under "full": they train the level the model comes from.
        replay_weight: weight of a replay frame in the loss, relative to a new frame.
        replay_labels: "model", labels made by the base itself, or "file", those that the replay frames carry.
        keys: where the labels are; by default in the attached calculator.
        epochs: passes over the data; by default so many that about 3,000 steps are taken.
        batch_size: structures in a batch.
        learning_rate: peak of the cosine schedule; by default the method's.
        loss: weights of energy, forces and stress; stress counts only if its weight is positive.
        folder: for checkpoints; the same call with the same folder resumes.
        seed: of the split, the new head and the order of the data.
        log: called with each line of progress.

    Raises:
        ValueError: an unknown method, a level that exists, a replay that could have no effect.
        MissingLabel: a label with a positive weight is in no frame.
    """
    _check_choices(method, replay, replay_labels)
    preset, keys, loss = METHODS[method], keys or LabelKeys(), loss or LossWeights()
    base = base if isinstance(base, ForceField) else ForceField.load(base)
    frames, valid_frames = read_split(train_set, valid, keys, loss.wanted, seed, log)
    replay_frames = [] if replay is None else read_frames(replay)
    used = base.for_elements(elements_of(frames, valid_frames, replay_frames))
    base_level = base_level or base.predictor.levels[-1][0]
    grown, blocks = add_head(used, level, seed, base_level)
    examples, valid_examples = (
        make_examples(part, grown.elements, grown.cutoff, grown.predictor.head_weights(level), keys)
        for part in (frames, valid_frames)
    )
    correction, rank = fit_energy_correction(grown, examples, batch_size)
    grown = with_energy_correction(grown, level, correction)
    log(_describe_correction(grown, correction, rank))
    valid_batches = Batches(valid_examples, batch_size)
    base_errors = evaluate(grown, valid_batches)
    log(f"before training: {base_errors}")

    replayed = _replay_examples(grown, replay_frames, base_level, replay_weight, replay_labels, keys, batch_size)
    count = len(examples) + len(replayed)
    epochs = epochs if epochs is not None else max(1, 3000 * batch_size // count)
    settings = TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        ema=preset.ema,
        loss=loss,
        eval_every=max(1, epochs // 30),
        max_shapes=2 if replayed else 1,
        seed=seed,
    )
    optimizer = preset.optimizer(learning_rate, steps=epochs * -(-count // batch_size))
    if not preset.trains_all:
        optimizer = mask_optimizer_for_finetuning(optimizer, grown.params, blocks)
    checkpoints = None if folder is None else Path(folder)
    result = train(grown, [*examples, *replayed], valid_examples, optimizer, settings, folder=checkpoints, log=log)
    trained = replace(result.force_field, provenance=_provenance(base, level, method, len(examples), settings))
    errors = evaluate(trained, valid_batches)
    log(f"after training:  {errors}")
    replay_errors = None
    if replayed:
        batches = Batches(replayed, batch_size)
        replay_errors = (evaluate(grown, batches), evaluate(trained, batches))
        log(f"level {base_level!r} on the replay frames before: {replay_errors[0]}")
        log(f"level {base_level!r} on the replay frames after:  {replay_errors[1]}")
    tuned = restore_elements(trained, base)
    path = None if output is None else write_results(Path(output), tuned, result.history, errors, base_errors)
    return FineTuneResult(tuned, base_errors, errors, replay_errors, result.history, path)


def _check_choices(method: str, replay: Source | None, replay_labels: str) -> None:
    """Refuse what does not exist or could have no effect."""
    if method not in METHODS:
        raise ValueError(f"method={method!r}: give one of {', '.join(map(repr, METHODS))}")
    if replay is not None and not METHODS[method].trains_all:
        raise ValueError(f"replay has no effect with method={method!r}: the old levels cannot change; leave it out")
    if replay_labels not in ("model", "file"):
        raise ValueError(f"replay_labels={replay_labels!r}: give 'model' or 'file'")


def _replay_examples(
    force_field: ForceField,
    frames: list[ase.Atoms],
    level: str,
    weight: float,
    labels: str,
    keys: LabelKeys,
    batch_size: int,
) -> list[Example]:
    """Frames that train the old level, with their own labels or the model's."""
    if not frames:
        return []
    weights = force_field.predictor.head_weights(level)
    if labels == "file":
        require_labels(take_census(frames, keys), ["forces"], keys)
        return make_examples(frames, force_field.elements, force_field.cutoff, weights, keys, weight)
    unlabelled = [ase.Atoms(a.numbers, positions=a.positions, cell=a.cell, pbc=a.pbc) for a in frames]
    bare = make_examples(unlabelled, force_field.elements, force_field.cutoff, weights, keys, weight)
    labelled: list[Example] = []
    for joined in Batches(bare, batch_size).epoch(None):
        prediction = force_field(joined.graph)
        for number in range(len(np.unique(joined.graph.node_graph[joined.graph.node_graph < joined.graph.num_graphs]))):
            nodes = joined.graph.node_graph == number
            targets = replace(
                bare[len(labelled)].targets,
                energy=prediction.energy[number : number + 1],
                forces=prediction.forces[nodes].astype(float),
                energy_mask=np.array([True]),
                forces_mask=np.full(int(nodes.sum()), True),
            )
            labelled.append(Example(bare[len(labelled)].graph, targets))
    return labelled


def _describe_correction(force_field: ForceField, correction: Mapping[int, float], rank: int) -> str:
    """One line about the fitted energies."""
    symbols = dict(zip(force_field.elements, force_field.dataset_info.symbols, strict=True))
    values = " ".join(f"{symbols[z]} {energy:+.4f}" for z, energy in correction.items())
    short = f", rank {rank} of {len(correction)}: minimum norm" if rank < len(correction) else ""
    return f"E0 correction, eV: {values or 'none, no energies'}{short}"


def _provenance(base: ForceField, level: str, method: str, frames: int, settings: TrainSettings) -> dict[str, Any]:
    """What the new file says of its making, on top of what the base's says."""
    rounds = [
        *base.provenance.get("fine_tuning", []),
        {"level": level, "method": method, "frames": frames, "epochs": settings.epochs, "seed": settings.seed},
    ]
    return {**base.provenance, "fine_tuning": rounds}
