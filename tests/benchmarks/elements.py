"""What the elements that a model knows but a system lacks cost: the whole model beside one cut down beforehand.

    python tests/benchmarks/elements.py MODEL --symbols Na,Cl
    python tests/benchmarks/elements.py --channels 32          (a random MACE of 89 elements, published medium shape)

Each measurement runs in a process of its own that compiles everything anew, `--rounds` times alternately, and the
median counts. Times are processor seconds of all threads, which other work on the machine does not change much. Peak
memory is that of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

MEASURES = ("calculator", "heads", "full")


def frames(symbols: list[str], count: int, rattle: float = 0.05) -> list:
    """Rattled rocksalt cells of two elements, or diamond cells of one, of eight atoms."""
    from ase.build import bulk
    from ase.data import atomic_numbers, covalent_radii

    bond = sum(covalent_radii[atomic_numbers[s]] for s in (symbols[0], symbols[-1]))
    if len(symbols) == 1:
        cell = bulk(symbols[0], "diamond", a=bond * 4 / 3**0.5, cubic=True)
    else:
        cell = bulk(symbols[0] + symbols[1], "rocksalt", a=2.2 * bond, cubic=True)
        cell.symbols[: len(symbols)] = symbols
    found = [cell.copy() for _ in range(count)]
    for number, atoms in enumerate(found):
        atoms.rattle(rattle, seed=number)
    return found


def random_mace(channels: int, dtype: str) -> object:
    """89 elements, the published medium shape in the given width, weights drawn by numpy."""
    import ase
    import jax

    from ase_mlip import DatasetInfo, ForceField, Mace
    from ase_mlip.graph import Graph
    from ase_mlip.predictor import Predictor

    energies = {z: -0.1 * z for z in (*range(1, 84), *range(89, 95))}
    config = Mace.Config(num_channels=channels, num_bessel=10, interaction="density", distance_transform="agnesi")
    network = Mace(config, DatasetInfo.create(energies, 6.0, avg_num_neighbors=60.0))
    graph = Graph.from_atoms(ase.Atoms("H2", [[0, 0, 0], [0, 0, 1]]), network.dataset_info.elements, 6.0)
    graph = graph.astype("float32")
    shapes = jax.eval_shape(network.init, jax.random.key(0), graph.vectors(6.0), graph)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.5).astype(dtype), shapes)
    return ForceField(Predictor.from_network(network), params)


def measure_calculator(model: str, symbols: list[str], steps: int) -> dict[str, float]:
    """Load, first energy and forces with compilation, and a warm step."""
    import jax

    from ase_mlip import ForceField, MLIPCalculator

    jax.block_until_ready(jax.jit(lambda x: x + 1)(0.0))  # JAX itself starts
    (atoms,) = frames(symbols, 1)
    found, started = {}, time.process_time()
    atoms.calc = MLIPCalculator(ForceField.load(model))
    found["load, s"] = time.process_time() - started
    started = time.process_time()
    atoms.get_forces()
    found["first call, s"] = time.process_time() - started
    rng, times = np.random.default_rng(0), []
    for _ in range(steps):
        atoms.positions += rng.normal(scale=1e-3, size=atoms.positions.shape)
        started = time.process_time()
        atoms.get_forces()
        times.append(1e3 * (time.process_time() - started))
    return found | {"step, ms": float(np.median(times))}


def measure_fine_tuning(model: str, symbols: list[str], method: str) -> dict[str, float]:
    """One epoch on four frames, from the file to the file, with the model's size before and after."""
    from ase.calculators.singlepoint import SinglePointCalculator

    from ase_mlip import ForceField, fine_tune

    labelled, rng = frames(symbols, 6), np.random.default_rng(1)
    for atoms in labelled:
        forces = rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 + rng.normal(), forces=forces)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "tuned.safetensors"
        options = {
            "method": method,
            "epochs": 1,
            "batch_size": 1,
            "output": output,
            "check_ps": 0.0,
            "log": lambda line: None,
        }
        fine_tune(model, labelled[:4], labelled[4:], **options)
        seconds = time.process_time() - started
        assert ForceField.load(output).elements == ForceField.load(model).elements
    return {f"{method}, s": seconds}


def measure(task: str, model: str, symbols: list[str], steps: int) -> dict[str, float]:
    """In this process; with its peak memory."""
    import resource

    if task == "calculator":
        found = measure_calculator(model, symbols, steps)
    else:
        found = measure_fine_tuning(model, symbols, task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {f"{task}, peak MB": peak / 1024}


def main() -> None:
    """Print a table of the cut model, the whole one, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--symbols", default="Na,Cl")
    parser.add_argument("--channels", type=int, default=32, help="of the random MACE")
    parser.add_argument("--dtype", default="float32", help="of the random MACE's file")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", default=",".join(MEASURES))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    symbols = args.symbols.split(",")
    if args.task:
        print(json.dumps(measure(args.task, args.model, symbols, args.steps)))
        return

    from ase.data import atomic_numbers

    from ase_mlip import ForceField

    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(args.model or f"{folder}/whole.safetensors"), Path(folder) / "cut.safetensors"
        force_field = ForceField.load(whole) if args.model else random_mace(args.channels, args.dtype)
        if not args.model:
            force_field.save(whole)
        force_field.with_elements(atomic_numbers[s] for s in symbols).save(cut)
        sizes = [path.stat().st_size / 2**20 for path in (cut, whole)]
        print(f"{force_field.num_params:,} parameters; files of {sizes[0]:.1f} and {sizes[1]:.1f} MB")
        found: dict[str, list[list[float]]] = {}
        environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        for task in args.tasks.split(","):
            for number in range(2 * args.rounds):
                model = (cut, whole)[number % 2]
                command = [sys.executable, __file__, str(model), "--task", task, "--symbols", args.symbols]
                command += ["--steps", str(args.steps)]
                text = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
                for key, value in json.loads(text.splitlines()[-1]).items():
                    found.setdefault(key, [[], []])[number % 2].append(value)
    print(f"{'':24s} {len(symbols):4d} elements {len(force_field.elements):4d} elements     ratio")
    for key, values in found.items():
        small, large = (float(np.median(part)) for part in values)
        print(f"{key:24s} {small:13.2f} {large:13.2f} {large / small:9.2f}")


if __name__ == "__main__":
    main()
