"""Running a Pallas kernel over the nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

WIDEST = 128  # channels of a program, at most


def block_of(channels: int, widest: int = WIDEST) -> int:
    """Channels of a program: the largest power of two that divides all of them, at most `widest`."""
    return min(widest, channels & -channels)


def interpreted() -> bool:
    """Whether kernels are interpreted, for tests where there is no GPU."""
    return jax.devices()[0].platform == "cpu"


def launch(
    kernel: Callable[..., None],
    shapes: Sequence[tuple[int, ...]],
    grid: tuple[int, int, int],
    arrays: tuple[jax.Array, ...],
    warps: int,
    widest: int = WIDEST,
) -> list[jax.Array]:
    """Float32 results of a kernel with one program for each node, block of channels and share of the work.

    A small structure fills a GPU only if its nodes' work is shared out.

    Args:
        kernel: called with the slice of its channels, then references to the arrays and to the results.
        shapes: of the results.
        grid: numbers of nodes, of channels, and of shares; a program finds its place by `pl.program_id`.
        arrays: the arguments.
        warps: that run a program.
        widest: channels of a program, at most.
    """
    nodes, channels, shares = grid
    block = block_of(channels, widest)

    def program(*refs: Any) -> None:
        kernel(pl.ds(pl.program_id(1) * block, block), *refs)

    call = pl.pallas_call(
        program,
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes],
        grid=(nodes, channels // block, shares),
        compiler_params=triton.CompilerParams(num_warps=warps),
        interpret=interpreted(),
        name=getattr(kernel, "func", kernel).__name__.strip("_"),
    )
    return list(call(*arrays))
