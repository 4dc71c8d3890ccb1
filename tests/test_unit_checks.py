"""Units, signs and orders of labels beside a base's predictions: what is wrong is named, with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.stress import voigt_6_to_full_3x3_stress
from toy_data import toy_examples, toy_force_field, toy_frames
from unit_data import BOHR, GPA, HARTREE, KCAL, KJ, RYDBERG, compare, copper, metal, mixed, relabel, scaled, water

from ase_mlip.batches import Batches
from ase_mlip.evaluate import Errors, evaluate
from ase_mlip.unit_checks import Comparison, check_units, compare_with_base, step0_shift


def the_error(compared: Comparison, label: str) -> str:
    """The message of the only finding, which is an error about this label."""
    (finding,) = check_units(compared)
    assert (finding.label, finding.severity) == (label, "error"), finding
    return finding.message


FORCES = {
    "eV/Angstrom with the opposite sign": -1.0,
    "kcal/mol/Angstrom": 1 / KCAL,
    "kJ/mol/Angstrom": 1 / KJ,
    "Hartree/Bohr": BOHR / HARTREE,
    "Hartree/Angstrom": 1 / HARTREE,
    "Rydberg/Bohr": BOHR / RYDBERG,
    "meV/Angstrom": 1e3,
    "Hartree/Bohr with the opposite sign": -BOHR / HARTREE,
}


@pytest.mark.parametrize("unit", FORCES)
@pytest.mark.parametrize("system", [copper, water])
def test_forces_in_another_unit(unit: str, system: Callable[[], Comparison]) -> None:
    message = the_error(relabel(system(), forces=scaled(FORCES[unit])), "forces")
    assert unit in message
    if "Hartree/Angstrom" not in message:  # which a mediocre base cannot tell from Rydberg/Bohr
        assert f"read as {unit} the labels" in message
        remedy = float(message.rsplit("multiply them by ")[1])
        assert remedy * FORCES[unit] == pytest.approx(1.0, rel=1e-4)


ENERGIES = {"kcal/mol": 1 / KCAL, "kJ/mol": 1 / KJ, "Hartree": 1 / HARTREE, "Rydberg": 1 / RYDBERG, "meV": 1e3}


@pytest.mark.parametrize("unit", ENERGIES)
@pytest.mark.parametrize("system", [copper, water])
def test_energies_in_another_unit(unit: str, system: Callable[[], Comparison]) -> None:
    message = the_error(relabel(system(), energy=scaled(ENERGIES[unit])), "energy")
    assert f"read as {unit} the labels" in message
    assert float(message.rsplit("multiply them by ")[1]) * ENERGIES[unit] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("factor", [1.0, 1 / KCAL, 1 / HARTREE])
@pytest.mark.parametrize("system", [copper, water])
def test_energies_per_atom_of_several_sizes(system: Callable[[], Comparison], factor: float) -> None:
    compared = system()
    wrong = relabel(compared, energy=lambda energy: factor * energy / compared.composition.sum(axis=1))
    message = the_error(wrong, "energy")
    assert "by the number of atoms" in message
    # a base that knows nothing changes nothing: totals follow the composition
    blind = replace(
        wrong, energy=np.stack([wrong.energy[0], np.random.default_rng(0).normal(size=40 + 20 * (system is water))])
    )
    assert "as energies per atom they follow the composition" in the_error(blind, "energy")


@pytest.mark.parametrize(("cells", "other"), [(3, "Rydberg"), (7, "Hartree"), (16, None)])
def test_energies_per_atom_of_a_single_size(cells: int, other: str | None) -> None:
    """64 atoms: only their number explains the scale. 28 and 12 atoms: so does a Hartree or a Rydberg."""
    compared = mixed(compare(metal(14, (cells,)), EMT(), EMT()), 0, noise=0.3, scale=0.9)
    assert check_units(compared) == []
    message = the_error(relabel(compared, energy=lambda energy: energy / (4 * cells)), "energy")
    assert "eV per atom" in message
    assert ("so might they" in message) == (other is not None)
    assert other is None or other in message


STRESSES = {
    "eV/Angstrom^3 with the opposite sign": -1.0,
    "GPa": 1 / GPA,
    "GPa with the opposite sign": -1 / GPA,
    "kbar": 10 / GPA,
    "kbar with the opposite sign": -10 / GPA,
    "bar": 1e4 / GPA,
    "Hartree/Bohr^3": BOHR**3 / HARTREE,
}


@pytest.mark.parametrize("unit", STRESSES)
def test_stress_in_another_unit(unit: str) -> None:
    message = the_error(relabel(copper(), stress=scaled(STRESSES[unit])), "stress")
    assert f"read as {unit} the labels" in message
    assert float(message.rsplit("multiply them by ")[1]) * STRESSES[unit] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_virial_instead_of_stress(sign: float) -> None:
    wrong = relabel(copper(), stress=lambda stress: sign * stress * copper().volume[:, None, None])
    message = the_error(wrong, "stress")
    assert "read as eV (virial, the stress times the volume)" in message
    assert "by 1/volume" in message
    assert ("opposite sign" in message) == (sign < 0)


def reordered(order: Sequence[int], factor: float = 1.0) -> Comparison:
    """Stress whose components stand in another order and were read in Voigt's."""
    pick = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
    return relabel(
        copper(),
        stress=lambda stress: np.array([voigt_6_to_full_3x3_stress(s[pick][list(order)]) for s in stress]) * factor,
    )


# xx yy zz yz xz xy are numbers 0 to 5
VASP, LAMMPS = (0, 1, 2, 5, 3, 4), (0, 1, 2, 5, 4, 3)


@pytest.mark.parametrize(("order", "name"), [(VASP, "xy yz xz (VASP's order)"), (LAMMPS, "xy xz yz (LAMMPS's order)")])
def test_order_of_stress(order: Sequence[int], name: str) -> None:
    (finding,) = check_units(reordered(order))
    assert finding.label == "stress"
    assert name in finding.message


def test_everything_wrong_about_the_stress_at_once() -> None:
    found = check_units(reordered(VASP, -10 / GPA))
    assert [finding.label for finding in found] == ["stress", "stress"]
    assert "read as kbar with the opposite sign" in found[0].message
    assert "VASP" in found[1].message


@pytest.mark.parametrize("noise", [0.1, 0.3, 0.5])
def test_a_noisy_base_still_finds_units(noise: float) -> None:
    compared = mixed(copper(), 3, noise, 0.8)
    wrong = relabel(compared, energy=scaled(1 / KCAL), forces=scaled(BOHR / HARTREE), stress=scaled(1 / GPA))
    found = check_units(wrong)
    assert [(finding.label, finding.severity) for finding in found] == [
        (x, "error") for x in ("energy", "forces", "stress")
    ]
    for finding, unit in zip(found, ("kcal/mol", "Hartree/Bohr", "GPa"), strict=True):
        assert f"read as {unit} the labels" in finding.message


def test_an_unknown_factor_is_a_note() -> None:
    (finding,) = check_units(relabel(copper(), forces=scaled(6.0)))
    assert (finding.severity, finding.label) == ("note", "forces")
    assert "which is no unit known here" in finding.message


def test_labels_that_are_all_zero_are_a_note() -> None:
    found = check_units(relabel(copper(), forces=scaled(0.0), stress=scaled(0.0)))
    assert [(finding.label, finding.severity) for finding in found] == [("forces", "note"), ("stress", "note")]
    assert "all labels are zero" in found[0].message


def test_predictions_of_a_force_field_frame_by_frame() -> None:
    """Batched and padded against one frame at a time."""
    force_field, frames = toy_force_field(), toy_frames(7)
    frames[2].calc.results.pop("forces")
    frames[3].calc.results.pop("energy")
    frames[4].calc.results.pop("stress")
    examples = toy_examples(force_field, frames)
    compared = compare_with_base(force_field, examples, batch_size=3)
    (shape,) = Batches(examples, 3).shapes  # so that it is compiled once
    single = [force_field(force_field.graph(atoms, shape=shape)) for atoms in frames]
    np.testing.assert_allclose(compared.energy[1], [p.energy[0] for p in single], atol=1e-4)
    np.testing.assert_allclose(
        compared.forces[1], np.concatenate([p.forces[: len(a)] for p, a in zip(single, frames, strict=True)]), atol=1e-4
    )
    np.testing.assert_allclose(compared.stress[1], [p.stress[0] for p in single], atol=1e-5)
    np.testing.assert_array_equal(compared.composition.sum(axis=1), [len(atoms) for atoms in frames])
    np.testing.assert_array_equal(compared.volume, [atoms.get_volume() for atoms in frames])
    assert np.flatnonzero(~compared.has_forces).tolist() == [2]
    assert np.flatnonzero(~compared.has_energy).tolist() == [3]
    assert np.flatnonzero(~compared.has_stress).tolist() == [4]
    assert compared.energy[0, 0] == frames[0].calc.results["energy"]
    np.testing.assert_array_equal(compared.forces[0, :3], frames[0].calc.results["forces"])
    errors = evaluate(force_field, Batches(examples, 3))
    assert compared.errors().summary() == pytest.approx(errors.summary(), rel=1e-5)
    assert compared.errors().frames == 7
    assert len(compare_with_base(force_field, examples, limit=4).energy[0]) == 4


def test_predictions_that_are_not_finite() -> None:
    force_field = toy_force_field()
    broken = replace(force_field, params=jax.tree.map(lambda leaf: leaf * np.nan, dict(force_field.params)))
    with pytest.raises(ValueError, match="not finite"):
        compare_with_base(broken, toy_examples(force_field, toy_frames(7)), batch_size=3)


@pytest.mark.parametrize(("shift", "found"), [(0.0, False), (0.45, False), (-0.6, True), (5.0, True)])
def test_shift_before_training(shift: float, found: bool) -> None:
    rng = np.random.default_rng(0)
    label = rng.normal(size=50)
    pairs = np.stack([label, label + shift + 0.02 * rng.normal(size=50)])
    finding = step0_shift(Errors(pairs, np.zeros((2, 0)), np.zeros((2, 0)), 50))
    assert (finding is not None) == found
    if finding is not None:
        assert f"{shift:+.2f} eV/atom" in finding.message
    assert step0_shift(Errors(np.zeros((2, 0)), np.zeros((2, 0)), np.zeros((2, 0)), 0)) is None
