"""Langevin dynamics of a molecule at 300 K; the neighbour list is rebuilt only when an atom has moved far enough."""

import sys

import numpy as np
from ase import units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta

from ase_mlip import MLIPCalculator


def main(steps: int = 1000) -> float:
    """Run `steps` of 0.5 fs; return the mean temperature in K."""
    atoms = molecule("CH3COOH")
    atoms.calc = MLIPCalculator()
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    friction = 0.01 / units.fs
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=300, friction=friction, fixcm=False, rng=rng, trajectory="md.traj"
    )
    temperatures: list[float] = []
    dynamics.attach(lambda: temperatures.append(atoms.get_temperature()), interval=10)
    dynamics.run(steps)
    print(f"mean temperature {np.mean(temperatures):.0f} K; neighbours built {atoms.calc.neighbors.rebuilds} times")
    return float(np.mean(temperatures))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
