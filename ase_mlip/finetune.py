"""Fine-tuning: a new readout head on a pretrained force field, and one call that does the whole of it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ase_mlip.calculator import MLIPCalculator
from ase_mlip.dataset import (
    Batches,
    Example,
    LabelKeys,
    Source,
    make_examples,
    read_frames,
    read_split,
    require_labels,
    take_census,
)
from ase_mlip.dataset_info import Head
from ase_mlip.evaluate import Errors, LossWeights, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.predictor import Params, Predictor
from ase_mlip.report import write_results
from ase_mlip.training import Log, TrainSettings, train

Blocks = list[str]


def transfer_params(pretrained: Params, initial: Params, scale_factor: float = 0.1) -> tuple[dict[str, Any], Blocks]:
    """Copy the pretrained parameters into those of a network with more readout heads.

    Args:
        pretrained: parameters of the pretrained network.
        initial: parameters of the new network, whose additional blocks keep their initial values times `scale_factor`.
        scale_factor: damps the new blocks at the start; 0.1 is recommended, 1.0 can be hard to optimise back and 0.0
            stops the gradients of a network inside the block.

    Returns:
        The new parameters and the names of the blocks that were not in `pretrained`, which are untrained.

    Raises:
        ValueError: a pretrained parameter is not in the new network, has another shape there, or nothing is new.

    Example:
        >>> old, new = {"a": {"w": np.ones(2)}}, {"a": {"w": np.zeros(2)}, "b": {"w": np.ones(2)}}
        >>> params, blocks = transfer_params(old, new)
        >>> blocks, params["a"]["w"], params["b"]["w"]
        (['b'], array([1., 1.]), array([0.1, 0.1]))
    """
    old, new = flatten_dict(dict(pretrained)), flatten_dict(dict(initial))
    lost = sorted("/".join(path) for path in old.keys() - new.keys())
    if lost:
        raise ValueError(f"the new network has no place for the pretrained parameters {lost}; give it the same heads")
    for path in old:
        if np.shape(old[path]) != np.shape(new[path]):
            raise ValueError(
                f"the parameter {'/'.join(path)} has the shape {np.shape(old[path])} in the pretrained network and "
                f"{np.shape(new[path])} in the new one; use the same configuration and elements"
            )
    blocks: Blocks = []
    merged = {}
    for path, value in new.items():
        if path in old:
            merged[path] = old[path]
            continue
        merged[path] = value * np.asarray(scale_factor, np.asarray(value).dtype)
        name = _outermost_new(path, old)
        if name not in blocks:
            blocks.append(name)
    if not blocks:
        raise ValueError("the new network has no block that the pretrained one lacks; give it one more readout head")
    return unflatten_dict(merged), blocks


def _outermost_new(path: tuple[str, ...], old: Mapping[tuple[str, ...], Any]) -> str:
    """The shortest beginning of `path` that no old parameter shares."""
    for length in range(1, len(path) + 1):
        if not any(known[:length] == path[:length] for known in old):
            return "/".join(path[:length])
    return "/".join(path)


def mask_optimizer_for_finetuning(
    optimizer: optax.GradientTransformation, params: Params, blocks: Sequence[str]
) -> optax.GradientTransformation:
    """An optimiser that moves only the named blocks and gives every other parameter a zero update.

    Args:
        optimizer: applied to the blocks alone: its state, norms and weight decay see nothing else.
        params: the parameters to be trained.
        blocks: names as `transfer_params` returns them, such as "head_head_1".

    Raises:
        ValueError: a block that holds no parameter, or no blocks.
    """
    labels = trainable_labels(params, blocks)
    return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, labels)


def trainable_labels(params: Params, blocks: Sequence[str]) -> dict[str, Any]:
    """ "train" for every parameter inside the blocks, "freeze" for the others.

    Raises:
        ValueError: a block that holds no parameter, or no blocks.
    """
    flat = {"/".join(path): path for path in flatten_dict(dict(params))}

    def inside(name: str, block: str) -> bool:
        return name == block or name.startswith(block + "/")

    empty = [block for block in blocks if not any(inside(name, block) for name in flat)]
    if empty or not blocks:
        known = sorted({name.split("/")[0] for name in flat})
        raise ValueError(f"no parameters in the blocks {empty or list(blocks)}; the network has the blocks {known}")
    labels = {
        path: "train" if any(inside(name, block) for block in blocks) else "freeze" for name, path in flat.items()
    }
    return unflatten_dict(labels)


def add_head(base: ForceField, name: str, seed: int = 0) -> tuple[ForceField, Blocks]:
    """The force field with one more head that says exactly nothing yet but can learn.

    The new head's inner layers are random and its output layers zero, so that the new level equals the old one at
    step 0 and its gradients are alive. The level `name` sums the heads of the newest level and the new one.

    Returns:
        The force field with the new level as its default, and the blocks that are new.

    Raises:
        ValueError: the name is taken.
    """
    if name in base.levels or name in base.heads:
        taken = ", ".join(dict.fromkeys([*base.levels, *base.heads]))
        raise ValueError(f"the model already has a level or head {name!r} ({taken}); choose another name")
    network = base.predictor.network
    heads = (*base.heads, name)
    config = replace(network.config, num_readout_heads=len(heads), head_names=heads)
    grown = network.rebuild(config, base.dataset_info)
    initial = ForceField.from_mlip_network(grown, seed=seed)
    params, blocks = transfer_params(base.params, initial.params, scale_factor=1.0)
    flat = flatten_dict(params)
    silent = {
        path: np.zeros_like(value) if path[0] in blocks and path[-1].endswith("output") else value
        for path, value in flat.items()
    }
    newest = base.predictor.levels[-1][1]
    predictor = Predictor(grown, (*base.predictor.levels, (name, (*newest, name))))
    return ForceField(predictor, unflatten_dict(silent), base.provenance), blocks


def fit_energy_correction(force_field: ForceField, examples: Sequence[Example]) -> tuple[dict[int, float], int]:
    """Per-element energies that best turn the model's energies into the labels: least squares on E_label - E_model.

    Where the compositions do not determine every element (a single composition determines none), the solution of
    minimum norm is taken.

    Returns:
        Correction in eV for each element that occurs, and the rank of the problem; no labels, no correction.
    """
    labelled = [example for example in examples if example.targets.energy_mask[0]]
    elements = sorted({int(s) for example in labelled for s in example.graph.species})
    if not labelled:
        return {}, 0
    predicted = evaluate(force_field, Batches(labelled, 16))
    counts = np.array([[np.sum(e.graph.species == s) for s in elements] for e in labelled], float)
    difference = (predicted.energy[0] - predicted.energy[1]) * counts.sum(axis=1)
    solution, _, rank, _ = np.linalg.lstsq(counts, difference, rcond=None)
    return {force_field.elements[s]: float(e) for s, e in zip(elements, solution, strict=True)}, int(rank)


def with_energy_correction(force_field: ForceField, head: str, correction: Mapping[int, float]) -> ForceField:
    """The force field with E0 of one head replaced; elements not named get zero."""
    heads = [
        replace(h, atomic_energies=tuple(float(correction.get(z, 0.0)) for z in force_field.elements))
        if h.name == head
        else h
        for h in force_field.predictor.heads
    ]
    return with_heads(force_field, heads)


def with_heads(force_field: ForceField, heads: Sequence[Head]) -> ForceField:
    """The force field with other head constants."""
    network = force_field.predictor.network
    rebuilt = network.rebuild(network.config, network.dataset_info.with_heads(heads))
    return ForceField(replace(force_field.predictor, network=rebuilt), force_field.params, force_field.provenance)


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


METHODS: dict[str, Method] = {
    "heads": Method(trains_all=False, learning_rate=1e-2, ema=0.99, clip=10.0),
    "full": Method(trains_all=True, learning_rate=2e-3, ema=0.99, clip=10.0),
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

    A new head is added on top of the newest level; it starts silent, so training starts from the base plus a fitted
    per-element energy correction. The best parameters on the validation frames are kept, step 0 included.

    Args:
        base: a force field, a model file or the name of a shipped model.
        train_set: a file that ASE reads, or Atoms with labels (eV, eV/Angstrom, eV/Angstrom^3 positive in tension).
        valid: validation frames, or the share of `train_set` to draw at random for it.
        method: "heads" trains the new head alone, all old levels stay exactly as they were; "full" trains everything.
        output: model file to write; curves and parity plots are written beside it.
        level: name of the new level and head.
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
    if method not in METHODS:
        raise ValueError(f"method={method!r}: give one of {', '.join(map(repr, METHODS))}")
    if replay is not None and not METHODS[method].trains_all:
        raise ValueError(f"replay has no effect with method={method!r}: the old levels cannot change; leave it out")
    if replay_labels not in ("model", "file"):
        raise ValueError(f"replay_labels={replay_labels!r}: give 'model' or 'file'")
    preset, keys, loss = METHODS[method], keys or LabelKeys(), loss or LossWeights()
    base = base if isinstance(base, ForceField) else ForceField.load(base)
    grown, blocks = add_head(base, level, seed)
    new_weights = grown.predictor.head_weights(level)
    train_frames, valid_frames = read_split(train_set, valid, keys, loss.wanted, seed, log)
    train_examples, valid_examples = (
        make_examples(frames, grown.elements, grown.cutoff, new_weights, keys)
        for frames in (train_frames, valid_frames)
    )

    correction, rank = fit_energy_correction(grown, train_examples)
    grown = with_energy_correction(grown, level, correction)
    log(_describe_correction(grown, correction, rank))
    valid_batches = Batches(valid_examples, batch_size)
    base_errors = evaluate(grown, valid_batches)
    log(f"before training: {base_errors}")

    base_level = base.predictor.levels[-1][0]
    replayed = [] if replay is None else _replay_examples(grown, replay, base_level, replay_weight, replay_labels, keys)
    settings = TrainSettings(
        epochs=epochs if epochs is not None else max(1, 3000 * batch_size // (len(train_examples) + len(replayed))),
        batch_size=batch_size,
        ema=preset.ema,
        loss=loss,
        max_shapes=2 if replayed else 1,
        seed=seed,
    )
    settings = replace(settings, eval_every=max(1, settings.epochs // 30))
    steps = max(1, settings.epochs * -(-(len(train_examples) + len(replayed)) // batch_size))
    peak = learning_rate if learning_rate is not None else preset.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(peak / 10, peak, min(100, steps // 10), steps, peak / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(preset.clip), optax.amsgrad(schedule))
    if not preset.trains_all:
        optimizer = mask_optimizer_for_finetuning(optimizer, grown.params, blocks)
    result = train(
        grown,
        [*train_examples, *replayed],
        valid_examples,
        optimizer,
        settings,
        folder=None if folder is None else Path(folder),
        log=log,
    )
    tuned = replace(result.force_field, provenance=_provenance(base, level, method, len(train_examples), settings))
    errors = evaluate(tuned, valid_batches)
    log(f"after training:  {errors}")
    replay_errors = None
    if replayed:
        batches = Batches(replayed, batch_size)
        replay_errors = (evaluate(grown, batches), evaluate(tuned, batches))
        log(f"level {base_level!r} on the replay frames before: {replay_errors[0]}")
        log(f"level {base_level!r} on the replay frames after:  {replay_errors[1]}")
    path = None if output is None else write_results(Path(output), tuned, result.history, errors, base_errors)
    return FineTuneResult(tuned, base_errors, errors, replay_errors, result.history, path)


def _replay_examples(
    force_field: ForceField, source: Source, level: str, weight: float, labels: str, keys: LabelKeys
) -> list[Example]:
    """Frames that train the old level, with their own labels or the model's."""
    weights = force_field.predictor.head_weights(level)
    frames = read_frames(source)
    if labels == "file":
        require_labels(take_census(frames, keys), ["forces"], keys)
        return make_examples(frames, force_field.elements, force_field.cutoff, weights, keys, weight)
    unlabelled = [ase.Atoms(a.numbers, positions=a.positions, cell=a.cell, pbc=a.pbc) for a in frames]
    bare = make_examples(unlabelled, force_field.elements, force_field.cutoff, weights, keys, weight)
    out = []
    for example in bare:
        prediction = force_field(example.graph)
        targets = replace(
            example.targets,
            energy=prediction.energy,
            forces=np.asarray(prediction.forces, float),
            energy_mask=np.array([True]),
            forces_mask=np.full(len(example.graph.species), True),
        )
        out.append(Example(example.graph, targets))
    return out


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
