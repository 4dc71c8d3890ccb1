"""Train on a large file and watch the memory: `python tests/benchmarks/memory.py --frames 100000 --minutes 3`.

Writes an extended XYZ file of rattled copies of one made-up molecule of 21 atoms (C9H8O4) with random energies and
forces into a temporary folder, and trains a small network on it, as a user would. Each line of the training is printed
with the time since the start and the peak of the memory that the process has held; the last line is one of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from ase_mlip.config import TrainConfig
from ase_mlip.from_scratch import train_from_scratch

SYMBOLS = ["C"] * 9 + ["H"] * 8 + ["O"] * 4
HEADER = '{atoms}\nProperties=species:S:1:pos:R:3:forces:R:3 energy={energy:.6f} pbc="F F F"\n'


def write_frames(path: Path, count: int) -> None:
    """Atoms on a grid of 1.4 Angstrom in two layers, rattled by 0.1 Angstrom."""
    rng = np.random.default_rng(0)
    grid = 1.4 * np.array([(x, y, z) for x in range(4) for y in range(3) for z in range(2)], float)[: len(SYMBOLS)]
    row = "{} " + " ".join(["{:.6f}"] * 6) + "\n"
    with path.open("w") as file:
        for _ in range(count):
            numbers = np.hstack([grid + rng.normal(scale=0.1, size=grid.shape), rng.normal(size=grid.shape)]).tolist()
            file.write(HEADER.format(atoms=len(grid), energy=rng.normal() - 600))
            file.writelines(row.format(symbol, *values) for symbol, values in zip(SYMBOLS, numbers, strict=True))


def peak_gib() -> float:
    """Most memory the process has held so far; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def main() -> None:
    """Write, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=3.0, help="of training, its first evaluation included")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    shape = {"channels": 8, "layers": 1, "l_max": 1, "correlation": 2, "radial_mlp": (16,)}
    config = TrainConfig(epochs=1, batch_size=args.batch_size, max_minutes=args.minutes, **shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.extxyz"
        write_frames(path, args.frames)
        size, started = path.stat().st_size, time.monotonic()
        print(f"{args.frames} frames, {size / 2**20:.0f} MiB; {peak_gib():.2f} GiB before", flush=True)

        def log(line: str) -> None:
            print(f"{time.monotonic() - started:7.1f} s {peak_gib():6.2f} GiB  {line}", flush=True)

        train_from_scratch(path, valid=0.01, config=config, log=log)
    record = {
        "frames": args.frames,
        "file_MiB": round(size / 2**20),
        "seconds": round(time.monotonic() - started, 1),
        "peak_GiB": round(peak_gib(), 2),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
