"""Times of repeated runs, and what was compiled meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.monitoring
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclass(frozen=True)
class Timing:
    """Seconds of repeated runs: the middle of them, the quartiles, and the mean, which rare slow runs raise."""

    median: float
    lower: float
    upper: float
    mean: float
    reps: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Of single runs."""
        lower, median, upper = np.percentile(seconds, [25, 50, 75])
        return cls(float(median), float(lower), float(upper), float(np.mean(seconds)), len(seconds))


def time_runs(function: Callable[[], Any], reps: int, warmup: int = 3) -> Timing:
    """Call a function and wait for what it returns, again and again.

    Args:
        function: returns arrays, which may still be on their way.
        reps: runs that are timed.
        warmup: runs before.
    """
    seconds = []
    for number in range(warmup + reps):
        started = time.perf_counter()
        jax.block_until_ready(function())
        if number >= warmup:
            seconds.append(time.perf_counter() - started)
    return Timing.of(seconds)


class Compilations:
    """Counts what JAX compiles while it is open.

    Attributes:
        count: programs, small ones too.
        seconds: that the compiler took.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(3.0)
        >>> with Compilations() as compilations:
        ...     _ = jax.jit(lambda x: x + 1)(x)
        >>> compilations.count
        1
    """

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            self.count += 1
            self.seconds += duration_secs


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Compile everything inside, whatever earlier processes have left on the disk."""
    config: Any = jax.config
    before = config.jax_enable_compilation_cache
    config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX decides once whether it uses one
    try:
        yield
    finally:
        config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
