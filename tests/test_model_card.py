"""The measurements of the model card, against ASE and the package's own evaluation."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.data import covalent_radii
from ase.optimize import BFGS
from ase.vibrations import Vibrations
from toy_data import toy_force_field, toy_frames

from ase_mlip.evaluate import evaluate_frames

sys.path.insert(0, "data")
import card_figure
import card_motion
import card_parts
import card_text

MODEL = {"name": "toy", "parameters": 7, "elements": ["H", "O"], "cutoff": 4.0, "repulsion": False}


def emt_forces(frames: list[Atoms]) -> list[np.ndarray]:
    for frame in frames:
        frame.calc = EMT()
    return [frame.get_forces() for frame in frames]


@pytest.mark.parametrize("name", ["H2O", "CO2"])
def test_frequencies_are_those_of_ase(name: str, tmp_path: Path) -> None:
    atoms = molecule(name)
    atoms.calc = EMT()
    BFGS(atoms, logfile=None).run(fmax=1e-4)
    oracle = Vibrations(atoms, name=str(tmp_path / "vibrations"))
    oracle.run()
    found = card_parts.frequencies(atoms, emt_forces)
    expected = oracle.get_frequencies()[-len(found) :]
    assert len(found) == {"H2O": 3, "CO2": 4}[name]
    real = found > 0
    np.testing.assert_allclose(found[real], expected[real].real, atol=3.0)


def test_errors_are_those_of_evaluate() -> None:
    frames = toy_frames(6)
    for number, frame in enumerate(frames):
        frame.info |= {"config_type": ("md", "dimer")[number % 2], "smiles": "O", "temperature": 300.0}
    field = toy_force_field()
    strange = molecule("CO")
    found = card_parts.errors(field, [*frames, strange])
    expected = evaluate_frames(field, frames).summary()
    assert found["left_out"] == 1
    assert found["groups"]["all"]["energy_mae"] == pytest.approx(1e3 * expected["energy_mae"], rel=1e-4)
    assert found["groups"]["all"]["force_rmse"] == pytest.approx(1e3 * expected["forces_rmse"], rel=1e-4)
    assert found["groups"]["300-1000 K"]["frames"] == 3


def test_walls_know_a_curve_that_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Morse curve rises all the way in; one with a hole at half the distance does not."""

    def scans(field: object, pairs: object, distances: np.ndarray, dtype: str) -> list[card_parts.DimerScan]:
        x = 1.32 * distances
        morse = 4.0 * (1 - np.exp(-2 * (x - 1.25))) ** 2 - 4.0
        hole = morse - 400.0 * np.exp(-(((x - 0.6) / 0.05) ** 2))
        return [card_parts.DimerScan(("O", "O"), x, morse), card_parts.DimerScan(("H", "O"), x, hole)]

    monkeypatch.setattr(card_parts, "dimer_scan", scans)
    found = card_parts.walls(toy_force_field())
    assert found["O-O"]["equilibrium"] == pytest.approx(1.25, abs=0.01)
    assert found["O-O"]["rises"]
    assert found["O-O"]["x"][0] == pytest.approx(0.4, abs=0.01)
    assert 0.6 < found["H-O"]["turn"] < 0.75


def test_random_structures_are_sensible_and_the_same_each_time() -> None:
    first, second = (card_motion.random_structures((1, 8, 17), 12) for _ in range(2))
    assert all(a == b for a, b in zip(first, second, strict=True))
    for atoms in first:
        radii = covalent_radii[atoms.numbers]
        ratios = atoms.get_all_distances(mic=bool(atoms.pbc.any())) / (radii[:, None] + radii)
        assert ratios[np.triu_indices(len(atoms), 1)].min() > 0.4
    assert [bool(atoms.pbc.all()) for atoms in first[:4]] == [False, True, False, True]


def test_broken_bond_is_found() -> None:
    start = molecule("H2O", cell=(5.0, 5.0, 5.0), pbc=True)
    start.wrap()  # the bonds go through the walls
    whole, broken = start.copy(), start.copy()
    whole.positions += 1.0
    broken.set_distance(0, 1, 1.5, fix=0, mic=True)
    index, bond = card_motion.torn(start, [start, whole, broken])
    assert index == 2
    assert bond == "O0-H1 at 1.50 Angstrom"
    assert card_motion.torn(start, [start, whole]) == (None, None)


def test_card_of_parts_that_are_done(tmp_path: Path) -> None:
    field = toy_force_field()
    found = {"model": MODEL, "date": "today", "versions": {"ase": "3"}, "walls": {"rows": card_parts.walls(field)}}
    text = card_text.card(found)
    assert "of 3 |" in text
    assert "Not measured." in text
    card_figure.draw(found, tmp_path / "card.png")
    assert (tmp_path / "card.png").stat().st_size > 10_000


def test_dynamics_are_summed_up(tmp_path: Path) -> None:
    """Twenty steps of each; the second call finds the first one's frames and says the same."""
    field, starts = toy_force_field(), {"O": molecule("H2O"), "[H][H]": molecule("H2")}
    first, second = (card_motion.constant_temperature(field, starts, 300.0, 0.01, tmp_path) for _ in range(2))
    assert first == second
    assert first["O"]["ps"] == 0.01
    assert first["O"]["problem"] is None
    energy = card_motion.constant_energy(field, {"O": starts["O"]}, 0.01)
    assert abs(energy["O"]["drift"]) < 100.0
    assert len(energy["O"]["ps"]) == len(energy["O"]["change"]) > 10
    found = {"model": MODEL, "date": "today", "versions": {}, "nve": {"rows": energy, "asked_ps": 0.01}}
    found["nvt"] = {"kelvin": {"300": first, "600": first}, "asked_ps": 0.01}
    assert "0.01 ps at 600 K without a broken bond or NaN | " in card_text.card(found)
    card_figure.draw(found, tmp_path / "card.png")
