"""Sequences that stay in memory while they are small and move to a temporary file when they are not."""

from __future__ import annotations

import pickle
import tempfile
import threading
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, chain
from typing import TypeVar, overload

T = TypeVar("T")

SPILL_BYTES = 256 * 2**20  # what one sequence may hold in memory: about 40,000 frames or 33,000 examples of 21 atoms


def gather(items: Iterable[T], size: Callable[[T], int]) -> Sequence[T]:
    """All items: a list while they are small, a `SpilledList` once they are more than `SPILL_BYTES` together.

    Args:
        items: taken one by one; picklable.
        size: about how many bytes of memory an item holds.
    """
    iterator, kept, total = iter(items), list[T](), 0
    for item in iterator:
        kept.append(item)
        total += size(item)
        if total > SPILL_BYTES:
            kept.reverse()
            return SpilledList(chain(_popped(kept), iterator))
    return kept


def _popped(items: list[T]) -> Iterator[T]:
    """The items from the last to the first; each leaves the list."""
    while items:
        yield items.pop()


class _Sliced(Sequence[T]):
    """A sequence whose slices are views."""

    def item(self, index: int) -> T:
        """The item at 0 <= index < len."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return _View(self, range(len(self))[index])
        return self.item(range(len(self))[index])


class SpilledList(_Sliced[T]):
    """A sequence in a temporary file, of which only the offsets are in memory.

    It is written once and never changes: each access reads a copy, so what is done to an item is lost. Several threads
    may read at once. The file has no name and is gone when the sequence is, or the process. It lies in Python's
    folder for temporary files, which the environment variable TMPDIR sets. Unpickling is safe here, as no one else can
    have written the file.

    Args:
        items: taken one by one; picklable.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, items: Iterable[T]):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._lock = threading.Lock()
        self._offsets = array("q", [0])
        weakref.finalize(self, self._file.close)
        for item in items:
            self._append(pickle.dumps(item, pickle.HIGHEST_PROTOCOL))

    def _append(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror} after {self._offsets[-1]:,} bytes of temporary data in {tempfile.gettempdir()}; set "
                "the environment variable TMPDIR to a folder with more room",
            ) from error
        self._offsets.append(self._offsets[-1] + len(data))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def item(self, index: int) -> T:
        """Read one item."""
        start, stop = self._offsets[index], self._offsets[index + 1]
        with self._lock:  # threads share the file's position
            self._file.seek(start)
            data = self._file.read(stop - start)
        return pickle.loads(data)


class _View(_Sliced[T]):
    """Some items of a sequence, by their numbers in it."""

    def __init__(self, items: Sequence[T], indices: Sequence[int]):
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def item(self, index: int) -> T:
        """The item of that number in the view."""
        return self._items[self._indices[index]]


class _Joined(_Sliced[T]):
    """Sequences one after another."""

    def __init__(self, parts: Sequence[Sequence[T]]):
        self._parts = parts
        self._ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def item(self, index: int) -> T:
        """The item of that number over all parts."""
        part = bisect_right(self._ends, index)
        return self._parts[part][index - self._ends[part] + len(self._parts[part])]


def select(items: Sequence[T], indices: Iterable[int]) -> Sequence[T]:
    """Those items, in that order: a list of a list's, a view of any other sequence's."""
    if isinstance(items, list):
        return [items[int(i)] for i in indices]
    return _View(items, array("q", (int(i) for i in indices)))


def join(*parts: Sequence[T]) -> Sequence[T]:
    """The parts one after another: a list of lists, a view of any other sequences."""
    if all(isinstance(part, list) for part in parts):
        return [item for part in parts for item in part]
    return _Joined(parts)
