"""How much a base model helps, and what it forgets: errors on a new molecule by every method, over several seeds.

python tests/benchmarks/transfer.py TRAIN TEST --frames 50 --energy-key REF_energy --forces-key REF_forces

A method is "scratch" or one of `ase_mlip.finetune.METHODS`, with "+replay" to replay structures made on the way. With
`--base-data` the base level is evaluated on held-out data of the base, before and after.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from ase_mlip import (
    FineTuneConfig,
    ForceField,
    LabelKeys,
    MaceConfig,
    TrainConfig,
    evaluate_frames,
    fine_tune,
    train_from_scratch,
)
from ase_mlip.dataset import read_frames
from ase_mlip.tuning import count_variables


def shape_of(model: ForceField) -> dict[str, Any]:
    """The options that train a network of the same shape from scratch."""
    network = model.predictor.network.config
    if not isinstance(network, MaceConfig):
        raise SystemExit(f"only a MACE is trained from scratch; this model is {type(network).__name__}")
    shape = {
        "channels": network.num_channels,
        "layers": network.num_layers,
        "l_max": network.l_max,
        "hidden_l_max": network.hidden_l_max,
        "correlation": network.correlation,
        "radial_mlp": network.radial_mlp,
    }
    if TrainConfig(**shape).network != network:
        raise SystemExit(f"options of `ase-mlip train` cannot make this network: {network}")
    return {**shape, "cutoff": model.cutoff}


def main() -> None:
    """Run every method and seed; print one line each and append it to a JSON-lines file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--base", default="default")
    parser.add_argument("--methods", default="scratch,heads,freeze,lora,full,freeze+replay,lora+replay,full+replay")
    parser.add_argument("--base-data", help="held-out frames of the base, labelled in the attached calculator")
    parser.add_argument("--replay-weight", type=float, default=1.0)
    parser.add_argument("--replay-ratio", type=float, help="by default as in FineTuneConfig")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--valid", type=int, default=50, help="validation frames, drawn beside the training frames")
    parser.add_argument("--test-frames", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=5)
    parser.add_argument("--energy-weight", type=float, default=FineTuneConfig.energy_weight)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--energy-key")
    parser.add_argument("--forces-key")
    parser.add_argument("--output", type=Path, default=Path("transfer.jsonl"))
    args = parser.parse_args()

    keys = LabelKeys(args.energy_key, args.forces_key)
    pool, base = read_frames(args.train), ForceField.load(args.base)
    test = read_frames(args.test)[: args.test_frames]
    known = read_frames(args.base_data)[:300] if args.base_data else None
    start = evaluate_frames(base, known).summary() if known else {}
    for seed in range(args.seeds):
        for method in args.methods.split(","):
            order = np.random.default_rng(seed).permutation(len(pool))
            train_set = [pool[i] for i in order[: args.frames]]
            valid = [pool[i] for i in order[args.frames : args.frames + args.valid]]
            started = time.monotonic()
            common = {"learning_rate": args.learning_rate} if args.learning_rate else {}
            trainable, forgotten = base.num_params, {}
            if method == "scratch":
                tuned = train_from_scratch(
                    train_set, valid, epochs=args.epochs, batch_size=args.batch_size, energy_weight=args.energy_weight,
                    energy_key=args.energy_key, forces_key=args.forces_key, eval_every=max(1, args.epochs // 20),
                    seed=seed, log=lambda line: None, **shape_of(base), **common,
                ).force_field  # fmt: skip
            else:
                if method.endswith("+replay"):
                    common |= {
                        "replay": "auto", "replay_weight": args.replay_weight, "replay_ratio": args.replay_ratio
                    }  # fmt: skip
                result = fine_tune(
                    base, train_set, valid, method=method.split("+")[0], epochs=args.epochs,
                    batch_size=args.batch_size, energy_weight=args.energy_weight, energy_key=args.energy_key,
                    forces_key=args.forces_key, seed=seed, log=lambda line: None, **common,
                )  # fmt: skip
                tuned = result.force_field
                trainable = count_variables(result.plan.adapters.start(result.plan.start.params))
                if known:
                    now = evaluate_frames(tuned, known, level="base").summary()
                    forgotten = {
                        f"base_level_{name}_ratio": now[name] / start[name] for name in ("forces_mae", "energy_mae")
                    }
            seconds = time.monotonic() - started
            errors = evaluate_frames(tuned, test, keys=keys).summary()
            atoms = len(test[0])
            record = {
                "method": method,
                "seed": seed,
                "frames": args.frames,
                "epochs": args.epochs,
                "energy_mae_meV": 1e3 * errors["energy_mae"] * atoms,
                "forces_mae_meV_per_A": 1e3 * errors["forces_mae"],
                "trainable": trainable,
                **forgotten,
                "seconds": seconds,
            }
            print(json.dumps(record), flush=True)
            with args.output.open("a") as stream:
                stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
