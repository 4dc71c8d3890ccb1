"""Frames to train on and frames to validate on: read, looked at, and told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ase
import numpy as np

from ase_mlip.data_checks import good_frames, inspect_frames
from ase_mlip.dataset import LabelKeys, Source, read_frames, require_labels
from ase_mlip.spill import select

Frames = Sequence[ase.Atoms]


def read_split(
    train_set: Source,
    valid: Source | float,
    keys: LabelKeys,
    wanted: Sequence[str],
    seed: int,
    log: Callable[[str], None],
    skip_bad: bool = False,
) -> tuple[Frames, Frames]:
    """Read the frames to train and to validate on, print what they hold, and check that the wanted labels are there.

    Args:
        train_set: a file or frames.
        valid: a source of its own, or the share of `train_set` to draw at random.
        keys: where the labels are.
        wanted: labels that at least one frame must have.
        seed: of the draw.
        log: called with what the frames hold and what is strange about them, by their index in the source.
        skip_bad: leave out frames whose labels cannot be true.

    Raises:
        ValueError: a share that leaves either set empty.
        MissingLabel: a wanted label is in no frame of a set.
        BadLabels: labels that cannot be true, unless they are to be skipped.
    """
    frames = _read("training", train_set, keys, wanted, log, skip_bad)
    if not isinstance(valid, int | float):
        return frames, _read("validation", valid, keys, wanted, log, skip_bad)
    held = round(valid * len(frames))
    if not 0 < held < len(frames):
        raise ValueError(
            f"valid={valid} of {len(frames)} frames leaves {len(frames) - held} to train on and {held} to validate on; "
            "give a share that leaves at least one for each, or a file of validation frames"
        )
    order = np.random.default_rng([seed, 17]).permutation(len(frames))
    return select(frames, sorted(order[held:])), select(frames, sorted(order[:held]))


def _read(
    title: str,
    source: Source,
    keys: LabelKeys,
    wanted: Sequence[str],
    log: Callable[[str], None],
    skip_bad: bool,
) -> Frames:
    """The frames of one source that can be used."""
    frames = read_frames(source)
    report = inspect_frames(frames, keys)
    log(f"{title} data: {report}")
    require_labels(report.census, wanted, keys)
    good = good_frames(report, skip_bad)
    if len(good) == len(frames):
        return frames
    log(f"left out {len(frames) - len(good)} frames of the {title} data")
    return select(frames, good)
