"""Replay: frames at the base level among the new ones, so that fine-tuning does not overwrite what the base knew.

Labels made by the base itself serve as well as its original training labels (arXiv:2606.12704), so that any structures
will do, and no pretraining data is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle

import ase
import numpy as np
from ase.build import bulk
from ase.collections import g2
from ase.data import chemical_symbols, reference_states

from ase_mlip.batches import Batches
from ase_mlip.config import FineTuneConfig
from ase_mlip.dataset import (
    Example,
    LabelKeys,
    elements_of,
    gather_examples,
    make_examples,
    read_frames,
    require_labels,
    take_census,
)
from ase_mlip.force_field import ForceField
from ase_mlip.shipped import shipped_file
from ase_mlip.spill import select

AUTO = "auto"
RATTLES = (0.03, 0.06, 0.1)  # Angstrom; larger ones reach where the base itself knows nothing
STRAINS = (0.98, 1.0, 1.03)
STRUCTURES = "replay.extxyz.xz"  # made by data/make_replay.py
FEWEST = 100  # that train, unless `replay_ratio` says otherwise: 50 held the old level by some methods alone
VALID_SHARE, FEWEST_VALID = 0.1, 40  # held out; one odd molecule among few would decide what is kept


def replay_structures(
    config: FineTuneConfig, frames: Sequence[ase.Atoms], elements: Sequence[int]
) -> Sequence[ase.Atoms]:
    """The structures to replay: drawn from those that the configuration names, or made; none without replay.

    Args:
        config: `replay`, `replay_ratio` and `seed` count.
        frames: the new training frames.
        elements: atomic numbers that the base level knows.
    """
    if config.replay is None:
        return []
    wanted = _wanted(config, len(frames))
    count = wanted + _held_out(wanted)
    if isinstance(config.replay, str) and config.replay == AUTO:
        return make_structures(frames, elements, count, config.seed)
    pool = read_frames(config.replay)
    if len(pool) < 2:
        raise ValueError(f"replay={config.replay!r} holds {len(pool)} frame; give at least two: one is held out")
    order = np.random.default_rng([config.seed, 29]).permutation(len(pool))[:count]
    return select(pool, sorted(order))


def make_structures(frames: Sequence[ase.Atoms], elements: Sequence[int], count: int, seed: int = 0) -> list[ase.Atoms]:
    """Half distorted copies of the frames, half other molecules and crystals, distorted too; of these elements alone.

    The others are molecules and clusters of the shipped base's training data (data/make_replay.py), for elements that
    these lack those of ASE's G2 collection, and, for elements in the frames, the crystals of ASE's reference states;
    those of rare elements come first, so that the few that a small set needs cover what they can.

    Returns:
        Structures without labels, in the order of drawing.

    Raises:
        ValueError: nothing to make them of.
    """
    rng = np.random.default_rng([seed, 31])
    known = set(elements)
    others = list(_molecules(known))
    used: set[int] = set()
    usable = []
    for place, atoms in enumerate(frames):
        used.update(atoms.numbers.tolist())
        if known.issuperset(atoms.numbers.tolist()):
            usable.append(place)
    others += list(_crystals(sorted(used & known)))
    copies = (frames[int(i)] for i in cycle(rng.permutation(usable)))
    sources = [copies] * bool(usable) + [by_elements(others, rng)] * bool(others)
    if not sources:
        raise ValueError("replay='auto': the base level knows no molecule of the pool, nor all elements of any frame")
    return [_distort(next(sources[number % len(sources)]), rng) for number in range(count)]


def _molecules(known: set[int]) -> Iterator[ase.Atoms]:
    """Those of known elements alone; of the G2 collection only such as have an element that the shipped ones lack."""
    shipped = read_frames(shipped_file(STRUCTURES))
    covered = set(elements_of(shipped))
    yield from (atoms for atoms in shipped if known.issuperset(atoms.numbers))
    molecules = [atoms for atoms in g2 if len(atoms) > 1]
    yield from (a for a in molecules if known.issuperset(a.numbers) and not covered.issuperset(a.numbers))


def by_elements(pool: Sequence[ase.Atoms], rng: np.random.Generator) -> Iterator[ase.Atoms]:
    """In random order, again and again, but next is always one with the element that has come least often."""
    seen: Counter[int] = Counter()
    while True:
        left = [pool[int(i)] for i in rng.permutation(len(pool))]
        while left:
            rarest = min(sorted(elements_of(left)), key=lambda z: seen[z])
            chosen = left.pop(next(i for i, atoms in enumerate(left) if rarest in atoms.numbers))
            seen.update(elements_of([chosen]))
            yield chosen


def _crystals(elements: Sequence[int]) -> Iterator[ase.Atoms]:
    """Elemental crystals that ASE can build."""
    for z in elements:
        state = reference_states[z] or {}
        if state.get("symmetry") in ("fcc", "bcc", "hcp", "diamond"):
            yield bulk(chemical_symbols[z])


def _distort(atoms: ase.Atoms, rng: np.random.Generator) -> ase.Atoms:
    """Scaled as a whole and displaced at random; the original's labels are left behind."""
    copy = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    strain = rng.choice(STRAINS)
    copy.set_cell(copy.cell.array * strain)
    copy.positions *= strain
    copy.positions += rng.normal(scale=rng.choice(RATTLES), size=copy.positions.shape)
    return copy


def replay_examples(
    force_field: ForceField, frames: Sequence[ase.Atoms], level: str, config: FineTuneConfig, new: int
) -> tuple[Sequence[Example], Sequence[Example]]:
    """Frames that train the old level, and those that watch it, with their own labels or the model's.

    Of few frames half watch; the others are at most as many as `replay_ratio` says beside the `new` training frames.
    """
    if not frames:
        return [], []
    weights, keys = force_field.predictor.head_weights(level), config.keys
    if config.replay_labels == "file":
        require_labels(take_census(frames, keys), ["forces"], keys)
        examples: Sequence[Example] = make_examples(
            frames, force_field.elements, force_field.cutoff, weights, keys, config.replay_weight
        )
    else:
        examples = label_by_model(force_field, frames, level, config.batch_size, config.replay_weight)
    wanted = _wanted(config, new)
    held = max(len(frames) - wanted, min(_held_out(wanted), len(frames) // 2))
    order = np.random.default_rng([config.seed, 37]).permutation(len(frames))
    return select(examples, sorted(order[held:])), select(examples, sorted(order[:held]))


def _wanted(config: FineTuneConfig, new: int) -> int:
    """Frames that train the old level beside so many new ones."""
    return max(FEWEST, new) if config.replay_ratio is None else max(2, round(config.replay_ratio * new))


def _held_out(wanted: int) -> int:
    return max(FEWEST_VALID, round(VALID_SHARE * wanted))


def label_by_model(
    force_field: ForceField, frames: Sequence[ase.Atoms], level: str, batch_size: int, weight: float = 1.0
) -> Sequence[Example]:
    """Examples whose labels are the model's own energies and forces at a level."""
    weights = force_field.predictor.head_weights(level)
    unlabelled = (ase.Atoms(a.numbers, positions=a.positions, cell=a.cell, pbc=a.pbc) for a in frames)
    bare = make_examples(unlabelled, force_field.elements, force_field.cutoff, weights, LabelKeys(), weight)
    return gather_examples(_labelled(force_field, bare, batch_size))


def _labelled(force_field: ForceField, bare: Sequence[Example], batch_size: int) -> Iterator[Example]:
    done = 0
    for joined in Batches(bare, batch_size).epoch(None):
        prediction = force_field(joined.graph)
        real = joined.graph.node_graph[joined.graph.node_graph < joined.graph.num_graphs]
        for number in range(len(np.unique(real))):
            example, nodes = bare[done], joined.graph.node_graph == number
            targets = replace(
                example.targets,
                energy=prediction.energy[number : number + 1],
                forces=prediction.forces[nodes].astype(float),
                energy_mask=np.array([True]),
                forces_mask=np.full(int(nodes.sum()), True),
            )
            yield Example(example.graph, targets)
            done += 1
