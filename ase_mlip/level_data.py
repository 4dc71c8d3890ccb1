"""The frames of every new level: read, split, checked against what the base knows, and turned into examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import ase
import numpy as np
from ase.data import atomic_numbers

from ase_mlip.config import FineTuneConfig
from ase_mlip.dataset import Example, gather_examples, make_examples
from ase_mlip.force_field import ForceField
from ase_mlip.splits import read_split
from ase_mlip.structure import InvalidStructure, check_elements, symbol_of
from ase_mlip.training import Log


@dataclass(frozen=True)
class LevelData:
    """Frames of one new level.

    Attributes:
        level: its name.
        frames: to train on.
        valid: to validate on.
    """

    level: str
    frames: Sequence[ase.Atoms]
    valid: Sequence[ase.Atoms]


def read_levels(config: FineTuneConfig, log: Log) -> tuple[LevelData, ...]:
    """Frames of every new level, split, with their labels counted.

    Raises:
        ValueError: no training data, or validation data of other levels.
    """
    if config.train is None:
        raise ValueError("train: give the training frames, a file or a list of Atoms")
    sources = config.train if isinstance(config.train, Mapping) else {config.level: config.train}
    valid = config.valid
    if isinstance(valid, Mapping):
        if set(valid) != set(sources):
            raise ValueError(f"valid has the levels {sorted(valid)} and train {sorted(sources)}; give the same")
    elif len(sources) > 1 and not isinstance(valid, int | float):
        raise ValueError("valid: with several levels give a file for each, LEVEL=FILE, or a share")
    found = []
    for level, source in sources.items():
        if len(sources) > 1:
            log(f"level {level!r}")
        own = valid[level] if isinstance(valid, Mapping) else valid
        wanted, skip = config.loss.wanted, config.skip_bad_frames
        found.append(LevelData(level, *read_split(source, own, config.keys, wanted, config.seed, log, skip)))
    return tuple(found)


def with_new_elements(base: ForceField, config: FineTuneConfig, data: Sequence[LevelData]) -> ForceField:
    """The base with the elements that the configuration adds.

    Raises:
        InvalidStructure: a frame has an element that neither the base nor the configuration names; the message says
            which frame.
        ValueError: a new element that the base knows, that is in no frame, or that is to start from an unknown one.
    """
    like = {}
    for new, known in (config.new_elements or {}).items():
        numbers = tuple(atomic_numbers.get(symbol, 0) for symbol in (new, known))
        found = any(numbers[0] in atoms.numbers for part in data for atoms in part.frames)
        if numbers[0] in base.elements or numbers[1] not in base.elements or not found:
            raise ValueError(
                f"new_elements: {new}={known}, but the base knows {', '.join(map(symbol_of, base.elements))}; give an "
                "element that it lacks and that is among the training frames, and one of these to start from"
            )
        like[numbers[0]] = numbers[1]
    for part in data:
        for frames in (part.frames, part.valid):
            for number, atoms in enumerate(frames):
                unknown = set(atoms.numbers.tolist()).difference(base.elements, like)
                try:
                    check_elements(unknown, base.elements)
                except InvalidStructure as error:
                    raise InvalidStructure(
                        f"frame {number}: {error}. Give new_elements={{'{symbol_of(min(unknown))}': KNOWN}} "
                        "(--new-elements NEW=KNOWN) to add it, starting from a known one like it"
                    ) from None
    return base.with_elements([*base.elements, *like], like) if like else base


def predictable(force_field: ForceField, frames: Sequence[ase.Atoms], level: str) -> Sequence[ase.Atoms]:
    """Those frames whose elements a level has been trained on."""
    unknown = set(force_field.predictor.unknown_elements(level))
    return [a for a in frames if unknown.isdisjoint(a.numbers.tolist())] if unknown else frames


def examples_at(
    force_field: ForceField, frames: Sequence[ase.Atoms], level: str, config: FineTuneConfig
) -> Sequence[Example]:
    """Labelled graphs at a level."""
    weights = force_field.predictor.head_weights(level)
    return make_examples(frames, force_field.elements, force_field.cutoff, weights, config.keys)


def new_heads(force_field: ForceField, level: str, base_level: str, data: Sequence[LevelData]) -> list[str]:
    """The heads that a new level adds to all levels before it."""
    names = [part.level for part in data]
    levels = force_field.levels
    older = set(levels[base_level]).union(*(levels[name] for name in names[: names.index(level)]))
    return [head for head in levels[level] if head not in older]


def bootstrap(examples: Sequence[Example], members: np.ndarray, seed: int) -> Sequence[Example]:
    """For each member of a committee as many frames as there are, drawn with replacement.

    Args:
        examples: labelled at the mean of the committee.
        members: head weights of each, [members, heads].
        seed: of the draws.
    """

    def drawn() -> Iterator[Example]:
        for number, weights in enumerate(members):
            picks = np.random.default_rng([seed, 41, number]).integers(len(examples), size=len(examples))
            for index, times in zip(*np.unique(picks, return_counts=True), strict=True):
                example = examples[int(index)]
                graph = replace(example.graph, head_weights=weights[None])
                yield Example(graph, replace(example.targets, weight=example.targets.weight * times))

    return gather_examples(drawn())
