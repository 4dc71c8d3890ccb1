"""Reference energies E0: how a new level's are found, so that training starts from the labels' own zero."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import ase
import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from ase_mlip.batches import Batches
from ase_mlip.dataset import Example
from ase_mlip.dataset_info import Head
from ase_mlip.evaluate import evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph
from ase_mlip.spill import select


@dataclass(frozen=True)
class EnergyCorrection:
    """What a new level adds to the energies of the level below it, eV per atom of each element.

    Attributes:
        energies: by atomic number.
        below: E0 of the level below, of the same elements.
        note: how it was found.
        rank: how many of them the labels determine; None where they were not fitted.
    """

    energies: Mapping[int, float]
    below: Mapping[int, float]
    note: str
    rank: int | None = None

    def __str__(self) -> str:
        values = " ".join(f"{chemical_symbols[z]} {energy:+.4f}" for z, energy in self.energies.items())
        return f"E0 correction, eV: {values or 'none'} ({self.note})"

    def rows(self) -> list[tuple[str, float, float, float]]:
        """Element, E0 below, correction and E0 of the new level, eV."""
        return [
            (chemical_symbols[z], self.below.get(z, 0.0), energy, self.below.get(z, 0.0) + energy)
            for z, energy in self.energies.items()
        ]


def find_correction(
    choice: str | Mapping[str, float], force_field: ForceField, level: str, examples: Sequence[Example], batch_size: int
) -> EnergyCorrection:
    """The E0 correction of a new level by the user's choice.

    Args:
        choice: "estimated": least squares on E_label - E_below; "isolated": from the data's one-atom frames; "keep":
            none; or the labels' energy of each isolated atom, by symbol in eV.
        force_field: with the new level, which is still silent.
        level: the new level.
        examples: training frames at that level.
        batch_size: of the evaluation.

    Raises:
        ValueError: an element of the data has no one-atom frame, or no given energy.
    """
    species = {int(s) for example in examples for s in np.unique(example.graph.species)}
    elements = [force_field.elements[s] for s in sorted(species)]
    weights = force_field.predictor.head_weights(level)
    reference = weights @ force_field.predictor.reference_energies
    below = {z: float(reference[force_field.elements.index(z)]) for z in elements}
    if choice == "keep":
        return EnergyCorrection({}, below, "kept as they are")
    if choice == "estimated":
        energies, rank = fit_energy_correction(force_field, examples, batch_size)
        if not energies:
            return EnergyCorrection({}, below, "no energies to fit")
        short = f"rank {rank} of {len(energies)}: minimum norm" if rank < len(energies) else f"rank {rank}"
        return EnergyCorrection(energies, below, f"least squares, {short}", rank)
    if choice == "isolated":
        labels, note = _isolated_labels(force_field, examples), "from one-atom frames"
    elif isinstance(choice, Mapping):
        labels, note = {atomic_numbers.get(s, 0): float(e) for s, e in choice.items()}, "given"
    else:
        raise ValueError(f"e0={choice!r}: give 'estimated', 'isolated', 'keep', or energies by symbol")
    missing = [chemical_symbols[z] for z in elements if z not in labels]
    if missing:
        what = "no one-atom frame with an energy" if choice == "isolated" else "no energy is given"
        raise ValueError(f"e0: {what} for {', '.join(missing)}; add it, or use 'estimated'")
    own = {z: _atom_energy(force_field, z, level) for z in elements}
    return EnergyCorrection({z: labels[z] - own[z] for z in elements}, below, note)


def fit_energy_correction(
    force_field: ForceField, examples: Sequence[Example], batch_size: int = 8
) -> tuple[dict[int, float], int]:
    """Per-element energies that best turn the model's energies into the labels: least squares on E_label - E_model.

    Where the compositions do not determine every element (a single composition determines none), the solution of
    minimum norm is taken.

    Returns:
        Correction in eV for each element that occurs, and the rank of the problem; no labels, no correction.
    """
    labelled = [number for number, example in enumerate(examples) if example.targets.energy_mask[0]]
    if not labelled:
        return {}, 0
    chosen = examples if len(labelled) == len(examples) else select(examples, labelled)
    counts = np.stack([np.bincount(e.graph.species, minlength=len(force_field.elements)) for e in chosen]).astype(float)
    species = np.flatnonzero(counts.any(axis=0))
    predicted = evaluate(force_field, Batches(chosen, batch_size))
    difference = (predicted.energy[0] - predicted.energy[1]) * counts.sum(axis=1)
    solution, _, rank, _ = np.linalg.lstsq(counts[:, species], difference, rcond=None)
    return {force_field.elements[s]: float(e) for s, e in zip(species, solution, strict=True)}, int(rank)


def with_energies(
    force_field: ForceField, heads: Sequence[str], energies: Mapping[int, float], taught: Container[int] = ()
) -> ForceField:
    """The force field with the E0 of some heads replaced, eV by atomic number; elements not named get zero.

    Those heads know the elements in `taught` from now on.
    """
    row = tuple(float(energies.get(z, 0.0)) for z in force_field.elements)
    changed = []
    for head in force_field.predictor.heads:
        if head.name in heads:
            unknown = tuple(z for z in head.unknown if z not in taught)
            head = replace(head, atomic_energies=row, unknown=unknown)
        changed.append(head)
    return with_heads(force_field, changed)


def with_heads(force_field: ForceField, heads: Sequence[Head]) -> ForceField:
    """The force field with other head constants."""
    network = force_field.predictor.network
    rebuilt = network.rebuild(network.config, network.dataset_info.with_heads(heads))
    return ForceField(replace(force_field.predictor, network=rebuilt), force_field.params, force_field.provenance)


def _isolated_labels(force_field: ForceField, examples: Sequence[Example]) -> dict[int, float]:
    """Mean label energy of the one-atom frames of each element."""
    found: dict[int, list[float]] = {}
    for example in examples:
        if len(example.graph.species) == 1 and example.targets.energy_mask[0]:
            z = force_field.elements[int(example.graph.species[0])]
            found.setdefault(z, []).append(float(example.targets.energy[0]))
    return {z: float(np.mean(energies)) for z, energies in found.items()}


def _atom_energy(force_field: ForceField, number: int, level: str) -> float:
    """What a level predicts for an isolated atom, eV."""
    weights = force_field.predictor.head_weights(level)
    graph = Graph.from_atoms(ase.Atoms([number]), force_field.elements, force_field.cutoff, weights)
    return float(force_field(graph).energy[0])
