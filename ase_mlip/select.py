"""The frames of a trajectory that are worth labelling next: where a committee is least sure, and unlike each other."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import ase
import ase.io
import numpy as np
from ase.data import covalent_radii
from ase.geometry import complete_cell

from ase_mlip.batches import Batches, join_examples, prefetch
from ase_mlip.dataset import Example, LabelKeys, Source, read_frames
from ase_mlip.fingerprint import farthest_points, fingerprints, join_points
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph, PadShape
from ase_mlip.spill import select
from ase_mlip.structure import InvalidStructure, find_neighbors, symbol_of
from ase_mlip.training import Log
from ase_mlip.uncertainty import deviation, member_predictions

OVERLAP = 0.5  # of the sum of the covalent radii; bonds of strongly compressed matter are above 0.7
MOST_BINS = 1e7  # of a neighbour search: a molecule whose atoms have flown apart would take gigabytes
ABSURD_STD = 100.0  # eV/Angstrom; a strongly compressed dimer feels such a force
SHOWN = 10  # faulty frames that are logged one by one


@dataclass(frozen=True)
class Selected:
    """A frame worth labelling."""

    index: int  # in the frames given
    energy_std_per_atom: float  # eV
    max_forces_std: float  # eV/Angstrom, of the atom with the largest


@dataclass(frozen=True)
class Scan:
    """Deviations of all frames.

    Attributes:
        energy_std_per_atom: [frames] eV; NaN where there is no prediction.
        max_forces_std: [frames] eV/Angstrom, of the atom with the largest; NaN where there is no prediction.
        faults: frames that must not be selected, and why.
    """

    energy_std_per_atom: np.ndarray
    max_forces_std: np.ndarray
    faults: Mapping[int, str]

    def ranked(self) -> np.ndarray:
        """Frames without faults, the largest deviation of a force first."""
        order = np.argsort(-self.max_forces_std, kind="stable")
        return order[~np.isin(order, list(self.faults))]


def select_frames(
    force_field: ForceField,
    frames: Source,
    count: int,
    *,
    level: str | None = None,
    batch_size: int = 16,
    pool_factor: int = 5,
    log: Log = print,
) -> list[Selected]:
    """Frames worth labelling next: of those where the members of a committee differ most, a diverse subset.

    Frames need no labels, and may load lazily: two numbers are kept of each. Frames that cannot be predicted, whose
    atoms overlap or have flown apart, or whose deviation is beyond 100 eV/Angstrom are logged and never selected.

    Args:
        force_field: a force field whose level has a committee, from `fine_tune` with n_heads > 1.
        frames: a file that ASE reads, or Atoms.
        count: frames to select; fewer are returned only if there are fewer that differ from each other.
        level: the newest by default.
        batch_size: frames predicted at once.
        pool_factor: how many times `count` the frames of largest deviation are from which the subset is taken; 1 heeds
            only the deviation.
        log: called with one line for each faulty frame.

    Returns:
        The frame of largest deviation, then each time the one farthest from all before it, see `choose_frames`.

    Raises:
        ValueError: no committee in the level, a count below 1, or no frame without a fault.

    Example:
        >>> from ase_mlip.demo import demo_data
        >>> select_frames(ForceField.load("default"), f"{demo_data()}@:4", 2)
        Traceback (most recent call last):
            ...
        ValueError: level 'base' has no committee of heads; fine-tune with n_heads > 1 to get one
    """
    for name, value in (("count", count), ("batch_size", batch_size), ("pool_factor", pool_factor)):
        if value < 1:
            raise ValueError(f"{name}={value}: give a whole number of at least 1")
    frames = read_frames(frames)
    scan = scan_frames(force_field, frames, level=level, batch_size=batch_size)
    for line in describe_faults(scan):
        log(line)
    return choose_frames(scan, frames, count, force_field.cutoff, pool_factor)


def scan_frames(
    force_field: ForceField, frames: Sequence[ase.Atoms], *, level: str | None = None, batch_size: int = 16
) -> Scan:
    """Deviation of every frame over the members of a level's committee, in float32.

    Raises:
        ValueError: no committee in the level.
    """
    force_field.predictor.member_weights(level)
    faults, elements = {}, set[int]()
    for index, atoms in enumerate(frames):
        if fault := find_fault(atoms, force_field, level):
            faults[index] = fault
        else:
            elements.update(atoms.numbers.tolist())
    good = array("q", (index for index in range(len(frames)) if index not in faults))
    energy, forces = np.full((2, len(frames)), np.nan)
    if good:
        used = force_field.for_elements(elements)
        examples = _BareExamples(select(frames, good), used)
        for numbers, graph in _batches(examples, batch_size):
            places = [good[number] for number in numbers]
            energy[places], forces[places] = _deviations(used, graph, level, len(places))
    for index in good:
        if not np.isfinite(energy[index] + forces[index]):
            faults[index] = "the prediction is not finite"
        elif forces[index] > ABSURD_STD:
            faults[index] = f"a force deviates by {forces[index]:.3g} eV/Angstrom"
    return Scan(energy, forces, dict(sorted(faults.items())))


class _BareExamples(Sequence[Example]):
    """Examples of frames without their labels, each made anew when it is read."""

    def __init__(self, frames: Sequence[ase.Atoms], force_field: ForceField):
        self._frames, self._force_field = frames, force_field
        self._weights = force_field.predictor.head_weights()

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: Any) -> Any:
        atoms, model = self._frames[index], self._force_field
        bare = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        return Example.from_atoms(bare, model.elements, model.cutoff, self._weights, LabelKeys())


def _batches(examples: Sequence[Example], batch_size: int) -> Iterator[tuple[list[int], Graph]]:
    """Graphs of many examples in two shapes at most, made ahead in a thread, with the numbers of those in each."""
    batches = Batches(examples, batch_size, max_shapes=2)

    def join(plan: tuple[PadShape, list[int]]) -> tuple[list[int], Graph]:
        shape, numbers = plan
        return numbers, join_examples([examples[number] for number in numbers], shape).graph

    with closing(prefetch(batches.plan(None), join)) as ready:
        yield from ready


def _deviations(force_field: ForceField, graph: Graph, level: str | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the first `count` graphs: energy per atom, eV, and largest of the forces, eV/Angstrom."""
    spread = deviation(member_predictions(force_field, graph, level))
    real = graph.node_graph < count
    largest = np.zeros(count)
    with np.errstate(invalid="ignore"):  # NaN stays NaN
        np.maximum.at(largest, graph.node_graph[real], spread.forces[real])
    return spread.energy[:count] / np.bincount(graph.node_graph[real], minlength=count), largest


def find_fault(atoms: ase.Atoms, force_field: ForceField, level: str | None = None) -> str | None:
    """Why a frame is of no use, if it is not: no prediction for it, atoms that overlap or have flown apart."""
    try:
        force_field.check(atoms, level)
    except InvalidStructure as error:
        return str(error)
    if len(atoms) == 0:
        return "there are no atoms"
    radii = covalent_radii[atoms.numbers]
    reach = max(1.0, 2 * OVERLAP * float(radii.max()))
    box = complete_cell(np.where(atoms.pbc[:, None], atoms.cell.array, 0.0))
    fractional = np.linalg.solve(box.T, atoms.positions.T).T
    lengths = np.linalg.norm(box, axis=1) * np.where(atoms.pbc, 1.0, np.ptp(fractional, axis=0))
    if np.prod(np.maximum(lengths / reach, 1.0)) > MOST_BINS:
        return f"it is {' x '.join(f'{length:.3g}' for length in lengths)} Angstrom large; have its atoms flown apart?"
    centers, others, shifts = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, reach)
    vectors = atoms.positions[others] + shifts @ atoms.cell.array - atoms.positions[centers]
    distances = np.linalg.norm(vectors, axis=1)
    close = np.flatnonzero(distances < OVERLAP * (radii[centers] + radii[others]))
    if len(close) == 0:
        return None
    pair = close[distances[close].argmin()]
    i, j = sorted((int(centers[pair]), int(others[pair])))
    names = f"{i} ({symbol_of(atoms.numbers[i])}) and {j} ({symbol_of(atoms.numbers[j])})"
    return f"atoms {names} are only {distances[pair]:.2g} Angstrom apart"


def describe_faults(scan: Scan) -> Iterator[str]:
    """A line for each of the first faulty frames, and one for their number if there are more."""
    faults = list(scan.faults.items())
    for index, fault in faults[:SHOWN]:
        yield f"frame {index} is not selected: {fault}"
    if len(faults) > SHOWN:
        yield f"{len(faults) - SHOWN} more frames are not selected for such reasons"


def choose_frames(
    scan: Scan, frames: Sequence[ase.Atoms], count: int, cutoff: float, pool_factor: int = 5
) -> list[Selected]:
    """A diverse subset of the frames of largest deviation, by farthest-point sampling.

    The pool has the `pool_factor * count` frames with the largest deviation of a force. The first of them is taken,
    then again and again the one whose `fingerprint` is farthest from all that were taken. Frames that repeat a taken
    one (turned, shifted, with atoms in another order, or as a supercell) are left out; where the pool has too few
    others, the next frames by deviation follow as another pool.

    Args:
        scan: of `frames`.
        frames: only those of the pool are read.
        count: frames to choose, at most.
        cutoff: of the fingerprint, Angstrom.
        pool_factor: size of the pool in units of `count`.

    Raises:
        ValueError: all frames are faulty.
    """
    ranked, size = scan.ranked(), pool_factor * count
    if not len(ranked):
        index, fault = next(iter(scan.faults.items()))
        raise ValueError(f"none of the {len(scan.faults)} frames can be selected; frame {index}: {fault}")
    chosen: list[int] = []
    taken = fingerprints([], cutoff)
    for start in range(0, len(ranked), size):
        pool = ranked[start : start + size]
        points = fingerprints((frames[int(index)] for index in pool), cutoff)
        rows = farthest_points(points, count - len(chosen), taken)
        chosen += [int(pool[row]) for row in rows]
        taken = join_points(taken, points[rows])
        if len(chosen) == count:
            break
    return [Selected(i, float(scan.energy_std_per_atom[i]), float(scan.max_forces_std[i])) for i in chosen]


def annotated(frames: Sequence[ase.Atoms], selected: Sequence[Selected]) -> Iterator[ase.Atoms]:
    """Copies of the selected frames without calculator, whose results are not the labels to come.

    `info` has "energy_std" in eV, "max_forces_std" in eV/Angstrom and "source_index".
    """
    for one in selected:
        atoms = frames[one.index].copy()
        energy_std = one.energy_std_per_atom * len(atoms)
        atoms.info |= {"energy_std": energy_std, "max_forces_std": one.max_forces_std, "source_index": one.index}
        yield atoms


def check_output(path: str | os.PathLike[str]) -> None:
    """Raise before the work is done if `write_frames` could not keep what it says of the frames.

    Raises:
        ValueError: another format than extended XYZ or ASE's trajectory.
    """
    if not os.fspath(path).endswith((".extxyz", ".xyz", ".traj")):
        raise ValueError(f"{path}: give a name that ends in .extxyz, .xyz or .traj")


def write_frames(path: str | os.PathLike[str], frames: Sequence[ase.Atoms], selected: Sequence[Selected]) -> None:
    """Write copies of the selected frames, in the order of selection.

    They carry no calculator: its results are not the labels to come. `info` has "energy_std" in eV, "max_forces_std" in
    eV/Angstrom and "source_index".
    """
    copies = []
    for one in selected:
        atoms = frames[one.index].copy()
        energy_std = one.energy_std_per_atom * len(atoms)
        atoms.info |= {"energy_std": energy_std, "max_forces_std": one.max_forces_std, "source_index": one.index}
        copies.append(atoms)
    check_output(path)
    ase.io.write(path, copies)


def describe_selected(scan: Scan, selected: Sequence[Selected]) -> Iterator[str]:
    """A table of the selected frames, and what all others have."""
    yield "   frame   energy std, meV/atom   largest force std, meV/Angstrom"
    for one in selected:
        yield f"{one.index:8d}{1e3 * one.energy_std_per_atom:23.2f}{1e3 * one.max_forces_std:33.1f}"
    ranked = scan.ranked()
    energy, forces = (1e3 * float(np.median(x[ranked])) for x in (scan.energy_std_per_atom, scan.max_forces_std))
    yield f"{'median':>8s}{energy:23.2f}{forces:33.1f}   of {len(ranked)} frames"
