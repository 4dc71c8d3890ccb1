"""Structures in parts against the same structures as a whole."""

from __future__ import annotations

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk, molecule
from conftest import INFO, random_force_field, random_weights

from ase_mlip import MLIPCalculator
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph
from ase_mlip.networks.nequip import Nequip, NequipConfig
from ase_mlip.parts import ROWS_PER_NODE, cut, most_atoms


def chain() -> ase.Atoms:
    """Water molecules in a row."""
    atoms = ase.Atoms()
    for number in range(14):
        water = molecule("H2O")
        water.rotate(37 * number, "x")
        water.translate((0, 0.3 * (-1) ** number, 2.7 * number))
        atoms += water
    return atoms


def crystal() -> ase.Atoms:
    """Long and thin: copper whose atoms meet their own images, and have left the cell."""
    atoms = bulk("Cu", cubic=True).repeat((1, 1, 9))
    atoms.rattle(0.1, seed=4)
    atoms.positions[::3] += 2 * atoms.cell.array[0] - atoms.cell.array[2]
    return atoms


@pytest.fixture(scope="module")
def mace() -> ForceField:
    return random_force_field()


@pytest.fixture(scope="module")
def nequip() -> ForceField:
    config = NequipConfig((4, 4), num_layers=3, l_max=1, embedding_channels=4, num_bessel=4, radial_mlp=(8,))
    return random_weights(Nequip(config, INFO))


@pytest.mark.parametrize("model", ["mace", "nequip"])
@pytest.mark.parametrize("build", [chain, crystal])
def test_parts_add_up_to_the_whole(model: str, build: object, request: pytest.FixtureRequest) -> None:
    force_field, atoms = request.getfixturevalue(model), build()  # type: ignore[operator]
    whole = MLIPCalculator(force_field, dtype="float64")
    most = {"mace": 22, "nequip": 28}[model]
    parts = MLIPCalculator(force_field, dtype="float64", max_atoms=most)
    for _ in range(2):  # the second time with the parts of the first
        np.testing.assert_allclose(parts.get_forces(atoms), whole.get_forces(atoms), atol=1e-10)
        np.testing.assert_allclose(parts.get_potential_energies(atoms), whole.get_potential_energies(atoms), atol=1e-10)
        assert parts.get_potential_energy(atoms) == pytest.approx(whole.get_potential_energy(atoms), abs=1e-9)
        if atoms.pbc.all():
            np.testing.assert_allclose(parts.get_stress(atoms), whole.get_stress(atoms), atol=1e-11)
            atoms.set_cell(atoms.cell.array * 1.001, scale_atoms=True)
        atoms.positions[0] += 0.01
    assert parts.neighbors.rebuilds == whole.neighbors.rebuilds


def test_every_atom_belongs_to_one_part_that_holds_its_reach(mace: ForceField) -> None:
    atoms = crystal()
    graph = Graph.from_atoms(atoms, mace.elements, mace.cutoff)
    parts = cut(graph, hops=2, most=25)
    assert sorted(np.concatenate([part.nodes[: part.own] for part in parts])) == list(range(len(atoms)))
    assert len(parts) > 2
    distances = atoms.get_all_distances(mic=True)
    for part in parts:
        assert len(part.nodes) <= 25
        near = (distances[part.nodes[: part.own]] < mace.cutoff).any(axis=0)
        assert set(np.flatnonzero(near)) <= set(part.nodes)


def test_too_few_atoms_at_once_are_refused(mace: ForceField) -> None:
    with pytest.raises(ValueError, match="max_atoms=5: give at least"):
        MLIPCalculator(mace, max_atoms=5).get_forces(crystal())
    with pytest.raises(ValueError, match="max_atoms=0: give a positive number"):
        MLIPCalculator(mace, max_atoms=0)


def test_what_memory_holds(mace: ForceField, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that says how much it has is believed; a small one makes parts of a structure by itself."""
    calculator, atoms = MLIPCalculator(mace), crystal()
    forces = calculator.get_forces(atoms)
    slots, device = calculator.neighbors.shape.slots, jax.devices()[0]
    assert most_atoms(mace.predictor, slots) > 10_000
    memory = 4 * mace.predictor.network.config.num_channels * (ROWS_PER_NODE + 45 * slots) * 25 / 0.6

    class Small:
        """A device of little memory."""

        def memory_stats(self) -> dict[str, int]:
            return {"bytes_limit": int(memory)}

        def __getattr__(self, name: str) -> object:
            return getattr(device, name)

    monkeypatch.setattr(jax, "devices", lambda *args: [Small()])
    assert most_atoms(mace.predictor, slots) in (24, 25)
    small = MLIPCalculator(mace)
    np.testing.assert_allclose(small.get_forces(atoms), forces, atol=1e-4 * np.abs(forces).max())
    assert small._parts is not None
