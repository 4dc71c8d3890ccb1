"""Training a force field from random parameters."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import ase
import numpy as np

from ase_mlip.batches import Batches
from ase_mlip.bounds import fitted_bounds, without_bounds
from ase_mlip.cache import keep_compiled
from ase_mlip.config import TrainConfig
from ase_mlip.dataset import LabelKeys, Source, make_examples, read_labels
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.evaluate import evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.methods import make_optimizer
from ase_mlip.networks.mace import Mace
from ase_mlip.report import FileRecord, LevelErrors, Report, installed_versions, write_report, write_results
from ase_mlip.splits import read_split
from ase_mlip.structure import find_neighbors
from ase_mlip.training import Log, TrainResult, Validation, train

COUNTED = 10_000  # frames whose neighbours are counted, at most; their mean only normalises


def describe_dataset(frames: Sequence[ase.Atoms], cutoff: float, keys: LabelKeys, name: str = "base") -> DatasetInfo:
    """Fit the constants a network is built around, in one pass over the frames.

    E0 of an element is the energy of its isolated atom where every element has a one-atom frame, and the least-squares
    fit of energies to compositions (minimum norm) otherwise; the shift is the median of what remains per atom. The
    scale is the standard deviation of normally distributed force components with the same mean magnitude: neither
    follows a few frames of two atoms pushed together. Neighbours are counted in all frames, or in `COUNTED` of them
    spread evenly over the data if there are more.
    """
    isolated: dict[int, float] = {}
    elements: set[int] = set()
    molecules: list[tuple[Counter[int], float]] = []
    magnitudes = components = edges = centers = 0.0
    every = -(-len(frames) // COUNTED)
    for number, atoms in enumerate(frames):
        labels, composition = read_labels(atoms, keys), Counter(atoms.numbers.tolist())
        elements.update(composition)
        if "energy" in labels and len(atoms) == 1:
            isolated[int(atoms.numbers[0])] = float(labels["energy"])
        elif "energy" in labels and len(atoms):
            molecules.append((composition, float(labels["energy"])))
        if "forces" in labels:
            magnitudes += float(np.sum(np.abs(labels["forces"])))
            components += labels["forces"].size
        if number % every == 0:
            edges += len(find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)[0])
            centers += len(atoms)
    reference, shift = _fit_energies(sorted(elements), isolated, molecules)
    scale = float(np.sqrt(np.pi / 2) * magnitudes / components) if components else 1.0
    return DatasetInfo.create(reference, cutoff, max(edges / max(centers, 1.0), 1.0), scale or 1.0, shift, name)


def _fit_energies(
    elements: list[int], isolated: dict[int, float], molecules: list[tuple[Counter[int], float]]
) -> tuple[dict[int, float], float]:
    """E0 of each element and the median energy per atom that is left, eV."""
    complete = set(isolated) == set(elements)
    if not molecules:
        return isolated if complete else dict.fromkeys(elements, 0.0), 0.0
    counts = np.array([[composition[z] for z in elements] for composition, _ in molecules], float)
    energies = np.array([energy for _, energy in molecules])
    if complete:
        rest = energies - counts @ np.array([isolated[z] for z in elements])
        return isolated, float(np.median(rest / counts.sum(axis=1)))
    solution = np.linalg.lstsq(counts, energies, rcond=None)[0]
    return dict(zip(elements, solution.tolist(), strict=True)), 0.0


def train_from_scratch(
    train_set: Source | None = None,
    valid: Source | float | None = None,
    *,
    config: TrainConfig | None = None,
    log: Log = print,
    **options: Any,
) -> TrainResult:
    """Train a MACE from random parameters, or from a model's, on labelled structures.

    Args:
        train_set: a file that ASE reads, or Atoms with labels (eV, eV/Angstrom, eV/Angstrom^3 positive in tension).
        valid: validation frames, or the share of `train_set` to draw at random for it.
        config: all choices; those given here besides replace its values.
        log: called with each line of progress.
        options: any field of `TrainConfig`, such as channels=32, output="mine.safetensors", epochs=50, repulsion=True.

    Raises:
        ValueError: an option that does not exist or could have no effect, or data that cannot be.
        MissingLabel: a label with a positive weight is in no frame.

    Example:
        >>> from ase_mlip.demo import demo_data
        >>> small = {"channels": 4, "layers": 1, "l_max": 1, "hidden_l_max": 0, "correlation": 2, "radial_mlp": [8]}
        >>> result = train_from_scratch(f"{demo_data()}@:12", 0.25, epochs=1, log=lambda line: None, **small)
        >>> len(result.history)
        2
    """
    options |= {name: value for name, value in (("train", train_set), ("valid", valid)) if value is not None}
    config = (config or TrainConfig()).changed(options)
    if config.train is None:
        raise ValueError("train: give the training frames, a file or a list of Atoms")
    keep_compiled()
    started = time.monotonic()
    keys, settings = config.keys, config.settings
    frames, valid_frames = read_split(
        config.train, config.valid, keys, settings.loss.wanted, settings.seed, log, config.skip_bad_frames
    )
    start = _start(config, frames, log)
    weights = start.predictor.head_weights()
    examples, valid_examples = (
        make_examples(part, start.elements, start.cutoff, weights, keys) for part in (frames, valid_frames)
    )
    per_epoch = len(Batches(examples, settings.batch_size, settings.max_shapes).plan((settings.seed, 0)))
    steps = max(1, settings.epochs * per_epoch)
    level = list(start.levels)[-1]
    result = train(
        without_bounds(start),
        examples,
        [Validation(level, valid_examples)],
        make_optimizer(config.learning_rate, config.clip, steps, schedule=config.schedule, optimizer=config.optimizer),
        settings,
        folder=None if config.folder is None else Path(config.folder),
        identity=f"{config.optimizer}, learning rate {config.learning_rate} {config.schedule}, clip {config.clip}",
        log=log,
    )
    bounded = fitted_bounds(result.force_field, Batches(examples, settings.batch_size, settings.max_shapes), start)
    result = replace(result, force_field=_signed(bounded, result, config, len(frames)))
    if config.output is not None:
        errors = evaluate(result.force_field, Batches(valid_examples, settings.batch_size))
        path = write_results(Path(config.output), result.force_field, result.history, errors)
        report = Report(
            title=path.stem,
            method="scratch" if config.start is None else "continued",
            levels=(LevelErrors.of(level, "validation", errors, structures=valid_frames, keys=keys),),
            history=result.history,
            settings=_described(config),
            files=(FileRecord.of("training", config.train, len(frames)), FileRecord.of("result", path)),
            trainable=start.num_params,
            parameters=start.num_params,
            seconds=time.monotonic() - started,
            versions=installed_versions(),
            date=date.today().isoformat(),
        )
        log(f"report: {write_report(path.with_name(f'{path.stem}_report'), report)}")
    return result


def _start(config: TrainConfig, frames: Sequence[ase.Atoms], log: Log) -> ForceField:
    """Random parameters around constants fitted to the data, or the model that was named."""
    if config.start is not None:
        start = config.start if isinstance(config.start, ForceField) else ForceField.load(config.start)
    else:
        info = describe_dataset(frames, config.cutoff, config.keys)
        if config.repulsion:
            heads = tuple(replace(head, repulsion=1.0) for head in info.heads)
            info = replace(info, heads=heads, repulsion=config.pair_repulsion)
        start = ForceField.from_mlip_network(Mace(config.network, info), seed=config.seed)
    info = start.dataset_info
    name = type(start.predictor.network).__name__
    log(f"{name} with {start.num_params:,} parameters; {info.avg_num_neighbors:.1f} neighbours on average")
    return start


def _signed(force_field: ForceField, result: TrainResult, config: TrainConfig, frames: int) -> ForceField:
    """The trained force field, which says how it was trained: one round more if it went on from another."""
    provenance = dict(force_field.provenance)
    this = {"frames": frames, "kept_epoch": result.best["epoch"], **_described(config)}
    source = str(config.to_dict()["train"])
    provenance |= {"training_data": Path(source).name, "training": [*provenance.get("training", []), this]}
    provenance |= {key: value for key in ("name", "licence") if (value := getattr(config, key)) is not None}
    return replace(force_field, provenance=provenance)


def _described(config: TrainConfig) -> dict[str, Any]:
    """The options, but for those that say where the result goes and how long it may take, or are not in use."""
    plain = {**config.to_dict(), "start": None if config.start is None else _name_of(config.start)}
    unused = () if config.start is None else (*config.SHAPE, *config.CONSTANTS)  # the model that it names has its own
    return {name: value for name, value in plain.items() if name not in ("output", "folder", "max_minutes", *unused)}


def _name_of(model: ForceField | str) -> str:
    """The name that a model states, or that of its file."""
    if isinstance(model, ForceField):
        return str(model.provenance.get("name", "a model in memory"))
    return Path(model).name
