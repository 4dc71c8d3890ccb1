"""Energy and forces of a molecule, then its relaxed geometry, with the model that ships with the package."""

import numpy as np
from ase.build import molecule
from ase.optimize import BFGS

from ase_mlip import MLIPCalculator


def main() -> float:
    """Relax acetic acid in float64; return the largest force that is left, eV/Angstrom."""
    atoms = molecule("CH3COOH")
    atoms.calc = MLIPCalculator(dtype="float64")
    print(f"as built: {atoms.get_potential_energy():.4f} eV")
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=200)
    largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
    print(f"relaxed:  {atoms.get_potential_energy():.4f} eV, largest force {largest:.4f} eV/Angstrom")
    return float(largest)


if __name__ == "__main__":
    main()
