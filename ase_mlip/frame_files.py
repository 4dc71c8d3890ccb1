"""Frames of a file, one after another: any format that ASE reads, packed or not, all or a slice."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import ase
import ase.io
from ase.io.formats import UnknownFileTypeError, open_with_compression


def iterate_file(path: str) -> Iterator[ase.Atoms]:
    """Read frame by frame; `@` and a slice after the name choose some, as in ASE.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a format that ASE does not know.
    """
    name = path.rsplit("@", 1)[0] if not os.path.exists(path) else path
    if not os.path.isfile(name):
        raise FileNotFoundError(f"there is no file {name!r}")
    index = ":" if name == path else path.rsplit("@", 1)[1]
    with _uncompressed(name) as plain:
        try:
            yield from ase.io.iread(plain, index=index, do_not_split_by_at_sign=True)
        except UnknownFileTypeError as error:
            raise ValueError(f"{name} is in no format that ASE knows by its name or content") from error


@contextmanager
def _uncompressed(name: str) -> Iterator[str]:
    """The file itself, or an unpacked copy while the context lasts: ASE's readers seek, which compressed files hate."""
    inner, suffix = os.path.splitext(name)
    if suffix not in (".xz", ".gz", ".bz2"):
        yield name
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = os.path.join(folder, os.path.basename(inner))
        with open_with_compression(name, "rb") as packed, open(plain, "wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        yield plain
