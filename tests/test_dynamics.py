"""Dynamics of many structures: against ASE's velocity Verlet, conservation, the canonical ensemble, kills."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms, FixBondLength
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from pair_data import pair_force_field

from ase_mlip.calculator import MLIPCalculator
from ase_mlip.dynamics import DynamicsResult, run_dynamics
from ase_mlip.journal import Ledger

NAMES = ("H2O", "CO2", "CH4", "H2")


def molecules(count: int) -> list[ase.Atoms]:
    """Small molecules near the potential's own bond lengths."""
    found = [molecule(NAMES[number % len(NAMES)]) for number in range(count)]
    for number, atoms in enumerate(found):
        atoms.rattle(0.02, seed=number)
    return found


def assert_same_frames(one: DynamicsResult, other: DynamicsResult, tolerance: float) -> None:
    """The same frames of the same steps."""
    assert one.problems == other.problems
    np.testing.assert_array_equal(one.steps, other.steps)
    for first, second in zip(one.trajectories, other.trajectories, strict=True):
        assert [atoms.info["step"] for atoms in first] == [atoms.info["step"] for atoms in second]
        for a, b in zip(first, second, strict=True):
            np.testing.assert_allclose(a.positions, b.positions, atol=tolerance, rtol=0)
            np.testing.assert_allclose(a.get_momenta(), b.get_momenta(), atol=tolerance, rtol=0)
            assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), abs=10 * tolerance)


def test_without_friction_it_is_velocity_verlet() -> None:
    """Positions, momenta and energies of ASE's, for molecules, a crystal, and a slab with a fixed layer."""
    crystal, slab = bulk("Cu", cubic=True, a=2.5), fcc111("Cu", (2, 1, 2), a=2.5, vacuum=5.0)
    slab.pbc = (True, True, False)
    slab.set_constraint(FixAtoms([0, 1]))
    structures = [crystal, *molecules(4), slab]
    for number, atoms in enumerate(structures):
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(number))
    force_field = pair_force_field()
    options = {"friction": 0.0, "timestep": 0.5, "record_every": 15, "dtype": "float64", "log": None}
    result = run_dynamics(force_field, structures, 40, batch_size=3, **options)
    calculator = MLIPCalculator(force_field, dtype="float64")
    for given, frames in zip(structures, result.trajectories, strict=True):
        atoms, step = given.copy(), 0
        atoms.calc = calculator
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        assert [frame.info["step"] for frame in frames] == [0, 15, 30, 40]
        for frame in frames:
            dynamics.run(frame.info["step"] - step)
            step = frame.info["step"]
            np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-10)
            np.testing.assert_allclose(frame.get_momenta(), atoms.get_momenta(), atol=1e-10)
            assert frame.get_total_energy() == pytest.approx(atoms.get_total_energy(), abs=1e-10)
    np.testing.assert_array_equal(result.structures[-1].positions[:2], slab.positions[:2])


def test_energy_is_conserved() -> None:
    """The error of velocity Verlet falls with the square of the time step; momenta are drawn at the temperature."""
    spread = []
    for timestep in (1.0, 0.5):
        steps = round(50 / timestep)
        options = {"friction": 0.0, "timestep": timestep, "record_every": 1, "dtype": "float64", "log": None}
        result = run_dynamics(pair_force_field(), molecules(8), steps, **options)
        energies = [[frame.get_total_energy() for frame in frames] for frames in result.trajectories]
        spread.append(np.std(energies, axis=1).mean())
        drifts = [frames[-1].get_momenta().sum(axis=0) for frames in result.trajectories]
        np.testing.assert_allclose(drifts, 0.0, atol=1e-12)
    assert spread[1] < 0.02
    assert 3 < spread[0] / spread[1] < 5


def test_langevin_samples_the_canonical_ensemble() -> None:
    """Kinetic temperature, and the mean square elongation of a harmonic bond, from 400 molecules started cold."""
    kelvin = 100.0
    cold = [ase.Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 1.2]], momenta=np.zeros((2, 3))) for _ in range(400)]
    options = {"temperature": kelvin, "friction": 0.1, "timestep": 1.0, "record_every": 50, "log": None}
    depth = 20.0  # so stiff that the bond is harmonic
    result = run_dynamics(pair_force_field(depth), cold, 400, **options)
    frames = [frame for frames in result.trajectories for frame in frames[4:]]
    assert len(frames) == 5 * 400
    kinetic = np.array([2 * frame.get_kinetic_energy() / (6 * units.kB) for frame in frames])
    assert kinetic.mean() == pytest.approx(kelvin, rel=0.05)
    assert np.std(kinetic) == pytest.approx(kelvin * np.sqrt(2 / 6), rel=0.1)
    lengths = np.array([frame.get_distance(0, 1) for frame in frames])
    start = pair_force_field(depth)
    middle, step = lengths.mean(), 1e-3
    dimers = [ase.Atoms("Cu2", positions=[[0, 0, 0], [0, 0, middle + k * step]]) for k in (-1, 0, 1)]
    below, here, above = (start(start.graph(atoms), dtype="float64").energy[0] for atoms in dimers)
    stiffness = (above - 2 * here + below) / step**2
    assert np.var(lengths) == pytest.approx(units.kB * kelvin / stiffness, rel=0.12)


def test_a_structure_does_not_depend_on_its_companions() -> None:
    """Noise and momenta belong to the structure: the batch may be of any size; another seed changes them."""
    options = {"record_every": 5, "dtype": "float64", "log": None}
    wide = run_dynamics(pair_force_field(), molecules(9), 20, **options)
    narrow = run_dynamics(pair_force_field(), molecules(9), 20, batch_size=2, **options)
    assert_same_frames(wide, narrow, 1e-10)
    other = run_dynamics(pair_force_field(), molecules(9), 20, seed=1, **options)
    assert np.abs(other.structures[0].positions - wide.structures[0].positions).max() > 1e-3
    assert np.abs(wide.structures[0].positions - wide.structures[4].positions).max() > 1e-3


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the last frames in the files, to the same end as if it had been left alone."""
    force_field, keep, killed = pair_force_field(), Ledger.keep, []
    options = {"record_every": 4, "batch_size": 3, "dtype": "float64", "log": None}
    structures = [*molecules(7), ase.Atoms("Xe")]
    whole = run_dynamics(force_field, structures, 18, **options)

    def die(ledger: Ledger, number: int, **record: object) -> None:
        if len(ledger.records) == 3:
            killed.append(number)
            raise KeyboardInterrupt
        keep(ledger, number, **record)

    monkeypatch.setattr(Ledger, "keep", die)
    with pytest.raises(KeyboardInterrupt):
        run_dynamics(force_field, structures, 18, **options, folder=tmp_path)
    monkeypatch.undo()
    begun = {path.name: len(ase.io.read(path, ":")) for path in tmp_path.glob("*.traj")}
    assert killed
    assert 3 <= len(begun) < 7
    resumed = run_dynamics(force_field, structures, 18, **options, folder=tmp_path)
    assert_same_frames(whole, resumed, 1e-10)
    assert len(ase.io.read(tmp_path / "000006.traj", ":")) == 6
    assert resumed.trajectories[7] == []
    assert resumed.structures[7] is None
    again = run_dynamics(force_field, structures, 18, **options, folder=tmp_path)
    assert_same_frames(resumed, again, 0.0)
    with pytest.raises(ValueError, match="run of another"):
        run_dynamics(force_field, structures, 19, **options, folder=tmp_path)
    (tmp_path / "finished.jsonl").unlink()
    with pytest.raises(ValueError, match="unknown run"):
        run_dynamics(force_field, structures, 18, **options, folder=tmp_path)


def test_what_goes_wrong_is_reported() -> None:
    """It is stopped or refused with a reason, and the others go on."""
    good, held, overlapping = molecule("H2O"), molecule("CO2"), molecule("CO2")
    held.set_constraint(FixBondLength(0, 1))
    overlapping.positions[1] = overlapping.positions[0] + 1e-3
    hot = molecule("CH4")
    hot.set_momenta(np.full((5, 3), 60.0))
    options = {"temperature": 50.0, "record_every": 5, "dtype": "float64", "log": None}
    lines: list[str] = []
    result = run_dynamics(pair_force_field(), [good, held, hot, ase.Atoms("Xe")], 10, **options | {"log": lines.append})
    assert result.steps.tolist() == [10, 0, 0, 0]
    assert result.problems[0] is None
    for number, words in {1: "FixBondLength", 2: "the temperature ran away", 3: "does not know Xe"}.items():
        assert words in result.problems[number]
    assert "3 stopped, such as number 1: the constraint FixBondLength" in lines[-1]
    alone = run_dynamics(pair_force_field(), [good], 10, **options)
    np.testing.assert_allclose(result.structures[0].positions, alone.structures[0].positions, atol=1e-10)


def test_options_that_cannot_be() -> None:
    for change in (
        {"steps": -1}, {"timestep": 0.0}, {"friction": -1.0}, {"temperature": -1.0}, {"record_every": 0}, {"seed": -1}
    ):  # fmt: skip
        with pytest.raises(ValueError, match="nothing negative"):
            run_dynamics(pair_force_field(), molecules(1), **{"steps": 1, "log": None, **change})
