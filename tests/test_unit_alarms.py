"""No alarm about units where the labels are right and the base is merely bad; what cannot be told is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.morse import MorsePotential
from unit_data import KJ, compare, copper, mixed, relabel, scaled, water

from ase_mlip.unit_checks import Comparison, Finding, check_units
from ase_mlip.unit_readings import FORCE_UNITS, judge, read_in_units


def alarms(compared: Comparison) -> list[Finding]:
    """Findings other than that something is unchecked."""
    return [finding for finding in check_units(compared) if finding.severity != "unchecked"]


def test_bases_of_these_tests_are_mediocre() -> None:
    """They must not be better than what people fine-tune, or finding anything would be too easy."""
    for compared in (copper(), water()):
        label, prediction = compared.forces.reshape(2, -1)
        assert 0.85 < np.corrcoef(label, prediction)[0, 1] < 0.99
        assert np.abs(label - prediction).mean() > 0.1 * np.abs(label).mean()
        assert check_units(compared) == []


@pytest.mark.parametrize("scale", [0.45, 0.7, 1.0, 1.4, 2.2])
@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5, 1.0, 2.0, 10.0])
def test_no_alarm_for_a_bad_base(noise: float, scale: float) -> None:
    """Too soft, too stiff, noisy or all of it; where nothing can be told, that is said."""
    for seed, system in enumerate((copper, water)):
        compared = mixed(system(), seed, noise, scale)
        assert alarms(compared) == []
        unchecked = {finding.label for finding in check_units(compared)}
        if noise <= 0.5:
            assert not unchecked
        if noise == 10.0:
            assert unchecked == {"energy", "forces", "stress"}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("frames", [3, 12, 60])
def test_no_alarm_for_a_base_unrelated_to_the_labels(seed: int, frames: int) -> None:
    """Chance never looks like a unit, however large or small the predictions are."""
    rng = np.random.default_rng(seed)
    whole = water()
    atoms = int(whole.composition[:frames].sum())
    some = replace(
        whole,
        composition=whole.composition[:frames],
        volume=whole.volume[:frames],
        energy=np.stack([whole.energy[0, :frames], rng.normal(size=frames)]),
        forces=np.stack([whole.forces[0, :atoms], rng.normal(size=(atoms, 3))]),
        stress=np.stack([whole.stress[0, :frames], rng.normal(size=(frames, 3, 3))]),
        has_energy=whole.has_energy[:frames],
        has_forces=whole.has_forces[:frames],
        has_stress=whole.has_stress[:frames],
    )
    for size in (0.02, 1.0, 50.0):
        tried = relabel(some, energy=scaled(size), forces=scaled(size), stress=scaled(size))
        assert {finding.severity for finding in check_units(tried)} == {"unchecked"}


def test_no_alarm_for_another_equilibrium_volume_and_reference_energies() -> None:
    """Labels under tension where the base is under pressure, and all-electron energies."""
    pressure = np.diag([0.3, 0.3, 0.25])
    compared = relabel(
        copper(),
        stress=lambda stress: stress + pressure,
        energy=lambda energy: energy - 45_000.0 * copper().composition[:, 0],
    )
    assert np.mean(compared.stress[0, :, 0, 0]) > 0.2
    assert check_units(compared) == []


def test_no_alarm_where_forces_are_tiny() -> None:
    """Relaxed structures: what is left of the forces is noise of the labels and error of the base."""
    rng = np.random.default_rng(0)
    forces = 0.01 * rng.normal(size=(2, *copper().forces.shape[1:]))
    (finding,) = check_units(replace(copper(), forces=forces))
    assert (finding.label, finding.severity) == ("forces", "unchecked")
    assert "hardly any" in finding.message
    # a base whose error exceeds such labels by far, all of one pattern
    forces = np.stack([0.002 * rng.normal(size=forces.shape[1:]), np.ones(forces.shape[1:])])
    assert alarms(replace(copper(), forces=forces)) == []


def test_no_alarm_for_a_few_wild_frames() -> None:
    """A wrong label or a clash of atoms, which the base overestimates a hundred times, in two of forty frames."""
    energy, forces, stress = (np.array(getattr(copper(), name)) for name in ("energy", "forces", "stress"))
    energy[0, 5] += 4000.0
    forces[0, :2] = 900.0
    stress[0, 5] = 50.0
    energy[1, 17] -= 3e4
    forces[1, -3:] = -1e4
    stress[1, 17] = -1e3
    wild = replace(copper(), energy=energy, forces=forces, stress=stress)
    assert check_units(wild) == []
    found = check_units(relabel(wild, energy=scaled(1 / KJ), forces=scaled(-1.0), stress=scaled(-1.0)))
    assert [finding.severity for finding in found] == ["error"] * 3


def test_a_base_of_another_kind_that_is_far_too_stiff() -> None:
    """Lennard-Jones beside argon's Morse potential, five times the forces: worth a note, but no proof of a unit."""
    frames = []
    for seed in range(12):
        frames.append(bulk("Ar", cubic=True, a=5.3))
        frames[-1].rattle(0.2, seed=seed)
    label = MorsePotential(epsilon=0.0104, r0=3.82, rho0=5.0, rcut1=4.5, rcut2=5.0)
    found = check_units(compare(frames, label, LennardJones(sigma=3.4, epsilon=0.0104, rc=5.0, smooth=True)))
    assert {finding.severity for finding in found} <= {"note", "unchecked"}


def test_missing_labels_are_not_looked_at() -> None:
    none = np.zeros(40, bool)
    some = np.arange(40) % 2 == 0
    assert check_units(replace(copper(), has_energy=none, has_forces=none, has_stress=none)) == []
    atoms = copper().composition.sum(axis=1).astype(int)
    holes = np.repeat(some, atoms)[None, :, None]
    filled = replace(
        copper(),
        energy=np.where(some, copper().energy, 1e9),
        forces=np.where(holes, copper().forces, 1e9),
        stress=np.where(some[:, None, None], copper().stress, 1e9),
        has_energy=some,
        has_forces=some,
        has_stress=some,
    )
    assert check_units(filled) == []
    assert check_units(replace(copper(), volume=np.zeros(40), stress=-copper().stress)) == []


def test_one_frame_tells_forces_alone() -> None:
    one = np.arange(40) == 3
    (energy, stress) = check_units(replace(copper(), has_energy=one, has_forces=one, has_stress=one))
    assert (energy.label, energy.severity) == ("energy", "unchecked")
    assert (stress.label, stress.severity) == ("stress", "unchecked")
    assert "too few" in energy.message


@pytest.mark.parametrize("count", [8, 12, 30])
def test_chance_in_few_values(count: int) -> None:
    """Of a thousand unrelated labels and predictions at most a handful look like another unit or sign."""
    rng = np.random.default_rng(count)
    alarm = 0
    for _ in range(1000):
        labels, predictions = 10 ** rng.uniform(-2, 2) * rng.normal(size=count), rng.normal(size=count)
        found = judge("forces", list(read_in_units(labels, predictions, count, FORCE_UNITS)))
        alarm += any(finding.severity != "unchecked" for finding in found)
    assert alarm <= 5
