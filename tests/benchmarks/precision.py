"""What TF32 would do to a fine-tuning: factors of the network's matrix products rounded here as a GPU rounds them.

ASE_MLIP_KERNELS=off python tests/benchmarks/precision.py TRAIN TEST --energy-key REF_energy --forces-key REF_forces

Prints the errors after the same training with products in float32, with ten bits of mantissa (TF32) and with seven
(bfloat16). The plain formulas run, as in training on a GPU; sums stay float32. It says nothing about speed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax._src.lax import lax as internal

from ase_mlip import ForceField, LabelKeys, evaluate_frames, fine_tune, training
from ase_mlip.dataset import read_frames

MANTISSA = {"float32": None, "tensorfloat32": 10, "bfloat16": 7}
dot_general, make_train_step = internal.dot_general, training.make_train_step


def emulate(bits: int) -> None:
    """Round the factors of every product that asks for TF32 (`Precision.HIGH`), derivatives included."""

    def rounded(lhs: Any, rhs: Any, dimension_numbers: Any, precision: Any = None, *args: Any, **options: Any) -> Any:
        asked = internal.canonicalize_precision(precision)
        if asked is not None and jax.lax.Precision.HIGH in np.atleast_1d(asked) and lhs.dtype == np.float32:
            lhs, rhs = (jax.lax.reduce_precision(x, 8, bits) for x in (lhs, rhs))
        return dot_general(lhs, rhs, dimension_numbers, precision, *args, **options)

    internal.dot_general = jax.lax.dot_general = rounded
    training.make_train_step = lambda predictor, optimizer, settings, tuning=None: make_train_step(
        predictor, optimizer, replace(settings, matmul_precision="tensorfloat32"), tuning
    )


def main() -> None:
    """Print one line for each precision and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--valid", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--energy-key")
    parser.add_argument("--forces-key")
    args = parser.parse_args()
    keys, base = LabelKeys(args.energy_key, args.forces_key), ForceField.load("default")
    pool, test = read_frames(args.train), read_frames(args.test)[:200]
    for seed in range(args.seeds):
        order = np.random.default_rng(seed).permutation(len(pool))
        frames, valid = ([pool[i] for i in part] for part in np.split(order[: args.frames + args.valid], [args.frames]))
        for name, bits in MANTISSA.items():
            jax.clear_caches()
            internal.dot_general = jax.lax.dot_general = dot_general
            training.make_train_step = make_train_step
            if bits is not None:
                emulate(bits)
            started = time.monotonic()
            tuned = fine_tune(
                base, frames, valid, method="full", epochs=args.epochs, batch_size=5, energy_key=args.energy_key,
                forces_key=args.forces_key, seed=seed, log=lambda line: None,
            ).force_field  # fmt: skip
            errors = evaluate_frames(tuned, test, keys=keys).summary()
            energy, forces = 1e3 * errors["energy_mae"] * len(test[0]), 1e3 * errors["forces_mae"]
            took = f"{time.monotonic() - started:.0f} s"
            print(f"{name:15s} seed {seed}: {energy:8.2f} meV {forces:8.2f} meV/A {took:>8s}", flush=True)


if __name__ == "__main__":
    main()
