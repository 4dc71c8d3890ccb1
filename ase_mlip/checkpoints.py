"""Checkpoints of a training, and what makes sure that only the same training goes on from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ase_mlip.dataset import Example
from ase_mlip.force_field import ForceField

HASHED_EXAMPLES = 1000


class Checkpoints:
    """Orbax checkpoints of the last evaluations, the history beside them as JSON lines.

    Args:
        folder: made if needed.
        identity: fingerprint of the run.

    Raises:
        ValueError: the folder holds the checkpoints of another run.
    """

    def __init__(self, folder: Path, identity: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.identity = folder, identity
        options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)

    def save(self, epoch: int, arrays: Mapping[str, Any], counters: Mapping[str, Any]) -> None:
        """Write a checkpoint; a run killed meanwhile still has the one before."""
        self.manager.save(
            epoch,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(dict(arrays)),
                counters=ocp.args.JsonSave({**counters, "identity": self.identity}),
            ),
        )
        lines = (json.dumps(record) + "\n" for record in counters["history"])
        (self.folder / "history.jsonl").write_text("".join(lines))

    def restore(self, like: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The latest checkpoint, arrays of the shapes of `like` and counters, or None.

        Raises:
            ValueError: the checkpoints belong to another run.
        """
        latest = self.manager.latest_step()
        if latest is None:
            return None
        counters = self.manager.restore(latest, args=ocp.args.Composite(counters=ocp.args.JsonRestore()))["counters"]
        if counters.pop("identity") != self.identity:
            raise ValueError(
                f"{self.folder} holds the checkpoints of a run with another base, other data or other settings; "
                "give another folder, or remove this one to start over"
            )
        arrays = ocp.args.Composite(arrays=ocp.args.StandardRestore(dict(like)))
        return self.manager.restore(latest, args=arrays)["arrays"], counters


def fingerprint(force_field: ForceField, examples: Sequence[Example], settings: Mapping[str, Any], text: str) -> str:
    """SHA-256 of what a training starts from: network, parameters, settings, and the data (of many, the first ones)."""
    described = [repr(force_field.predictor), json.dumps(settings, sort_keys=True), text, str(len(examples))]
    digest = hashlib.sha256("\n".join(described).encode())
    for leaf in jax.tree.leaves(dict(force_field.params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    for number in range(min(len(examples), HASHED_EXAMPLES)):
        example = examples[number]
        for array in (example.graph.positions, example.graph.head_weights, *vars(example.targets).values()):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
