"""From a method's choices to adapters and an optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, get_args

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from optax.contrib import MuonDimensionNumbers

from ase_mlip.predictor import Network, Params
from ase_mlip.presets import Optimizer, Schedule
from ase_mlip.tuning import Adapters

# parts of names: tables of elements, constants, weights of products, and maps with a matrix for each element
NO_MATRICES = ("embedding", "element_neighbor", "element_center", "element_degree", "bias", "norm", "contraction")


def choose_adapters(
    params: Params, network: Network, blocks: Sequence[str], freeze: Sequence[str], rank: int | None, seed: int = 0
) -> Adapters:
    """Which parameters move, and how.

    New blocks move freely. Of the pretrained parameters those that `freeze` names stay; with a rank, vectors (biases
    and norms) stay too.

    Args:
        params: of the network with its new blocks.
        network: knows the names of its parts.
        blocks: the new ones, as `add_heads` returns them.
        freeze: names of parts, or patterns with * of parameter names.
        rank: of the changes; None for free ones.
        seed: of the low-rank matrices.

    Raises:
        ValueError: an entry of `freeze` that matches no parameter, or a rank below 1.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: give a whole number of at least 1")
    flat = flatten_dict(dict(params), sep="/")
    new = {name for name in flat if name.split("/")[0] in blocks}
    old = [name for name in flat if name not in new]
    parts = network.parts
    frozen: set[str] = set()
    for entry in freeze:
        found = {name for name in old if any(fnmatchcase(name, pattern) for pattern in parts.get(entry, (entry,)))}
        if not found:
            raise ValueError(
                f"freeze={entry!r} matches no parameter; give {', '.join(map(repr, parts))} or a pattern of names such "
                f"as {old[0]!r} or 'layer_0/*'"
            )
        frozen |= found
    ranks: dict[str, int | None] = dict.fromkeys(sorted(new))
    for name in old:
        if name not in frozen and (rank is None or np.ndim(flat[name]) >= 2):
            ranks[name] = rank
    return Adapters(ranks, seed)


def make_optimizer(
    learning_rate: float,
    clip: float,
    steps: int,
    *,
    schedule: str,
    weight_decay: float = 0.0,
    accumulate: int = 1,
    optimizer: str = "amsgrad",
) -> optax.GradientTransformation:
    """AMSGrad or Muon under a clipped gradient.

    Args:
        learning_rate: peak.
        clip: largest norm of the gradient.
        steps: batches in the whole training.
        schedule: "cosine" warms up shortly and falls to a hundredth; "plateau" halves the rate whenever the training
            loss has not fallen for 200 updates; "constant" stays.
        weight_decay: decoupled, towards the pretrained parameters where adapters train.
        accumulate: batches whose gradients are averaged into one update.
        optimizer: "muon" makes the updates of matrices orthogonal (arXiv:2502.16982), about as large as Adam's, and
            takes Adam (with Nesterov's momentum) for everything else.

    Raises:
        ValueError: a value that cannot be.
    """
    for name, choice, kind in (("schedule", schedule, Schedule), ("optimizer", optimizer, Optimizer)):
        if choice not in get_args(kind):
            raise ValueError(f"{name}={choice!r}: give one of {', '.join(map(repr, get_args(kind)))}")
    for name, value in (("learning_rate", learning_rate), ("clip", clip), ("accumulate", accumulate)):
        if not value > 0:
            raise ValueError(f"{name}={value}: give a positive number")
    if weight_decay < 0:
        raise ValueError(f"weight_decay={weight_decay}: give zero or a positive number")
    updates = max(1, steps // accumulate)
    rate: float | optax.Schedule = learning_rate
    if schedule == "cosine":
        warm_up = min(100, updates // 10)
        rate = optax.warmup_cosine_decay_schedule(
            learning_rate / 10, learning_rate, warm_up, updates, learning_rate / 100
        )
    parts = [optax.clip_by_global_norm(clip), optax.scale_by_amsgrad() if optimizer == "amsgrad" else _muon()]
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay))
    parts.append(optax.scale_by_learning_rate(rate))
    if schedule == "plateau":
        parts.append(optax.contrib.reduce_on_plateau(factor=0.5, patience=10, accumulation_size=20))
    chain = optax.chain(*parts)
    return chain if accumulate == 1 else optax.MultiSteps(chain, accumulate).gradient_transformation()


def _muon() -> optax.GradientTransformation:
    """The direction alone, with the sign of the gradient."""
    return optax.contrib.muon(-1.0, consistent_rms=0.2, muon_weight_dimension_numbers=matrices)


def matrices(params: Params) -> dict[str, Any]:
    """Which axes of each parameter, or of its change, map features to features; None for what is no such matrix."""

    def axes(path: Any, value: Any) -> MuonDimensionNumbers | None:
        name, count = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/change"), np.ndim(value)
        if any(word in name for word in NO_MATRICES):
            return None
        if count == 3 and name.endswith("/output"):  # [width, paths, channels]
            return MuonDimensionNumbers(0, 2)
        return MuonDimensionNumbers(count - 2, count - 1) if count in (2, 3) else None

    return jax.tree_util.tree_map_with_path(axes, dict(params))


def describe_adapters(params: Params, adapters: Adapters, blocks: Sequence[str]) -> list[str]:
    """One line per part of the network: how many parameters it has, and what becomes of them."""
    groups: dict[str, Mapping[str, np.ndarray]] = {}
    for name, value in flatten_dict(dict(params), sep="/").items():
        groups.setdefault("/".join(name.split("/")[:2]), {})[name] = np.asarray(value)  # type: ignore[index]
    lines = [f"{'parameters':44s} {'number':>9s}  start    training"]
    for group, leaves in groups.items():
        kinds = {_kind(adapters, name) for name in leaves}
        origin = "new" if group.split("/")[0] in blocks else "copied"
        size = sum(leaf.size for leaf in leaves.values())
        lines.append(f"{group:44s} {size:9,d}  {origin:7s}  {' and '.join(sorted(kinds))}")
    return lines


def _kind(adapters: Adapters, name: str) -> str:
    if name not in adapters.ranks:
        return "frozen"
    rank = adapters.ranks[name]
    return "free" if rank is None else f"rank {rank}"
