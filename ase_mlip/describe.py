"""What a model file says of itself, as rows of text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ase_mlip.force_field import ForceField
from ase_mlip.kernels import describe as describe_path
from ase_mlip.model_file import file_sha256
from ase_mlip.structure import symbol_of

UNKNOWN = "not stated in the file"
# What provenance calls it, and what the reader of a table does.
TITLES = {
    "name": "name", "training_data": "training data", "source_file": "source file", "source_sha256": "source SHA-256",
    "source_package": "source package", "cite": "cite",
}  # fmt: skip
BOUNDED = "an atom's energy levels off below, and rises slower above, what the network said of its training data"
ELSEWHERE = {"note", "licence", "licence_text", "fine_tuning", "training", "architecture"}


def describe(force_field: ForceField, path: str | os.PathLike[str]) -> dict[str, str]:
    """Title and text of everything known about a model, in the order to show it; a licence's text comes last.

    Args:
        force_field: the model.
        path: the file it was loaded from.

    Example:
        >>> from ase_mlip.force_field import model_path
        >>> rows = describe(ForceField.load("default"), model_path("default"))
        >>> rows["elements"], rows["cutoff"], rows["licence"]
        ('9: H C N O F P S Cl Br', '4.5 Angstrom', 'MIT')
    """
    network, provenance = force_field.predictor.network, force_field.provenance
    symbols, repulsion = force_field.dataset_info.symbols, force_field.dataset_info.repulsion
    rows = {
        "file": str(path),
        "SHA-256": file_sha256(path),
        "architecture": type(network).__name__,
        "parameters": f"{force_field.num_params:,}",
        "elements": f"{len(symbols)}: {' '.join(symbols)}",
        "cutoff": f"{force_field.cutoff:g} Angstrom",
        "repulsion": str(repulsion or "none"),
        "bounds": "none" if force_field.predictor.bounds is None else BOUNDED,
        "runs on": describe_path(network),
    }
    rows |= _levels(force_field)
    for number, heads in enumerate(force_field.predictor.committees, 1):
        rows[f"committee {number}"] = f"mean of {', '.join(heads)}"
    rows["level of theory"] = _theory(provenance)
    rows |= {title: str(provenance[key]) for key, title in TITLES.items() if provenance.get(key)}
    rows["licence"] = str(provenance.get("licence", UNKNOWN))
    others = sorted(set(provenance) - set(TITLES) - ELSEWHERE)
    rows |= {key.replace("_", " "): str(provenance[key]) for key in others}
    rows["configuration"] = str(network.config)
    if text := provenance.get("licence_text"):
        rows["licence text"] = str(text)
    return rows


def _levels(force_field: ForceField) -> dict[str, str]:
    """Each level with the heads that it sums and how it was made, where that is known."""
    made = {}
    for record in force_field.provenance.get("fine_tuning", []):
        for level in record.get("levels", [record.get("level")]):
            made[level] = _round(record)
    newest = list(force_field.levels)[-1]
    rows = {}
    for level, heads in force_field.levels.items():
        default = " (default)" if level == newest else ""
        unknown = " ".join(map(symbol_of, force_field.predictor.unknown_elements(level)))
        lacks = f"; never trained on {unknown}" if unknown else ""
        rows[f"level {level}"] = f"sum of {', '.join(heads)}{default}{made.get(level, '')}{lacks}"
    return rows


def _round(record: Mapping[str, Any]) -> str:
    """One round of fine-tuning in a few words."""
    numbers = [f"{record[key]} {key}" for key in ("frames", "epochs") if key in record]
    return f"; fine-tuned by {record.get('method', 'an unknown method')}{', ' if numbers else ''}{', '.join(numbers)}"


def _theory(provenance: Mapping[str, Any]) -> str:
    """The publisher's note, or the name given at training; a foreign file's name is only that of the file."""
    own = None if "source_file" in provenance else provenance.get("name")
    return str(provenance.get("note") or own or UNKNOWN)
