"""Sequences in temporary files behave as the lists they stand for, from several threads, and leave nothing behind."""

from __future__ import annotations

import errno
import gc
import io
import os
import tempfile
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ase_mlip import spill
from ase_mlip.spill import SpilledList, gather, join, select

ITEMS = [{"number": n, "data": os.urandom(n % 700)} for n in range(300)]


@pytest.fixture(scope="module")
def spilled() -> SpilledList[dict]:
    """The items in a file."""
    return SpilledList(iter(ITEMS))


@pytest.mark.parametrize("place", [slice(None), slice(3, 200, 7), slice(None, None, -1), slice(-5, None), slice(9, 2)])
def test_slices_are_those_of_a_list(spilled: SpilledList[dict], place: slice) -> None:
    part, expected = spilled[place], ITEMS[place]
    assert len(part) == len(expected)
    assert list(part) == expected
    assert list(part[1::2]) == expected[1::2]
    assert list(reversed(part)) == expected[::-1]


def test_items_are_those_of_a_list(spilled: SpilledList[dict]) -> None:
    assert isinstance(spilled, Sequence)
    assert len(spilled) == len(ITEMS)
    assert list(spilled) == ITEMS
    assert spilled[-1] == ITEMS[-1]
    assert spilled[17] is not spilled[17]
    assert list(SpilledList([])) == []
    for index in (len(ITEMS), -len(ITEMS) - 1):
        with pytest.raises(IndexError):
            spilled[index]


def test_selections_and_joints(spilled: SpilledList[dict]) -> None:
    indices = [5, 2, 2, 299, 0]
    assert list(select(spilled, indices)) == [ITEMS[i] for i in indices]
    assert select(ITEMS, indices) == [ITEMS[i] for i in indices]
    assert list(select(select(spilled, indices), [3, 1])) == [ITEMS[299], ITEMS[2]]
    for parts in ([spilled, ITEMS], [[], spilled[:3], [], ITEMS[:2], spilled, []], [ITEMS, ITEMS], [[]], []):
        joined = join(*parts)
        expected = [item for part in parts for item in part]
        assert list(joined) == expected
        assert list(joined[1:-1]) == expected[1:-1]
    assert isinstance(join(ITEMS, ITEMS), list)


def test_threads_read_at_once(spilled: SpilledList[dict]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(spilled.__getitem__, list(range(300)) * 20)) == ITEMS * 20


@pytest.mark.parametrize(("room", "expected"), [(300, list), (299, SpilledList), (0, SpilledList)])
def test_only_what_is_large_is_spilled(room: int, expected: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "SPILL_BYTES", room)
    found = gather(iter(ITEMS), lambda _: 1)
    assert type(found) is expected
    assert list(found) == ITEMS


def test_items_in_memory_are_let_go_while_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the peak would hold the part that was in memory until the last item is read."""

    class Item(dict):
        pass

    alive: list[weakref.ref[Item]] = []
    counts = []

    def items() -> object:
        for _ in range(20):
            item = Item()
            alive.append(weakref.ref(item))
            yield item
            del item
            counts.append(sum(ref() is not None for ref in alive))

    monkeypatch.setattr(spill, "SPILL_BYTES", 9)
    monkeypatch.setattr(spill.pickle, "dumps", lambda *_: b"")
    gather(items(), lambda _: 1)
    assert max(counts[:9]) == 9
    assert max(counts[10:]) <= 2


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    items = SpilledList(range(10))
    number = items._file.fileno()
    os.fstat(number)
    del items
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(number)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def flush(self) -> None:
            if len(self.getvalue()) > 8:
                raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spill.tempfile, "TemporaryFile", Full)
    with pytest.raises(OSError, match=r"No space left on device after 5 bytes .*; set the environment variable TMPDIR"):
        SpilledList([1, 2, 3])


def test_errors_of_the_items_are_their_own() -> None:
    def items() -> object:
        yield 1
        raise OSError("this file is damaged")

    with pytest.raises(OSError, match=r"^this file is damaged$"):
        SpilledList(items())
