"""Reference energies E0: how a new level's are fitted to its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ase_mlip.batches import Batches
from ase_mlip.dataset import Example
from ase_mlip.dataset_info import Head
from ase_mlip.evaluate import evaluate
from ase_mlip.force_field import ForceField


def fit_energy_correction(
    force_field: ForceField, examples: Sequence[Example], batch_size: int = 8
) -> tuple[dict[int, float], int]:
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
    predicted = evaluate(force_field, Batches(labelled, batch_size))
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
