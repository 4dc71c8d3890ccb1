"""The report of a fine-tuning, from what was planned and what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import ase

from ase_mlip.calculator import MLIPCalculator
from ase_mlip.evaluate import Errors
from ase_mlip.force_field import ForceField
from ase_mlip.prepare import Plan
from ase_mlip.report import FileRecord, LevelErrors, ReferenceEnergy, Report, installed_versions
from ase_mlip.stability import DimerScan, NveResult, dimer_scan, element_pairs, nve_drift
from ase_mlip.structure import symbol_of
from ase_mlip.tuning import count_variables

TIMESTEP = 0.5  # fs
MOST_SECONDS = 60.0  # of each run of dynamics
FEWEST_STEPS = 20
MOST_PAIRS = 21  # pairs of six elements


def summarise(
    plan: Plan,
    result: ForceField,
    after: Mapping[str, Errors],
    history: Sequence[Mapping[str, Any]],
    seconds: float,
    output: Path,
) -> Report:
    """Everything worth knowing of a fine-tuning; runs the checks of stability.

    Args:
        plan: what was prepared.
        result: the model that was kept, for the elements in use.
        after: its errors by level.
        history: one record per evaluation.
        seconds: wall time of preparation and training.
        output: the model file.
    """
    config, levels = plan.config, [part.level for part in plan.data]
    shown = [
        LevelErrors.of(
            part.level,
            "validation",
            after[part.level],
            plan.before[part.level],
            structures=part.valid,
            keys=config.keys,
        )
        for part in plan.data
    ]
    if plan.base_level in after:
        where = "held-out replay" if plan.replay_frames else "validation (its own earlier predictions)"
        before = plan.before[plan.base_level]
        shown.append(LevelErrors.of(plan.base_level, where, after[plan.base_level], before, kept=True))
    nve, dimers, notes = _check_stability(plan, result)
    corrections = plan.corrections[levels[0]]
    return Report(
        title=f"{output.stem}: level {' and '.join(repr(level) for level in levels)}",
        method=config.method,
        levels=tuple(shown),
        history=history,
        settings={
            **config.to_dict(),
            "epochs": plan.settings.epochs,
            "learning_rate": config.preset.learning_rate,
            "ema": config.preset.ema,
            "clip": config.preset.clip,
            "rank": config.preset.rank,
        },
        files=_files(plan, output),
        reference_energies=tuple(ReferenceEnergy(s, below, change) for s, below, change, _ in corrections.rows()),
        reference_rank=corrections.rank,
        nve=nve,
        dimers=dimers,
        trainable=count_variables(plan.adapters.start(plan.start.params)),
        parameters=plan.start.num_params,
        seconds=seconds,
        versions=installed_versions(),
        notes=(*notes, *(str(finding) for finding in plan.findings if finding.severity != "unchecked")),
        date=date.today().isoformat(),
    )


def _files(plan: Plan, output: Path) -> tuple[FileRecord, ...]:
    """Base, data and result."""
    config = plan.config
    records = [FileRecord.of("base", config.base)]
    for part in plan.data:
        train = config.train[part.level] if isinstance(config.train, Mapping) else config.train
        records.append(FileRecord.of("training", train, len(part.frames)))
        valid = config.valid[part.level] if isinstance(config.valid, Mapping) else config.valid
        if not isinstance(valid, int | float):
            records.append(FileRecord.of("validation", valid, len(part.valid)))
    if plan.replay_frames:
        records.append(FileRecord.of("replay", config.replay, plan.replay_frames))
    return (*records, FileRecord.of("result", output))


Checks = tuple[
    tuple[NveResult | None, NveResult | None], tuple[Sequence[DimerScan], Sequence[DimerScan]], tuple[str, ...]
]


def _check_stability(plan: Plan, result: ForceField) -> Checks:
    """Dynamics at constant energy and walls of element pairs, of the result and, for elements it knows, of the base."""
    level, wanted = plan.data[0].level, plan.config.check_ps
    pairs = element_pairs(plan.data[0].valid)[:MOST_PAIRS]
    if not wanted:
        return (None, None), ((), ()), ()
    unknown = {symbol_of(z) for z in plan.start.predictor.unknown_elements(plan.base_level)}
    known = [pair for pair in pairs if unknown.isdisjoint(pair)]
    before = dimer_scan(plan.start, known, plan.base_level)
    after = dimer_scan(result, pairs, level)
    atoms = next((atoms for atoms in plan.data[0].valid if len(atoms) > 1), None)
    if atoms is None:
        return (None, None), (before, after), ()
    picoseconds = min(wanted, _affordable(result, level, atoms))
    base_run = None
    if unknown.isdisjoint(atoms.symbols):
        base_run = nve_drift(plan.start, atoms, plan.base_level, picoseconds=picoseconds)
    run = nve_drift(result, atoms, level, picoseconds=picoseconds)
    notes = (f"Dynamics was checked for {picoseconds:.3g} ps only, for want of time.",) if picoseconds < wanted else ()
    return (base_run, run), (before, after), notes


def _affordable(force_field: ForceField, level: str, atoms: ase.Atoms) -> float:
    """Picoseconds of dynamics that take no longer than `MOST_SECONDS`."""
    copy = atoms.copy()
    copy.calc = MLIPCalculator(force_field, level=level)
    copy.get_forces()
    started = time.monotonic()
    for _ in range(3):
        copy.positions[0, 0] += 1e-4
        copy.get_forces()
    step = (time.monotonic() - started) / 3
    return max(FEWEST_STEPS, MOST_SECONDS / step) * TIMESTEP / 1000
