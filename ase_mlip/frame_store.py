"""Where the frames of many trajectories go: memory, or one file for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
from ase.io.trajectory import Trajectory


class FrameMemory(Sequence[Sequence[ase.Atoms]]):
    """Frames in memory."""

    def __init__(self, count: int):
        self._frames: list[list[ase.Atoms]] = [[] for _ in range(count)]

    def add(self, number: int, atoms: ase.Atoms) -> None:
        """One more frame."""
        self._frames[number].append(atoms)

    def last(self, number: int) -> ase.Atoms | None:
        """The last frame, if there is one."""
        return self._frames[number][-1] if self._frames[number] else None

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, number: Any) -> Any:
        return self._frames[number]


class FrameFiles(Sequence[Sequence[ase.Atoms]]):
    """Frames in one trajectory file for each structure.

    Args:
        folder: of the files.
        count: structures.
        empty: whether there must be no such files yet.

    Raises:
        ValueError: there are.
    """

    def __init__(self, folder: Path, count: int, empty: bool):
        self._folder, self._count = folder, count
        if empty and any(folder.glob("*.traj")):
            raise ValueError(f"{folder} holds trajectories of an unknown run; choose another folder")

    def path(self, number: int) -> Path:
        """The file of a structure."""
        return self._folder / f"{number:06d}.traj"

    def add(self, number: int, atoms: ase.Atoms) -> None:
        """One more frame; it outlives a kill of this process."""
        with Trajectory(self.path(number), "a") as trajectory:
            trajectory.write(atoms)

    def last(self, number: int) -> ase.Atoms | None:
        """The last frame, if there is one."""
        frames = self[number]
        return frames[-1] if frames else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(self._count)[number]]
        path = self.path(range(self._count)[number])
        return ase.io.read(path, ":") if path.is_file() and path.stat().st_size else []

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(self._count))
