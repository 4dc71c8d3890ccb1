"""Does a force field hold in dynamics? A short NVE run, and the repulsive wall of every pair of elements.

Low errors on frames near equilibrium say nothing about the places where dynamics go when a potential fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import ase
import numpy as np
from ase import units
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_mlip.calculator import MLIPCalculator
from ase_mlip.dataset import elements_of
from ase_mlip.force_field import ForceField
from ase_mlip.graph import PadShape, batch
from ase_mlip.structure import InvalidStructure, find_neighbors

RUNAWAY = 10.0  # times the temperature asked for; equipartition alone can at most double it from a relaxed frame
BONDED, TORN, COLLAPSED = 1.25, 3.0, 0.5  # times the sum of the covalent radii
CHECK_EVERY = 10  # steps between looks at the bonds
DIMERS_AT_ONCE = 256  # bounds memory; all batches have one shape and so share one compilation
NOISE = 1e-3  # eV; a fall smaller than this is rounding


@dataclass(frozen=True)
class NveResult:
    """A run at constant energy; everything up to the step where it broke, if it did.

    Attributes:
        times: [steps] ps.
        energy: [steps] total energy per atom, potential and kinetic, eV.
        temperature: [steps] K.
        broke: why the run was stopped, None if it came to its end.
        formula: of the structure.
        timestep: fs.
    """

    times: np.ndarray
    energy: np.ndarray
    temperature: np.ndarray
    broke: str | None
    formula: str
    timestep: float

    @property
    def drift(self) -> float:
        """Slope of the total energy, by a straight line through all steps, meV/atom/ps; NaN for fewer than two."""
        if len(self.times) < 2:
            return float("nan")
        return float(1e3 * np.polyfit(self.times, self.energy - self.energy[0], 1)[0])


@dataclass(frozen=True)
class DimerScan:
    """Energy of two atoms as they approach, without the energies of the atoms alone.

    Attributes:
        pair: the two symbols.
        distances: [points] Angstrom, ascending.
        energies: [points] eV, relative to the two isolated atoms of the same model.
    """

    pair: tuple[str, str]
    distances: np.ndarray
    energies: np.ndarray

    @property
    def equilibrium(self) -> float:
        """Distance of the deepest minimum at 0.7-1.5 times the sum of covalent radii; that sum where there is none."""
        contact = contact_distance(*self.pair)
        relative, energies = self.distances / contact, self.energies
        lowest = (energies[1:-1] <= energies[:-2]) & (energies[1:-1] <= energies[2:])
        minima = 1 + np.flatnonzero(lowest & (relative[1:-1] >= 0.7) & (relative[1:-1] <= 1.5))
        return float(self.distances[minima[np.argmin(energies[minima])]]) if len(minima) else contact

    @property
    def turn(self) -> float | None:
        """The distance at which the wall, followed inwards from 0.9 times equilibrium, first falls; None if never."""
        wall = np.flatnonzero(self.distances <= 0.9 * self.equilibrium)[::-1]
        energies = self.energies[wall]
        rises = np.diff(energies) > -NOISE if np.isfinite(energies).all() else np.isfinite(energies[1:])
        falls = np.flatnonzero(~rises)
        return float(self.distances[wall[falls[0]]]) if len(falls) else None

    @property
    def barrier(self) -> float:
        """Height of the wall above equilibrium where it turns, or at the closest distance scanned, eV."""
        top = self.distances[0] if self.turn is None else self.turn
        ends = np.interp([top, self.equilibrium], self.distances, self.energies)
        return float(ends[0] - ends[1])

    @property
    def monotonic_wall(self) -> bool:
        """Whether the energy rises all the way in, from 0.9 times the equilibrium distance."""
        return self.turn is None


def contact_distance(first: str, second: str) -> float:
    """Sum of the covalent radii, Angstrom."""
    return float(covalent_radii[atomic_numbers[first]] + covalent_radii[atomic_numbers[second]])


def element_pairs(frames: Iterable[ase.Atoms]) -> list[tuple[str, str]]:
    """Every pair of the elements that occur in the frames, an element with itself included."""
    symbols = [chemical_symbols[z] for z in sorted(elements_of(frames))]
    return list(combinations_with_replacement(symbols, 2))


def nve_drift(
    force_field: ForceField,
    atoms: ase.Atoms,
    level: str | None = None,
    temperature: float = 300.0,
    picoseconds: float = 1.0,
    timestep: float = 0.5,
    dtype: str = "float32",
    seed: int = 0,
) -> NveResult:
    """Run velocity Verlet from random velocities and watch what should be conserved.

    The run stops without an error when the forces are not finite, the temperature runs away, atoms collapse onto each
    other, or a bond is torn; constraints of the structure are left out.

    Args:
        force_field: the model.
        atoms: where to start, best a frame from dynamics; it is not changed.
        level: of the model; the newest by default.
        temperature: of the velocities drawn, K.
        picoseconds: length of the run.
        timestep: fs.
        dtype: "float32" or "float64".
        seed: of the velocities.

    Raises:
        ValueError: a temperature or time step that is not positive, or a run shorter than two steps.
    """
    steps = round(1e3 * picoseconds / timestep) if timestep > 0 else 0
    if not temperature > 0 or steps < 2:
        raise ValueError(
            f"temperature={temperature}, picoseconds={picoseconds}, timestep={timestep}: give a positive temperature "
            "and a run of at least two steps"
        )
    atoms = ase.Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = MLIPCalculator(force_field, level=level, dtype=dtype)
    thermalize_momenta(atoms, temperature_K=temperature, rng=np.random.default_rng(seed))
    Stationary(atoms, preserve_temperature=False)
    bonds = _Bonds(atoms)
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    records: list[tuple[float, float, float]] = []
    broke = None
    with np.errstate(all="ignore"):  # an explosion overflows before it is caught
        try:
            for step, _ in enumerate(dynamics.irun(steps)):
                energy, kelvin = atoms.get_total_energy() / len(atoms), atoms.get_temperature()
                if not (np.isfinite(energy) and kelvin < RUNAWAY * temperature):
                    broke = f"the temperature ran away to {kelvin:.0f} K"
                elif step % CHECK_EVERY == 0:
                    broke = bonds.problem(atoms)
                if broke:
                    broke += f" after {1e-3 * timestep * step:.3f} ps"
                    break
                records.append((1e-3 * timestep * step, energy, kelvin))
        except InvalidStructure as error:
            broke = f"{error} after {1e-3 * timestep * len(records):.3f} ps"
    times, energies, kelvins = np.array(records).reshape(-1, 3).T
    return NveResult(times, energies, kelvins, broke, atoms.get_chemical_formula(), timestep)


class _Bonds:
    """What a structure's bonds are at the start, and whether they are still sane."""

    def __init__(self, atoms: ase.Atoms):
        self.radii = covalent_radii[atoms.numbers]
        self.bonded = self._pairs(atoms, BONDED)

    def problem(self, atoms: ase.Atoms) -> str | None:
        """The pair that has collapsed or torn apart, in words; None if there is none."""
        collapsed = self._pairs(atoms, COLLAPSED)[:2]
        if len(collapsed[0]):
            return f"{self._name(atoms, collapsed[0][0], collapsed[1][0])} collapsed onto each other"
        centers, others, shifts = self.bonded
        vectors = atoms.positions[others] + shifts @ atoms.cell.array - atoms.positions[centers]
        stretch = np.linalg.norm(vectors, axis=1) / (self.radii[centers] + self.radii[others])
        if len(stretch) and stretch.max() > TORN:
            worst = int(stretch.argmax())
            length = np.linalg.norm(vectors[worst])
            return f"the bond of {self._name(atoms, centers[worst], others[worst])} tore to {length:.1f} Angstrom"
        return None

    def _pairs(self, atoms: ase.Atoms, factor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs nearer than `factor` times the sum of their covalent radii."""
        reach = 2 * factor * self.radii.max(initial=0.1)
        centers, others, shifts = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, reach)
        vectors = atoms.positions[others] + shifts @ atoms.cell.array - atoms.positions[centers]
        near = np.linalg.norm(vectors, axis=1) < factor * (self.radii[centers] + self.radii[others])
        return centers[near], others[near], shifts[near]

    @staticmethod
    def _name(atoms: ase.Atoms, first: int, second: int) -> str:
        return f"{atoms.symbols[first]} {first} and {atoms.symbols[second]} {second}"


def dimer_scan(
    force_field: ForceField,
    pairs: Iterable[tuple[str, str]],
    level: str | None = None,
    distances: Sequence[float] | np.ndarray | None = None,
    dtype: str = "float32",
) -> list[DimerScan]:
    """Pull two atoms together for each pair of elements; one compilation for all of them.

    Args:
        force_field: the model.
        pairs: symbols of the two elements.
        level: of the model; the newest by default.
        distances: ascending, in units of the sum of the covalent radii; by default 0.4 to 2 in steps of 0.025.
        dtype: "float32" or "float64".

    Raises:
        ValueError: an element that the model does not know; distances that are not ascending.
    """
    pairs = [(str(first), str(second)) for first, second in pairs]
    relative = np.linspace(0.4, 2.0, 65) if distances is None else np.asarray(distances, float)
    if relative.ndim != 1 or not len(relative) or relative[0] <= 0 or (np.diff(relative) <= 0).any():
        raise ValueError(f"distances={distances}: give positive numbers, ascending")
    if not pairs:
        return []
    symbols = sorted({symbol for pair in pairs for symbol in pair})
    structures = [ase.Atoms(symbol) for symbol in symbols]
    for pair in pairs:
        for distance in contact_distance(*pair) * relative:
            structures.append(ase.Atoms(pair, positions=[[0, 0, 0], [0, 0, distance]]))
    energies = _energies(force_field.for_elements(elements_of(structures)), structures, level, dtype)
    alone = dict(zip(symbols, energies, strict=False))
    curves = energies[len(symbols) :].reshape(len(pairs), len(relative))
    return [
        DimerScan(pair, contact_distance(*pair) * relative, curve - alone[pair[0]] - alone[pair[1]])
        for pair, curve in zip(pairs, curves, strict=True)
    ]


def _energies(force_field: ForceField, structures: list[ase.Atoms], level: str | None, dtype: str) -> np.ndarray:
    """Total energies [structures] eV of atoms and dimers, in batches of one shape."""
    size = min(len(structures), DIMERS_AT_ONCE)
    shape = PadShape(size, 2 * size, 1).rounded()
    found = []
    for start in range(0, len(structures), size):
        part = structures[start : start + size]
        joined = batch([force_field.graph(atoms, level) for atoms in part], shape)
        found.append(np.asarray(force_field(joined, dtype=dtype).energy)[: len(part)])
    return np.concatenate(found)
