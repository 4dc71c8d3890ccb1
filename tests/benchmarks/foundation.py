"""Fine-tuning a foundation model: test errors of the base, of the base with E0 fitted, and of each method, with times.

python tests/benchmarks/foundation.py BASE TRAIN TEST --frames 40 --energy-key REF_energy --forces-key REF_forces
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from ase_mlip import FineTuneConfig, ForceField, LabelKeys, evaluate_frames, fine_tune
from ase_mlip.dataset import read_frames


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--methods", default="heads,full")
    parser.add_argument("--frames", type=int, default=40, help="training frames, drawn at random")
    parser.add_argument("--valid", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, action="append", help="one for each method")
    parser.add_argument("--optimizer", help="by default the method's usual one")
    parser.add_argument("--energy-weight", type=float, default=FineTuneConfig.energy_weight)
    parser.add_argument("--energy-key")
    parser.add_argument("--forces-key")
    args = parser.parse_args()

    keys, base = LabelKeys(args.energy_key, args.forces_key), ForceField.load(args.base)
    pool, test = read_frames(args.train), read_frames(args.test)
    order = np.random.default_rng(0).permutation(len(pool))
    train_set = [pool[i] for i in order[: args.frames]]
    valid = [pool[i] for i in order[args.frames : args.frames + args.valid]]
    print(f"{args.train}: {len(train_set)} of {len(pool)} frames, {args.epochs} epochs; {len(test)} test frames")

    def show(title: str, force_field: ForceField, seconds: float | None = None) -> None:
        errors = evaluate_frames(force_field, test, keys=keys, batch_size=4).summary()
        took = "" if seconds is None else f"{seconds:8.0f} s"
        print(
            f"{title:20s} {1e3 * errors['energy_mae']:10.2f} meV/atom {1e3 * errors['forces_mae']:9.2f} meV/A {took}",
            flush=True,
        )

    show("base", base)
    options = {
        "energy_key": args.energy_key,
        "forces_key": args.forces_key,
        "energy_weight": args.energy_weight,
        "batch_size": args.batch_size,
        "optimizer": args.optimizer,
        "check_ps": 0,
        "log": lambda _: None,
    }
    started = time.monotonic()
    shifted = fine_tune(base, train_set, valid, epochs=0, **options)
    show("base, E0 fitted", shifted.force_field, time.monotonic() - started)
    rates = args.learning_rate or [None] * len(args.methods.split(","))
    for method, rate in zip(args.methods.split(","), rates, strict=True):
        started = time.monotonic()
        options["log"] = lambda line: print("   ", line, flush=True)
        tuned = fine_tune(base, train_set, valid, method=method, epochs=args.epochs, learning_rate=rate, **options)
        show(method, tuned.force_field, time.monotonic() - started)


if __name__ == "__main__":
    main()
