"""Fixed-shape batches of labelled structures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ase_mlip.dataset import Example, Targets
from ase_mlip.graph import PadShape, batch


def join_examples(examples: Sequence[Example], shape: PadShape) -> Example:
    """Join examples into one of fixed shape; all masks of the padding are False."""
    graph = batch([example.graph for example in examples], shape)

    def join(name: str, length: int) -> np.ndarray:
        parts = [getattr(example.targets, name) for example in examples]
        joined = np.concatenate(parts)
        return np.concatenate([joined, np.zeros((length - len(joined), *joined.shape[1:]), joined.dtype)])

    graphs, nodes = shape.graphs, shape.nodes
    return Example(
        graph,
        Targets(
            energy=join("energy", graphs),
            forces=join("forces", nodes),
            stress=join("stress", graphs),
            energy_mask=join("energy_mask", graphs),
            forces_mask=join("forces_mask", nodes),
            stress_mask=join("stress_mask", graphs),
            weight=join("weight", graphs),
        ),
    )


class Batches:
    """Packs examples into batches of a few fixed shapes.

    Examples are grouped by their largest number of neighbours, each group with its own shape, so that small molecules
    do not pay for the slots of large ones. Within a group a batch is filled until its graphs or its nodes are full.

    Args:
        examples: what to pack.
        batch_size: graphs in a batch, at most.
        max_shapes: groups, at most; each shape costs one compilation.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int, max_shapes: int = 1):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: give a whole number of at least 1")
        self.examples = list(examples)
        slots = np.array([example.graph.shape.slots for example in self.examples])
        limits = sorted(
            {int(np.quantile(slots, q, method="higher")) for q in np.arange(1, max_shapes + 1) / max_shapes}
        )
        group = np.searchsorted(limits, slots)
        self.groups: list[tuple[PadShape, np.ndarray]] = []
        for number in range(len(limits)):
            members = np.flatnonzero(group == number)
            nodes = np.array([self.examples[i].graph.shape.nodes for i in members])
            # room for batch_size graphs of mean size, and for the largest one
            size = min(batch_size, len(members))
            room = max(int(nodes.max()), int(np.ceil(size * nodes.mean())))
            self.groups.append((PadShape(size, room, limits[number]).rounded(), members))

    @property
    def shapes(self) -> list[PadShape]:
        """Pad shapes in use."""
        return [shape for shape, _ in self.groups]

    def epoch(self, seed: Sequence[int] | None) -> Iterator[Example]:
        """All examples once, in batches; shuffled if a seed is given, in order otherwise."""
        rng = None if seed is None else np.random.default_rng(list(seed))
        plans: list[tuple[PadShape, list[int]]] = []
        for shape, members in self.groups:
            order = members if rng is None else rng.permutation(members)
            current: list[int] = []
            nodes = 0
            for index in order:
                size = self.examples[index].graph.shape.nodes
                if current and (len(current) == shape.graphs or nodes + size > shape.nodes):
                    plans.append((shape, current))
                    current, nodes = [], 0
                current.append(int(index))
                nodes += size
            plans.append((shape, current))
        for number in range(len(plans)) if rng is None else rng.permutation(len(plans)):
            shape, indices = plans[number]
            yield join_examples([self.examples[i] for i in indices], shape)
