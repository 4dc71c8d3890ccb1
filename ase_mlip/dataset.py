"""From any ASE trajectory to labelled graphs.

A label that a frame lacks is a False in its mask, never a zero that looks like a label.
"""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ase
import jax
import numpy as np
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress

from ase_mlip.frame_files import iterate_file
from ase_mlip.graph import Graph
from ase_mlip.spill import gather
from ase_mlip.structure import InvalidStructure

Source = str | os.PathLike[str] | Iterable[ase.Atoms]
LABELS = ("energy", "forces", "stress")


@partial(jax.tree_util.register_dataclass)
@dataclass(frozen=True)
class Targets:
    """Labels of a graph or a batch, each with its mask of presence, and the weight of each graph in the loss."""

    energy: Any  # [graphs] eV
    forces: Any  # [nodes, 3] eV/Angstrom
    stress: Any  # [graphs, 3, 3] eV/Angstrom^3, positive in tension
    energy_mask: Any  # [graphs]
    forces_mask: Any  # [nodes]
    stress_mask: Any  # [graphs]
    weight: Any  # [graphs]


@dataclass(frozen=True)
class LabelKeys:
    """Where the labels are: None is the attached calculator (ASE's convention), a name is a key of info or arrays."""

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None


@dataclass(frozen=True)
class Census:
    """What a set of frames holds.

    Attributes:
        frames: number of frames.
        atoms: number of atoms in all frames.
        elements: symbols and the number of atoms of each.
        labels: number of frames with each label.
        keys: everything the frames carry that could be a label.
    """

    frames: int
    atoms: int
    elements: dict[str, int]
    labels: dict[str, int]
    keys: tuple[str, ...]

    def __str__(self) -> str:
        elements = " ".join(f"{symbol}:{count}" for symbol, count in self.elements.items())
        labels = ", ".join(f"{name} in {count}" for name, count in self.labels.items())
        return f"{self.frames} frames, {self.atoms} atoms ({elements}); {labels}"


class MissingLabel(ValueError):
    """A label that was asked for is in no frame; the message lists what the frames do have."""


def read_frames(source: Source) -> Sequence[ase.Atoms]:
    """All frames of a file that ASE reads (trajectory, extended XYZ, database, ...), or of an iterable of Atoms.

    Frames that are more than `spill.SPILL_BYTES` in memory go to a temporary file as they are read; then each access
    makes a copy, so that changes to a frame are lost. A sequence of Atoms is taken as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no frame in it, or a format that ASE does not know.
        TypeError: neither a file nor several Atoms.
    """
    if isinstance(source, str | os.PathLike):
        frames = gather(iterate_file(os.fspath(source)), _bytes_of_frame)
    elif isinstance(source, ase.Atoms):
        raise TypeError("one Atoms is no set of frames; give a list of Atoms, even for a single frame")
    else:
        frames = source if isinstance(source, Sequence) else gather(source, _bytes_of_frame)
    if not frames:
        raise ValueError(f"{source!r} holds no frames")
    if not isinstance(frames[0], ase.Atoms):
        raise TypeError(f"the frames are {type(frames[0]).__name__} objects; give a file that ASE reads, or Atoms")
    return frames


def _bytes_of_frame(atoms: ase.Atoms) -> int:
    """About what a frame holds in memory: its arrays, those of its calculator, and 4 kB of Python objects."""
    return 4_000 + 3 * sum(array.nbytes for array in atoms.arrays.values())


def read_labels(atoms: ase.Atoms, keys: LabelKeys) -> dict[str, np.ndarray]:
    """The labels one frame has, raw: forces as computed, whatever constraints the frame carries.

    Returns:
        "energy" [], "forces" [atoms, 3] and "stress" [3, 3], those that are present.

    Raises:
        ValueError: a label is no number or has a wrong shape.
    """
    found: dict[str, np.ndarray] = {}
    results = atoms.calc.results if atoms.calc is not None else {}
    for label in LABELS:
        key = getattr(keys, label)
        named = key and atoms.info.get(key, atoms.arrays.get(key, results.get(key)))
        value = results.get(label) if key is None else named
        if value is not None:
            found[label] = _as_label(label, value, len(atoms))
    return found


def _as_label(label: str, value: Any, atoms: int) -> np.ndarray:
    """A label as numbers in its shape: [] energy, [atoms, 3] forces, [3, 3] stress."""
    try:
        array = np.asarray(value, float)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the label {label} is {value!r}; expected numbers") from error
    if label == "energy" and array.size == 1:
        return array.reshape(())
    if label == "stress" and array.size == 9:
        return array.reshape(3, 3)
    if label == "stress" and array.shape == (6,):
        return voigt_6_to_full_3x3_stress(array)
    if label == "forces" and array.shape == (atoms, 3):
        return array
    expected = {"energy": "one number", "forces": f"({atoms}, 3)", "stress": "(3, 3), (9,) or (6,)"}[label]
    raise ValueError(f"{label} of shape {array.shape} for {atoms} atoms; expected {expected}")


def take_census(frames: Sequence[ase.Atoms], keys: LabelKeys) -> Census:
    """Count frames, atoms, elements and labels.

    Raises:
        ValueError: a label of a wrong shape or that is no number; names the frame.
    """
    counts: Counter[int] = Counter()
    labels = dict.fromkeys(LABELS, 0)
    names: set[str] = set()
    for number, atoms in enumerate(frames):
        counts.update(atoms.numbers.tolist())
        with naming_frame(number):
            for label in read_labels(atoms, keys):
                labels[label] += 1
        names.update(atoms.info, set(atoms.arrays) - {"numbers", "positions"})
        names.update(atoms.calc.results if atoms.calc is not None else ())
    elements = {chemical_symbols[z]: counts[z] for z in sorted(counts)}
    return Census(len(frames), counts.total(), elements, labels, tuple(sorted(names)))


def require_labels(census: Census, wanted: Sequence[str], keys: LabelKeys) -> None:
    """Raise unless each wanted label is in at least one frame.

    Raises:
        MissingLabel: names the label, where it was looked for, what the frames have and the nearest match.
    """
    for label in wanted:
        if census.labels[label] == 0:
            key = getattr(keys, label)
            where = f"under the key {key!r}" if key else "in the attached calculator"
            near = difflib.get_close_matches(key or label, census.keys, n=1, cutoff=0.4)
            near += [name for name in census.keys if label in name.lower() and name not in near]
            hint = f"; did you mean {label}={near[0]!r}?" if near else ""
            raise MissingLabel(
                f"no frame has {label} {where}; the frames have {', '.join(census.keys) or 'no keys at all'}{hint} "
                f"To train without it, give {label} the weight 0."
            )


def elements_of(*sets: Iterable[ase.Atoms]) -> set[int]:
    """Atomic numbers that occur."""
    found: set[int] = set()
    for frames in sets:
        for atoms in frames:
            found.update(atoms.numbers.tolist())
    return found


@dataclass(frozen=True)
class Example:
    """One labelled structure: an unpadded graph and its targets.

    The graph's shifts are integers of one byte where they fit: as float64 they would be most of an example.
    """

    graph: Graph
    targets: Targets

    @classmethod
    def from_atoms(
        cls,
        atoms: ase.Atoms,
        elements: Sequence[int],
        cutoff: float,
        head_weights: np.ndarray,
        keys: LabelKeys,
        weight: float = 1.0,
    ) -> Example:
        """Build the graph and read the labels of one frame.

        Raises:
            InvalidStructure: the structure cannot be predicted.
            ValueError: a label is not finite.
        """
        graph = Graph.from_atoms(atoms, elements, cutoff, head_weights).with_pairs()
        graph = replace(graph, shifts=_compact(graph.shifts), pairs=_compact(graph.pairs))
        labels = read_labels(atoms, keys)
        for label, value in labels.items():
            if not np.isfinite(value).all():
                raise ValueError(f"the label {label} is not finite; remove the frame or correct the label")
        return cls(
            graph,
            Targets(
                energy=labels.get("energy", np.zeros(())).reshape(1),
                forces=labels.get("forces", np.zeros((len(atoms), 3))),
                stress=labels.get("stress", np.zeros((3, 3))).reshape(1, 3, 3),
                energy_mask=np.array(["energy" in labels]),
                forces_mask=np.full(len(atoms), "forces" in labels),
                stress_mask=np.array(["stress" in labels and bool(np.linalg.det(graph.cell[0]))]),  # needs a volume
                weight=np.array([float(weight)]),
            ),
        )


def _compact(whole: np.ndarray) -> np.ndarray:
    """Whole numbers in one or two bytes each where they fit."""
    largest = np.abs(whole).max(initial=0)
    fitting = (dtype for dtype in (np.int8, np.int16) if largest <= np.iinfo(dtype).max)
    return whole.astype(next(fitting, whole.dtype))


def make_examples(
    frames: Iterable[ase.Atoms],
    elements: Sequence[int],
    cutoff: float,
    head_weights: np.ndarray,
    keys: LabelKeys,
    weight: float = 1.0,
) -> Sequence[Example]:
    """Examples of all frames, gathered as by `gather_examples`.

    Raises:
        InvalidStructure: a structure cannot be predicted; names the frame.
        ValueError: a label of a frame cannot be used; names the frame.
    """

    def examples() -> Iterator[Example]:
        for number, atoms in enumerate(frames):
            with naming_frame(number):
                example = Example.from_atoms(atoms, elements, cutoff, head_weights, keys, weight)
            yield example

    return gather_examples(examples())


def gather_examples(examples: Iterable[Example]) -> Sequence[Example]:
    """A list of the examples; what is more than `spill.SPILL_BYTES` of them goes to a temporary file as it comes."""
    return gather(examples, _bytes_of_example)


def _bytes_of_example(example: Example) -> int:
    """About what an example holds in memory: its arrays, and 3 kB of Python objects."""
    return 3_000 + sum(array.nbytes for array in jax.tree.leaves((example.graph, example.targets)))


@contextmanager
def naming_frame(number: int) -> Iterator[None]:
    """Errors about a structure or its labels begin with the number of the frame."""
    try:
        yield
    except InvalidStructure as error:
        raise InvalidStructure(f"frame {number}: {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"frame {number}: {error}") from error
