"""ASE's own optimisers, filters, constraints, paths and dynamics on the calculator, and what they cost."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ase
import jax
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from ase.constraints import FixAtoms, FixedPlane
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import MTKNPT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS, FIRE, LBFGS
from conftest import build_zoo, random_force_field

from ase_mlip.calculator import MLIPCalculator
from ase_mlip.force_field import ForceField


@pytest.fixture(scope="module")
def force_field() -> ForceField:
    """Of many random potentials, one in which copper is a stable crystal (this overrides the shared fixture)."""
    return random_force_field(seed=13)


@contextmanager
def compilations() -> Iterator[list[float]]:
    """Seconds of each compilation inside the context."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        seconds.extend([duration] if event.endswith("backend_compile_duration") else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def warm(atoms: ase.Atoms, kelvin: float) -> None:
    """Random momenta without drift."""
    width = np.sqrt(atoms.get_masses() * units.kB * kelvin)[:, None]
    momenta = np.random.default_rng(0).normal(size=(len(atoms), 3)) * width
    atoms.set_momenta(momenta - momenta.mean(axis=0))


def largest(forces: np.ndarray) -> float:
    """Length of the largest force."""
    return float(np.linalg.norm(forces, axis=1).max())


@pytest.mark.parametrize("optimizer", [BFGS, LBFGS, FIRE])
def test_relaxation(optimizer: type, force_field: ForceField) -> None:
    """The rattled crystal relaxes to a lower energy and to zero forces."""
    atoms = build_zoo()["bulk"]
    atoms.calc = MLIPCalculator(force_field, dtype="float64")
    energy = atoms.get_potential_energy()
    assert largest(atoms.get_forces()) > 2e-3
    with optimizer(atoms, logfile=None) as relax:
        assert relax.run(fmax=1e-3, steps=200)
    assert atoms.get_potential_energy() < energy
    assert largest(atoms.get_forces()) < 1e-3


def test_cell_relaxation(force_field: ForceField) -> None:
    """Positions and cell of a sheared crystal relax together."""
    atoms = build_zoo()["triclinic"]
    atoms.calc = MLIPCalculator(force_field, dtype="float64")
    energy, stress = atoms.get_potential_energy(), np.abs(atoms.get_stress()).max()
    with BFGS(FrechetCellFilter(atoms), logfile=None) as relax:
        relax.run(fmax=1e-3, steps=15)
    assert atoms.get_potential_energy() < energy
    assert np.abs(atoms.get_stress()).max() < 0.5 * stress


def test_constraints(force_field: ForceField) -> None:
    """Fixed atoms stay to the bit, atoms in a plane stay in it; the raw forces are still there."""
    atoms = build_zoo()["slab"]
    start = atoms.positions.copy()
    atoms.set_constraint([FixAtoms([0, 1]), FixedPlane([2], (0, 0, 1))])
    atoms.calc = MLIPCalculator(force_field, dtype="float64")
    raw = atoms.get_forces(apply_constraint=False)
    assert np.abs(raw).min() > 0
    assert not atoms.get_forces()[:2].any()
    with BFGS(atoms, logfile=None) as relax:
        relax.run(fmax=1e-4, steps=10)
    np.testing.assert_array_equal(atoms.positions[:2], start[:2])
    assert atoms.positions[2, 2] == start[2, 2]
    assert np.abs(atoms.positions[2:] - start[2:]).max() > 1e-4


def test_band_with_a_shared_calculator(force_field: ForceField) -> None:
    """One calculator serves all images of a nudged elastic band: each gets the numbers of its own calculator."""
    first = build_zoo()["bulk"]
    last = first.copy()
    last.rattle(0.15, seed=5)
    images = [first, *(first.copy() for _ in range(3)), last]
    shared = MLIPCalculator(force_field, dtype="float64")
    for image in images:
        image.calc = shared
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate()
    forces = band.get_forces()
    energies = []
    for image in images:
        alone = image.copy()
        alone.calc = MLIPCalculator(force_field, dtype="float64")
        energies.append(alone.get_potential_energy())
    np.testing.assert_allclose(band.energies, energies, atol=1e-12)
    assert np.ptp(energies) > 1e-4
    with BFGS(band, logfile=None) as relax:
        relax.run(fmax=1e-3, steps=20)
    assert largest(band.get_forces()) < 0.5 * largest(forces)


def test_energy_is_conserved(force_field: ForceField) -> None:
    """Constant-energy dynamics across rebuilds of the neighbour list: to 0.01 meV/atom in float64."""
    atoms = bulk("Cu", cubic=True)
    atoms.calc = MLIPCalculator(force_field, dtype="float64", skin=0.1)
    warm(atoms, 600)
    energies = []
    with VelocityVerlet(atoms, timestep=1.0 * units.fs) as dynamics:
        dynamics.attach(lambda: energies.append(atoms.get_total_energy()))
        dynamics.run(500)
    assert np.ptp(energies) < 1e-5 * len(atoms)
    assert 3 < atoms.calc.neighbors.rebuilds < 250
    assert np.ptp(atoms.calc.results["energies"]) > 1e-4


@pytest.mark.parametrize("ensemble", ["langevin", "berendsen", "nose_hoover"])
def test_other_ensembles(ensemble: str, force_field: ForceField) -> None:
    """Thermostats and barostats drive it; constant pressure changes the cell through the stress."""
    atoms = build_zoo()["bulk"]
    atoms.calc = MLIPCalculator(force_field)
    warm(atoms, 300)
    step, cell = 1.0 * units.fs, atoms.cell.array.copy()
    pressure = 10.0 * units.GPa
    if ensemble == "langevin":
        rng = np.random.default_rng(1)
        dynamics = Langevin(atoms, step, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng)
    elif ensemble == "berendsen":
        dynamics = NPTBerendsen(
            atoms, step, temperature_K=300, pressure_au=pressure, compressibility_au=0.01 / units.GPa
        )
    else:
        dynamics = MTKNPT(atoms, step, temperature_K=300, pressure_au=pressure, tdamp=50 * step, pdamp=500 * step)
    with dynamics:
        dynamics.run(25)
    assert np.isfinite(atoms.positions).all()
    assert np.abs(atoms.get_velocities()).max() > 0
    if ensemble == "langevin":
        np.testing.assert_array_equal(atoms.cell.array, cell)
    else:
        assert atoms.get_volume() < abs(np.linalg.det(cell))


def test_cost_of_dynamics(force_field: ForceField) -> None:
    """200 steps compile at most twice and rebuild the list seldom; another atom in the same bucket compiles nothing."""
    atoms = bulk("Cu", cubic=True).repeat((2, 2, 1))
    del atoms[-1]
    atoms.calc = MLIPCalculator(force_field)
    warm(atoms, 500)
    with compilations() as compiled, VelocityVerlet(atoms, timestep=2.0 * units.fs) as dynamics:
        dynamics.run(200)
    assert 1 <= len(compiled) <= 2
    assert 1 < atoms.calc.neighbors.rebuilds < 50
    fewer = atoms[:-1]
    fewer.calc = MLIPCalculator(force_field)
    with compilations() as compiled:
        fewer.get_forces()
    assert not compiled


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda calc: pickle.loads(pickle.dumps(calc))])
def test_copies_own_their_state(
    duplicate: Callable[[MLIPCalculator], MLIPCalculator], two_head_force_field: ForceField
) -> None:
    """A copy predicts the same bits at the same level, compiles nothing new, and neither sees what the other does."""
    atoms = build_zoo()["molecule"]
    atoms.calc = MLIPCalculator(two_head_force_field, level="base", dtype="float64")
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    twin = atoms.copy()
    twin.calc = duplicate(atoms.calc)
    with compilations() as compiled:
        twin.rattle(0.01)
        assert twin.get_potential_energy() != energy
        twin.positions[:] = atoms.positions
        assert twin.get_potential_energy() == energy
    assert not compiled
    twin.positions[0] += 9.0
    twin.get_potential_energy()
    assert (atoms.calc.neighbors.rebuilds, twin.calc.neighbors.rebuilds) == (1, 2)
    np.testing.assert_array_equal(atoms.get_forces(), forces)


def test_spawned_process(force_field: ForceField) -> None:
    """A calculator that has been used travels to a fresh interpreter."""
    atoms = molecule("H2O")
    atoms.calc = MLIPCalculator(force_field, dtype="float64")
    energy = atoms.get_potential_energy()
    moved = atoms.copy()
    moved.positions[1] += 0.1
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(MLIPCalculator.get_potential_energy, (atoms.calc, atoms)) == energy
        assert pool.apply(MLIPCalculator.get_potential_energy, (atoms.calc, moved)) != energy
