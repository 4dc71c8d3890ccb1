"""Reading labels: everything that frames carry, from every place and file format, and errors that name the frame."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path
from types import ModuleType

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from toy_data import CUTOFF, E0, toy_frames

from ase_mlip import spill
from ase_mlip.dataset import (
    Example,
    LabelKeys,
    MissingLabel,
    elements_of,
    make_examples,
    read_frames,
    read_labels,
    require_labels,
    take_census,
)
from ase_mlip.graph import Graph, batch
from ase_mlip.spill import SpilledList
from ase_mlip.splits import read_split
from ase_mlip.structure import InvalidStructure

NO_KEYS = LabelKeys()
XX, YY, ZZ, YZ, XZ, XY = VOIGT = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
STRESS = np.array([[XX, XY, XZ], [XY, YY, YZ], [XZ, YZ, ZZ]])


def labelled(symbols: str = "OH", **labels: object) -> ase.Atoms:
    """A periodic frame with these labels attached."""
    atoms = ase.Atoms(symbols, positions=np.arange(3.0 * len(ase.Atoms(symbols))).reshape(-1, 3), cell=[9] * 3)
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def test_labels_of_the_attached_calculator() -> None:
    atoms = labelled(energy=-1.5, forces=np.eye(3)[:2], stress=VOIGT)
    labels = read_labels(atoms, NO_KEYS)
    assert labels["energy"] == -1.5
    np.testing.assert_array_equal(labels["forces"], np.eye(3)[:2])
    np.testing.assert_array_equal(labels["stress"], STRESS)
    assert read_labels(ase.Atoms("H"), NO_KEYS) == {}


def test_labels_under_keys_win_over_the_calculator() -> None:
    atoms = labelled(energy=-1.5, forces=np.zeros((2, 3)))
    atoms.info["dft_energy"] = -2.5
    atoms.arrays["dft_forces"] = np.ones((2, 3))
    atoms.calc.results["dft_stress"] = VOIGT
    labels = read_labels(atoms, LabelKeys("dft_energy", "dft_forces", "dft_stress"))
    assert labels["energy"] == -2.5
    np.testing.assert_array_equal(labels["forces"], np.ones((2, 3)))
    np.testing.assert_array_equal(labels["stress"], STRESS)
    # a key that a frame lacks is a missing label, not the calculator's
    assert set(read_labels(atoms, LabelKeys("absent", None))) == {"forces"}


@pytest.mark.parametrize("stress", [VOIGT, STRESS, STRESS.ravel(), STRESS.tolist()])
def test_stress_in_every_form(stress: object) -> None:
    atoms = labelled()
    atoms.info["virial_stress"] = stress
    np.testing.assert_array_equal(read_labels(atoms, LabelKeys(stress="virial_stress"))["stress"], STRESS)


def test_forces_of_a_wrong_shape() -> None:
    atoms = labelled()
    atoms.info["f"] = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"frame 0: forces of shape \(3, 3\) for 2 atoms"):
        make_examples([atoms], (1, 8), CUTOFF, np.ones(1), LabelKeys(forces="f"))


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("energy", np.zeros(2), r"frame 1: energy of shape \(2,\) for 2 atoms; expected one number"),
        ("energy", "low", "frame 1: the label energy is 'low'; expected numbers"),
        ("energy", {"a": 1}, r"frame 1: the label energy is \{'a': 1\}; expected numbers"),
        ("forces", np.zeros((2, 2)), r"frame 1: forces of shape \(2, 2\) for 2 atoms; expected \(2, 3\)"),
        ("stress", np.zeros(5), r"frame 1: stress of shape \(5,\) for 2 atoms; expected \(3, 3\), \(9,\) or \(6,\)"),
    ],
)
def test_unusable_labels_name_the_frame_at_once(label: str, value: object, message: str) -> None:
    frames = [labelled(), labelled()]
    frames[1].info["key"] = value
    keys = LabelKeys(**{label: "key"})
    for function in (take_census, lambda *given: make_examples(given[0], (1, 8), CUTOFF, np.ones(1), given[1])):
        with pytest.raises(ValueError, match=message):
            function(frames, keys)


def test_an_energy_in_brackets_is_a_number() -> None:
    atoms = labelled()
    atoms.info["e"] = [-1.5]
    assert read_labels(atoms, LabelKeys(energy="e"))["energy"].shape == ()


def write_database(path: Path, frames: list[ase.Atoms]) -> None:
    """Frames into an ASE database."""
    with ase.db.connect(path) as database:
        for atoms in frames:
            database.write(atoms)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.db", "a.json"])
def test_file_formats_keep_raw_labels(name: str, constrained: bool, tmp_path: Path) -> None:
    frames = toy_frames(3)
    expected = [(atoms.calc.results["energy"], atoms.calc.results["forces"].copy()) for atoms in frames]
    if constrained:
        for atoms in frames:
            atoms.set_constraint(FixAtoms([0]))
            assert not atoms.get_forces()[0].any()
    if name.endswith(("db", "json")):
        write_database(tmp_path / name, frames)
    else:
        ase.io.write(tmp_path / name, frames)
    found = [read_labels(atoms, NO_KEYS) for atoms in read_frames(tmp_path / name)]
    assert len(found) == 3
    for labels, original, (energy, forces) in zip(found, frames, expected, strict=True):
        assert labels["energy"] == pytest.approx(energy, abs=1e-7)
        np.testing.assert_allclose(labels["forces"], forces, atol=1e-7)
        assert np.abs(forces[0]).max() > 0.01
        np.testing.assert_allclose(labels["stress"], original.get_stress(voigt=False), atol=1e-7)


@pytest.mark.parametrize(("suffix", "module"), [("xz", lzma), ("gz", gzip), ("bz2", bz2)])
@pytest.mark.parametrize("inner", ["traj", "extxyz"])
def test_compressed_files(suffix: str, module: ModuleType, inner: str, tmp_path: Path) -> None:
    frames = toy_frames(3)
    ase.io.write(tmp_path / f"plain.{inner}", frames)
    packed = tmp_path / f"a.{inner}.{suffix}"
    packed.write_bytes(module.compress((tmp_path / f"plain.{inner}").read_bytes()))
    found = [float(read_labels(atoms, NO_KEYS)["energy"]) for atoms in read_frames(packed)]
    assert found == pytest.approx([atoms.get_potential_energy() for atoms in frames], abs=1e-7)
    last = read_frames(f"{packed}@-1:")
    assert [len(atoms) for atoms in last] == [len(frames[-1])]


def test_slices_of_files_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "a@b.traj"
    ase.io.write(path, toy_frames(5))
    assert len(read_frames(path)) == 5
    assert [len(atoms) for atoms in read_frames(f"{path}@1:4")] == [2, 3, 2]
    with pytest.raises(FileNotFoundError, match=r"no file '.*gone.traj'"):
        read_frames(tmp_path / "gone.traj")
    with pytest.raises(ValueError, match="no frames"):
        read_frames([])


def test_what_is_no_set_of_frames() -> None:
    with pytest.raises(TypeError, match="give a list of Atoms, even for a single frame"):
        read_frames(ase.Atoms("H2"))
    with pytest.raises(TypeError, match="the frames are str objects; give a file that ASE reads, or Atoms"):
        read_frames(["a.xyz"])


def test_sequences_are_taken_as_they_are() -> None:
    frames = toy_frames(2)
    assert read_frames(frames) is frames
    on_disk = SpilledList(frames)
    assert read_frames(on_disk) is on_disk
    assert [id(atoms) for atoms in read_frames(iter(frames))] == [id(atoms) for atoms in frames]


@pytest.fixture
def spill_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all data were large."""
    monkeypatch.setattr(spill, "SPILL_BYTES", 0)


@pytest.mark.parametrize("name", ["a.traj", "a.extxyz", "a.db"])
@pytest.mark.usefixtures("spill_everything")
def test_large_files_are_read_to_disk(name: str, tmp_path: Path) -> None:
    """The whole road of large data gives what the same frames in memory give."""
    frames = toy_frames(12)
    frames[3].info["remark"] = "x"
    frames[4].set_constraint(FixAtoms([0]))
    if name.endswith("db"):
        write_database(tmp_path / name, frames)
    else:
        ase.io.write(tmp_path / name, frames)
    in_memory = list(ase.io.iread(tmp_path / name))
    found = read_frames(tmp_path / name)
    assert isinstance(found, SpilledList)
    assert [*found] == in_memory
    assert [a.info for a in found] == [a.info for a in in_memory]
    assert found[4].constraints[0].index.tolist() == [0]
    assert take_census(found, NO_KEYS) == take_census(in_memory, NO_KEYS)
    assert elements_of(found[:1], found) == {1, 8}
    parts = read_split(found, 0.25, NO_KEYS, ["energy"], 3, lambda _: None)
    expected = read_split(in_memory, 0.25, NO_KEYS, ["energy"], 3, lambda _: None)
    for part, other in zip(parts, expected, strict=True):
        assert not isinstance(part, list)
        made, wanted = (make_examples(iter(p), (1, 8), CUTOFF, np.ones(1), NO_KEYS) for p in (part, other))
        assert isinstance(made, SpilledList)
        assert len(made) == len(wanted) == len(other)
        for one, two in zip(made, wanted, strict=True):
            assert_same(one, two)


def assert_same(first: Example, second: Example) -> None:
    """Every array, in value and type."""
    for part in ("graph", "targets"):
        for field, array in vars(getattr(first, part)).items():
            other = getattr(getattr(second, part), field)
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)


@pytest.mark.usefixtures("spill_everything")
def test_errors_name_the_frame_of_large_data_too() -> None:
    frames = [labelled("OH", energy=0.0), labelled("OF", energy=0.0)]
    with pytest.raises(InvalidStructure, match="frame 1: the model does not know F"):
        make_examples(SpilledList(frames), (1, 8), CUTOFF, np.ones(1), NO_KEYS)


@pytest.mark.parametrize(("away", "kind"), [(0, np.int8), (100, np.int8), (200, np.int16), (-(2**40), np.float64)])
def test_shifts_take_few_bytes_and_lose_nothing(away: int, kind: type) -> None:
    """Also of an atom that has wandered many cells away."""
    atoms = labelled("OH", energy=0.0)
    atoms.pbc = True
    atoms.cell *= 0.4
    atoms.positions[1] += away * atoms.cell.array[2]
    (example,) = make_examples([atoms], (1, 8), CUTOFF, np.ones(1), NO_KEYS)
    assert example.graph.shifts.dtype == kind
    graph = Graph.from_atoms(atoms, (1, 8), CUTOFF)
    assert graph.shifts.any()
    np.testing.assert_array_equal(example.graph.shifts, graph.shifts)
    joined, expected = batch([example.graph]), batch([graph])
    assert joined.shifts.dtype == np.float64
    np.testing.assert_array_equal(joined.shifts, expected.shifts)
    np.testing.assert_array_equal(example.graph.vectors(CUTOFF), graph.vectors(CUTOFF))


def test_mixed_frames_get_masks_not_zeros() -> None:
    molecule = labelled(energy=1.0, stress=VOIGT)
    molecule.cell = None
    sheet = labelled(energy=1.0, stress=VOIGT)
    sheet.cell[2], sheet.pbc = 0.0, (True, True, False)
    frames = [
        labelled(energy=-1.0),
        labelled(forces=np.ones((2, 3))),
        labelled(energy=0.0, forces=np.ones((2, 3)), stress=VOIGT),
        ase.Atoms("H"),
        molecule,
        sheet,
    ]
    targets = [example.targets for example in make_examples(frames, (1, 8), CUTOFF, np.ones(1), NO_KEYS, weight=0.5)]
    assert [bool(t.energy_mask[0]) for t in targets] == [True, False, True, False, True, True]
    assert [t.forces_mask.tolist() for t in targets[:4]] == [[False] * 2, [True] * 2, [True] * 2, [False]]
    # without a three-dimensional cell there is no stress to compare with
    assert [bool(t.stress_mask[0]) for t in targets] == [False, False, True, False, False, False]
    assert [t.weight.tolist() for t in targets] == [[0.5]] * 6
    np.testing.assert_array_equal(targets[2].stress[0], STRESS)
    assert targets[0].forces.shape == (2, 3)


def test_census() -> None:
    frames = [labelled("OH", energy=-1.0), labelled("HH", forces=np.ones((2, 3)), energy=1.0), ase.Atoms("C")]
    frames[2].info["remark"] = "x"
    census = take_census(frames, NO_KEYS)
    assert (census.frames, census.atoms) == (3, 5)
    assert census.elements == {"H": 3, "C": 1, "O": 1}
    assert census.labels == {"energy": 2, "forces": 1, "stress": 0}
    assert census.keys == ("energy", "forces", "remark")
    assert "3 frames, 5 atoms (H:3 C:1 O:1)" in str(census)


def test_missing_label_lists_what_is_there() -> None:
    atoms = ase.Atoms("H")
    atoms.info |= {"REF_energy": 1.0, "config_type": "x"}
    atoms.arrays["REF_forces"] = np.zeros((1, 3))
    with pytest.raises(MissingLabel) as caught:
        require_labels(take_census([atoms], NO_KEYS), ["energy"], NO_KEYS)
    message = str(caught.value)
    assert "energy in the attached calculator" in message
    assert "the frames have REF_energy, REF_forces, config_type" in message
    assert "did you mean energy='REF_energy'?" in message
    keys = LabelKeys("REF_energy", "REF_force")
    census = take_census([atoms], keys)
    require_labels(census, ["energy"], keys)
    with pytest.raises(MissingLabel, match=r"forces under the key 'REF_force'.*forces='REF_forces'"):
        require_labels(census, ["energy", "forces"], keys)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_labels_name_the_frame(bad: float) -> None:
    frames = [labelled(energy=-1.0, forces=np.zeros((2, 3))) for _ in range(4)]
    frames[2].calc.results["forces"][1, 1] = bad
    with pytest.raises(ValueError, match="frame 2: the label forces is not finite"):
        make_examples(frames, (1, 8), CUTOFF, np.ones(1), NO_KEYS)


def test_unknown_elements_name_the_frame() -> None:
    frames = [labelled("OH", energy=0.0), labelled("OF", energy=0.0)]
    with pytest.raises(InvalidStructure, match=r"frame 1: the model does not know F \(Z=9\); it knows H, O"):
        make_examples(frames, (1, 8), CUTOFF, np.ones(1), NO_KEYS)


def test_split_is_disjoint_whole_and_reproducible() -> None:
    frames = toy_frames(20)
    lines: list[str] = []
    parts = read_split(frames, 0.25, NO_KEYS, ["energy"], 0, lines.append)
    again = read_split(frames, 0.25, NO_KEYS, ["energy"], 0, lines.append)
    other = read_split(frames, 0.25, NO_KEYS, ["energy"], 1, lines.append)
    assert [len(part) for part in parts] == [15, 5]
    assert {id(atoms) for part in parts for atoms in part} == {id(atoms) for atoms in frames}
    assert [id(a) for a in parts[1]] == [id(a) for a in again[1]] != [id(a) for a in other[1]]
    assert "20 frames" in lines[0]


def test_split_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="leaves 3 to train on and 0 to validate on"):
        read_split(toy_frames(3), 0.1, NO_KEYS, ["energy"], 0, lambda _: None)
    with pytest.raises(MissingLabel):
        read_split(toy_frames(3), [ase.Atoms("H")], NO_KEYS, ["energy"], 0, lambda _: None)


def test_toy_labels_are_what_they_claim() -> None:
    """The helper's own contract: energies hold the E0, forces are their negative gradient."""
    first, other = toy_frames(1)[0], toy_frames(1, e0={"H": E0["H"] + 1, "O": E0["O"]})[0]
    assert other.get_potential_energy() - first.get_potential_energy() == pytest.approx(2.0)
    np.testing.assert_array_equal(first.get_forces(), other.get_forces())
