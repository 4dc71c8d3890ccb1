"""From a configuration to everything that a fine-tuning needs: read, checked, grown and fitted, but not yet trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ase
import optax

from ase_mlip.batches import Batches
from ase_mlip.config import FineTuneConfig
from ase_mlip.dataset import Example, elements_of
from ase_mlip.evaluate import Errors, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.level_data import (
    LevelData,
    bootstrap,
    examples_at,
    new_heads,
    predictable,
    read_levels,
    with_new_elements,
)
from ase_mlip.methods import choose_adapters, make_optimizer
from ase_mlip.reference_energies import EnergyCorrection, find_correction, with_energies
from ase_mlip.replay import label_by_model, replay_examples, replay_structures
from ase_mlip.spill import join
from ase_mlip.training import Log, TrainSettings, Validation
from ase_mlip.transfer import add_heads
from ase_mlip.tuning import Adapters
from ase_mlip.unit_checks import check_units, compare_with_base, step0_shift
from ase_mlip.unit_readings import Finding

TYPICAL_BATCHES = 3000
EVALUATIONS = 30


@dataclass(frozen=True)
class Plan:
    """A fine-tuning that is ready to start.

    Attributes:
        config: what was asked for.
        base: the pretrained force field with all of its elements.
        start: cut down to the elements in use, with the new levels, their E0 fitted.
        base_level: the level that they build on.
        data: frames of each new level.
        blocks: new parameters.
        adapters: which parameters train, and how.
        examples: everything to train on, replay included.
        valid: what is watched; the new levels first.
        corrections: E0 of each new level.
        before: errors of every watched level at step 0.
        findings: what is strange about the labels' units, signs and zero.
        replay_frames: number of frames that train the old level.
        settings: of the loop.
        optimizer: of the loop.
    """

    config: FineTuneConfig
    base: ForceField
    start: ForceField
    base_level: str
    data: tuple[LevelData, ...]
    blocks: list[str]
    adapters: Adapters
    examples: Sequence[Example]
    valid: tuple[Validation, ...]
    corrections: Mapping[str, EnergyCorrection]
    before: Mapping[str, Errors]
    findings: tuple[Finding, ...]
    replay_frames: int
    settings: TrainSettings
    optimizer: optax.GradientTransformation


def prepare(config: FineTuneConfig, log: Log = print) -> Plan:
    """Read and check the data, grow the network, fit the E0, and evaluate what training starts from.

    Raises:
        ValueError: a choice that cannot be, or data that cannot be trained on.
        MissingLabel: a label with a positive weight is in no frame.
    """
    base = config.base if isinstance(config.base, ForceField) else ForceField.load(config.base)
    base_level = base.predictor.find_level(config.base_level)
    data = read_levels(config, log)
    base = with_new_elements(base, config, data)
    replayed = find_replay(base, base_level, data, config)
    used = base.for_elements(elements_of(*(p.frames for p in data), *(p.valid for p in data), replayed))
    names = [part.level for part in data]
    start, blocks = add_heads(used, names, config.seed, base_level, stacked=config.stacked, members=config.n_heads)
    fitted: dict[str, FittedLevel] = {}
    for part in data:
        start, fitted[part.level] = fit_level(start, part, new_heads(start, part.level, base_level, data), config, log)
    replay_train, replay_valid = replay_examples(
        start, replayed, base_level, config, sum(len(part.frames) for part in data)
    )
    valid = [Validation(part.level, examples_at(start, part.valid, part.level, config)) for part in data]
    if replay_train:
        valid.append(Validation(base_level, replay_valid, config.replay_weight))
    elif config.preset.changes_old_levels and (watched := predictable(start, data[0].valid, base_level)):
        valid.append(Validation(base_level, label_by_model(start, watched, base_level, config.batch_size), 0.0))
    before = {v.level: evaluate(start, Batches(v.examples, config.batch_size)) for v in valid}
    examples = join(*(level.examples for level in fitted.values()), replay_train)
    settings, preset = make_settings(config, len(examples)), config.preset
    adapters = choose_adapters(start.params, start.predictor.network, blocks, preset.freeze, preset.rank, config.seed)
    return Plan(
        config=config,
        base=base,
        start=start,
        base_level=base_level,
        data=data,
        blocks=blocks,
        adapters=adapters,
        examples=examples,
        valid=tuple(valid),
        corrections={name: level.correction for name, level in fitted.items()},
        before=before,
        findings=tuple(finding for level in fitted.values() for finding in level.findings),
        replay_frames=len(replay_train),
        settings=settings,
        optimizer=choose_optimizer(config, settings, examples),
    )


def find_replay(
    base: ForceField, base_level: str, data: Sequence[LevelData], config: FineTuneConfig
) -> Sequence[ase.Atoms]:
    """Structures that train the old level; none without replay.

    Raises:
        InvalidStructure: one that the old level cannot predict.
    """
    unknown = base.predictor.unknown_elements(base_level)
    known = [z for z in base.elements if z not in unknown]
    found = replay_structures(config, join(*(part.frames for part in data)), known)
    for atoms in found:
        base.check(atoms, base_level)
    return found


@dataclass(frozen=True)
class FittedLevel:
    """A new level before training.

    Attributes:
        correction: its E0.
        findings: what is strange about its labels.
        examples: to train on; of a committee each member's own.
    """

    correction: EnergyCorrection
    findings: Sequence[Finding]
    examples: Sequence[Example]


def fit_level(
    start: ForceField, part: LevelData, heads: Sequence[str], config: FineTuneConfig, log: Log
) -> tuple[ForceField, FittedLevel]:
    """The force field with the E0 of a level's new heads fitted, and what that gave.

    Raises:
        ValueError: labels whose unit or sign is wrong.
    """
    examples = examples_at(start, part.frames, part.level, config)
    correction = find_correction(config.e0, start, part.level, examples, config.batch_size)
    start = with_energies(start, heads, correction.energies, taught=correction.below)
    log(f"level {part.level!r}: {correction}")
    findings = check_labels(start, examples, config, log)
    if config.n_heads > 1:
        examples = bootstrap(examples, start.predictor.member_weights(part.level), config.seed)
    return start, FittedLevel(correction, findings, examples)


def check_labels(
    force_field: ForceField, examples: Sequence[Example], config: FineTuneConfig, log: Log
) -> list[Finding]:
    """Compare units, signs and zero of the labels with what the level below predicts.

    Raises:
        ValueError: another unit or sign fits so much better that training would be wrong.
    """
    compared = compare_with_base(force_field, examples, batch_size=config.batch_size)
    findings = check_units(compared)
    if shift := step0_shift(compared.errors()):
        findings.append(shift)
    for finding in findings:
        log(str(finding))
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors and not (config.accept_units or config.dry_run):
        raise ValueError(
            f"{errors[0].label}: {errors[0].message}. Correct the labels, or give accept_units=True (--accept-units)"
        )
    return findings


def make_settings(config: FineTuneConfig, count: int) -> TrainSettings:
    """The loop's settings for a number of examples."""
    epochs = config.epochs
    if epochs is None:
        epochs = max(1, TYPICAL_BATCHES * config.batch_size // count)
    return TrainSettings(
        epochs=epochs,
        batch_size=config.batch_size,
        ema=config.preset.ema,
        matmul_precision=config.matmul_precision,
        loss=config.loss,
        eval_every=max(1, epochs // EVALUATIONS),
        max_shapes=4,
        seed=config.seed,
        patience=config.patience,
        max_minutes=config.max_minutes,
    )


def choose_optimizer(
    config: FineTuneConfig, settings: TrainSettings, examples: Sequence[Example]
) -> optax.GradientTransformation:
    """The method's optimiser, its schedule as long as the training."""
    preset = config.preset
    per_epoch = len(Batches(examples, settings.batch_size, settings.max_shapes).plan((settings.seed, 0)))
    return make_optimizer(
        preset.learning_rate,
        preset.clip,
        settings.epochs * per_epoch,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
        accumulate=config.accumulate,
        optimizer=preset.optimizer,
    )


def describe(plan: Plan) -> dict[str, Any]:
    """What the model file says of its making; the same for a run that was interrupted and one that was not."""
    skipped = ("output", "folder", "max_minutes", "check_ps", "dry_run")
    config = {key: value for key, value in plan.config.to_dict().items() if key not in skipped}
    return {
        "level": plan.data[-1].level,
        "method": plan.config.method,
        "frames": sum(len(part.frames) for part in plan.data),
        "epochs": plan.settings.epochs,
        "seed": plan.config.seed,
        "levels": [part.level for part in plan.data],
        "replay_frames": plan.replay_frames,
        "config": config,
    }
