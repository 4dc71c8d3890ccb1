"""The tasks of the base data set, and the file that the frames of each go to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from zlib import crc32

import numpy as np
from ase import Atoms
from base_frames import (
    approach_frames,
    atom_frames,
    box_frames,
    cluster_frames,
    crowd_frames,
    curve_frames,
    dimer_frames,
    group_frames,
    ion_frames,
    large_frames,
    molecule_frames,
    neighbour_frames,
    radical_frames,
    sample_frames,
    static_frames,
    variant_frames,
    water_frames,
)
from base_molecules import (
    BOXES,
    CLUSTERS,
    DIMERS,
    ELEMENTS,
    ENUMERATED,
    FURTHER,
    FURTHER_CLUSTERS,
    IONS,
    ORGANIC,
    RADICALS,
    STATIC,
    WATERS,
    crowds,
    dimers,
    enumerated,
    split_of,
)
from base_neighbours import neighbours
from rdkit import Chem

LARGE_ATOMS = 13  # smallest molecule that gets further dynamics
FIRST_VERSION = ("molecule", "large", "dimer", "cluster")  # kinds with the limits of the first version of the set
FIRST_MAX_FORCE = 30.0  # eV/Angstrom
OWN_FILE = {"crowd": "crowds", "further": "more", "neighbour": "neighbours", "water": "water"}  # of some kinds of task
FILES = ("train", "valid", "test", *OWN_FILE.values())  # what the frames of a task can go to


@dataclass(frozen=True)
class Task:
    """A unit of work with its own checkpoint file."""

    kind: str
    name: str
    make: Callable[[str, np.random.Generator], Iterator[Atoms]]

    @property
    def split(self) -> str:
        """The file that the frames go to."""
        return OWN_FILE.get(self.kind) or split_of(self.name)

    @property
    def smiles(self) -> str:
        """The SMILES that the frames carry; a bare F would be read as the logical value False."""
        if self.kind == "box":
            name, _, count = self.name.split()[:3]
            return ".".join([name] * int(count))
        if self.kind == "water":
            return ".".join(["O"] * int(self.name.split()[0]))
        if self.kind == "crowd":
            return ".".join(f"[{symbol}]" for symbol in self.name.split("."))
        return f"[{self.name}]" if self.kind == "atom" else {"F": "[H]F"}.get(self.name, self.name)

    def path(self, work: Path) -> Path:
        """Return the checkpoint file."""
        return work / f"{self.kind}_{crc32(self.name.encode()):08x}.extxyz"

    def frames(self) -> list[Atoms]:
        """Compute the frames; the random numbers depend on the task alone."""
        first = self.kind in FIRST_VERSION or self.kind == "atom"
        rng = np.random.default_rng(crc32((self.name if first else f"{self.kind} {self.name}").encode()))
        frames = list(self.make(self.name, rng))
        limit = FIRST_MAX_FORCE if self.kind in FIRST_VERSION else np.inf
        return [frame for frame in frames if np.linalg.norm(frame.get_forces(), axis=1).max() <= limit]


def all_tasks() -> list[Task]:
    """List every task: atoms, diatomics, the rest shuffled by urgency, variants: a cut-off run stays balanced."""
    first = [Task("atom", symbol, atom_frames) for symbol in ELEMENTS]
    first += [Task("curve", f"{a}-{b}", curve_frames) for a, b in combinations_with_replacement(ELEMENTS, 2)]
    rest = [Task("molecule", name, molecule_frames) for name in ORGANIC]
    large = [name for name in ORGANIC if Chem.AddHs(Chem.MolFromSmiles(name)).GetNumAtoms() >= LARGE_ATOMS]
    rest += [Task("large", name, large_frames) for name in large]
    rest += [Task("dimer", name, dimer_frames) for name in DIMERS]
    rest += [Task("cluster", name, cluster_frames) for name in CLUSTERS]
    held_out = [name for name in ORGANIC if split_of(name) != "train"]
    rest += [Task("sample", name, sample_frames) for name in (*FURTHER, *held_out)]
    rest += [Task("static", name, static_frames) for name in (*ORGANIC, *STATIC) if name not in held_out]
    rest += [Task("radical", name, radical_frames) for name in RADICALS]
    rest += [Task("approach", name, approach_frames) for name in dimers()]
    rest += [Task("group", name, group_frames) for name in FURTHER_CLUSTERS]
    rest += [Task("ion", name, ion_frames) for name in IONS]
    rest += [Task("box", name, box_frames) for name in BOXES]
    rest += [Task("crowd", name, crowd_frames) for name in crowds()]
    order = np.random.default_rng(1).permutation(len(rest))
    names = enumerated()
    variants = [Task("variant", name, variant_frames) for name in names[:ENUMERATED]]
    variants += [Task("further", name, variant_frames) for name in names[ENUMERATED:]]
    variants += [Task("neighbour", name, neighbour_frames) for name in neighbours()]
    variants += [Task("water", name, water_frames) for name in WATERS]
    return first + sorted((rest[index] for index in order), key=urgency) + variants


def urgency(task: Task) -> int:
    """Return the rank in the queue: what is held out first, last more of the molecules that have other frames."""
    if task.split != "train":
        return 0
    return 2 if task.kind == "static" and task.name in ORGANIC else 1
