"""What every force field must keep, whatever its architecture: checked by one function, in tests and by users."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import ase
import jax
import numpy as np
from ase.data import atomic_numbers, covalent_radii
from scipy.spatial.transform import Rotation

from ase_mlip.dataset import elements_of
from ase_mlip.force_field import ForceField
from ase_mlip.graph import PadShape, batch

STEP = 1e-4  # Angstrom and strain, of the finite differences


class ContractError(AssertionError):
    """A force field that breaks the contract; the message says which rule, for which structure, and by how much."""


def check_structures(elements: tuple[int, ...], cutoff: float = 5.0) -> dict[str, ase.Atoms]:
    """Structures of some of the elements at about bonding distances, one for every kind of periodicity.

    A chain, a crystal with a cell smaller than most cutoffs, its left-handed triclinic twin, a slab, a wire, an atom,
    and two atoms out of each other's reach.
    """
    common = [atomic_numbers[s] for s in ("O", "H", "C", "Si", "Cu", "Na") if atomic_numbers[s] in elements]
    chosen = (common or list(elements))[:4]
    first, last = chosen[0], chosen[-1]
    bond = covalent_radii[first] + covalent_radii[last]
    chain = ase.Atoms(chosen, positions=[[1.1 * bond * i, 0.3 * i**2, 0.1 * i] for i in range(len(chosen))])
    cell = 1.1 * bond * (1 - np.eye(3))
    crystal = ase.Atoms([first, last], positions=[np.zeros(3), [0.5, 0.52, 0.45] @ cell], cell=cell, pbc=True)
    twin = crystal.copy()
    twin.set_cell(crystal.cell.array[[1, 0, 2]] @ (np.eye(3) + np.triu(np.full((3, 3), 0.1), 1)), scale_atoms=True)
    slab = crystal * (1, 1, 2)
    slab.cell[2] *= 2
    slab.pbc = (True, True, False)
    wire = chain.copy()
    wire.set_cell([1.1 * bond * len(chosen), 9, 10])
    wire.pbc = (True, False, False)
    found = {
        "chain": chain,
        "crystal": crystal,
        "left-handed crystal": twin,
        "slab": slab,
        "wire": wire,
        "atom": ase.Atoms([first]),
        "far pair": ase.Atoms([first, last], positions=[[0, 0, 0], [0, 0, cutoff + 0.5]]),
    }
    for number, atoms in enumerate(found.values()):
        atoms.rattle(0.05, seed=number)
    return found


def check_contract(force_field: ForceField, tolerance: float = 1e-6) -> None:
    """Check, in float64 and at the newest level, what ASE and the rest of this package rely on.

    Forces and stress are derivatives of the energy (central differences along random directions); energy, forces and
    stress follow rotation with inversion, the order of atoms and the choice of periodic images; an atom alone feels no
    force; padding and the other structures of a batch change nothing; a saved model comes back bit by bit.

    Args:
        force_field: what to check.
        tolerance: of finite differences, relative to the largest force or virial; the exact rules get a thousandth.

    Raises:
        ContractError: the first rule that is broken.
    """
    rng = np.random.default_rng(0)
    originals = check_structures(force_field.elements, force_field.cutoff)
    reduced = force_field.for_elements(elements_of(originals.values()))
    turn = -Rotation.random(random_state=1).as_matrix()  # with inversion
    directions, strains, orders, variants = {}, {}, {}, []
    for name, atoms in originals.items():
        direction, strain = rng.normal(size=atoms.positions.shape), rng.normal(size=(3, 3))
        directions[name] = direction / np.linalg.norm(direction)
        strains[name] = (strain + strain.T) / np.linalg.norm(strain + strain.T)
        orders[name] = rng.permutation(len(atoms))
        images = rng.integers(-2, 3, atoms.positions.shape)
        variants += _variants(atoms, directions[name], strains[name], turn, orders[name], images)
    graphs = [reduced.graph(atoms) for atoms in variants]
    whole = reduced(batch(graphs), dtype="float64")
    ends = np.cumsum([0, *(len(atoms) for atoms in variants)])
    forces = [whole.forces[slice(*pair)] for pair in pairwise(ends)]
    scale = max(np.abs(whole.forces).max(), 1e-3)
    energies = whole.energy / scale
    if not (np.isfinite(whole.energy).all() and np.isfinite(whole.forces).all()):
        raise ContractError("energies and forces are not all finite")

    def demand(rule: str, name: str, error: float, limit: float) -> None:
        if not error <= limit:
            raise ContractError(f"{rule} for the {name}: off by {error:.1e}, allowed are {limit:.1e}")

    for number, (name, atoms) in enumerate(originals.items()):
        first = 7 * number
        direction, strain = directions[name], strains[name]
        slope = (energies[first + 1] - energies[first + 3]) / (2 * STEP)
        demand("forces are not the gradient", name, abs(slope + np.sum(forces[first] * direction) / scale), tolerance)
        if atoms.cell.rank == 3:
            slope = (energies[first + 2] - energies[first + 4]) / (2 * STEP)
            work = abs(atoms.cell.volume) * np.sum(whole.stress[first] * strain) / scale
            demand("stress is not the strain derivative", name, abs(slope - work), 10 * tolerance)
        turned, shuffled = first + 5, first + 6
        exact = tolerance / 1000 * max(1.0, np.abs(energies[first]))
        demand("energy changes on rotation", name, abs(energies[turned] - energies[first]), exact)
        demand("forces do not turn", name, np.abs(forces[turned] - forces[first] @ turn).max() / scale, exact)
        demand("energy changes with the images", name, abs(energies[shuffled] - energies[first]), exact)
        same = forces[shuffled] - forces[first][orders[name]]
        demand("forces depend on the order of atoms", name, np.abs(same).max() / scale, exact)
    atom = 7 * list(originals).index("atom")
    demand("a force acts", "lonely atom", np.abs(forces[atom]).max(), 0.0)

    chain = graphs[0]
    shape = PadShape(2, len(chain.species) + 3, chain.neighbors.shape[1] + 2)
    alone = reduced(batch([chain], shape), dtype="float64")
    demand("energy depends on the batch", "chain", abs(alone.energy[0] / scale - energies[0]), tolerance / 1000)
    padded = alone.forces[: len(chain.species)] - forces[0]
    demand("forces depend on the batch", "chain", np.abs(padded).max() / scale, tolerance / 1000)
    _check_round_trip(force_field)


def _variants(
    atoms: ase.Atoms,
    direction: np.ndarray,
    strain: np.ndarray,
    turn: np.ndarray,
    order: np.ndarray,
    images: np.ndarray,
) -> list[ase.Atoms]:
    """The structure itself; moved and strained, forward and back; turned; with its atoms in another order and image."""
    found = [atoms]
    for sign in (1, -1):
        moved, strained, deformation = atoms.copy(), atoms.copy(), np.eye(3) + sign * STEP * strain
        moved.positions += sign * STEP * direction
        strained.set_cell(atoms.cell.array @ deformation)
        strained.positions = atoms.positions @ deformation
        found += [moved, strained]
    turned, shuffled = atoms.copy(), atoms[order]
    turned.set_cell(atoms.cell.array @ turn)
    turned.positions = atoms.positions @ turn
    shuffled.positions += (images * atoms.pbc) @ atoms.cell.array
    return [*found, turned, shuffled]


def _check_round_trip(force_field: ForceField) -> None:
    """A saved and loaded force field is the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        force_field.save(path)
        loaded = ForceField.load(path)
    if loaded.predictor != force_field.predictor or loaded.dataset_info.to_dict() != force_field.dataset_info.to_dict():
        raise ContractError("a saved and loaded model has another configuration or other constants")
    before, after = (jax.tree_util.tree_leaves_with_path(dict(f.params)) for f in (force_field, loaded))
    same = len(before) == len(after) and all(
        a[0] == b[0] and np.asarray(a[1]).dtype == np.asarray(b[1]).dtype and np.array_equal(a[1], b[1])
        for a, b in zip(before, after, strict=True)
    )
    if not same:
        raise ContractError("a saved and loaded model has other parameters")
