"""Readers of other packages' model files: each returns an ordinary `ForceField`.

What a file is, its content says, not its name.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ase_mlip.force_field import ForceField
from ase_mlip.model_file import ModelFileError, brief, file_sha256
from ase_mlip.registry import PUBLISHED, PublishedModel

Kind = Literal["mace-torch", "mlip", "nequix"]


# What Python's reader of zip archives raises for damaged ones.
ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, OverflowError, NotImplementedError,
    RuntimeError,
)  # fmt: skip


def foreign_kind(path: str | os.PathLike[str]) -> Kind:
    """Which package wrote a file.

    Raises:
        ModelFileError: none that is known.
    """
    with open(path, "rb") as stream:
        start = stream.read(4)
    if start[:1] == b"{":
        return "nequix"
    if start[:1] == b"\x80":
        return "mace-torch"  # a pickle from before torch wrote zip archives
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except ZIP_ERRORS as error:
            raise ModelFileError(
                f"{path} is a damaged zip archive ({brief(error)}); copy or download it again"
            ) from None
        if any(Path(name).name == "hyperparams.json" for name in names):
            return "mlip"
        if any(name.endswith("data.pkl") for name in names):
            return "mace-torch"
    elif start[:2] == b"PK":
        raise ModelFileError(f"{path} is a truncated or damaged zip archive; copy or download it again")
    raise ModelFileError(
        f"{path} is no model that ase_mlip reads: its own .safetensors, mace-torch's .model, mlip's .zip, nequix's .nqx"
    )


def read_foreign(path: str | os.PathLike[str], trust: bool = False) -> ForceField:
    """Read a file of mace-torch, mlip or nequix.

    Args:
        path: the file.
        trust: allow a pickled torch file to run code; a file whose SHA-256 is that of a published model needs no trust.

    Raises:
        ModelFileError: not such a file, damaged, pickled without trust, or with a part that this package lacks.
    """
    path, kind = Path(path), foreign_kind(path)
    published = published_as(path)
    if kind == "mace-torch":
        from ase_mlip.importers.mace_torch import read_mace_torch

        force_field = read_mace_torch(path, trust or published is not None)
    elif kind == "mlip":
        from ase_mlip.importers.mlip_archive import read_mlip

        force_field = read_mlip(path)
    else:
        from ase_mlip.importers.nequix import read_nequix

        force_field = read_nequix(path)
    if published is None:
        return force_field
    facts = {"name": published.name, "note": published.note, "licence": published.licence, "cite": published.citation}
    return replace(force_field, provenance={**force_field.provenance, **facts})


def published_as(path: str | os.PathLike[str]) -> PublishedModel | None:
    """The published model that a file is, by its SHA-256."""
    digest = file_sha256(path)
    return next((model for model in PUBLISHED.values() if model.sha256 == digest), None)


def fetch_converted(name: str) -> Path:
    """The file of a published model in the cache; a pickled one is converted once, so that torch is needed once.

    Raises:
        DownloadError: it cannot be downloaded.
        ModelFileError: torch or mace-torch are missing for the first conversion.
    """
    from ase_mlip.cache import cache_folder
    from ase_mlip.download import fetch_model

    model = PUBLISHED[name]
    if model.kind != "mace-torch":
        return fetch_model(name)
    converted = cache_folder() / f"{Path(model.file_name).stem}.safetensors"
    if not converted.is_file():
        read_foreign(fetch_model(name)).save(converted)
    return converted
