"""Fine-tuning in one call: a new readout head per level on a pretrained force field, and everything around it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ase_mlip.batches import Batches
from ase_mlip.cache import keep_compiled
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.config import FineTuneConfig
from ase_mlip.cost import estimate_cost
from ase_mlip.dataset import Source
from ase_mlip.evaluate import Errors, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.methods import describe_adapters
from ase_mlip.prepare import Plan, describe, prepare
from ase_mlip.presets import METHODS, Method
from ase_mlip.report import headline, write_report, write_results
from ase_mlip.summary import summarise
from ase_mlip.training import Log, train
from ase_mlip.transfer import mask_optimizer_for_finetuning, restore_elements, transfer_params

__all__ = [
    "METHODS",
    "FineTuneConfig",
    "FineTuneResult",
    "Method",
    "fine_tune",
    "mask_optimizer_for_finetuning",
    "transfer_params",
]


@dataclass(frozen=True)
class FineTuneResult:
    """What `fine_tune` made.

    Attributes:
        force_field: the fine-tuned model; its newest level is the last new one, the levels it came from are kept.
        before: errors of every watched level after the E0 correction, before training: the new levels first, and, where
            it could change, the base level, on replay frames with `replay`, else on its own earlier predictions.
        after: the same of the model that was kept.
        history: one record per evaluation.
        path: the model file, if one was written.
        page: the report beside it.
        plan: what was trained, on what, and how.
    """

    force_field: ForceField
    before: Mapping[str, Errors]
    after: Mapping[str, Errors]
    history: list[dict[str, Any]] = field(repr=False)
    path: Path | None
    page: Path | None
    plan: Plan = field(repr=False)

    @property
    def base_errors(self) -> Errors:
        """The first new level on its validation frames after the E0 correction, before training."""
        return next(iter(self.before.values()))

    @property
    def errors(self) -> Errors:
        """The first new level on the same frames, of the model that was kept."""
        return next(iter(self.after.values()))

    @property
    def replay_errors(self) -> tuple[Errors, Errors] | None:
        """Base level on the held-out replay frames, before and after; None without replay."""
        level = self.plan.base_level
        return (self.before[level], self.after[level]) if self.plan.replay_frames else None

    def calculator(self, **options: Any) -> MLIPCalculator:
        """An ASE calculator of the fine-tuned model; options as for `MLIPCalculator`."""
        return MLIPCalculator(self.force_field, **options)


def fine_tune(
    base: ForceField | str | os.PathLike[str] | None = None,
    train_set: Source | Mapping[str, Source] | None = None,
    valid: Source | Mapping[str, Source] | float | None = None,
    *,
    config: FineTuneConfig | None = None,
    log: Log = print,
    **options: Any,
) -> FineTuneResult:
    """Fine-tune a force field on labelled structures.

    A new head is added on top of a level of the base; it starts silent, so that training starts from that level plus a
    fitted per-element energy correction. The best evaluation on the validation frames is kept, step 0 included. What it
    costs does not depend on elements that are not in the data; they are kept in the result.

    Args:
        base: a force field, a model file or the name of a model; "default" is the shipped one.
        train_set: a file that ASE reads, or Atoms with labels (eV, eV/Angstrom, eV/Angstrom^3 positive in tension); a
            mapping from names to such sources makes one new level for each.
        valid: validation frames in the same form, or the share of `train_set` to draw at random for it.
        config: all choices; those given here besides replace its values.
        log: called with each line of progress.
        options: any field of `FineTuneConfig`, such as method="lora", output="mine.safetensors", epochs=100.

    Raises:
        ValueError: an option that does not exist or could have no effect, a level that exists, data that cannot be.
        MissingLabel: a label with a positive weight is in no frame.

    Example:
        >>> from ase_mlip.demo import demo_data
        >>> result = fine_tune("default", f"{demo_data()}@:12", valid=0.25, epochs=1, log=lambda line: None)
        >>> result.force_field.levels
        {'base': ('base',), 'fine-tuned': ('base', 'fine-tuned')}
    """
    given = {"base": base, "train": train_set, "valid": valid}
    options |= {name: value for name, value in given.items() if value is not None}
    keep_compiled()
    started = time.monotonic()
    plan = prepare((config or FineTuneConfig()).changed(options), log)
    return _run(plan, started, log)


def _run(plan: Plan, started: float, log: Log) -> FineTuneResult:
    """Carry out what `prepare` made ready, and write it down."""
    config, start = plan.config, plan.start
    log_start(plan, log)
    if config.dry_run:
        return FineTuneResult(start, plan.before, plan.before, [], None, None, plan)
    result = train(
        start,
        plan.examples,
        plan.valid,
        plan.optimizer,
        plan.settings,
        tuning=plan.adapters,
        folder=None if config.folder is None else Path(config.folder),
        identity=repr(sorted(describe(plan).items(), key=str)),
        log=log,
    )
    after = {v.level: evaluate(result.force_field, Batches(v.examples, config.batch_size)) for v in plan.valid}
    for level, errors in after.items():
        log(f"after training, level {level!r}: {errors}")
    if result.best["epoch"] == 0 and len(result.history) > 1:
        rate = plan.config.preset.learning_rate
        log(
            "NOTHING WAS LEARNED: no evaluation was better than the start, which is kept. The learning rate "
            f"{rate:g} may be too high for this base: try {rate / 5:g}, larger batches, or more validation frames"
        )
    if result.compilations:
        log(f"the training step was compiled {result.compilations} times, once for each pad shape")
    rounds = [*plan.base.provenance.get("fine_tuning", []), describe(plan)]
    tuned = restore_elements(result.force_field, plan.base)
    tuned = replace(tuned, provenance={**plan.base.provenance, "fine_tuning": rounds})
    path = page = None
    if config.output is not None:
        level = plan.data[0].level
        path = write_results(Path(config.output), tuned, result.history, after[level], plan.before[level])
        seconds = time.monotonic() - started
        report = summarise(plan, result.force_field, after, result.history, seconds, path)
        for shown in report.levels:
            log(headline(shown))
        page = write_report(path.with_name(f"{path.stem}_report"), report)
        log(f"report: {page}")
    return FineTuneResult(tuned, plan.before, after, result.history, path, page, plan)


def log_start(plan: Plan, log: Log) -> None:
    """What is about to train, and from which errors."""
    preset = plan.config.preset
    count = sum(len(part.frames) for part in plan.data)
    log(
        f"method {plan.config.method!r}: {count} frames"
        + (f" and {plan.replay_frames} of replay" if plan.replay_frames else "")
        + f", {plan.settings.epochs} epochs of {plan.settings.batch_size}; {preset.optimizer}, learning rate "
        + f"{preset.learning_rate:g} ({plan.config.schedule}), moving average {preset.ema:g}, clip {preset.clip:g}"
        + (f", rank {preset.rank}" if preset.rank else "")
        + (f", frozen: {', '.join(preset.freeze)}" if preset.freeze else "")
    )
    if plan.config.dry_run:
        for line in describe_adapters(plan.start.params, plan.adapters, plan.blocks):
            log(line)
        for level, correction in plan.corrections.items():
            log(f"level {level!r}: E0 in eV of the level below, correction, and sum")
            for symbol, below, change, total in correction.rows():
                log(f"    {symbol:2s} {below:14.4f} {change:+14.4f} {total:14.4f}")
        log(str(estimate_cost(plan)))
    for level, errors in plan.before.items():
        log(f"before training, level {level!r}: {errors}")
