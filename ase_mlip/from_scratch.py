"""Training a force field from random parameters."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import ase
import numpy as np

from ase_mlip.batches import Batches
from ase_mlip.cache import keep_compiled
from ase_mlip.dataset import LabelKeys, Source, make_examples, read_labels
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.evaluate import evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.methods import make_optimizer
from ase_mlip.networks.mace import Mace, MaceConfig
from ase_mlip.report import FileRecord, LevelErrors, Report, installed_versions, write_report, write_results
from ase_mlip.repulsion import Repulsion
from ase_mlip.splits import read_split
from ase_mlip.structure import find_neighbors
from ase_mlip.training import Log, TrainResult, TrainSettings, Validation, train

CLIP = 10.0  # largest norm of the gradient
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
    train_set: Source,
    valid: Source | float = 0.1,
    *,
    config: MaceConfig | None = None,
    cutoff: float = 5.0,
    repulsion: Repulsion | None = None,
    output: str | os.PathLike[str] | None = None,
    keys: LabelKeys | None = None,
    learning_rate: float = 1e-2,
    settings: TrainSettings | None = None,
    provenance: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    log: Log = print,
) -> TrainResult:
    """Train a MACE from random parameters on labelled structures.

    Args:
        train_set: a file that ASE reads, or Atoms with labels (eV, eV/Angstrom, eV/Angstrom^3 positive in tension).
        valid: validation frames, or the share of `train_set` to draw at random for it.
        config: shape of the network.
        cutoff: largest neighbour distance, Angstrom.
        repulsion: constants of a screened repulsion of the nuclei, which keeps atoms apart where the data are silent;
            the network learns the rest. None: no repulsion.
        output: model file to write; a report with plots is written beside it.
        keys: where the labels are; by default in the attached calculator.
        learning_rate: peak of the cosine schedule.
        settings: epochs, batch size, loss weights and so on.
        provenance: plain data to keep in the model file.
        folder: for checkpoints; the same call with the same folder resumes.
        log: called with each line of progress.

    Raises:
        MissingLabel: a label with a positive weight is in no frame.
    """
    keep_compiled()
    started = time.monotonic()
    keys, settings = keys or LabelKeys(), settings or TrainSettings()
    frames, valid_frames = read_split(train_set, valid, keys, settings.loss.wanted, settings.seed, log)
    info = describe_dataset(frames, cutoff, keys)
    if repulsion is not None:
        heads = [replace(head, repulsion=1.0) for head in info.heads]
        info = replace(info, heads=tuple(heads), repulsion=repulsion)
    start = ForceField.from_mlip_network(Mace(config or MaceConfig(), info), seed=settings.seed)
    start = replace(start, provenance=dict(provenance or {}))
    log(f"Mace with {start.num_params:,} parameters; {info.avg_num_neighbors:.1f} neighbours on average")
    weights = start.predictor.head_weights()
    examples, valid_examples = (
        make_examples(part, start.elements, cutoff, weights, keys) for part in (frames, valid_frames)
    )
    per_epoch = len(Batches(examples, settings.batch_size, settings.max_shapes).plan((settings.seed, 0)))
    steps = max(1, settings.epochs * per_epoch)
    optimizer = make_optimizer(learning_rate, CLIP, steps, schedule="cosine", weight_decay=0.0, accumulate=1)
    result = train(
        start,
        examples,
        [Validation("base", valid_examples)],
        optimizer,
        settings,
        folder=None if folder is None else Path(folder),
        identity=f"learning rate {learning_rate}, repulsion {repulsion}",
        log=log,
    )
    if output is not None:
        errors = evaluate(result.force_field, Batches(valid_examples, settings.batch_size))
        path = write_results(Path(output), result.force_field, result.history, errors)
        files = [FileRecord.of("training", train_set, len(frames)), FileRecord.of("result", path)]
        report = Report(
            title=path.stem,
            method="scratch",
            levels=(LevelErrors.of("base", "validation", errors, structures=valid_frames, keys=keys),),
            history=result.history,
            settings={"network": config or MaceConfig(), "learning_rate": learning_rate, **asdict(settings)},
            files=tuple(files),
            trainable=start.num_params,
            parameters=start.num_params,
            seconds=time.monotonic() - started,
            versions=installed_versions(),
            date=date.today().isoformat(),
        )
        log(f"report: {write_report(path.with_name(f'{path.stem}_report'), report)}")
    return result
