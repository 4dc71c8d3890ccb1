"""What a training will cost, found by doing one step of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ase_mlip.batches import Batches
from ase_mlip.dataset import Example
from ase_mlip.graph import PadShape
from ase_mlip.loss import without_reference
from ase_mlip.prepare import Plan
from ase_mlip.training import make_train_step

REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """What a training will cost on this machine.

    Attributes:
        shapes: pad shapes, each compiled once, and the number of batches of each in an epoch.
        memory: bytes that the largest step needs besides the data; None where the device does not say.
        compile_seconds: of the largest shape.
        seconds: of all epochs, compilation and evaluations left out.
    """

    shapes: dict[PadShape, int]
    memory: int | None
    compile_seconds: float
    seconds: float

    def __str__(self) -> str:
        rows = [
            f"pad shape: {shape.graphs} structures, {shape.nodes} atoms, {shape.slots} neighbours each; "
            f"{number} batches an epoch"
            for shape, number in self.shapes.items()
        ]
        memory = "unknown" if self.memory is None else f"{self.memory / 2**20:.0f} MiB"
        rows.append(f"memory of the largest step: {memory}")
        rows.append(f"time: {self.compile_seconds:.0f} s to compile each shape, then {self.seconds / 60:.1f} min")
        return "\n".join(rows)


def estimate_cost(plan: Plan) -> Cost:
    """Compile the training step of every pad shape and time it.

    The largest comes first, so that running out of memory shows at once.
    """
    settings, predictor = plan.settings, plan.start.predictor
    batches = Batches(plan.examples, settings.batch_size, settings.max_shapes)
    order = batches.plan((settings.seed, 0))
    counts: dict[PadShape, int] = {}
    for shape, _ in order:
        counts[shape] = counts.get(shape, 0) + 1
    first: dict[PadShape, Example] = {}
    for example in batches.epoch((settings.seed, 0)):
        first.setdefault(example.graph.shape, example)
        if len(first) == len(counts):
            break
    params = jax.tree.map(jnp.asarray, dict(plan.start.params))
    step = make_train_step(predictor, plan.optimizer, settings, plan.adapters)
    memory, compile_seconds, epoch_seconds = None, 0.0, 0.0
    for shape in sorted(first, key=lambda shape: shape.nodes * shape.slots, reverse=True):
        graph, targets = without_reference(predictor, first[shape])
        variables = plan.adapters.start(plan.start.params)
        arguments = [variables, jax.tree.map(jnp.copy, variables), plan.optimizer.init(variables)]
        started = time.monotonic()
        compiled = step.lower(*arguments, params, graph, targets).compile()  # type: ignore[attr-defined]
        compile_seconds = max(compile_seconds, time.monotonic() - started)
        analysis = compiled.memory_analysis()
        if analysis is not None:
            memory = max(memory or 0, int(analysis.temp_size_in_bytes))
        started = time.monotonic()
        for _ in range(REPEATS):  # each step consumes what it is given and returns the same
            *arguments, _ = compiled(*arguments, params, graph, targets)
        jax.block_until_ready(arguments)
        epoch_seconds += counts[shape] * (time.monotonic() - started) / REPEATS
    return Cost(counts, memory, compile_seconds, settings.epochs * epoch_seconds)
