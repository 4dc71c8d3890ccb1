"""Draw the frames that the later rounds of the base models trained on: all calm ones, two in five of the strained.

python data/draw_frames.py OUT.extxyz
"""

from __future__ import annotations

import sys
from pathlib import Path

import ase.io
import numpy as np

from ase_mlip.dataset import read_frames

FOLDER = Path(__file__).parent
STRAINED = {
    *("cluster", "cluster_wall", "compressed", "dimer", "dimer_wall", "displaced", "ionic", "radical"),
    *("scaled", "shaken", "stretched"),
}
SHARE = 0.4


def main() -> None:
    """Write the drawn frames of both training files, shuffled."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    rng = np.random.default_rng(7)
    frames = [frame for name in ("train", "more") for frame in read_frames(FOLDER / f"base_{name}.extxyz.xz")]
    kept = [f for f in frames if f.info["config_type"] not in STRAINED or rng.random() <= SHARE]
    ase.io.write(sys.argv[1], [kept[place] for place in rng.permutation(len(kept))], format="extxyz")
    print(f"{len(kept)} of {len(frames)} frames")


if __name__ == "__main__":
    main()
