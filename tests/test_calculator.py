"""The calculator's contract with ASE: what it answers and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError, all_properties
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from conftest import CUTOFF, build_zoo

from ase_mlip.calculator import MLIPCalculator
from ase_mlip.force_field import ForceField

SOLIDS = ["bulk", "primitive", "triclinic", "left_handed", "slab", "wire"]


def calculated(atoms: ase.Atoms, force_field: ForceField, dtype: str = "float64") -> ase.Atoms:
    """A copy with a calculator of its own."""
    atoms = atoms.copy()
    atoms.calc = MLIPCalculator(force_field, dtype=dtype)
    return atoms


def assert_same(one: ase.Atoms, other: ase.Atoms, stress: bool = True) -> None:
    """Equal energies, forces and stress of two structures that are the same physics."""
    np.testing.assert_allclose(other.get_potential_energy(), one.get_potential_energy(), atol=1e-9)
    np.testing.assert_allclose(other.get_forces(), one.get_forces(), atol=1e-10)
    if stress:
        np.testing.assert_allclose(other.get_stress(), one.get_stress(), atol=1e-12)


@pytest.mark.parametrize("name", build_zoo())
def test_finite_differences(name: str, force_field: ForceField) -> None:
    """Forces and stress are the derivatives of the energy; what has no volume has no stress."""
    atoms = calculated(build_zoo()[name], force_field)
    forces, results = atoms.get_forces(), atoms.calc.results
    assert ("stress" in results) == (name in SOLIDS)
    assert results["energy"] == results["free_energy"]
    assert results["energy"] == pytest.approx(results["energies"].sum(), abs=1e-12)
    assert np.abs(forces).max() > (-1 if name in ("atom", "far_pair") else 1e-4)
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-5), atol=1e-6, rtol=0)
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-13)
    if name in SOLIDS:
        stress = atoms.get_stress()
        np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-8, rtol=0)
        assert np.abs(stress).max() > 1e-6
    else:
        with pytest.raises(PropertyNotImplementedError, match="three cell vectors"):
            atoms.get_stress()


def test_stress_order_and_sign(force_field: ForceField) -> None:
    """Voigt xx yy zz yz xz xy of a sheared cell; the pressure is -dE/dV."""
    atoms = calculated(build_zoo()["triclinic"], force_field)
    stress, step, cell = atoms.get_stress(), 1e-5, atoms.cell.array.copy()
    assert np.ptp(stress) > 1e-4

    def energy(strain: np.ndarray) -> float:
        atoms.set_cell(cell @ (np.eye(3) + strain), scale_atoms=True)
        return atoms.get_potential_energy()

    volume = abs(np.linalg.det(cell))
    for component, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        strain = np.zeros((3, 3))
        strain[a, b] += step / 2
        strain[b, a] += step / 2
        slope = (energy(strain) - energy(-strain)) / (2 * step)
        assert slope / volume == pytest.approx(stress[component], abs=1e-8)
    larger, smaller = energy(np.eye(3) * step), energy(-np.eye(3) * step)
    slope = (larger - smaller) / (volume * ((1 + step) ** 3 - (1 - step) ** 3))
    assert slope == pytest.approx(stress[:3].mean(), abs=1e-8)
    assert abs(stress[:3].mean()) > 1e-5


@pytest.mark.parametrize("name", ["slab", "sheet", "wire", "boxed_molecule"])
def test_open_axes_equal_vacuum(name: str, force_field: ForceField) -> None:
    """A slab, wire or molecule is the same as the periodic crystal of it with vacuum between the images."""
    atoms = calculated(build_zoo()[name], force_field)
    periodic = atoms.copy()
    if name == "sheet":
        periodic.cell[2] = (0, 0, 12)
    periodic.pbc = True
    assert_same(atoms, calculated(periodic, force_field), stress=name in SOLIDS)


def test_one_crystal_in_many_words(force_field: ForceField) -> None:
    """Unwrapped, negative, left-handed, skewed or repeated: the same numbers."""
    atoms = calculated(build_zoo()["triclinic"], force_field)
    unwrapped, left, skewed = atoms.copy(), atoms.copy(), atoms.copy()
    unwrapped.positions += np.array([[2, 0, 0], [0, -3, 0], [5, 5, -5], [0, 0, 1]]) @ atoms.cell.array - 20.0
    left.cell[:] = left.cell.array[[2, 1, 0]]
    left.positions[:] = atoms.positions
    skewed.cell[1] += 3 * skewed.cell[0]
    for other in (unwrapped, left, skewed):
        assert_same(atoms, calculated(other, force_field))
    double = calculated(atoms.repeat((2, 1, 1)), force_field)
    assert double.get_potential_energy() == pytest.approx(2 * atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(double.get_forces()[:4], atoms.get_forces(), atol=1e-10)
    np.testing.assert_allclose(double.get_stress(), atoms.get_stress(), atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.positions.__setitem__((2, 1), np.nan), r"atom 2 \(Cu\)"),
        (lambda a: a.positions.__setitem__((3, 0), -np.inf), r"atom 3 \(Cu\)"),
        (lambda a: a.positions.__setitem__(2, a.positions[1]), r"atoms 1 \(Cu\) and 2 \(Cu\) are only 0 Angstrom"),
        (
            lambda a: a.positions.__setitem__(3, a.positions[0] - a.cell[1]),
            r"atoms (0|3) \(Cu\) and (0|3) \(Cu\) are only",
        ),
        (lambda a: a.numbers.__setitem__(0, 118), r"Og \(Z=118\); it knows H, C, O, Cu"),
        (lambda a: a.cell.__setitem__(slice(None), 0.0), "axis 0 but its cell vector is zero; set the cell, or pbc="),
    ],
)
def test_refuses_bad_structures(change: Callable[[ase.Atoms], None], message: str, force_field: ForceField) -> None:
    """A clear `CalculationFailed` every time it is asked, and right numbers again once the structure is repaired."""
    good = calculated(build_zoo()["bulk"], force_field)
    energy = good.get_potential_energy()
    bad = good.copy()
    change(bad)
    bad.calc = good.calc
    for _ in range(2):
        with pytest.raises(CalculationFailed, match=message):
            bad.get_potential_energy()
        with pytest.raises(CalculationFailed, match=message):
            bad.get_forces()
    assert good.get_potential_energy() == energy


def test_few_atoms(force_field: ForceField) -> None:
    """No atoms have no energy; atoms beyond the cutoff have the sum of their energies and exactly no forces."""
    empty = calculated(ase.Atoms(), force_field)
    assert empty.get_potential_energy() == 0.0
    assert empty.get_forces().shape == (0, 3)
    oxygen, carbon = (calculated(ase.Atoms(symbol), force_field) for symbol in "OC")
    pair = calculated(ase.Atoms("OC", positions=[[0, 0, 0], [CUTOFF + 0.01, 0, 0]]), force_field)
    total = oxygen.get_potential_energy() + carbon.get_potential_energy()
    assert pair.get_potential_energy() == pytest.approx(total, abs=1e-12)
    for atoms in (oxygen, carbon, pair):
        assert not atoms.get_forces().any()
    boxed = calculated(ase.Atoms("O", cell=(9, 9, 9), pbc=True), force_field)
    assert boxed.get_potential_energy() == oxygen.get_potential_energy()
    assert not boxed.get_stress().any()


def test_stress_refused_keeps_the_rest(force_field: ForceField) -> None:
    """Asking for the stress of a molecule, boxed or not, fails; asking for energy and forces afterwards does not."""
    for name in ("molecule", "boxed_molecule"):
        atoms = calculated(build_zoo()[name], force_field)
        with pytest.raises(PropertyNotImplementedError, match="stress needs a periodic structure"):
            atoms.get_stress()
        assert np.isfinite(atoms.get_potential_energy())
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()
        assert np.isfinite(atoms.get_forces()).all()


def test_results_are_ase_own(force_field: ForceField) -> None:
    """Only ASE's keys, shapes and types; `get_properties`, `free_energy` and `SumCalculator` work."""
    atoms = calculated(build_zoo()["bulk"], force_field, "float32")
    properties = atoms.get_properties(MLIPCalculator.implemented_properties)
    results = atoms.calc.results
    assert set(properties) - {"natoms"} == set(results) <= set(all_properties)
    assert isinstance(results["energy"], float)
    shapes = {"energies": (4,), "forces": (4, 3), "stress": (6,)}
    assert {k: np.shape(v) for k, v in results.items() if np.ndim(v)} == shapes
    assert all(results[k].dtype == np.float64 and results[k].flags.writeable for k in shapes)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    both = atoms.copy()
    both.calc = SumCalculator([MLIPCalculator(force_field), LennardJones()])
    alone = atoms.copy()
    alone.calc = LennardJones()
    energy = atoms.get_potential_energy() + alone.get_potential_energy()
    assert both.get_potential_energy(force_consistent=True) == pytest.approx(energy)
    np.testing.assert_allclose(both.get_stress(), atoms.get_stress() + alone.get_stress())


def test_implemented_properties_stay(force_field: ForceField) -> None:
    """No instance, no structure and no failure changes the class attribute."""
    before = list(MLIPCalculator.implemented_properties)
    for name in ("molecule", "bulk"):
        calculated(build_zoo()[name], force_field).get_potential_energy()
    assert MLIPCalculator(force_field).implemented_properties is MLIPCalculator.implemented_properties
    assert MLIPCalculator.implemented_properties == before


def test_levels(two_head_force_field: ForceField, tmp_path: Path) -> None:
    """The newest level is the default and sums all heads; the base is reached by name, from a file too."""
    atoms, path = build_zoo()["molecule"], tmp_path / "model.safetensors"
    two_head_force_field.save(path)
    prediction = two_head_force_field(two_head_force_field.graph(atoms), per_head=True, dtype="float64")
    per_head = prediction.head_energies[0]
    for level, energy in [(None, per_head.sum()), ("delta", per_head.sum()), ("base", per_head[0])]:
        for model in (two_head_force_field, path, str(path)):
            atoms.calc = MLIPCalculator(model, level=level, dtype="float64")
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-12)
    assert abs(per_head).min() > 1e-2
    assert "base" in MLIPCalculator(two_head_force_field, level="base").name


def test_wrong_arguments(force_field: ForceField) -> None:
    """Errors list what there is."""
    with pytest.raises(ValueError, match="no level 'r2scan'; this model has 'base'"):
        MLIPCalculator(force_field, level="r2scan")
    with pytest.raises(ValueError, match=r"float16.*float32"):
        MLIPCalculator(force_field, dtype="float16")
    with pytest.raises(ValueError, match="skin"):
        MLIPCalculator(force_field, skin=-1.0)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*Shipped with the package: default"):
        MLIPCalculator("nowhere")


@pytest.mark.parametrize("users_choice", [False, True])
def test_precision_is_local(users_choice: bool, force_field: ForceField) -> None:
    """Neither precision touches or heeds the user's own setting; float32 agrees with float64 to its accuracy."""
    with jax.enable_x64(users_choice):
        double, single = (calculated(build_zoo()["bulk"], force_field, d) for d in ("float64", "float32"))
        energies = [atoms.get_potential_energy() for atoms in (double, single, double)]
        assert jax.config.jax_enable_x64 == users_choice
        assert jnp.ones(1).dtype == (jnp.float64 if users_choice else jnp.float32)
    assert energies[0] == energies[2]
    assert 1e-12 < abs(energies[1] - energies[0]) < 1e-5
    np.testing.assert_allclose(single.get_forces(), double.get_forces(), atol=1e-5)
    np.testing.assert_allclose(single.get_stress(), double.get_stress(), atol=1e-6)
