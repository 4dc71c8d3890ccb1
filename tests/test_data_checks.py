"""Labels before training: what is impossible, unusual, repeated or inconsistent is named by its frame."""

from __future__ import annotations

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.optimize import linprog
from toy_data import toy_frames

from ase_mlip.data_checks import BadLabels, DataReport, bad_frames, good_frames, inspect_frames
from ase_mlip.dataset import LabelKeys, read_frames, take_census
from ase_mlip.outliers import robust_fit

KEYS = LabelKeys()


def metal_frames(count: int) -> list[ase.Atoms]:
    """Rattled and strained copper-gold cells of two sizes, labelled by EMT."""
    frames = []
    for number in range(count):
        atoms = bulk("Cu", cubic=True, a=3.7) * (1, 1, 1 + number % 2)
        atoms.symbols[: number % 4] = "Au"
        atoms.set_cell(atoms.cell.array * (1 + 0.01 * np.sin(number)), scale_atoms=True)
        atoms.rattle(0.08, seed=number)
        atoms.calc = EMT()
        relabel(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces(), stress=atoms.get_stress())
        frames.append(atoms)
    return frames


def gentle_frames(name: str) -> list[ase.Atoms]:
    """A shipped set without the repulsive walls, whose labels are rightly unusual."""
    frames = read_frames(f"data/{name}.extxyz.xz")
    gentle = ("md", "mode", "conformer", "torsion")
    return [atoms for atoms in frames if name.endswith("r2scan") or atoms.info["config_type"] in gentle]


def relabel(atoms: ase.Atoms, **labels: object) -> None:
    """Replace some of the labels."""
    known = {} if not isinstance(atoms.calc, SinglePointCalculator) else atoms.calc.results
    atoms.calc = SinglePointCalculator(atoms, **{**known, **labels})


def spoil(atoms: ase.Atoms, label: str, value: float) -> None:
    """Put a value into one entry of a label."""
    changed = np.array(atoms.calc.results[label], float)
    changed[(0,) * changed.ndim] = value
    relabel(atoms, **{label: changed if changed.ndim else float(changed)})


class LazyFrames(list):
    """Counts how often a frame is loaded; cannot be sliced or walked through."""

    def __init__(self, frames: list[ase.Atoms]):
        super().__init__(frames)
        self.loaded = np.zeros(len(frames), int)

    def __getitem__(self, index: int) -> ase.Atoms:  # type: ignore[override]
        self.loaded[index] += 1
        return super().__getitem__(index)

    def __iter__(self):
        raise AssertionError("all frames at once")


def findings(report: DataReport) -> dict[str, object]:
    """Everything in a report that is worth a line, beside the ranges."""
    names = ("not_finite", "absurd_forces", "energy_outliers", "force_outliers", "duplicates", "contradictions")
    return {name: getattr(report, name) for name in (*names, "net_forces") if getattr(report, name)}


def test_clean_frames_give_ranges_alone() -> None:
    frames = metal_frames(24)
    report = inspect_frames(frames, KEYS)
    assert findings(report) == {}
    assert bad_frames(report) == {}
    assert good_frames(report) == list(range(24))
    assert report.census == take_census(frames, KEYS)
    expected = {
        "energy": [atoms.get_potential_energy() / len(atoms) for atoms in frames],
        "forces": [np.abs(atoms.get_forces()).max() for atoms in frames],
        "stress": [np.abs(atoms.get_stress()).max() for atoms in frames],
    }
    for label, values in expected.items():
        assert report.ranges[label] == pytest.approx((min(values), np.median(values), max(values)))
    lines = str(report).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("energy: ")
    assert lines[1].endswith("eV/atom")


@pytest.mark.parametrize(
    ("name", "count"),
    [("base_test", 955), ("base_valid", 758), ("glycine_r2scan", 224), ("water_hexamer_r2scan", 200)],
)
def test_no_alarm_on_the_projects_own_data(name: str, count: int) -> None:
    """Molecules from equilibrium to 1500 K, of mixed or of one composition."""
    frames = gentle_frames(name)
    assert len(frames) == count
    assert findings(inspect_frames(frames, KEYS)) == {}


def test_missing_labels_are_no_finding() -> None:
    frames = toy_frames(12)
    for atoms in frames[::2]:
        atoms.calc = None
    for atoms in frames[1::4]:
        relabel(atoms, forces=None, stress=None)
    report = inspect_frames([*frames, ase.Atoms("H")], KEYS)
    assert findings(report) == {}
    assert (report.census.labels["energy"], report.census.labels["forces"]) == (6, 3)
    assert inspect_frames([ase.Atoms("H"), ase.Atoms("O")], KEYS).ranges == {}


def test_what_is_not_finite_or_absurd_is_bad() -> None:
    frames = metal_frames(20)
    spoil(frames[3], "energy", np.nan)
    spoil(frames[5], "forces", np.inf)
    spoil(frames[5], "stress", np.nan)
    spoil(frames[8], "forces", -1500.0)
    frames[13].positions[1, 2] = np.nan
    report = inspect_frames(frames, KEYS)
    assert report.not_finite == {3: ("energy",), 5: ("forces", "stress"), 13: ("positions",)}
    assert report.absurd_forces == {8: 1500.0}
    assert set(bad_frames(report)) == {3, 5, 8, 13}
    assert set(findings(report)) == {"not_finite", "absurd_forces"}  # and nothing else is thought of them
    assert report.ranges["energy"][2] < 100
    with pytest.raises(BadLabels, match=r"4 of 20 frames .* 3 \(energy not finite\), 5 .*1500.*skip_bad_frames=True"):
        good_frames(report)
    assert good_frames(report, skip_bad=True) == [i for i in range(20) if i not in (3, 5, 8, 13)]
    assert "not finite: 3 frames, 3 (energy), 5 (forces and stress), 13 (positions)" in str(report)


def test_strong_forces_are_not_absurd() -> None:
    frames = toy_frames(1)
    spoil(frames[0], "forces", 999.0)
    assert bad_frames(inspect_frames(frames, KEYS)) == {}


def test_many_bad_frames_are_counted_and_no_good_one_is_an_error() -> None:
    frames = toy_frames(30)
    for atoms in frames[:25]:
        spoil(atoms, "energy", np.nan)
    report = inspect_frames(frames, KEYS)
    with pytest.raises(BadLabels, match=r"9 \(energy not finite\) and 15 more"):
        good_frames(report)
    with pytest.raises(BadLabels, match="none of the 2 frames"):
        good_frames(inspect_frames(frames[:2], KEYS), skip_bad=True)


@pytest.mark.parametrize("shift", [3.0, -3.0, 1e30])
def test_energy_outliers(shift: float) -> None:
    """Beside one that is far off, those a little off are found, and no innocent frame."""
    frames = gentle_frames("base_valid")[:100]
    for number, wrong in ((7, shift), (50, 1.5)):
        relabel(frames[number], energy=frames[number].get_potential_energy() + wrong * len(frames[number]))
    report = inspect_frames(frames, KEYS)
    assert set(findings(report)) == {"energy_outliers"}
    assert set(report.energy_outliers) == {7, 50}
    assert report.energy_outliers[7] == pytest.approx(shift, rel=0.1)
    assert bad_frames(report) == {}


def test_force_outliers() -> None:
    frames = read_frames("data/glycine_r2scan.extxyz.xz")[:60]
    forces = frames[11].get_forces()
    forces[2:4, 1] += (40.0, -40.0)
    relabel(frames[11], forces=forces)
    report = inspect_frames(frames, KEYS)
    assert set(findings(report)) == {"force_outliers"}
    assert list(report.force_outliers) == [11]


def test_equal_frames_but_for_the_last_digit_are_no_outliers() -> None:
    """A spread of nearly zero must not make an outlier of every frame."""
    frames = []
    for number in range(40):
        atoms = molecule("H2O")
        atoms.positions[:, 0] += number
        relabel(atoms, energy=-14.0 + 1e-4 * (number == 3), forces=np.full((3, 3), 1e-4 * (number == 5)))
        frames.append(atoms)
    assert findings(inspect_frames(frames, KEYS)) == {}


def test_isolated_atoms_are_no_outliers() -> None:
    """Their energies lack all binding; a lone dimer of a new element has nothing to be compared with."""
    lone = [ase.Atoms(symbol) for symbol in ("H", "C", "N", "O", "H")]
    lone[4].positions += 1.0
    for atoms, energy in zip(lone, (-10.7, -48.9, -71.0, -102.6, -10.7), strict=True):
        relabel(atoms, energy=energy, forces=np.zeros((1, 3)))
    dimer = ase.Atoms("F2", positions=[[0, 0, 0], [0, 0, 1.4]])
    relabel(dimer, energy=-250.0)
    organic = [atoms for atoms in gentle_frames("base_valid") if set(atoms.symbols) <= set("HCNO")]
    frames = [*organic[:60], *lone, dimer]
    assert findings(inspect_frames(frames, KEYS)) == {}


def test_duplicates_and_contradictions() -> None:
    frames = toy_frames(10)
    same, other, moved, swapped, boxed = (frames[i].copy() for i in (2, 2, 4, 6, 8))
    relabel(same, **{**frames[2].calc.results, "energy": frames[2].get_potential_energy() + 1e-5})
    relabel(other, **{**frames[2].calc.results, "forces": -frames[2].get_forces()})
    moved.positions[0, 0] += 3e-6
    swapped.symbols[:] = ["O", *swapped.symbols[1:][::-1]] if swapped.symbols[0] != "O" else swapped.symbols[::-1]
    boxed.pbc = False
    report = inspect_frames([*frames, same, other, moved, swapped, boxed], KEYS)
    assert report.duplicates == {10: 2, 11: 2}
    assert report.contradictions == (11,)
    assert "duplicate: 2 frames, 10 (of 2), 11 (of 2)" in str(report)
    assert "duplicate with other labels: 1 frame, 11 (of 2)" in str(report)


def test_duplicates_up_to_rounding_and_sign_of_zero() -> None:
    first = ase.Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]])
    second = ase.Atoms("OH", positions=[[-0.0, -1e-9, 0], [1e-8, 0, 1]])
    report = inspect_frames([first, second], KEYS)
    assert report.duplicates == {1: 0}
    assert report.contradictions == ()


def test_a_label_that_is_not_finite_contradicts() -> None:
    frames = toy_frames(2)
    again = frames[0].copy()
    relabel(again, **{**frames[0].calc.results, "energy": np.nan})
    assert inspect_frames([*frames, again], KEYS).contradictions == (2,)


def test_net_forces() -> None:
    frames = metal_frames(20)
    relabel(frames[6], forces=frames[6].get_forces() + np.array([0.0, 0.03, -0.04]))
    relabel(frames[9], forces=frames[9].get_forces() + 0.001)  # as a grid in a DFT code does
    report = inspect_frames(frames, KEYS)
    assert set(findings(report)) == {"net_forces"}
    assert report.net_forces == {6: pytest.approx(0.05)}


def test_frames_are_loaded_once_and_a_few_at_a_time() -> None:
    frames = toy_frames(2)
    many = []
    for number in range(600):
        atoms = frames[number % 2].copy()
        atoms.positions += 0.01 * number
        relabel(atoms, **frames[number % 2].calc.results)
        many.append(atoms)
    relabel(many[590], energy=50.0)
    many[300] = many[10].copy()  # a duplicate without labels
    lazy = LazyFrames(many)
    report = inspect_frames(lazy, KEYS)
    assert np.flatnonzero(lazy.loaded != 1).tolist() == [10, 300]
    assert lazy.loaded.max() == 2
    assert report.census == take_census(many, KEYS)
    assert list(report.energy_outliers) == [590]
    assert report.duplicates == {300: 10}


def test_labels_under_keys() -> None:
    frames = toy_frames(3)
    for atoms in frames:
        atoms.info["dft"] = np.nan if atoms is frames[1] else -1.0
    assert bad_frames(inspect_frames(frames, LabelKeys(energy="dft"))) == {1: "energy not finite"}


def test_errors_name_the_frame() -> None:
    frames = toy_frames(3)
    frames[2].arrays["f"] = np.zeros((len(frames[2]), 2))
    with pytest.raises(ValueError, match="frame 2: forces of shape"):
        inspect_frames(frames, LabelKeys(forces="f"))
    with pytest.raises(ValueError, match="no frames"):
        inspect_frames([], KEYS)


@pytest.mark.parametrize("wild", [0, 10, 30])
def test_robust_fit_against_a_linear_program(wild: int) -> None:
    """Least absolute deviations exactly: minimise the sum of t with -t <= values - rows x <= t."""
    rng = np.random.default_rng(wild)
    rows = rng.integers(1, 9, size=(90, 3)).astype(float)
    values = rows @ [-3.0, 5.0, -7.0] + rng.normal(scale=0.1, size=90)
    values[:wild] += rng.exponential(1e4, wild)
    bounds = np.block([[-rows, -np.eye(90)], [rows, -np.eye(90)]])
    exact = linprog([0] * 3 + [1] * 90, bounds, np.concatenate([-values, values]), bounds=[(None, None)] * 93).x[:3]
    np.testing.assert_allclose(robust_fit(rows, values), exact, atol=0.01)  # a tenth of the noise


def test_robust_fit_of_too_little() -> None:
    """Of columns that nothing tells apart, each takes its share."""
    np.testing.assert_allclose(robust_fit(np.ones((5, 2)), np.full(5, 4.0)), [2.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(robust_fit(np.array([[2.0, 0.0]]), np.array([6.0])), [3.0, 0.0], atol=1e-6)
