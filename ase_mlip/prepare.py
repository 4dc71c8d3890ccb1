"""From a configuration to everything that a fine-tuning needs: read, checked, grown and fitted, but not yet trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ase
import numpy as np
import optax
from ase.data import atomic_numbers

from ase_mlip.batches import Batches
from ase_mlip.config import FineTuneConfig
from ase_mlip.dataset import Example, elements_of, gather_examples, make_examples
from ase_mlip.evaluate import Errors, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.methods import choose_adapters, make_optimizer
from ase_mlip.reference_energies import EnergyCorrection, find_correction, with_energies
from ase_mlip.replay import label_by_model, replay_examples, replay_structures
from ase_mlip.spill import join
from ase_mlip.splits import read_split
from ase_mlip.structure import InvalidStructure, symbol_of
from ase_mlip.training import Log, TrainSettings, Validation
from ase_mlip.transfer import add_heads
from ase_mlip.tuning import Adapters
from ase_mlip.unit_checks import check_units, compare_with_base, step0_shift
from ase_mlip.unit_readings import Finding

TYPICAL_BATCHES = 3000
EVALUATIONS = 30


@dataclass(frozen=True)
class LevelData:
    """Frames of one new level.

    Attributes:
        level: its name.
        frames: to train on.
        valid: to validate on.
    """

    level: str
    frames: Sequence[ase.Atoms]
    valid: Sequence[ase.Atoms]


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
    unknown = base.predictor.unknown_elements(base_level)
    known = [z for z in base.elements if z not in unknown]
    replayed = replay_structures(config, join(*(part.frames for part in data)), known)
    for atoms in replayed:
        base.check(atoms, base_level)
    used = base.for_elements(elements_of(*(p.frames for p in data), *(p.valid for p in data), replayed))
    start, blocks = add_heads(
        used,
        [part.level for part in data],
        config.seed,
        base_level,
        stacked=config.stacked,
        members=config.n_heads,
    )
    examples: list[Sequence[Example]] = []
    findings: list[Finding] = []
    corrections: dict[str, EnergyCorrection] = {}
    valid: list[Validation] = []
    for part in data:
        own = examples_at(start, part.frames, part.level, config)
        correction = find_correction(config.e0, start, part.level, own, config.batch_size)
        heads = new_heads(start, part.level, base_level, data)
        start = with_energies(start, heads, correction.energies, taught=correction.below)
        corrections[part.level] = correction
        log(f"level {part.level!r}: {correction}")
        findings += check_labels(start, own, config, log)
        members = start.predictor.member_weights(part.level) if config.n_heads > 1 else None
        examples.append(own if members is None else bootstrap(own, members, config.seed))
        valid.append(Validation(part.level, examples_at(start, part.valid, part.level, config)))
    replay_train, replay_valid = replay_examples(start, replayed, base_level, config)
    if replay_train:
        examples.append(replay_train)
        valid.append(Validation(base_level, replay_valid, config.replay_weight))
    elif config.preset.changes_old_levels:
        watched = predictable(start, data[0].valid, base_level)
        if watched:
            valid.append(Validation(base_level, label_by_model(start, watched, base_level, config.batch_size), 0.0))
    before = {v.level: evaluate(start, Batches(v.examples, config.batch_size)) for v in valid}
    everything = join(*examples)
    settings = make_settings(config, len(everything))
    preset = config.preset
    per_epoch = len(Batches(everything, settings.batch_size, settings.max_shapes).plan((settings.seed, 0)))
    optimizer = make_optimizer(
        preset.learning_rate,
        preset.clip,
        settings.epochs * per_epoch,
        schedule=config.schedule,
        weight_decay=config.weight_decay,
        accumulate=config.accumulate,
        optimizer=preset.optimizer,
    )
    adapters = choose_adapters(start.params, start.predictor.network, blocks, preset.freeze, preset.rank, config.seed)
    return Plan(
        config=config,
        base=base,
        start=start,
        base_level=base_level,
        data=data,
        blocks=blocks,
        adapters=adapters,
        examples=everything,
        valid=tuple(valid),
        corrections=corrections,
        before=before,
        findings=tuple(findings),
        replay_frames=len(replay_train),
        settings=settings,
        optimizer=optimizer,
    )


def read_levels(config: FineTuneConfig, log: Log) -> tuple[LevelData, ...]:
    """Frames of every new level, split, with their labels counted.

    Raises:
        ValueError: no training data, or validation data of other levels.
    """
    if config.train is None:
        raise ValueError("train: give the training frames, a file or a list of Atoms")
    sources = config.train if isinstance(config.train, Mapping) else {config.level: config.train}
    valid = config.valid
    if isinstance(valid, Mapping):
        if set(valid) != set(sources):
            raise ValueError(f"valid has the levels {sorted(valid)} and train {sorted(sources)}; give the same")
    elif len(sources) > 1 and not isinstance(valid, int | float):
        raise ValueError("valid: with several levels give a file for each, LEVEL=FILE, or a share")
    found = []
    for level, source in sources.items():
        if len(sources) > 1:
            log(f"level {level!r}")
        own = valid[level] if isinstance(valid, Mapping) else valid
        wanted, skip = config.loss.wanted, config.skip_bad_frames
        found.append(LevelData(level, *read_split(source, own, config.keys, wanted, config.seed, log, skip)))
    return tuple(found)


def with_new_elements(base: ForceField, config: FineTuneConfig, data: Sequence[LevelData]) -> ForceField:
    """The base with the elements that the configuration adds.

    Raises:
        InvalidStructure: a frame has an element that neither the base nor the configuration names; the message says
            which frame.
        ValueError: a new element that the base knows, that is in no frame, or that is to start from an unknown one.
    """
    like = {}
    for new, known in (config.new_elements or {}).items():
        numbers = tuple(atomic_numbers.get(symbol, 0) for symbol in (new, known))
        found = any(numbers[0] in atoms.numbers for part in data for atoms in part.frames)
        if numbers[0] in base.elements or numbers[1] not in base.elements or not found:
            raise ValueError(
                f"new_elements: {new}={known}, but the base knows {', '.join(map(symbol_of, base.elements))}; give an "
                "element that it lacks and that is among the training frames, and one of these to start from"
            )
        like[numbers[0]] = numbers[1]
    for part in data:
        for frames in (part.frames, part.valid):
            for number, atoms in enumerate(frames):
                unknown = set(atoms.numbers.tolist()).difference(base.elements, like)
                if unknown:
                    raise InvalidStructure(
                        f"frame {number}: the model does not know "
                        f"{', '.join(f'{symbol_of(z)} (Z={z})' for z in sorted(unknown))}; it knows "
                        f"{', '.join(map(symbol_of, base.elements))}. Give new_elements={{'{symbol_of(min(unknown))}': "
                        "KNOWN} (--new-elements NEW=KNOWN) to add it, starting from a known one like it"
                    )
    return base.with_elements([*base.elements, *like], like) if like else base


def predictable(force_field: ForceField, frames: Sequence[ase.Atoms], level: str) -> Sequence[ase.Atoms]:
    """Those frames whose elements a level has been trained on."""
    unknown = set(force_field.predictor.unknown_elements(level))
    return [a for a in frames if unknown.isdisjoint(a.numbers.tolist())] if unknown else frames


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


def examples_at(
    force_field: ForceField, frames: Sequence[ase.Atoms], level: str, config: FineTuneConfig
) -> Sequence[Example]:
    """Labelled graphs at a level."""
    weights = force_field.predictor.head_weights(level)
    return make_examples(frames, force_field.elements, force_field.cutoff, weights, config.keys)


def new_heads(force_field: ForceField, level: str, base_level: str, data: Sequence[LevelData]) -> list[str]:
    """The heads that a new level adds to all levels before it."""
    names = [part.level for part in data]
    levels = force_field.levels
    older = set(levels[base_level]).union(*(levels[name] for name in names[: names.index(level)]))
    return [head for head in levels[level] if head not in older]


def bootstrap(examples: Sequence[Example], members: np.ndarray, seed: int) -> Sequence[Example]:
    """For each member of a committee as many frames as there are, drawn with replacement.

    Args:
        examples: labelled at the mean of the committee.
        members: head weights of each, [members, heads].
        seed: of the draws.
    """

    def drawn() -> Iterator[Example]:
        for number, weights in enumerate(members):
            picks = np.random.default_rng([seed, 41, number]).integers(len(examples), size=len(examples))
            for index, times in zip(*np.unique(picks, return_counts=True), strict=True):
                example = examples[int(index)]
                graph = replace(example.graph, head_weights=weights[None])
                yield Example(graph, replace(example.targets, weight=example.targets.weight * times))

    return gather_examples(drawn())


def make_settings(config: FineTuneConfig, count: int) -> TrainSettings:
    """The loop's settings for a number of examples."""
    epochs = config.epochs
    if epochs is None:
        epochs = max(1, TYPICAL_BATCHES * config.batch_size // count)
    return TrainSettings(
        epochs=epochs,
        batch_size=config.batch_size,
        ema=config.preset.ema,
        loss=config.loss,
        eval_every=max(1, epochs // EVALUATIONS),
        max_shapes=4,
        seed=config.seed,
        patience=config.patience,
        max_minutes=config.max_minutes,
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
