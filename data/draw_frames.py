"""Draw what the later rounds of the base models trained on: by default all calm frames and two in five strained ones.

The second file gets the held-out dynamics and modes at 300-1000 K: a round keeps the evaluation that is best on them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from ase_mlip.dataset import read_frames

FOLDER = Path(__file__).parent
STRAINED = {
    *("cluster", "cluster_wall", "compressed", "dimer", "dimer_wall", "displaced", "ionic", "radical"),
    *("scaled", "shaken", "stretched"),
}
SOURCES = ("train", "more", "neighbours", "water", "random", "relatives", "heaps", "boxes")


def read(name: str) -> list[Atoms]:
    """The frames of one of the base files."""
    return list(read_frames(FOLDER / f"base_{name}.extxyz.xz"))


def share(text: str) -> tuple[str, float]:
    """A file and how much of it to draw from, as in "train=0.5"."""
    name, _, value = text.partition("=")
    if name not in SOURCES or not 0 <= float(value) <= 1:
        raise ValueError
    return name, float(value)


def main() -> None:
    """Write the drawn frames, shuffled, and the calm held-out ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="file to write the drawn frames to")
    parser.add_argument("valid", type=Path, help="file to write the calm held-out frames to")
    parser.add_argument(
        "--calm", nargs="+", type=share, default=[], metavar="NAME=SHARE", help=f"of {', '.join(SOURCES)}; else 1"
    )
    parser.add_argument("--strained", type=float, default=0.4, help="share of the strained frames, default %(default)s")
    parser.add_argument("--boxes", type=int, default=1, help="how often each frame of a box or of ice is written")
    options = parser.parse_args()
    rng, calm_share, total = np.random.default_rng(7), dict(options.calm), 0
    kept = []
    for name in SOURCES:
        for frame in read(name):
            strained = frame.info["config_type"] in STRAINED
            total += 1
            if frame.info["config_type"] in ("box", "ice"):
                kept += [frame] * options.boxes
            elif rng.random() <= (options.strained if strained else calm_share.get(name, 1.0)):
                kept.append(frame)
    calm = [f for f in read("valid") if f.info["config_type"] in ("md", "mode") and f.info["temperature"] <= 1000.0]
    ase.io.write(options.train, [kept[place] for place in rng.permutation(len(kept))], format="extxyz")
    ase.io.write(options.valid, calm, format="extxyz")
    print(f"{len(kept)} of {total} frames; {len(calm)} calm ones held out")


if __name__ == "__main__":
    main()
