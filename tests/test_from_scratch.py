"""What is fitted to a data set before a network exists, against sums written out here."""

from __future__ import annotations

from collections.abc import Iterator

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.neighborlist import neighbor_list
from toy_data import CUTOFF, toy_frames

from ase_mlip import from_scratch
from ase_mlip.dataset import LabelKeys
from ase_mlip.from_scratch import describe_dataset
from ase_mlip.spill import SpilledList

E0 = {1: -13.6, 8: -2040.0}


class OncePassed(SpilledList[ase.Atoms]):
    """Frames that may be iterated over once and not be indexed."""

    passes = 0

    def __iter__(self) -> Iterator[ase.Atoms]:
        self.passes += 1
        assert self.passes == 1
        for number in range(len(self)):
            yield self.item(number)

    def __getitem__(self, index: object) -> object:
        raise AssertionError


def relabelled(per_atom: float) -> list[ase.Atoms]:
    """Toy molecules whose energies are E0 plus so much for each atom."""
    frames = toy_frames(7)
    for atoms in frames:
        atoms.calc.results["energy"] = sum(E0[z] + per_atom for z in atoms.numbers)
    return frames


def isolated_atoms() -> list[ase.Atoms]:
    """One frame of each element."""
    frames = [ase.Atoms([z]) for z in E0]
    for atoms, energy in zip(frames, E0.values(), strict=True):
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return frames


def test_energies_without_isolated_atoms() -> None:
    info = describe_dataset(OncePassed(relabelled(0.0)), CUTOFF, LabelKeys())
    assert info.elements == (1, 8)
    assert info.heads[0].atomic_energies == pytest.approx(tuple(E0.values()))
    assert info.heads[0].shift == 0


@pytest.mark.parametrize("molecules", [[], relabelled(-0.3)])
def test_energies_of_isolated_atoms(molecules: list[ase.Atoms]) -> None:
    info = describe_dataset(OncePassed([*molecules, *isolated_atoms()]), CUTOFF, LabelKeys())
    assert info.heads[0].atomic_energies == tuple(E0.values())
    assert info.heads[0].shift == pytest.approx(-0.3 if molecules else 0.0)


def test_no_energies() -> None:
    frames = toy_frames(3)
    for atoms in frames:
        del atoms.calc.results["energy"]
    assert describe_dataset(OncePassed(frames), CUTOFF, LabelKeys()).heads[0].atomic_energies == (0.0, 0.0)


@pytest.mark.parametrize("most", [10_000, 3])
def test_scale_and_neighbors(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_scratch, "COUNTED", most)
    frames = toy_frames(7)
    info = describe_dataset(OncePassed(frames), CUTOFF, LabelKeys())
    forces = np.concatenate([atoms.calc.results["forces"].ravel() for atoms in frames])
    assert info.heads[0].scale == pytest.approx(np.sqrt(np.pi / 2) * np.mean(np.abs(forces)))
    counted = frames if most > 7 else [frames[0], frames[3], frames[6]]
    pairs = sum(len(neighbor_list("i", atoms, CUTOFF)) for atoms in counted)
    assert info.avg_num_neighbors == pytest.approx(pairs / sum(map(len, counted)))
