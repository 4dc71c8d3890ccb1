"""Time the calculator on water boxes: `python tests/benchmarks/speed.py 2,4 --reps 20` (24 and 192 atoms).

The network is the published medium shape with random weights: 128 channels, L = 1, l_max 3, correlation 3, two layers,
cutoff 5 Angstrom. Prints one line of JSON for each size: the model alone with the graph ready, and one ASE MD step.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_mlip import DatasetInfo, ForceField, Mace, MLIPCalculator
from ase_mlip.predictor import compiled_interaction


def water_box(molecules: int, seed: int = 0) -> Atoms:
    """`molecules`^3 randomly turned water molecules at 1 g/cm^3, periodic."""
    rng = np.random.default_rng(seed)
    spacing = 3.1036
    box = Atoms(cell=[molecules * spacing] * 3, pbc=True)
    for corner in np.ndindex(molecules, molecules, molecules):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        water.translate(spacing * (np.array(corner) + 0.5) - water.get_center_of_mass())
        box += water
    box.positions += rng.normal(scale=0.02, size=box.positions.shape)
    return box


def main() -> None:
    """Time every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes")
    parser.add_argument("--reps", type=int, default=20)
    args = parser.parse_args()
    info = DatasetInfo.create({1: -13.6, 6: -1029.0, 7: -1484.0, 8: -2042.0}, cutoff=5.0, avg_num_neighbors=40.0)
    force_field = ForceField.from_mlip_network(Mace(Mace.Config(), info))
    for size in map(int, args.sizes.split(",")):
        atoms = water_box(size)
        atoms.calc = MLIPCalculator(force_field)
        started = time.perf_counter()
        atoms.get_forces()
        first = time.perf_counter() - started
        graph = atoms.calc.neighbors.update(atoms, atoms.calc.head_weights).astype("float32")
        params = force_field.cast_params("float32")
        times = []
        for _ in range(args.reps):
            started = time.perf_counter()
            jax.block_until_ready(compiled_interaction(force_field.predictor, params, graph, False))
            times.append(time.perf_counter() - started)
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
        dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
        dynamics.run(3)
        started = time.perf_counter()
        dynamics.run(args.reps)
        step = (time.perf_counter() - started) / args.reps
        record = {
            "atoms": len(atoms),
            "first_s": round(first, 2),
            "eval_ms": round(1e3 * float(np.median(times)), 3),
            "ase_md_ms": round(1e3 * step, 3),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
