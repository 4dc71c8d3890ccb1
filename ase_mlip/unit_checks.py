"""Do the labels have the units, signs and order that are expected? The base's own predictions are the yardstick.

What a base cannot know is taken out first: of the energies, a least-squares energy per element; of the stress, its
median over the frames, since another functional has another equilibrium volume. Frames in which a label or a prediction
is ten times larger than in most others do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ase_mlip.batches import Batches
from ase_mlip.dataset import Example
from ase_mlip.evaluate import Errors
from ase_mlip.force_field import ForceField
from ase_mlip.outliers import robust_fit
from ase_mlip.unit_readings import (
    BETTER,
    ENERGY_UNITS,
    EXPECTED,
    FORCE_UNITS,
    MUCH_BETTER,
    SMALLEST,
    STRESS_UNITS,
    Finding,
    Reading,
    is_related,
    judge,
    read_in_units,
    severity_of,
)

__all__ = ["Comparison", "Finding", "check_units", "compare_with_base", "step0_shift"]

SHIFT = 0.5  # eV/atom
UNUSUAL = 10.0  # times the ninth decile
SHEAR = ("yz", "xz", "xy")  # Voigt's order
ORDER_NAMES: dict[tuple[str, ...], str] = {
    ("xy", "yz", "xz"): " (VASP's order)",
    ("xy", "xz", "yz"): " (LAMMPS's order)",
}


@dataclass(frozen=True)
class Comparison:
    """Labels (first row) and the base's predictions (second row) of the same frames.

    Attributes:
        composition: [frames, elements] number of atoms of each element.
        volume: [frames] Angstrom^3; zero where the cell does not span space.
        energy: [2, frames] total energy, eV.
        forces: [2, atoms, 3] eV/Angstrom, the frames' atoms one after the other.
        stress: [2, frames, 3, 3] eV/Angstrom^3, positive in tension.
        has_energy: [frames] whether the frame has this label; what stands in `energy` otherwise has no meaning.
        has_forces: [frames]
        has_stress: [frames]
    """

    composition: np.ndarray
    volume: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    stress: np.ndarray
    has_energy: np.ndarray
    has_forces: np.ndarray
    has_stress: np.ndarray

    def errors(self) -> Errors:
        """The same as errors, without predicting once more."""
        atoms = self.composition.sum(axis=1)
        forces = self.forces[:, np.repeat(self.has_forces, atoms.astype(int))]
        energy, stress = (self.energy / atoms)[:, self.has_energy], self.stress[:, self.has_stress]
        return Errors(energy, forces.reshape(2, -1), stress.reshape(2, -1), len(atoms))


def compare_with_base(
    base: ForceField, examples: Sequence[Example], limit: int | None = 100, batch_size: int = 8, dtype: str = "float32"
) -> Comparison:
    """Predict a sample of labelled structures, at the level that their head weights say.

    Args:
        base: the force field for whose elements the examples were made.
        examples: at least one.
        limit: so many are drawn, always the same; 100 are enough for units. None for all.
        batch_size: structures in a batch.
        dtype: "float32" or "float64".

    Raises:
        ValueError: a prediction that is not finite.
    """
    chosen = sorted(np.random.default_rng(0).permutation(len(examples)).tolist()[:limit])
    parts = []
    for joined in Batches([examples[i] for i in chosen], batch_size).epoch(None):
        graph, targets = joined.graph, joined.targets
        predicted = base(graph, dtype=dtype)
        if not (np.isfinite(predicted.energy).all() and np.isfinite(predicted.forces).all()):
            raise ValueError("the base predicts energies or forces that are not finite; do atoms coincide in a frame?")
        nodes = graph.node_graph < graph.num_graphs
        node_graph = graph.node_graph[nodes]
        composition = np.zeros((graph.num_graphs, len(base.elements)))
        np.add.at(composition, (node_graph, graph.species[nodes]), 1)
        graphs = composition.any(axis=1)
        without_forces = np.bincount(node_graph, ~targets.forces_mask[nodes], graph.num_graphs) > 0
        parts.append(
            (
                composition[graphs],
                np.abs(np.linalg.det(graph.cell[graphs])),
                np.stack([targets.energy, predicted.energy])[:, graphs],
                np.stack([targets.forces, predicted.forces])[:, nodes],
                np.stack([targets.stress, predicted.stress])[:, graphs],
                targets.energy_mask[graphs],
                ~without_forces[graphs],
                targets.stress_mask[graphs],
            )
        )
    axes = (0, 0, 1, 1, 1, 0, 0, 0)
    return Comparison(*(np.concatenate(part, axis) for part, axis in zip(zip(*parts, strict=True), axes, strict=True)))


def check_units(compared: Comparison) -> list[Finding]:
    """Name the unit, sign or order of the labels that fits the base's predictions much better than what is expected.

    A reading of the labels counts if its scale is within a factor of two of the base's and if its cosine with the base
    is at least 0.6 and no chance (eight values, Student's t of 5). It is a note if its relative error is less than half
    that of the labels as given; it is an error if the cosine is at least 0.8 and either the relative error is less than
    a fifth or the labels as given have a cosine below -0.8. So a base that is merely bad, noisy, too soft or too stiff
    gives no alarm. Where the data cannot tell (few frames, hardly any forces, a base unrelated to the labels), a
    finding says that the label is unchecked.

    No base is needed to recognise energies per atom where the number of atoms varies. Never identifiable are a constant
    in the energies and energies per element: the fit of E0 takes them up. Where all frames have the same number of
    atoms, energies per atom look like another unit with about that factor, and all readings that fit are named;
    energies per atom in kcal/mol then look right for 16 to 34 atoms.
    """
    return [*_check_energy(compared), *_check_forces(compared), *_check_stress(compared)]


def step0_shift(errors: Errors) -> Finding | None:
    """A finding if the energies, with the E0 correction, are off by more than 0.5 eV per atom on average."""
    label, prediction = errors.energy
    shift = float(np.mean(prediction - label)) if len(label) else 0.0
    if abs(shift) <= SHIFT:
        return None
    return Finding(
        "energy",
        "note",
        f"before training the predicted energies are off by {shift:+.2f} eV/atom on average, E0 included (more than "
        f"{SHIFT}): the labels have other reference energies; fit E0 to these labels, or correct the labels",
    )


def _check_energy(compared: Comparison) -> list[Finding]:
    known = compared.has_energy
    if not known.any():
        return []
    composition, (label, prediction) = compared.composition[known], compared.energy[:, known]
    atoms = composition.sum(axis=1)
    total = [*read_in_units(*_beyond_composition(composition, label, prediction), ENERGY_UNITS)]
    parts = _beyond_composition(composition, label * atoms, prediction)
    per_atom = [*read_in_units(*parts, ENERGY_UNITS, " per atom", "by the number of atoms")]
    gain = _per_atom_gain(composition, label)
    if gain <= MUCH_BETTER:
        return judge("energy", [*total, *per_atom])
    found = judge("energy", [total[0], *per_atom])
    if any("per atom" in finding.message for finding in found):
        return found  # which also says the unit
    message = (
        f"expected {EXPECTED['energy']}; the labels do not grow with the number of atoms, and as energies per atom "
        f"they follow the composition {gain:.1f} times better; multiply them by the number of atoms"
    )
    return [Finding("energy", "error", message)]


def _per_atom_gain(composition: np.ndarray, label: np.ndarray) -> float:
    """How much better the labels follow the composition as energies per atom than as totals; needs no base.

    Totals divided by the number of atoms, or labels as they are, are fitted by the shares of the elements.
    """
    atoms = composition.sum(axis=1)
    shares = composition / atoms[:, None]
    if len(label) - np.linalg.matrix_rank(shares) < 10:
        return 0.0
    unexplained = []
    for per_atom in (label / atoms, label):
        residual = per_atom - shares @ robust_fit(shares, per_atom)
        unexplained.append(np.median(np.abs(residual)) / max(np.median(np.abs(per_atom)), 1e-12))
    return float(unexplained[0] / max(unexplained[1], 1e-9))


def _beyond_composition(
    composition: np.ndarray, label: np.ndarray, prediction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """What no energies per element explain of labels and predictions, eV/sqrt(atoms), and the degrees of freedom.

    Energies vary with the square root of the number of atoms; divided by it, small and large frames count alike.
    """
    weights = 1 / np.sqrt(composition.sum(axis=1))
    rows, values = composition * weights[:, None], np.stack([label, prediction]) * weights
    kept = _usual(np.abs(np.stack([v - rows @ robust_fit(rows, v) for v in values])))
    rows, values = rows[kept], values[:, kept]
    solution, _, rank, _ = np.linalg.lstsq(rows, values.T, rcond=None)
    first, second = values - (rows @ solution).T
    return first, second, int(kept.sum() - rank)


def _check_forces(compared: Comparison) -> list[Finding]:
    known = compared.has_forces
    if not known.any():
        return []
    atoms = compared.composition.sum(axis=1).astype(int)
    pairs = compared.forces[:, np.repeat(known, atoms)]
    atoms = atoms[known]
    kept = _usual(np.maximum.reduceat(np.abs(pairs).max(axis=-1), np.cumsum(atoms) - atoms, axis=1))
    label, prediction = pairs[:, np.repeat(kept, atoms)].reshape(2, -1)
    degrees = int(np.maximum(3 * atoms[kept] - 6, 0).sum() + (atoms[kept] == 2).sum())
    return judge("forces", [*read_in_units(label, prediction, degrees, FORCE_UNITS)])


def _check_stress(compared: Comparison) -> list[Finding]:
    known = compared.has_stress & (compared.volume > 0)
    if not known.any():
        return []
    full, volume = compared.stress[:, known], compared.volume[known]
    places = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
    label, prediction = full[:, :, places[0], places[1]]
    found, order = _check_order(label[:, 3:], prediction[:, 3:])
    label = label[:, [0, 1, 2, *(3 + place for place in order)]]
    stress = [*read_in_units(*_beyond_median(label, prediction), STRESS_UNITS)]
    parts = _beyond_median(label / volume[:, None], prediction)
    virial = [*read_in_units(*parts, {"eV": 1.0}, " (virial, the stress times the volume)", "by 1/volume")]
    return [*judge("stress", [*stress, *virial]), *found]


def _check_order(label: np.ndarray, prediction: np.ndarray) -> tuple[list[Finding], tuple[int, ...]]:
    """Where yz, xz and xy are found among the labels' shear components [frames, 3], and a finding if in another order.

    Unit and sign are not known yet: only the cosines count, and labels that are scaled best.
    """
    written: dict[tuple[int, ...], tuple[str, ...]] = {
        tuple(names.index(name) for name in SHEAR): names for names in permutations(SHEAR)
    }
    given = (0, 1, 2)
    cosines = {}
    for order in written:
        first, second, degrees = _beyond_median(label[:, order], prediction)
        cosines[order] = abs(Reading("", "", first, second, degrees).cosine)
    best = max(cosines, key=lambda order: cosines[order])
    gain = np.sqrt((1 - cosines[given]) / max(1 - cosines[best], 1e-12))
    enough = np.sqrt(np.mean(second**2)) > SMALLEST["stress"] and is_related(cosines[best], degrees)
    if best == given or gain < BETTER or not enough:
        return [], given
    message = (
        f"expected Voigt's order xx yy zz yz xz xy; the shear components fit the base {gain:.1f} times better as "
        f"{' '.join(written[best])}{ORDER_NAMES.get(written[best], '')}, cosine {cosines[best]:.3f} instead of "
        f"{cosines[given]:.3f}; put them in the expected order"
    )
    return [Finding("stress", severity_of(gain, cosines[given], cosines[best]), message)], best


def _beyond_median(label: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Deviations of stress components [frames, components] from their medians, flat, and the degrees of freedom."""
    pairs = np.stack([label, prediction])
    pairs = pairs - np.median(pairs, axis=1, keepdims=True)
    pairs = pairs[:, _usual(np.abs(pairs).max(axis=-1))]
    first, second = pairs.reshape(2, -1)
    return first, second, (pairs.shape[1] - 1) * pairs.shape[2]


def _usual(sizes: np.ndarray) -> np.ndarray:
    """Which frames have neither a label nor a prediction far larger than most others', from sizes [2, frames]."""
    if sizes.shape[1] < 10:
        return np.ones(sizes.shape[1], bool)
    # "lower": with ten frames, one of them must not be its own measure
    return np.all(sizes <= UNUSUAL * np.quantile(sizes, 0.9, axis=1, keepdims=True, method="lower") + 1e-12, axis=0)
