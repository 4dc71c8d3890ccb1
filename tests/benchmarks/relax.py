"""Relax molecules side by side, and one after another with ASE: `python tests/benchmarks/relax.py --count 1000`.

The molecules are the frames of `data/base_test.extxyz.xz` (dynamics at up to 1000 K), again and again with another
rattle until there are enough. Each runner prints a line of JSON: wall and processor seconds of the first run, in which
everything is compiled, and of the second, and structures and steps per second of the second. On a machine that others
use, compare processor seconds. A fixed number of steps for everyone: `--fmax 1e-9 --steps 20`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.optimize import BFGS, FIRE, LBFGS
from ase.optimize.optimize import Optimizer

from ase_mlip import ForceField, MLIPCalculator, relax
from ase_mlip.frame_files import iterate_file

Outcome = tuple[int, int, float]  # converged structures, steps of all, mean final energy per atom
Runner = Callable[[ForceField, list[ase.Atoms], argparse.Namespace], Outcome]

FRAMES = Path(__file__).parents[2] / "data" / "base_test.extxyz.xz"


def molecules(count: int, source: str, elements: tuple[int, ...]) -> list[ase.Atoms]:
    """Rattled frames of a file, spread over it; those of other elements are left out."""
    plain = (ase.Atoms(atoms.numbers, positions=atoms.positions) for atoms in iterate_file(source))
    frames = [atoms for atoms in plain if set(atoms.numbers.tolist()) <= set(elements)]
    order = np.random.default_rng(0).permutation(len(frames))
    found = []
    for number in range(count):
        atoms = frames[order[number % len(frames)]].copy()
        atoms.rattle(0.02, seed=number)
        found.append(atoms)
    return found


def side_by_side(optimizer: str) -> Runner:
    """Ours, many at once."""

    def run(model: ForceField, structures: list[ase.Atoms], args: argparse.Namespace) -> Outcome:
        options = {"fmax": args.fmax, "steps": args.steps, "dtype": args.dtype, "batch_size": args.batch_size}
        result = relax(model, structures, optimizer=optimizer, **options, log=None)
        energies = [a.get_potential_energy() / len(a) for a in result.structures if a.calc is not None]
        return int(result.converged.sum()), int(result.steps.sum()), float(np.mean(energies))

    return run


def one_by_one(optimizer: type[Optimizer]) -> Runner:
    """ASE's optimiser with our calculator, in a loop."""

    def loop(model: ForceField, structures: list[ase.Atoms], args: argparse.Namespace) -> Outcome:
        calculator = MLIPCalculator(model, dtype=args.dtype)
        energies, converged, steps = [], 0, 0
        for given in structures:
            atoms = given.copy()
            atoms.calc = calculator
            run = optimizer(atoms, logfile=None)
            converged += int(run.run(fmax=args.fmax, steps=args.steps))
            steps += int(run.nsteps)
            energies.append(atoms.get_potential_energy() / len(atoms))
        return converged, steps, float(np.mean(energies))

    return loop


RUNNERS = {
    "ours-fire": side_by_side("fire"),
    "ours-lbfgs": side_by_side("lbfgs"),
    "ase-fire": one_by_one(FIRE),
    "ase-bfgs": one_by_one(BFGS),
    "ase-lbfgs": one_by_one(LBFGS),
}


def main() -> None:
    """Time every runner."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--frames", default=str(FRAMES), help="molecules to rattle")
    parser.add_argument("--count", type=int, default=1000, help="molecules relaxed side by side")
    parser.add_argument("--loop-count", type=int, default=50, help="how many of them one after another")
    parser.add_argument("--runners", default="ours-fire,ours-lbfgs,ase-fire,ase-bfgs")
    parser.add_argument("--fmax", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", type=Path, help="write the molecules to this file, for other packages, and stop")
    args = parser.parse_args()
    model = ForceField.load(args.model)
    structures = molecules(args.count, args.frames, model.elements)
    if args.write:
        ase.io.write(args.write, structures)
        return
    print(json.dumps({"molecules": len(structures), "mean_atoms": round(np.mean([len(a) for a in structures]), 2)}))
    for name in args.runners.split(","):
        some = structures if name.startswith("ours") else structures[: args.loop_count]
        record: dict[str, object] = {"runner": name, "structures": len(some)}
        for run in ("first", "second"):
            wall, processor = time.perf_counter(), time.process_time()
            converged, steps, energy = RUNNERS[name](model, some, args)
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            record |= {f"{run}_wall_s": round(wall, 2), f"{run}_cpu_s": round(processor, 2)}
        record |= {
            "structures_per_s": round(len(some) / wall, 3),
            "structures_per_cpu_s": round(len(some) / processor, 3),
            "steps_per_cpu_s": round(steps / processor, 1),
            "mean_steps": round(steps / len(some), 1),
            "converged": converged,
            "eV_per_atom": round(energy, 5),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
