"""Stability: dynamics against ASE's own Morse potential, failures that are known, dimers against single evaluations."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import ase
import jax.numpy as jnp
import numpy as np
import pytest
from ase import units
from ase.calculators.morse import MorsePotential
from conftest import random_force_field
from toy_data import CONFIG, CUTOFF, E0, INFO

from ase_mlip.dataset_info import DatasetInfo, Head
from ase_mlip.force_field import ForceField
from ase_mlip.graph import PadShape
from ase_mlip.predictor import Predictor, compiled_interaction
from ase_mlip.stability import DimerScan, NveResult, contact_distance, dimer_scan, element_pairs, nve_drift

MORSE = {"epsilon": 2.0, "rho0": 3.0, "r0": 1.2}


@dataclass(frozen=True)
class PairNetwork:
    """Energies of pairs by a formula, no parameters: as a user would write an architecture."""

    kind: str
    dataset_info: DatasetInfo
    config: None = None
    head_names: tuple[str, ...] = ("base",)

    def rebuild(self, config: None, dataset_info: DatasetInfo) -> PairNetwork:
        return replace(self, dataset_info=dataset_info)

    def apply(self, variables: Any, vectors: Any, graph: Any, **options: Any) -> Any:
        r = jnp.linalg.norm(vectors, axis=-1)
        morse = jnp.exp(MORSE["rho0"] * (1 - r / MORSE["r0"]))
        energies = {
            "morse": MORSE["epsilon"] * morse * (morse - 2),
            "attractive": 0.3 * r,
            "repulsive": -0.2 * r,
            "steep": -30.0 * r,
            "undefined": jnp.sqrt(r - 1.5),
        }
        return 0.5 * jnp.sum(jnp.where(graph.slot_mask, energies[self.kind], 0.0), axis=1, keepdims=True)


def toy(kind: str) -> ForceField:
    info = DatasetInfo.create(E0, CUTOFF, avg_num_neighbors=1.0)
    return ForceField(Predictor.from_network(PairNetwork(kind, info)), {})


def pair(distance: float, symbols: str | tuple[str, str] = "OO") -> ase.Atoms:
    return ase.Atoms(symbols, positions=[[0, 0, 0], [0, 0, distance]])


def test_a_conservative_potential_conserves_energy() -> None:
    atoms = pair(1.25)
    run = nve_drift(toy("morse"), atoms, temperature=200, picoseconds=0.2, dtype="float64", seed=3)
    assert run.broke is None
    assert (run.formula, run.timestep) == ("O2", 0.5)
    np.testing.assert_allclose(run.times, np.arange(401) * 5e-4, atol=1e-12)
    atoms.calc = MorsePotential(**MORSE, rcut1=50, rcut2=60)
    potential = atoms.get_potential_energy() + 2 * E0["O"]
    kinetic = 3 * units.kB * run.temperature[0]  # two atoms
    assert run.energy[0] == pytest.approx((potential + kinetic) / 2, abs=1e-9)
    assert run.temperature.std() > 10  # it moves
    assert np.ptp(run.energy) < 2e-4
    assert abs(run.drift) < 0.2
    assert atoms.positions[1, 2] == 1.25


def test_the_same_seed_gives_the_same_run() -> None:
    first, second, other = (nve_drift(toy("morse"), pair(1.25), picoseconds=0.01, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.energy, second.energy)
    assert first.energy[0] != other.energy[0]


def test_drift_is_the_slope() -> None:
    times = np.linspace(0, 1, 101)
    run = NveResult(times, -5000.0 + 0.0042 * times + 1e-4 * np.sin(60 * np.pi * times), times, None, "X", 0.5)
    assert run.drift == pytest.approx(4.2, abs=0.05)
    assert np.isnan(replace(run, times=times[:1], energy=times[:1]).drift)


@pytest.mark.parametrize(
    ("kind", "start", "reason"),
    [
        ("attractive", 1.2, "O 0 and O 1 collapsed"),
        ("repulsive", 1.5, r"the bond of O 0 and O 1 tore to \d\.\d Angstrom"),
        ("steep", 1.3, "the temperature ran away"),
        ("undefined", 1.4, "not finite"),
    ],
)
def test_what_breaks_is_said_and_not_raised(kind: str, start: float, reason: str) -> None:
    run = nve_drift(toy(kind), pair(start), picoseconds=1.0, timestep=2.0)
    assert run.broke is not None
    assert re.search(reason, run.broke)
    assert re.search(r"after 0\.\d+ ps$", run.broke)
    assert len(run.times) == len(run.energy) == len(run.temperature) < 501
    assert np.isfinite(run.energy).all()


def test_a_single_atom_is_stable() -> None:
    run = nve_drift(toy("morse"), ase.Atoms("O"), picoseconds=0.01)
    assert run.broke is None
    assert run.drift == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"timestep": 0}, {"picoseconds": 1e-4}, {"timestep": -1}])
def test_runs_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least two steps"):
        nve_drift(toy("morse"), pair(1.2), **options)


def test_dimers_against_single_evaluations() -> None:
    heads = (*INFO.heads, Head("delta", (0.2, -0.1)))
    force_field = random_force_field(replace(CONFIG, num_readout_heads=2), INFO.with_heads(heads))
    relative = np.array([0.6, 1.0, 1.5])

    def energy(atoms: ase.Atoms, level: str) -> float:
        return force_field(force_field.graph(atoms, level, PadShape(1, 4, 4)), dtype="float64").energy[0]

    for level in ("base", "delta"):
        for scan in dimer_scan(force_field, [("H", "O"), ("O", "O")], level, relative, dtype="float64"):
            np.testing.assert_allclose(scan.distances, {"H": 0.31 + 0.66, "O": 2 * 0.66}[scan.pair[0]] * relative)
            alone = sum(energy(ase.Atoms(symbol), level) for symbol in scan.pair)
            together = [energy(pair(distance, scan.pair), level) for distance in scan.distances]
            np.testing.assert_allclose(scan.energies, np.array(together) - alone, atol=1e-9)
            assert np.ptp(scan.energies) > 1e-3


def test_all_pairs_share_one_compilation() -> None:
    force_field = toy("morse")
    before = compiled_interaction._cache_size()
    pairs = element_pairs([ase.Atoms("OH2"), ase.Atoms("O")])
    assert pairs == [("H", "H"), ("H", "O"), ("O", "O")]
    relative = np.linspace(0.4, 2.0, 200)  # three batches
    scans = dimer_scan(force_field, pairs, distances=relative)
    assert compiled_interaction._cache_size() - before == 1
    for scan in scans:
        r = scan.distances
        expected = [_morse(distance) if distance < CUTOFF else 0.0 for distance in r]
        np.testing.assert_allclose(scan.energies, expected, atol=1e-4)
        assert scan.monotonic_wall


def _morse(distance: float) -> float:
    atoms = pair(distance)
    atoms.calc = MorsePotential(**MORSE, rcut1=50, rcut2=60)
    return float(atoms.get_potential_energy())


def scan_of(energies: np.ndarray) -> DimerScan:
    contact = contact_distance("O", "O")
    return DimerScan(("O", "O"), contact * np.linspace(0.4, 2.0, len(energies)), energies)


def test_walls() -> None:
    r = scan_of(np.zeros(65)).distances
    well = 4 * ((1.2 / r) ** 12 - 2 * (1.2 / r) ** 6)
    sound = scan_of(well)
    assert sound.monotonic_wall
    assert sound.turn is None
    assert sound.equilibrium == pytest.approx(1.2, abs=0.02)
    assert sound.barrier == pytest.approx(well[0] + 4, rel=1e-3)
    top = np.argmin(np.abs(r - 0.8))
    holed = scan_of(np.where(np.arange(65) < top, well[top] - 50 * (r[top] - r), well))
    assert not holed.monotonic_wall
    assert holed.turn == r[top]
    assert holed.barrier == pytest.approx(well[top] + 4, rel=1e-2)
    falling = scan_of(-1 / r)
    assert falling.equilibrium == contact_distance("O", "O") == 2 * 0.66
    assert falling.turn == pytest.approx(0.9 * 1.32, abs=0.04)
    assert falling.barrier <= 0
    broken = scan_of(np.where(r < 0.7, np.nan, well))
    assert broken.turn == r[r >= 0.7][0]


@pytest.mark.parametrize("distances", [[1.0, 0.5], [0.0, 1.0], []])
def test_distances_that_cannot_be(distances: list[float]) -> None:
    with pytest.raises(ValueError, match="ascending"):
        dimer_scan(toy("morse"), [("O", "O")], distances=distances)
    assert dimer_scan(toy("morse"), []) == []


def test_elements_that_the_model_does_not_know() -> None:
    with pytest.raises(ValueError, match="does not know Cu"):
        dimer_scan(toy("morse"), [("O", "Cu")])
