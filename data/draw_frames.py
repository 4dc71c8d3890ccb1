"""Draw what the later rounds of the base models trained on: all calm frames, two in five of the strained ones.

python data/draw_frames.py TRAIN.extxyz VALID.extxyz

The second file gets the held-out dynamics and modes at 300-1000 K: a round keeps the evaluation that is best on them.
"""

from __future__ import annotations

import sys
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
SHARE = 0.4
SOURCES = ("train", "more", "neighbours", "water", "random")


def read(name: str) -> list[Atoms]:
    """The frames of one of the base files."""
    return list(read_frames(FOLDER / f"base_{name}.extxyz.xz"))


def main() -> None:
    """Write the drawn frames, shuffled, and the calm held-out ones."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    rng = np.random.default_rng(7)
    frames = [frame for name in SOURCES for frame in read(name)]
    kept = [f for f in frames if f.info["config_type"] not in STRAINED or rng.random() <= SHARE]
    calm = [f for f in read("valid") if f.info["config_type"] in ("md", "mode") and f.info["temperature"] <= 1000.0]
    ase.io.write(sys.argv[1], [kept[place] for place in rng.permutation(len(kept))], format="extxyz")
    ase.io.write(sys.argv[2], calm, format="extxyz")
    print(f"{len(kept)} of {len(frames)} frames; {len(calm)} calm ones held out")


if __name__ == "__main__":
    main()
