"""What a run has done so far: records that a killed run leaves behind, so that the same call can go on."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ase
import jax
import numpy as np

from ase_mlip.force_field import ForceField

Log = Callable[[str], object]

LOG_EVERY = 10.0  # seconds


class Journal:
    """Records in a file, one line of JSON each; what a kill cut off in the middle of a line is dropped.

    Floating-point numbers come back with all their bits.

    Args:
        path: the file; it and its folder are made if they are not there.
        identity: of the run; kept in the first line.

    Attributes:
        records: those that were there.
        new: whether the file has just been made.

    Raises:
        ValueError: the file belongs to another run.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "finished.jsonl"
        >>> with Journal(path, "a run") as journal:
        ...     journal.write({"number": 3, "energy": 0.1})
        >>> with Journal(path, "a run") as journal:
        ...     print(journal.records)
        [{'number': 3, 'energy': 0.1}]
    """

    def __init__(self, path: Path, identity: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        found = list(_whole_lines(path)) if path.is_file() else []
        if found and found[0][1] != {"run": identity}:
            raise ValueError(
                f"{path} belongs to a run of another model, other structures or other options; choose another folder, "
                "or remove this one if it is not needed"
            )
        self.records: list[dict[str, Any]] = [record for _, record in found[1:]]
        self._file = path.open("ab")
        self._file.truncate(found[-1][0] if found else 0)
        self.new = not found
        if self.new:
            self.write({"run": identity})

    def write(self, record: dict[str, Any]) -> None:
        """Add a record of plain data and arrays; it outlives a kill of this process from here on."""
        self._file.write(json.dumps(record, default=np.ndarray.tolist).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where each line ends, and its record; up to the first that is not whole."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                return
            if not (line.endswith(b"\n") and isinstance(record, dict)):
                return
            yield end, record


class Ledger:
    """What became of each structure: records in memory, in a journal where there is one, and a line now and then.

    Args:
        what: past participle of what is done to them, for the log.
        total: number of structures.
        journal: of records with the key "number"; those that are in it are done.
        log: takes a line every ten seconds; None is silent.

    Attributes:
        records: by the structure's number; plain data and arrays.
    """

    def __init__(self, what: str, total: int, journal: Journal | None, log: Log | None):
        self.what, self.total, self.journal, self.log = what, total, journal, log or (lambda line: None)
        known = journal.records if journal is not None else []
        self.records: dict[int, dict[str, Any]] = {record["number"]: _with_arrays(record) for record in known}
        self._before, self._start = len(self.records), time.monotonic()
        self._said = self._start

    @property
    def rest(self) -> list[int]:
        """Numbers of the structures that are not done."""
        return [number for number in range(self.total) if number not in self.records]

    @property
    def rate(self) -> float:
        """Structures per second since the start."""
        return (len(self.records) - self._before) / max(time.monotonic() - self._start, 1e-9)

    def keep(self, number: int, **record: Any) -> None:
        """One more is done."""
        self.records[number] = {"number": number, **record}
        if self.journal is not None:
            self.journal.write(self.records[number])
        now = time.monotonic()
        if now - self._said > LOG_EVERY:
            self._said = now
            self.log(f"{self.what} {len(self.records)} of {self.total}, {self.rate:.2f} structures/s")

    @contextmanager
    def saying_where(self, folder: str | os.PathLike[str] | None) -> Iterator[None]:
        """On Ctrl-C, say what is kept, and let it pass on."""
        try:
            yield
        except KeyboardInterrupt:
            again = f"; the same call with the folder {folder} goes on from there" if folder is not None else ""
            self.log(f"interrupted: {self.what} {len(self.records)} of {self.total}{again}")
            raise


def _with_arrays(record: dict[str, Any]) -> dict[str, Any]:
    """A record of the journal; lists of Python's numbers would take four times the memory."""
    return {key: np.array(value) if isinstance(value, list) else value for key, value in record.items()}


@contextmanager
def open_journal(folder: str | os.PathLike[str] | None, name: str, identity: Callable[[], str]) -> Iterator[Any]:
    """The journal of that name in a folder, or None without one.

    Args:
        folder: made if it is not there.
        name: of the file.
        identity: of the run; called only where it is needed.

    Raises:
        ValueError: the folder holds another run.
    """
    if folder is None:
        yield None
    else:
        with Journal(Path(folder) / name, identity()) as journal:
            yield journal


def run_identity(force_field: ForceField, frames: Iterable[ase.Atoms], **options: Any) -> str:
    """A digest of a model, of structures as they are given, and of options."""
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    digest.update(repr(force_field.predictor).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(force_field.params)):
        digest.update(f"{path}{np.shape(leaf)}".encode() + np.asarray(leaf).tobytes())
    for atoms in frames:
        constraints = [c.todict() if hasattr(c, "todict") else type(c).__name__ for c in atoms.constraints]
        digest.update(repr((len(atoms), atoms.pbc.tolist(), constraints)).encode())
        for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.get_momenta()):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
