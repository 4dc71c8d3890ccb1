"""Errors of a force field on labelled data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from ase_mlip.batches import Batches
from ase_mlip.cache import keep_compiled
from ase_mlip.dataset import (
    Example,
    LabelKeys,
    Source,
    elements_of,
    make_examples,
    naming_frame,
    read_frames,
    require_labels,
    take_census,
)
from ase_mlip.force_field import ForceField, precision
from ase_mlip.predictor import compiled_interaction


@dataclass(frozen=True)
class LossWeights:
    """Weights of the squared errors: energy per atom (eV), force components (eV/Angstrom), stress (eV/Angstrom^3).

    An error beyond `huber_delta`, in the same units, counts linearly instead of squared.
    """

    energy: float = 10.0
    forces: float = 1.0
    stress: float = 0.0
    huber_delta: float = 1.0

    def __post_init__(self) -> None:
        values = (self.energy, self.forces, self.stress)
        if min(values) < 0 or not max(values) > 0:
            raise ValueError(f"loss weights {self}: give numbers that are zero or positive, at least one positive")
        if not self.huber_delta > 0:
            raise ValueError(f"huber_delta={self.huber_delta}: give a positive number")

    @property
    def wanted(self) -> list[str]:
        """Labels with a positive weight."""
        return [name for name in ("energy", "forces", "stress") if getattr(self, name) > 0]


@dataclass(frozen=True)
class Errors:
    """Labels and predictions side by side, flat, for those labels that are present.

    Attributes:
        energy: [2, frames] label and prediction, eV per atom.
        forces: [2, components] eV/Angstrom.
        stress: [2, components] eV/Angstrom^3.
        frames: number of frames.
    """

    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    frames: int

    SHOWN: ClassVar[dict[str, tuple[str, str]]] = {
        "energy_mae": ("E", "meV/atom"),
        "forces_mae": ("F", "meV/A"),
        "stress_mae": ("S", "meV/A^3"),
    }

    def summary(self) -> dict[str, float]:
        """Mean absolute and root mean square errors in eV units, of the labels that are present."""
        out = {}
        for name in ("energy", "forces", "stress"):
            label, prediction = getattr(self, name)
            if len(label):
                out[f"{name}_mae"] = float(np.mean(np.abs(prediction - label)))
                out[f"{name}_rmse"] = float(np.sqrt(np.mean((prediction - label) ** 2)))
        return out

    def loss(self, weights: LossWeights) -> float:
        """Weighted sum of the mean errors, squared up to `huber_delta` and linear beyond: the loss in training."""
        total = 0.0
        for name in ("energy", "forces", "stress"):
            label, prediction = getattr(self, name)
            if len(label):
                error = np.abs(prediction - label)
                inside = np.minimum(error, weights.huber_delta)
                total += getattr(weights, name) * float(np.mean(inside * (2 * error - inside)))
        return total

    def __str__(self) -> str:
        rows = [
            f"{title}: MAE {1e3 * self.summary()[key]:.2f}, RMSE {1e3 * self.summary()[key[:-3] + 'rmse']:.2f} {unit}"
            for key, (title, unit) in self.SHOWN.items()
            if key in self.summary()
        ]
        return f"{self.frames} frames; " + "; ".join(rows)


def evaluate(force_field: ForceField, batches: Batches, dtype: str = "float32") -> Errors:
    """Predict every frame at the level its head weights say, and collect label and prediction."""
    predictor = force_field.predictor
    energy: list[Any] = []
    forces: list[Any] = []
    stress: list[Any] = []
    with precision(dtype):
        params = force_field.cast_params(dtype)
        for example in batches.epoch(None):
            graph, targets = example.graph, example.targets
            prediction = compiled_interaction(predictor, params, graph.astype(dtype), False)
            total = predictor.add_reference(graph, jax.tree.map(np.asarray, prediction))
            counts = np.maximum(np.bincount(graph.node_graph, minlength=graph.num_graphs)[: graph.num_graphs], 1)
            pairs = (np.stack([targets.energy, total.energy]) / counts)[:, targets.energy_mask]
            energy.append(pairs)
            forces.append(np.stack([targets.forces, total.forces])[:, targets.forces_mask].reshape(2, -1))
            stress.append(np.stack([targets.stress, total.stress])[:, targets.stress_mask].reshape(2, -1))
    join = [np.concatenate(parts, axis=1) for parts in (energy, forces, stress)]
    return Errors(join[0], join[1], join[2], len(batches.examples))


def evaluate_frames(
    force_field: ForceField,
    source: Source,
    *,
    level: str | None = None,
    keys: LabelKeys | None = None,
    batch_size: int = 16,
    dtype: str = "float32",
) -> Errors:
    """Errors of one level on the frames of a file or an iterable; frames lacking a label count for the others.

    Raises:
        MissingLabel: no frame has energy, or none has forces.
        InvalidStructure: a structure that the level cannot predict; names the frame.
    """
    keep_compiled()
    keys = keys or LabelKeys()
    frames = read_frames(source)
    census = take_census(frames, keys)
    if not any(census.labels.values()):
        require_labels(census, ["energy"], keys)
    for number, atoms in enumerate(frames):
        with naming_frame(number):
            force_field.check(atoms, level)
    force_field = force_field.for_elements(elements_of(frames))
    examples: Sequence[Example] = make_examples(
        frames, force_field.elements, force_field.cutoff, force_field.predictor.head_weights(level), keys
    )
    return evaluate(force_field, Batches(examples, batch_size), dtype)
