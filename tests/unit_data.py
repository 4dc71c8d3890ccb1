"""Labels and predictions by ASE's calculators, for the tests of units: nothing here is computed by a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import ase
import numpy as np
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.morse import MorsePotential
from toy_data import toy_frames

from ase_mlip.unit_checks import Comparison

# by hand, from the tables of CODATA; nothing of ase.units
KCAL, KJ, HARTREE, RYDBERG, BOHR, GPA = 0.0433641, 0.01036427, 27.211386, 13.605693, 0.52917721, 0.006241509


@cache
def metal(count: int = 40, sizes: tuple[int, ...] = (1, 2), alloy: bool = True) -> tuple[ase.Atoms, ...]:
    """Rattled, strained and sheared cells of copper, or of copper with some gold in it."""
    frames = []
    for number in range(count):
        rng = np.random.default_rng(number)
        atoms = bulk("Cu", cubic=True, a=3.65) * (1, 1, sizes[number % len(sizes)])
        if alloy:
            atoms.symbols[: number % 3] = "Au"
        strain = rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain + strain.T), scale_atoms=True)
        atoms.rattle(0.07, rng=rng)
        frames.append(atoms)
    return tuple(frames)


def compare(frames: Sequence[ase.Atoms], label: Calculator, base: Calculator) -> Comparison:
    """Two of ASE's calculators on the same frames."""
    elements = sorted({z for atoms in frames for z in atoms.numbers})
    energy, forces, stress = [], [], []
    for calculator in (label, base):
        frames = [atoms.copy() for atoms in frames]
        for atoms in frames:
            atoms.calc = calculator
        energy.append([atoms.get_potential_energy() for atoms in frames])
        forces.append(np.concatenate([atoms.get_forces() for atoms in frames]))
        stress.append([atoms.get_stress(voigt=False) for atoms in frames])
    present = np.ones(len(frames), bool)
    return Comparison(
        np.array([[np.sum(atoms.numbers == z) for z in elements] for atoms in frames], float),
        np.array([atoms.get_volume() for atoms in frames]),
        np.array(energy),
        np.array(forces),
        np.array(stress),
        *[present] * 3,
    )


@cache
def copper() -> Comparison:
    """Labels by EMT; the base is a noisy Morse potential of roughly copper, blind to an atom's surroundings."""
    base = MorsePotential(epsilon=0.22, r0=2.58, rho0=5.6, rcut1=3.2, rcut2=3.6)
    made = compare(metal(alloy=False), EMT(), base)
    noise = {"energy": 0.05, "forces": 0.4, "stress": 0.01}
    rng = np.random.default_rng(0)
    for name, size in noise.items():
        getattr(made, name)[1] += size * rng.normal(size=getattr(made, name)[1].shape)
    return relabel(made, energy=lambda energy: energy - 3.7 * made.composition[:, 0])  # EMT's zero is the crystal


@cache
def water() -> Comparison:
    """Labels by one Morse potential plus energies per element, the base is a softer one with longer bonds and none."""
    frames = toy_frames(60, names=("H2O", "OH", "H2O2"))
    for atoms in frames:
        atoms.calc = None
    stretched = [atoms.copy() for atoms in frames]
    for number, atoms in enumerate(stretched):
        atoms.rattle(0.08, seed=number + 7)
    label = MorsePotential(epsilon=0.5, rho0=2.0, r0=1.0, rcut1=2.0, rcut2=2.9)
    made = compare(stretched, label, MorsePotential(epsilon=0.4, rho0=2.4, r0=1.06, rcut1=2.0, rcut2=2.9))
    return relabel(made, energy=lambda energy: energy + made.composition @ [-13.6, -432.0])


def relabel(compared: Comparison, **changes: Callable[[np.ndarray], np.ndarray]) -> Comparison:
    """Change the labels, not the predictions."""
    return replace(
        compared,
        **{
            name: np.stack([change(getattr(compared, name)[0]), getattr(compared, name)[1]])
            for name, change in changes.items()
        },
    )


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda values: values * factor


def mixed(compared: Comparison, seed: int, noise: float, scale: float) -> Comparison:
    """A base made of the labels: noise of a given relative size, then scaled."""
    rng = np.random.default_rng(seed)

    def spoil(values: np.ndarray) -> np.ndarray:
        label = values[0] - np.median(values[0], axis=0)
        made = scale * (label + noise * np.sqrt(np.mean(label**2)) * rng.normal(size=label.shape))
        return np.stack([values[0], made])

    root = np.sqrt(compared.composition.sum(axis=1))
    rest = compared.energy[0] - compared.composition @ np.linalg.lstsq(compared.composition, compared.energy[0])[0]
    energy = spoil(np.stack([rest / root, rest / root]))[1] * root
    return replace(
        compared,
        energy=np.stack([compared.energy[0], energy]),
        forces=spoil(compared.forces),
        stress=spoil(compared.stress),
    )
