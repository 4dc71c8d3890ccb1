"""One self-contained model file: safetensors whose header carries the architecture, its constants and provenance.

Nothing in the file is executed on loading. The SHA-256 of the weights and of the description is kept in the header, so
that a flipped bit anywhere is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.networks.mace import Mace
from ase_mlip.networks.nequip import Nequip
from ase_mlip.predictor import Network, Params, Predictor

FORMAT_VERSION = 3  # 2 added committees, 3 bounds; a file has the version of what is in it
ARCHITECTURES: dict[str, Any] = {"Mace": Mace, "Nequip": Nequip}
_KEY = "ase_mlip"
MAX_HEADER = 100_000_000  # bytes


class ModelFileError(ValueError):
    """A file that is not a whole model of this package; the message says what is wrong with it."""


@dataclass(frozen=True)
class ModelFile:
    """The content of a model file.

    Attributes:
        predictor: network and levels.
        params: nested dictionary of numpy arrays.
        provenance: what is known about how the model came about; plain data.
    """

    predictor: Predictor
    params: Params
    provenance: Mapping[str, Any] = field(default_factory=dict)


def save_model(path: str | os.PathLike[str], model: ModelFile) -> None:
    """Write a model file; an existing one is replaced only when the new one is complete."""
    tensors = {"/".join(k): np.asarray(v, order="C") for k, v in flatten_dict(dict(model.params)).items()}
    description = {
        "format_version": 3 if model.predictor.bounds is not None else 2 if model.predictor.committees else 1,
        "architecture": type(model.predictor.network).__name__,
        "config": asdict(model.predictor.network.config),
        "dataset_info": model.predictor.network.dataset_info.to_dict(),
        "levels": [[name, list(heads)] for name, heads in model.predictor.levels],
        "provenance": dict(model.provenance),
    }
    if model.predictor.committees:
        description["committees"] = [list(heads) for heads in model.predictor.committees]
    text = json.dumps(description, sort_keys=True)
    payload = _in_order(safetensors.numpy.save(tensors, metadata={_KEY: text, "sha256": _digest(text, tensors)}))
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_model(path: str | os.PathLike[str]) -> ModelFile:
    """Read and verify a model file.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: the file is truncated, foreign, damaged, or of a newer format version.
    """
    payload = Path(path).read_bytes()
    metadata = _metadata(path, payload)
    if _KEY not in metadata:
        raise ModelFileError(f"{path} is a safetensors file, but not a model of ase_mlip")
    try:
        tensors = safetensors.numpy.load(payload)
    except safetensors.SafetensorError as error:
        raise ModelFileError(f"{path} is truncated or damaged ({brief(error)}); copy or download it again") from error
    text = metadata[_KEY]
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} has a damaged description; copy or download it again") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format version {repr(version)[:20]}, this ase_mlip reads up to {FORMAT_VERSION}: "
            "upgrade with `pip install --upgrade ase-mlip`"
        )
    if metadata.get("sha256") != _digest(text, tensors):
        raise ModelFileError(f"{path} is damaged: its content does not match its SHA-256; copy or download it again")
    try:
        predictor, provenance = _understand(description), dict(description["provenance"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else brief(error)
        raise ModelFileError(
            f"{path} describes a model that this ase_mlip does not know ({reason}); if a newer version wrote it, "
            "upgrade with `pip install --upgrade ase-mlip`"
        ) from error
    params = unflatten_dict({tuple(k.split("/")): v for k, v in tensors.items()})
    return ModelFile(predictor, params, provenance)


def _understand(description: Mapping[str, Any]) -> Predictor:
    """The network, levels and committees that a description names."""
    name = description["architecture"]
    if name not in ARCHITECTURES:
        raise ValueError(f"the architecture {name!r}; known are {', '.join(ARCHITECTURES)}")
    network_class = ARCHITECTURES[name]
    config = {k: tuple(v) if isinstance(v, list) else v for k, v in description["config"].items()}
    network: Network = network_class(network_class.Config(**config), DatasetInfo.from_dict(description["dataset_info"]))
    levels = tuple((level, tuple(heads)) for level, heads in description["levels"])
    committees = tuple(tuple(heads) for heads in description.get("committees", ()))
    return Predictor(network, levels, committees)


def brief(error: Exception, limit: int = 120) -> str:
    """A message, which may quote a damaged file, on one line of at most `limit` printable characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _in_order(payload: bytes) -> bytes:
    """The same safetensors file with its header's keys sorted: the library writes metadata in random order."""
    (length,) = struct.unpack("<Q", payload[:8])
    header = json.dumps(json.loads(payload[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + payload[8 + length :]


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_model_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file looks like one that `save_model` wrote, whole or not: a safetensors file."""
    with open(path, "rb") as stream:
        start = stream.read(9)
    return len(start) < 9 or (start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] < MAX_HEADER)


def _metadata(path: str | os.PathLike[str], payload: bytes) -> dict[str, str]:
    """The safetensors header's metadata, with errors that say what kind of file this is."""
    if len(payload) >= 8:
        (length,) = struct.unpack("<Q", payload[:8])
        if payload[8:9] == b"{" and length < MAX_HEADER:
            if len(payload) < 8 + length:
                raise ModelFileError(f"{path} is truncated in its header; copy or download it again")
            try:
                metadata = json.loads(payload[8 : 8 + length]).get("__metadata__", {})
                return {str(key): str(value) for key, value in metadata.items()}
            except (ValueError, AttributeError, RecursionError) as error:
                raise ModelFileError(f"{path} has a damaged header; copy or download it again") from error
    kinds = {b"PK": "a zip archive (a PyTorch checkpoint or an mlip model?)", b"\x80": "a pickle", b"": "empty"}
    kind = next((text for magic, text in kinds.items() if payload[:2].startswith(magic) and (magic or not payload)), "")
    what = f" but {kind}" if kind else ""
    raise ModelFileError(f"{path} is not a model file of ase_mlip{what}; expected a .safetensors file that it wrote")


def _digest(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the description and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
