"""Training a force field from random parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import numpy as np
import optax

from ase_mlip.batches import Batches
from ase_mlip.dataset import LabelKeys, Source, elements_of, make_examples, read_labels, read_split
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.evaluate import evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.networks.mace import Mace, MaceConfig
from ase_mlip.report import write_results
from ase_mlip.structure import find_neighbors
from ase_mlip.training import Log, TrainResult, TrainSettings, train


def describe_dataset(frames: Sequence[ase.Atoms], cutoff: float, keys: LabelKeys, name: str = "base") -> DatasetInfo:
    """Fit the constants a network is built around.

    E0 of an element is the energy of its isolated atom where every element has a one-atom frame, and the least-squares
    fit of energies to compositions (minimum norm) otherwise; the shift is the mean of what remains per atom, the scale
    the root mean square force component.
    """
    labels = [read_labels(atoms, keys) for atoms in frames]
    elements = sorted(elements_of(frames))
    with_energy = [
        (atoms, float(found["energy"])) for atoms, found in zip(frames, labels, strict=True) if "energy" in found
    ]
    isolated = {int(atoms.numbers[0]): energy for atoms, energy in with_energy if len(atoms) == 1}
    molecules = [(atoms, energy) for atoms, energy in with_energy if len(atoms) > 1]
    counts = np.array([[np.sum(atoms.numbers == z) for z in elements] for atoms, _ in molecules], float)
    energies = np.array([energy for _, energy in molecules])
    shift, reference = 0.0, dict.fromkeys(elements, 0.0)
    if set(isolated) == set(elements):
        reference = isolated
        if molecules:
            rest = energies - counts @ np.array([isolated[z] for z in elements])
            shift = float(np.mean(rest / counts.sum(axis=1)))
    elif molecules:
        solution = np.linalg.lstsq(counts, energies, rcond=None)[0]
        reference = dict(zip(elements, solution.tolist(), strict=True))
    forces = [found["forces"].ravel() for found in labels if "forces" in found]
    scale = float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else 1.0
    edges = sum(len(find_neighbors(a.positions, a.cell.array, a.pbc, cutoff)[0]) for a in frames)
    neighbors = edges / sum(len(atoms) for atoms in frames)
    return DatasetInfo.create(reference, cutoff, max(neighbors, 1.0), scale or 1.0, shift, name)


def train_from_scratch(
    train_set: Source,
    valid: Source | float = 0.1,
    *,
    config: MaceConfig | None = None,
    cutoff: float = 5.0,
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
        output: model file to write; curves and parity plots are written beside it.
        keys: where the labels are; by default in the attached calculator.
        learning_rate: peak of the cosine schedule.
        settings: epochs, batch size, loss weights and so on.
        provenance: plain data to keep in the model file.
        folder: for checkpoints; the same call with the same folder resumes.
        log: called with each line of progress.

    Raises:
        MissingLabel: a label with a positive weight is in no frame.
    """
    keys, settings = keys or LabelKeys(), settings or TrainSettings()
    frames, valid_frames = read_split(train_set, valid, keys, settings.loss.wanted, settings.seed, log)
    info = describe_dataset(frames, cutoff, keys)
    start = ForceField.from_mlip_network(Mace(config or MaceConfig(), info), seed=settings.seed)
    start = replace(start, provenance=dict(provenance or {}))
    log(f"Mace with {start.num_params:,} parameters; {info.avg_num_neighbors:.1f} neighbours on average")
    weights = start.predictor.head_weights()
    examples, valid_examples = (
        make_examples(part, start.elements, cutoff, weights, keys) for part in (frames, valid_frames)
    )
    per_epoch = sum(1 for _ in Batches(examples, settings.batch_size, settings.max_shapes).epoch((settings.seed, 0)))
    steps = max(1, settings.epochs * per_epoch)
    schedule = optax.warmup_cosine_decay_schedule(learning_rate / 100, learning_rate, min(200, steps // 10), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.amsgrad(schedule))
    result = train(
        start, examples, valid_examples, optimizer, settings, folder=None if folder is None else Path(folder), log=log
    )
    if output is not None:
        errors = evaluate(result.force_field, Batches(valid_examples, settings.batch_size))
        write_results(Path(output), result.force_field, result.history, errors)
    return result
