"""How much a base model helps: errors on a new molecule from scratch, by `heads` and by `full`, over several seeds.

python tests/benchmarks/transfer.py TRAIN TEST --frames 50 --energy-key REF_energy --forces-key REF_forces
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from ase_mlip import ForceField, LabelKeys, LossWeights, TrainSettings, evaluate_frames, fine_tune, train_from_scratch
from ase_mlip.dataset import read_frames


def main() -> None:
    """Run every method and seed; print one line each and append it to a JSON-lines file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--base", default="default")
    parser.add_argument("--methods", default="scratch,heads,full")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--valid", type=int, default=50, help="validation frames, drawn beside the training frames")
    parser.add_argument("--test-frames", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=5)
    parser.add_argument("--energy-weight", type=float, default=100.0)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--energy-key")
    parser.add_argument("--forces-key")
    parser.add_argument("--output", type=Path, default=Path("transfer.jsonl"))
    args = parser.parse_args()

    keys, loss = LabelKeys(args.energy_key, args.forces_key), LossWeights(args.energy_weight, 1.0)
    pool, base = read_frames(args.train), ForceField.load(args.base)
    test = read_frames(args.test)[: args.test_frames]
    for seed in range(args.seeds):
        for method in args.methods.split(","):
            order = np.random.default_rng(seed).permutation(len(pool))
            train_set = [pool[i] for i in order[: args.frames]]
            valid = [pool[i] for i in order[args.frames : args.frames + args.valid]]
            started = time.monotonic()
            common = {"keys": keys, "learning_rate": args.learning_rate}
            if method == "scratch":
                settings = TrainSettings(
                    args.epochs, args.batch_size, loss=loss, eval_every=max(1, args.epochs // 20), seed=seed
                )
                config = base.predictor.network.config
                common["learning_rate"] = args.learning_rate or 1e-2
                tuned = train_from_scratch(
                    train_set, valid, config=config, cutoff=base.cutoff, settings=settings, **common
                ).force_field
            else:
                tuned = fine_tune(
                    base, train_set, valid, method=method, epochs=args.epochs, batch_size=args.batch_size, loss=loss,
                    seed=seed, **common,
                ).force_field  # fmt: skip
            errors = evaluate_frames(tuned, test, keys=keys).summary()
            atoms = len(test[0])
            record = {
                "method": method,
                "seed": seed,
                "frames": args.frames,
                "epochs": args.epochs,
                "energy_mae_meV": 1e3 * errors["energy_mae"] * atoms,
                "forces_mae_meV_per_A": 1e3 * errors["forces_mae"],
                "seconds": time.monotonic() - started,
            }
            print(json.dumps(record), flush=True)
            with args.output.open("a") as stream:
                stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
