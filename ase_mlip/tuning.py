"""What moves in a training: all parameters, or chosen ones by an adapter each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ase_mlip.force_field import is_per_element
from ase_mlip.predictor import Params

Variables = Any  # a nested dictionary of arrays: what the optimiser sees


class Tuning(Protocol):
    """Turns parameters into variables that train, and variables back into parameters."""

    def start(self, params: Params) -> Variables:
        """The variables at which `merge` gives back `params`."""
        ...

    def merge(self, params: Params, variables: Variables) -> Params:
        """The parameters that the variables stand for; pure, on numpy's arrays or inside a compiled function."""
        ...


class TrainAll:
    """Every parameter is a variable: training from scratch, or with an optimiser masked by hand."""

    def start(self, params: Params) -> Variables:
        """A copy: the steps consume what they are given."""
        return jax.tree.map(jnp.array, dict(params))

    def merge(self, params: Params, variables: Variables) -> Params:
        """The variables themselves."""
        return variables


@dataclass(frozen=True)
class Adapters:
    """Chosen parameters move by a change that starts at zero; all others are constants.

    A parameter W becomes W + rms(W) D. The change D is free, or for a rank r the product A B / sqrt(r) of thin matrices
    (LoRA, arXiv:2106.09685, with the scale of arXiv:2312.03732). Features mix within a degree only, so that any D
    leaves the network equivariant.

    Because D is relative to the size of W, one learning rate suits networks that write their weights differently, and
    weight decay pulls towards the pretrained weights, not towards zero.

    Attributes:
        ranks: by name of the parameter, such as "layer_0/linear_up/degree_0": the rank, or None for a free change.
        seed: of the matrices A; all B are zero.
    """

    ranks: Mapping[str, int | None]
    seed: int = 0

    def start(self, params: Params) -> Variables:
        """Zero changes.

        Raises:
            ValueError: a rank for a parameter that is no matrix.
        """
        flat = flatten_dict(dict(params), sep="/")
        variables: dict[str, dict[str, jax.Array]] = {}
        for number, (name, rank) in enumerate(sorted(self.ranks.items())):
            value = np.asarray(flat[name])
            if rank is None:
                variables[name] = {"change": jnp.asarray(np.zeros_like(value))}
                continue
            batch, rows, columns = matrix_shape(name, value.shape)
            rank = min(rank, rows, columns)
            draw = np.random.default_rng([self.seed, number]).normal(size=(batch, rows, rank))
            variables[name] = {
                "down": jnp.asarray(draw.astype(value.dtype)),
                "up": jnp.asarray(np.zeros((batch, rank, columns), value.dtype)),
            }
        return variables

    def merge(self, params: Params, variables: Variables) -> Params:
        """W + rms(W) D for the chosen parameters, the others as they are."""
        flat = flatten_dict(dict(params), sep="/")
        for name, parts in variables.items():
            value = flat[name]
            change = parts["change"] if "change" in parts else _product(parts["down"], parts["up"], value.shape)
            square = (value * value).mean()
            size = (square + (square == 0)) ** 0.5  # a silent new layer is zero: it moves in units of one
            flat[name] = value + size * change
        return unflatten_dict(flat, sep="/")


def matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(matrices, rows, columns) of a parameter: one matrix per element where it has one, rows are the next axis.

    Raises:
        ValueError: fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"the parameter {name} of shape {shape} has no low-rank change; only matrices have")
    batch = shape[0] if len(shape) > 2 and is_per_element(tuple(name.split("/"))) else 1
    rows = shape[0] if batch == 1 else shape[1]
    return batch, rows, int(np.prod(shape)) // (batch * rows)


def _product(down: Any, up: Any, shape: tuple[int, ...]) -> Any:
    """A B / sqrt(rank) in the parameter's own shape."""
    return (down @ up).reshape(shape) / down.shape[-1] ** 0.5


def count_variables(variables: Variables) -> int:
    """Number of trainable numbers."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables))
