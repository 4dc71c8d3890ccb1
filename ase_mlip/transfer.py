"""The founding blocks of fine-tuning: a new head on pretrained parameters, and an optimiser that moves it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from ase_mlip.dataset_info import Head, unknown_to_all
from ase_mlip.force_field import ForceField, is_per_element
from ase_mlip.predictor import Params, Predictor

Blocks = list[str]


def transfer_params(pretrained: Params, initial: Params, scale_factor: float = 0.1) -> tuple[dict[str, Any], Blocks]:
    """Copy the pretrained parameters into those of a network with more readout heads.

    Args:
        pretrained: parameters of the pretrained network.
        initial: parameters of the new network, whose additional blocks keep their initial values times `scale_factor`.
        scale_factor: damps the new blocks at the start; 0.1 is recommended, 1.0 can be hard to optimise back and 0.0
            stops the gradients of a network inside the block.

    Returns:
        The new parameters and the names of the blocks that were not in `pretrained`, which are untrained.

    Raises:
        ValueError: a pretrained parameter is not in the new network, has another shape there, or nothing is new.

    Example:
        >>> old, new = {"a": {"w": np.ones(2)}}, {"a": {"w": np.zeros(2)}, "b": {"w": np.ones(2)}}
        >>> params, blocks = transfer_params(old, new)
        >>> blocks, params["a"]["w"], params["b"]["w"]
        (['b'], array([1., 1.]), array([0.1, 0.1]))
    """
    old, new = flatten_dict(dict(pretrained)), flatten_dict(dict(initial))
    lost = sorted("/".join(path) for path in old.keys() - new.keys())
    if lost:
        raise ValueError(f"the new network has no place for the pretrained parameters {lost}; give it the same heads")
    for path in old:
        if np.shape(old[path]) != np.shape(new[path]):
            raise ValueError(
                f"the parameter {'/'.join(path)} has the shape {np.shape(old[path])} in the pretrained network and "
                f"{np.shape(new[path])} in the new one; use the same configuration and elements"
            )
    blocks: Blocks = []
    merged = {}
    for path, value in new.items():
        if path in old:
            merged[path] = old[path]
            continue
        merged[path] = value * np.asarray(scale_factor, np.asarray(value).dtype)
        name = _outermost_new(path, old)
        if name not in blocks:
            blocks.append(name)
    if not blocks:
        raise ValueError("the new network has no block that the pretrained one lacks; give it one more readout head")
    return unflatten_dict(merged), blocks


def _outermost_new(path: tuple[str, ...], old: Mapping[tuple[str, ...], Any]) -> str:
    """The shortest beginning of `path` that no old parameter shares."""
    for length in range(1, len(path) + 1):
        if not any(known[:length] == path[:length] for known in old):
            return "/".join(path[:length])
    return "/".join(path)


def mask_optimizer_for_finetuning(
    optimizer: optax.GradientTransformation, params: Params, blocks: Sequence[str]
) -> optax.GradientTransformation:
    """An optimiser that moves only the named blocks and gives every other parameter a zero update.

    Args:
        optimizer: applied to the blocks alone: its state, norms and weight decay see nothing else.
        params: the parameters to be trained.
        blocks: names as `transfer_params` returns them, such as "head_head_1".

    Raises:
        ValueError: a block that holds no parameter, or no blocks.
    """
    labels = trainable_labels(params, blocks)
    return optax.partition({"train": optimizer, "freeze": optax.set_to_zero()}, labels)


def trainable_labels(params: Params, blocks: Sequence[str]) -> dict[str, Any]:
    """ "train" for every parameter inside the blocks, "freeze" for the others.

    Raises:
        ValueError: a block that holds no parameter, or no blocks.
    """
    flat = {"/".join(path): path for path in flatten_dict(dict(params))}

    def inside(name: str, block: str) -> bool:
        return name == block or name.startswith(block + "/")

    empty = [block for block in blocks if not any(inside(name, block) for name in flat)]
    if empty or not blocks:
        known = sorted({name.split("/")[0] for name in flat})
        raise ValueError(f"no parameters in the blocks {empty or list(blocks)}; the network has the blocks {known}")
    labels = {
        path: "train" if any(inside(name, block) for block in blocks) else "freeze" for name, path in flat.items()
    }
    return unflatten_dict(labels)


def add_heads(
    base: ForceField,
    levels: Sequence[str],
    seed: int = 0,
    base_level: str | None = None,
    *,
    stacked: bool = False,
    members: int = 1,
) -> tuple[ForceField, Blocks]:
    """The force field with a new head for each new level; the heads say exactly nothing yet but can learn.

    The inner layers of a new head are random and its output layers zero, so that a new level equals the one below it at
    step 0 and its gradients are alive. The last new level becomes the default.

    Args:
        base: the pretrained force field.
        levels: names of the new levels.
        seed: of the inner layers.
        base_level: the level below; by default the newest.
        stacked: each new level builds on the one before it, instead of all on `base_level`.
        members: heads of each new level, a committee if more than one: named LEVEL_1, LEVEL_2, ... and averaged.

    Returns:
        The force field, and the blocks that are new.

    Raises:
        ValueError: a name that is taken, given twice, empty, or contains '/', which separates the names of parameters;
            or there is no level `base_level`.
    """
    taken = dict.fromkeys([*base.levels, *base.heads])
    heads_of = {level: [level] if members == 1 else [f"{level}_{n}" for n in range(1, members + 1)] for level in levels}
    new_heads = [head for level in levels for head in heads_of[level]]
    for name in (*levels, *new_heads):
        if not name or "/" in name:
            raise ValueError(f"the level name {name!r} is empty or contains '/'; choose another name")
        if name in taken:
            raise ValueError(
                f"the model already has a level or head {name!r} ({', '.join(taken)}); choose another name"
            )
    if len(set(levels)) != len(levels):
        raise ValueError(f"the levels {list(levels)} have a name twice; choose different names")
    below = base.levels[base.predictor.find_level(base_level)]
    network = base.predictor.network
    names = (*base.heads, *new_heads)
    config = replace(network.config, num_readout_heads=len(names), head_names=names)
    info, unknown = base.dataset_info, base.predictor.unknown_elements(base_level)
    added = [replace(info.head(name), unknown=unknown) for name in new_heads]
    grown = network.rebuild(config, info.with_heads([*info.heads, *added]))
    initial = ForceField.from_mlip_network(grown, seed=seed, known=base.params)
    params, blocks = transfer_params(base.params, initial.params, scale_factor=1.0)
    silent = {
        path: np.zeros_like(value) if path[0] in blocks and path[-1].endswith("output") else value
        for path, value in flatten_dict(params).items()
    }
    made = list(base.predictor.levels)
    for level in levels:
        made.append((level, (*below, *heads_of[level])))
        below = made[-1][1] if stacked else below
    committees = [tuple(heads) for heads in heads_of.values() if len(heads) > 1]
    predictor = Predictor(grown, tuple(made), (*base.predictor.committees, *committees))
    return ForceField(predictor, unflatten_dict(silent), base.provenance), blocks


def restore_elements(tuned: ForceField, base: ForceField) -> ForceField:
    """Put a force field that was cut down to some elements and trained back among all elements of its base.

    Rows of the other elements and every parameter that training left alone are the base's own, bit by bit. The new
    heads' reference energies are zero for elements they have not seen.
    """
    if tuned.elements == base.elements:
        rows: Any = slice(None)
    else:
        rows = np.searchsorted(base.elements, tuned.elements)
    old, merged = flatten_dict(dict(base.params)), {}
    for path, value in flatten_dict(dict(tuned.params)).items():
        trained = np.asarray(value)
        if path not in old:
            if is_per_element(path):
                raise ValueError(f"the new head has a parameter per element, {'/'.join(path)}, unknown for most")
            merged[path] = trained
            continue
        known = np.asarray(old[path])
        part = known[rows] if is_per_element(path) else known
        if np.array_equal(part.astype(trained.dtype), trained):
            merged[path] = known
        elif is_per_element(path):
            merged[path] = known.astype(trained.dtype)
            merged[path][rows] = trained
        else:
            merged[path] = trained
    network = tuned.predictor.network
    whole = network.rebuild(network.config, base.predictor.network.dataset_info.with_heads(_restore_heads(tuned, base)))
    return ForceField(replace(tuned.predictor, network=whole), unflatten_dict(merged), tuned.provenance)


def _restore_heads(tuned: ForceField, base: ForceField) -> list[Head]:
    """The base's own heads, and the new ones with E0 for all elements; what no head below knew, they do not know."""
    known = {head.name: head for head in base.predictor.heads}
    heads = []
    for head in tuned.predictor.heads:
        if head.name in known:
            heads.append(known[head.name])
            continue
        energies = dict(zip(tuned.elements, head.atomic_energies, strict=True))
        spread = tuple(energies.get(z, 0.0) for z in base.elements)
        summed = next(names for names in tuned.levels.values() if head.name in names)
        below = unknown_to_all(known[name] for name in summed if name in known)
        unseen = (z for z in below if z not in tuned.elements)
        bounds = base.dataset_info.head(head.name).bounds
        heads.append(replace(head, atomic_energies=spread, unknown=(*head.unknown, *unseen), bounds=bounds))
    return heads
