"""Frames worth labelling: deviations against the calculator, planted frames found, duplicates and faults left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation
from toy_data import toy_committee, toy_force_field, toy_frames
from typer.testing import CliRunner

import ase_mlip.select as select_module
from ase_mlip import cli
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.fingerprint import farthest_points, fingerprints, join_points
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph
from ase_mlip.predictor import Prediction
from ase_mlip.report.selection import plot_selection
from ase_mlip.select import Scan, choose_frames, describe_selected, scan_frames, select_frames, write_frames

MIRROR = np.diag([1.0, 1.0, -1.0])


@pytest.fixture(scope="module")
def committee() -> ForceField:
    """Three random heads above a base, for H and O."""
    return toy_committee(seed=4)


def silent(line: str) -> None:
    """Print nothing."""


def water(bend: float, stretch: float = 1.0) -> ase.Atoms:
    """A water molecule whose hydrogens are moved: `bend` in Angstrom, `stretch` of the bonds."""
    atoms = molecule("H2O")
    atoms.positions[1:] = atoms.positions[0] + stretch * (atoms.positions[1:] - atoms.positions[0])
    atoms.positions[1, 2] += bend
    return atoms


def disguised(atoms: ase.Atoms, seed: int) -> ase.Atoms:
    """The same structure: turned, mirrored, shifted and in another order."""
    rng = np.random.default_rng(seed)
    other = atoms[rng.permutation(len(atoms))]
    turn = Rotation.random(random_state=seed).as_matrix() @ MIRROR
    other.set_cell(other.cell.array @ turn.T)
    other.positions = other.positions @ turn.T + rng.normal(size=3)
    return other


def dense(frames: Sequence[ase.Atoms], cutoff: float = 4.0) -> np.ndarray:
    """Fingerprints with the columns that are in use."""
    points = fingerprints(frames, cutoff).toarray()
    return points[:, points.any(axis=0)]


def test_scan_against_the_calculator(committee: ForceField) -> None:
    """Frames of different sizes, in batches, with labels that are not read."""
    frames = [*toy_frames(5), water(0.1), molecule("H2O2"), ase.Atoms("O")]
    frames[1].calc = SinglePointCalculator(frames[1], energy=np.nan)
    scan = scan_frames(committee, frames, batch_size=3)
    assert scan.faults == {}
    for index, atoms in enumerate(frames):
        calculator = MLIPCalculator(committee, dtype="float64")
        energy = calculator.get_property("energy_std", atoms) / len(atoms)
        forces = calculator.get_property("forces_std", atoms).max()
        assert scan.energy_std_per_atom[index] == pytest.approx(energy, rel=1e-4)
        assert scan.max_forces_std[index] == pytest.approx(forces, rel=1e-4, abs=1e-6)
    assert list(scan.ranked()) == sorted(range(len(frames)), key=lambda index: -scan.max_forces_std[index])
    (best,) = select_frames(committee, frames, 1, log=silent)
    assert best.index == scan.ranked()[0]
    assert best.max_forces_std == pytest.approx(scan.max_forces_std.max(), rel=1e-5)
    assert best.energy_std_per_atom == pytest.approx(scan.energy_std_per_atom[best.index], rel=1e-5)


def test_faulty_frames_are_reported_and_never_selected(committee: ForceField) -> None:
    good = toy_frames(4)
    overlap, undefined, unknown, exploded = (water(0.0) for _ in range(4))
    overlap.positions[2] = overlap.positions[0] + 0.2
    undefined.positions[1] = np.nan
    unknown.numbers[0] = 79
    exploded.positions[2] += 1e4
    image = ase.Atoms("H", cell=(0.2, 5, 5), pbc=True)
    frames = [overlap, good[0], undefined, unknown, good[1], exploded, good[2], ase.Atoms(), good[3], image]
    lines: list[str] = []
    selected = select_frames(committee, frames, len(frames), log=lines.append)
    assert {one.index for one in selected} == {1, 4, 6, 8}
    expected = {
        0: "atoms 0 (O) and 2 (H) are only 0.35 Angstrom apart",
        2: "positions must be finite",
        3: "the model does not know Au",
        5: "have its atoms flown apart?",
        7: "there are no atoms",
        9: "atoms 0 (H) and 0 (H) are only 0.2 Angstrom apart",
    }
    assert len(lines) == len(expected)
    for line, (index, message) in zip(lines, expected.items(), strict=True):
        assert line.startswith(f"frame {index} is not selected: ")
        assert message in line
    alone = scan_frames(committee, good)
    np.testing.assert_allclose(scan_frames(committee, frames).max_forces_std[[1, 4, 6, 8]], alone.max_forces_std)
    lines.clear()
    with pytest.raises(ValueError, match=r"none of the 15 frames can be selected; frame 0: .*positions must be finite"):
        select_frames(committee, [undefined] * 15, 1, log=lines.append)
    assert len(lines) == 11
    assert lines[-1] == "5 more frames are not selected for such reasons"


def test_deviations_beyond_sense(committee: ForceField, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = toy_frames(6)
    scan = scan_frames(committee, frames)
    order = scan.ranked()
    between = float(scan.max_forces_std[order[1:3]].mean())
    monkeypatch.setattr(select_module, "ABSURD_STD", between)
    again = scan_frames(committee, frames)
    assert set(again.faults) == set(order[:2].tolist())
    assert list(again.ranked()) == list(order[2:])
    assert "a force deviates by" in again.faults[int(order[0])]
    heads = committee.params["head_new_1"]
    broken = {**committee.params, "head_new_1": {name: value * np.nan for name, value in heads.items()}}
    scan = scan_frames(replace(committee, params=broken), frames)
    assert set(scan.faults.values()) == {"the prediction is not finite"}
    assert len(scan.faults) == 6


def crowding(force_field: ForceField, graph: Graph, level: str | None) -> Prediction:
    """Two members that differ by a force that grows steeply as neighbours come closer than 0.9 Angstrom."""
    vectors = np.asarray(graph.vectors(force_field.cutoff))
    close = np.exp(-20 * (np.linalg.norm(vectors, axis=-1) - 0.9)) * graph.slot_mask
    forces = np.zeros((2, *graph.positions.shape))
    forces[1, :, 0] = close.sum(axis=1)
    return Prediction(np.zeros((2, graph.num_graphs)), forces, None, None)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deviations that are known by hand."""
    monkeypatch.setattr(select_module, "member_predictions", crowding)


@pytest.mark.usefixtures("crowded")
def test_planted_frames_are_found(committee: ForceField) -> None:
    """Among many usual frames three odd ones, each of them several times in disguise."""
    frames = [water(0.002 * number) for number in range(30)]
    odd = {3: water(0.0, 0.8), 14: water(-0.3, 0.85), 22: water(0.0, 0.84)}
    for index, atoms in odd.items():
        frames[index] = atoms
    for number, atoms in enumerate(odd.values()):
        frames += [disguised(atoms, seed=10 * number + copy) for copy in range(4)]
    selected = select_frames(committee, frames, 3, batch_size=7, log=silent)
    originals = [*range(30), *(index for index in odd for _ in range(4))]
    assert {originals[one.index] for one in selected} == set(odd)
    distances = [float(np.min(frames[one.index].get_all_distances()[np.triu_indices(3, 1)])) for one in selected]
    assert distances[0] == min(distances)
    by_hand = np.exp(-20 * (frames[selected[0].index].get_all_distances() - 0.9))
    np.fill_diagonal(by_hand, 0.0)
    assert selected[0].max_forces_std == pytest.approx(by_hand.sum(axis=1).max() / 2**0.5, rel=1e-5)
    usual = select_frames(committee, frames, 40, pool_factor=1, log=silent)
    assert len({originals[one.index] for one in usual}) == len(usual) == 30


@pytest.mark.usefixtures("crowded")
def test_only_the_deviation_counts_with_a_small_pool(committee: ForceField) -> None:
    frames = [water(0.0, 1.0 - 0.01 * number) for number in range(12)]
    selected = select_frames(committee, frames, 4, pool_factor=1, log=silent)
    assert {one.index for one in selected} == {8, 9, 10, 11}
    wide = select_frames(committee, frames, 4, pool_factor=3, log=silent)
    assert [one.index for one in wide[:2]] == [11, 0]


@pytest.mark.usefixtures("crowded")
def test_frames_that_load_lazily(committee: ForceField) -> None:
    """Every frame is read a few times, and only those of the pool once more."""
    read: list[int] = []

    class Lazy(Sequence[ase.Atoms]):
        def __len__(self) -> int:
            return 50

        def __getitem__(self, index: Any) -> Any:
            if not 0 <= index < 50:
                raise IndexError(index)
            read.append(index)
            return water(0.0, 1.0 - 0.002 * index)

    selected = select_frames(committee, Lazy(), 2, pool_factor=2, log=silent)
    assert selected[0].index == 49
    assert read[0] == 0
    counts = np.bincount(read)
    assert (counts[:46] == 3).all() or (counts[1:46] == 3).all()
    assert set(read[-4:]) == {46, 47, 48, 49}


def test_wrong_arguments(committee: ForceField) -> None:
    frames = toy_frames(2)
    for name in ("count", "batch_size", "pool_factor"):
        with pytest.raises(ValueError, match=f"{name}=0: give a whole number of at least 1"):
            select_frames(committee, frames, **{"count": 1, name: 0}, log=silent)
    with pytest.raises(ValueError, match="no level 'old'"):
        select_frames(committee, frames, 1, level="old", log=silent)
    for force_field, level in ((committee, "base"), (toy_force_field(), None)):
        with pytest.raises(ValueError, match="'base' has no committee of heads; fine-tune with n_heads > 1"):
            select_frames(force_field, frames, 1, level=level, log=silent)


def test_fingerprint_knows_no_rotation_order_or_size() -> None:
    crystal = bulk("Cu", cubic=True)
    crystal.symbols[1] = "O"
    crystal.rattle(0.1, seed=1)
    for atoms in (molecule("CH3CH2OH"), crystal):
        other = disguised(atoms, seed=2)
        wrapped = atoms.copy()
        wrapped.wrap()
        same = dense([atoms, other, wrapped, *([atoms.repeat((2, 1, 3))] if atoms.pbc.all() else [])])
        np.testing.assert_allclose(same - same[0], 0.0, atol=1e-12)
    moved = crystal.copy()
    moved.positions[0, 0] += 0.01
    changed = crystal.copy()
    changed.symbols[[0, 1]] = ["O", "Cu"]
    swapped, alone = crystal.copy(), [ase.Atoms("H"), ase.Atoms("O")]
    swapped.symbols[2] = "Ni"
    for others in ([crystal, moved], [crystal, changed], [crystal, swapped], alone):
        first, second = dense(others)
        assert np.linalg.norm(first - second) > 1e-3
    pairs = [ase.Atoms("OH", positions=[[0, 0, 0], [0, 0, d]]) for d in (3.99, 4.0 - 1e-6, 4.0 + 1e-6)]
    near, far, gone = dense(pairs)
    assert np.linalg.norm(far - gone) < 1e-9
    assert np.linalg.norm(near - gone) < 1e-4


def test_farthest_points_against_brute_force() -> None:
    frames = [water(0.05 * number, 1 + 0.03 * (number % 5)) for number in range(12)]
    frames += [disguised(frames[4], 1), disguised(frames[0], 2)]
    points, distances = fingerprints(frames, 4.0), cdist(dense(frames), dense(frames))
    expected = [0]
    while len(expected) < 12:
        expected.append(int(distances[expected].min(axis=0).argmax()))
    nothing = fingerprints([], 4.0)
    assert farthest_points(points, 5, nothing) == expected[:5]
    assert farthest_points(points, 99, nothing) == expected
    rest = farthest_points(points[6:], 3, points[:6])
    nearest = distances[:6, 6:].min(axis=0)
    assert rest[0] == nearest.argmax()
    assert not {6, 7} & set(rest)  # the last two repeat taken ones
    assert join_points(points[:2], points[2:]).shape == points.shape


def test_what_is_written(tmp_path: Path) -> None:
    frames = [water(0.1 * number) for number in range(6)]
    frames[2].info["temperature"] = 300
    frames[2].calc = SinglePointCalculator(frames[2], energy=-1.0)
    scan = Scan(np.linspace(0.0, 0.05, 6), np.array([0.1, 0.2, 0.9, 0.3, np.nan, 0.0]), {4: "broken"})
    selected = choose_frames(scan, frames, 2, 4.0)
    assert selected[0].index == 2
    assert selected[0].energy_std_per_atom == pytest.approx(0.02)
    expected = {"temperature": 300, "energy_std": pytest.approx(0.06), "max_forces_std": 0.9, "source_index": 2}
    for name in ("picked.extxyz", "picked.traj"):
        write_frames(tmp_path / name, frames, selected)
        copy = ase.io.read(tmp_path / name, 0)
        assert copy.calc is None
        assert copy.info == expected
    assert set(frames[2].info) == {"temperature"}
    with pytest.raises(ValueError, match=r"picked\.cif: give a name that ends in \.extxyz"):
        write_frames(tmp_path / "picked.cif", frames, selected)
    title, first, _, median = describe_selected(scan, selected)
    assert title.split() == "frame energy std, meV/atom largest force std, meV/Angstrom".split()
    assert first.split() == ["2", "20.00", "900.0"]
    assert median.split() == ["median", "20.00", "200.0", "of", "5", "frames"]
    plot_selection(tmp_path / "picked.png", scan, selected)
    assert (tmp_path / "picked.png").stat().st_size > 5_000


def test_command(committee: ForceField, tmp_path: Path) -> None:
    model, data, output = (tmp_path / name for name in ("model.safetensors", "md.extxyz", "picked.extxyz"))
    committee.save(model)
    frames = [*toy_frames(6), water(0.0)]
    frames[3].positions[0] = frames[3].positions[1]
    ase.io.write(data, frames)
    arguments = ["select", str(model), str(data), "--count", "3", "--output", str(output), "--level", "new"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "frame 3 is not selected: atoms 0 (O) and 1 (H) are only 0 Angstrom apart" in result.output
    expected = select_frames(committee, frames, 3, log=silent)
    picked = ase.io.read(output, ":")
    assert [atoms.info["source_index"] for atoms in picked] == [one.index for one in expected]
    for atoms, one in zip(picked, expected, strict=True):
        assert atoms.calc is None
        np.testing.assert_allclose(atoms.positions, frames[one.index].positions, atol=1e-7)
        assert atoms.info["max_forces_std"] == pytest.approx(one.max_forces_std, rel=1e-4)
        assert atoms.info["energy_std"] == pytest.approx(one.energy_std_per_atom * len(atoms), rel=1e-4)
        assert f"{1e3 * one.max_forces_std:.1f}" in result.output
    assert output.with_suffix(".png").is_file()
    assert result.output.endswith(f"wrote {output}\n")
