"""The base data set keeps its promises: what is held out, what is left out, and how the files are laid out."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import ase
import numpy as np
import pytest

from ase_mlip import ForceField, evaluate_frames
from ase_mlip.dataset import read_frames
from ase_mlip.frame_files import iterate_file

ELEMENTS = ["H", "C", "N", "O", "F", "P", "S", "Cl", "Br"]
SUMMARY = json.loads(Path("data/base.json").read_text())
DFT_SUMMARY = json.loads(Path("data/r2scan.json").read_text())

R2SCAN_ERRORS = {  # meV/Angstrom
    "r2scan_test": 76.9, "glycine_r2scan": 65.2, "water_hexamer_r2scan": 61.2, "malonaldehyde_r2scan": 65.1
}  # fmt: skip
# Files that base models train on.
TRAINING = ("train", "more", "neighbours", "water", "random", "relatives", "heaps", "boxes")


def molecules(name: str) -> set[str]:
    """The molecules and radicals of a file that occur by themselves."""
    return {smiles for smiles in SUMMARY[name]["smiles"] if "." not in smiles}


def groups(name: str) -> set[str]:
    """The dimers and clusters of a file, but for boxes and clusters of water, where the frames are held out."""
    return {smiles for smiles in SUMMARY[name]["smiles"] if "." in smiles and {*smiles.split(".")} != {"O"}}


@pytest.fixture(scope="module", params=["valid", "test"])
def held_out(request: pytest.FixtureRequest) -> tuple[str, list[ase.Atoms]]:
    return request.param, list(read_frames(f"data/base_{request.param}.extxyz.xz"))


def test_molecules_are_in_one_file() -> None:
    """Neither alone nor as a part of a dimer or cluster is a held-out molecule in the training files."""
    parts = {part for name in TRAINING for smiles in SUMMARY[name]["smiles"] for part in smiles.split(".")}
    assert not molecules("train") & molecules("more")
    assert not (molecules("train") | molecules("more")) & molecules("neighbours")
    assert not (molecules("train") | molecules("more") | molecules("neighbours")) & molecules("relatives")
    assert not molecules("valid") & molecules("test")
    assert not (molecules("valid") | molecules("test")) & parts
    assert not (groups("valid") | groups("test")) & groups("train")
    assert not groups("valid") & groups("test")
    assert len(molecules("valid")) >= 20
    assert len(molecules("test")) >= 25


def test_what_fine_tuning_is_measured_on_is_left_out() -> None:
    forbidden = {*SUMMARY["forbidden"]}
    assert {"CCO", "CO", "NCC(=O)O", "O=CC=CO", "CC(=O)Oc1ccccc1C(=O)O"} <= forbidden
    for name in (*TRAINING, "valid", "test"):
        for smiles in SUMMARY[name]["smiles"]:
            assert not forbidden & set(smiles.split("."))
            assert smiles.split(".") != ["O"] * 6


def test_layout_of_the_training_file() -> None:
    """Isolated atoms first, then a fair sample."""
    head = list(islice(iterate_file("data/base_train.extxyz.xz"), 400))
    assert sorted(atoms.get_chemical_formula() for atoms in head[:9]) == sorted(ELEMENTS)
    assert all(len(atoms) > 1 for atoms in head[9:])
    shares = SUMMARY["train"]["config_types"]
    for kind in ("md", "mode", "diatomic"):
        found = sum(atoms.info["config_type"] == kind for atoms in head)
        expected = shares[kind] / SUMMARY["train"]["frames"] * len(head)
        assert abs(found - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("name", [*TRAINING[1:]])
def test_further_frames(name: str) -> None:
    """The further training files have what their summaries say."""
    frames = read_frames(f"data/base_{name}.extxyz.xz")
    assert len(frames) == SUMMARY[name]["frames"]
    assert {atoms.info["smiles"] for atoms in frames} == {*SUMMARY[name]["smiles"]}
    assert {atoms.info["config_type"] for atoms in frames} == {*SUMMARY[name]["config_types"]}


def test_frames_held_out(held_out: tuple[str, list[ase.Atoms]]) -> None:
    """Every element, positions as labelled (five decimals), forces within the limit and without a sum."""
    name, frames = held_out
    assert len(frames) == SUMMARY[name]["frames"]
    assert {symbol for atoms in frames for symbol in atoms.get_chemical_symbols()} == set(ELEMENTS)
    for atoms in frames:
        np.testing.assert_allclose(atoms.positions, atoms.positions.round(5), rtol=0, atol=1e-12)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 60.0
        np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0.0, atol=1e-5 * len(atoms))
        assert ("stress" in atoms.calc.results) == bool(atoms.pbc.all())


@pytest.mark.parametrize("name", ["train", "valid", "test"])
def test_frames_labelled_by_a_density_functional(name: str) -> None:
    """They are of the molecules of the same split and by the method of the other sets; forces have no sum."""
    frames, summary = read_frames(f"data/r2scan_{name}.extxyz.xz"), DFT_SUMMARY[name]
    assert len(frames) == summary["frames"]
    known = {smiles for split in (TRAINING if name == "train" else [name]) for smiles in SUMMARY[split]["smiles"]}
    assert {atoms.info["smiles"] for atoms in frames} == {*summary["smiles"]} <= known
    assert SUMMARY["forbidden"] == DFT_SUMMARY["forbidden"]
    for atoms in frames:
        np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0.0, atol=1e-5 * len(atoms))
    method = next(iter(iterate_file("data/glycine_r2scan.extxyz.xz"))).info["method"]
    assert method == DFT_SUMMARY["method"]


def test_protons_on_their_way() -> None:
    """Nine places of each of 24 paths; none of a molecule that is left out or held out; labelled as the others are."""
    frames, summary = read_frames("data/r2scan_transfers.extxyz.xz"), DFT_SUMMARY["transfers"]
    assert len(frames) == summary["frames"] == 24 * 9
    assert {*Counter(atoms.info["smiles"] for atoms in frames).values()} == {9}
    assert {atoms.info["smiles"] for atoms in frames} == {*summary["smiles"]}
    parts = {part for smiles in summary["smiles"] for part in smiles.split(".")}
    assert not parts & {*molecules("valid"), *molecules("test"), *SUMMARY["forbidden"]}
    for atoms in frames:
        np.testing.assert_allclose(atoms.get_forces().sum(axis=0), 0.0, atol=1e-5 * len(atoms))


@pytest.mark.parametrize(("name", "energy", "forces"), [("default", 3.0, 70.0), ("accurate", 2.7, 57.0)])
def test_shipped_models_on_molecules_they_have_never_seen(name: str, energy: float, forces: float) -> None:
    """Errors on dynamics and modes up to 1000 K, meV/atom and meV/Angstrom: about those of the model card."""
    frames = read_frames("data/base_test.extxyz.xz")
    warm = [a for a in frames if a.info["config_type"] in ("md", "mode") and a.info["temperature"] <= 1000][:200]
    force_field = ForceField.load(name)
    assert force_field.elements == tuple(sorted(ase.Atoms(ELEMENTS).numbers.tolist()))
    errors = evaluate_frames(force_field, warm).summary()
    assert 1e3 * errors["energy_mae"] < energy
    assert 1e3 * errors["forces_mae"] < forces


def test_the_shipped_model_of_a_density_functional() -> None:
    """On molecules that it has never seen it is about as close to PySCF's labels as data/README says."""
    force_field, errors = ForceField.load("r2scan"), {}
    assert list(force_field.levels) == ["r2scan"]
    for name in R2SCAN_ERRORS:
        errors[name] = 1e3 * evaluate_frames(force_field, f"data/{name}.extxyz.xz").summary()["forces_mae"]
    assert errors == {name: pytest.approx(value, rel=0.02) for name, value in R2SCAN_ERRORS.items()}
