"""Several levels of theory in one model against a model for each: errors on held-out frames of every level.

python tests/benchmarks/levels.py mp2=MP2.xyz r2scan=R2SCAN.xyz --frames 50 --energy-key REF_energy \\
    --forces-key REF_forces --options '{"method": "full", "new_elements": {"Na": "F"}}'

Of each file the first frames of a random order train, the next ones choose the best epoch, and the rest are the test.
A line of JSON for each model and level, appended to a file: "separate", "together" (all levels on one trunk, at once)
and "stacked" (each corrects the one before).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import ase
import numpy as np

from ase_mlip import ForceField, LabelKeys, evaluate_frames, fine_tune
from ase_mlip.dataset import read_frames

Split = tuple[list[ase.Atoms], list[ase.Atoms], list[ase.Atoms]]


def split(source: str, frames: int, valid: int, seed: int) -> Split:
    """Training, validation and test frames."""
    pool = read_frames(source)
    order = np.random.default_rng(seed).permutation(len(pool))
    shuffled = [pool[int(i)] for i in order]
    return shuffled[:frames], shuffled[frames : frames + valid], shuffled[frames + valid :]


def main() -> None:
    """Train every model; print a line for each of its levels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("levels", nargs="+", help="LEVEL=FILE")
    parser.add_argument("--base", default="default")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--valid", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="separate,together")
    parser.add_argument("--options", type=json.loads, default={}, help="more options of fine_tune, as JSON")
    parser.add_argument("--energy-key")
    parser.add_argument("--forces-key")
    parser.add_argument("--output", type=Path, default=Path("levels.jsonl"))
    args = parser.parse_args()
    keys, base = LabelKeys(args.energy_key, args.forces_key), ForceField.load(args.base)
    data = {
        name: split(source, args.frames, args.valid, args.seed)
        for name, source in (item.split("=", 1) for item in args.levels)
    }
    for kind in args.kinds.split(","):
        groups = [[name] for name in data] if kind == "separate" else [list(data)]
        for names in groups:
            started = time.monotonic()
            options: dict[str, Any] = {"seed": args.seed, "stacked": kind == "stacked", **args.options}
            result = fine_tune(
                base, {name: data[name][0] for name in names}, {name: data[name][1] for name in names},
                epochs=args.epochs, batch_size=args.batch_size, energy_key=args.energy_key, forces_key=args.forces_key,
                check_ps=0, **options,
            )  # fmt: skip
            seconds = time.monotonic() - started
            for name in names:
                errors = evaluate_frames(result.force_field, data[name][2], level=name, keys=keys, batch_size=4)
                record = {
                    "kind": kind,
                    "level": name,
                    "test_frames": errors.frames,
                    "energy_mae_meV_per_atom": 1e3 * errors.summary()["energy_mae"],
                    "forces_mae_meV_per_A": 1e3 * errors.summary()["forces_mae"],
                    "parameters": result.force_field.num_params,
                    "epochs": args.epochs,
                    "seconds_of_the_run": seconds,
                }
                print(json.dumps(record), flush=True)
                with args.output.open("a") as stream:
                    stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
