"""Node-by-node work in blocks that fit the cache of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def map_node_blocks(function: Callable[[Any], jax.Array], arrays: Any, block: int) -> jax.Array:
    """Apply `function` to blocks of nodes; equal to `function(arrays)`, with far less memory traffic on a CPU.

    Intermediates of size slots x channels x components leave the cache when all nodes are done at once. Blocks are
    recomputed in the gradient instead of stored. Other devices take all nodes at once.

    Args:
        function: maps a pytree of arrays [nodes, ...] to one array [nodes, ...], each node on its own.
        arrays: the pytree.
        block: nodes in a block; up to eight blocks' worth is done at once, which compiles faster and costs little.
    """
    nodes = jax.tree.leaves(arrays)[0].shape[0]
    if jax.default_backend() != "cpu" or nodes <= 8 * block:
        return function(arrays)
    count = -(-nodes // block)

    def split(x: jax.Array) -> jax.Array:
        widths = [(0, count * block - nodes)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, widths, mode="edge").reshape(count, block, *x.shape[1:])

    out = jax.lax.map(jax.checkpoint(function), jax.tree.map(split, arrays))
    return out.reshape(count * block, *out.shape[2:])[:nodes]
