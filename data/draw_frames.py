"""Draw what the later rounds of the base models trained on: all calm frames, two in five of the strained ones.

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
SHARE = 0.4
SOURCES = ("train", "more", "neighbours", "water", "random", "relatives", "heaps")


def read(name: str) -> list[Atoms]:
    """The frames of one of the base files."""
    return list(read_frames(FOLDER / f"base_{name}.extxyz.xz"))


def main() -> None:
    """Write the drawn frames, shuffled, and the calm held-out ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path, help="file to write the drawn frames to")
    parser.add_argument("valid", type=Path, help="file to write the calm held-out frames to")
    parser.add_argument("--first", type=float, default=1.0, help="share of base_train that is drawn from")
    options = parser.parse_args()
    rng = np.random.default_rng(7)
    frames = [frame for name in SOURCES for frame in read(name) if name != "train" or rng.random() < options.first]
    kept = [f for f in frames if f.info["config_type"] not in STRAINED or rng.random() <= SHARE]
    calm = [f for f in read("valid") if f.info["config_type"] in ("md", "mode") and f.info["temperature"] <= 1000.0]
    ase.io.write(options.train, [kept[place] for place in rng.permutation(len(kept))], format="extxyz")
    ase.io.write(options.valid, calm, format="extxyz")
    print(f"{len(kept)} of {len(frames)} frames; {len(calm)} calm ones held out")


if __name__ == "__main__":
    main()
