"""Geometries that a model walked through, labelled, usually with GFN2-xTB; a checkpoint file for each walk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import ase.io
from ase import Atoms
from base_geometry import label


@dataclass(frozen=True)
class Walk:
    """The geometries of one walk that are to be labelled.

    Attributes:
        path: the checkpoint file.
        smiles: that the frames carry.
        geometries: `info` of each holds its `config_type`, and its `temperature` in K where it has one.
        method: labels a geometry, given its `info` as keywords; None where that fails.
    """

    path: Path
    smiles: str
    geometries: Sequence[Atoms]
    method: Callable[..., Atoms | None] = label

    def label(self) -> str:
        """Label the geometries, write the checkpoint, and return a line of the log."""
        begin = time.perf_counter()
        found = [frame for atoms in self.geometries if (frame := self.method(atoms, **atoms.info)) is not None]
        for frame in found:
            frame.info["smiles"] = self.smiles
        partial = self.path.with_suffix(".partial")
        ase.io.write(partial, found, format="extxyz") if found else partial.touch()
        partial.rename(self.path)
        return f"{self.path.stem}: {len(found)} of {len(self.geometries)} frames, {time.perf_counter() - begin:.1f} s"


def label_walks(walks: Sequence[Walk], jobs: int) -> None:
    """Label every walk that has no checkpoint yet, in several processes."""
    todo = [walk for walk in walks if not walk.path.exists()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for number, line in enumerate(pool.map(Walk.label, todo, chunksize=4), 1):
            print(f"{number}/{len(todo)} {line}", flush=True)


def labelled(paths: Iterable[Path]) -> list[Atoms]:
    """The frames of those checkpoints that are there, in the order given."""
    done = (path for path in paths if path.exists() and path.stat().st_size)
    return [frame for path in done for frame in ase.io.iread(path, index=":")]
