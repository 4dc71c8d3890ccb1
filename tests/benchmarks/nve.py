"""Energy drift of constant-energy dynamics: `python tests/benchmarks/nve.py MODEL STRUCTURE --picoseconds 5`.

Also counts compilations and neighbour lists. The drift is the slope of a straight line through the total energy.
"""

from __future__ import annotations

import argparse
import time

import jax
import numpy as np
from ase import units
from ase.io import read
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_mlip import MLIPCalculator


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("structure")
    parser.add_argument("--picoseconds", type=float, default=5.0)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()

    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compilations.append(event) if event.endswith("backend_compile_duration") else None
    )
    atoms = read(args.structure)
    atoms.calc = MLIPCalculator(args.model, dtype=args.dtype)
    thermalize_momenta(atoms, temperature_K=args.temperature, rng=np.random.default_rng(0))
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = VelocityVerlet(atoms, args.timestep * units.fs)
    energies: list[float] = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=10)
    steps = round(args.picoseconds * 1e3 / args.timestep)
    started = time.monotonic()
    dynamics.run(steps)
    seconds = time.monotonic() - started
    picoseconds = np.arange(len(energies)) * 10 * args.timestep / 1e3
    slope, _ = np.polyfit(picoseconds, 1e3 * np.array(energies) / len(atoms), 1)
    swing = 1e3 * np.std(energies) / len(atoms)
    print(
        f"{steps} steps of {args.timestep} fs, {len(atoms)} atoms, {args.dtype}: "
        f"{1e3 * seconds / steps:.2f} ms per step"
    )
    print(f"drift {slope:+.4f} meV/atom/ps, standard deviation {swing:.4f} meV/atom")
    print(f"{len(compilations)} compilations, {atoms.calc.neighbors.rebuilds} neighbour lists")


if __name__ == "__main__":
    main()
