"""Fine-tune the shipped model on a labelled trajectory by one call, then use the result."""

import sys

from ase.io import read
from ase.optimize import BFGS

from ase_mlip import MLIPCalculator, fine_tune


def main(trajectory: str, epochs: int = 20) -> tuple[float, float]:
    """Return the mean absolute force error on validation frames before and after, eV/Angstrom."""
    result = fine_tune("default", trajectory, method="lora", epochs=epochs, output="mine.safetensors")
    before, after = result.base_errors.summary()["forces_mae"], result.errors.summary()["forces_mae"]
    print(f"forces, meV/Angstrom: {1e3 * before:.1f} -> {1e3 * after:.1f}")

    atoms = read(trajectory)
    atoms.calc = MLIPCalculator("mine.safetensors")  # or result.calculator()
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=100)
    print(f"relaxed: {atoms.get_potential_energy():.4f} eV")
    return before, after


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
