"""The measurements of the model card. Each takes a model and structures and returns numbers that JSON can hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.build import minimize_rotation_and_translation
from ase.data import chemical_symbols, covalent_radii

from ase_mlip import relax
from ase_mlip.force_field import ForceField
from ase_mlip.stability import DimerScan, contact_distance, dimer_scan
from ase_mlip.structure import find_neighbors

if TYPE_CHECKING:  # it needs tblite and RDKit, which the measurements themselves do not
    from card_reference import Scan

WARM = "300-1000 K"  # the group of dynamics and harmonic samples at these temperatures
BONDED = 1.25  # times the sum of the covalent radii
WALL = 0.4  # times the equilibrium distance, where the wall need not go on
BOUND = 0.5  # eV, interaction energy up to which points of a dimer scan are compared
FMAX = 0.002  # eV/Angstrom, of minima
STEP = 0.005  # Angstrom, of finite differences

Row = dict[str, Any]


def predict(force_field: ForceField, frames: Sequence[Atoms], dtype: str = "float32") -> list[Atoms]:
    """Copies of the frames with the model's energies and forces, computed in batches.

    Raises:
        ValueError: a frame that the model has no prediction for.
    """
    result = relax(force_field, frames, steps=0, fmax=1e-6, dtype=dtype, log=None)
    for atoms, problem in zip(result.structures, result.problems, strict=True):
        if atoms.calc is None:
            raise ValueError(f"no prediction for {atoms.symbols}: {problem}")
    return result.structures


def energies(frames: Iterable[Atoms]) -> np.ndarray:
    """Potential energies [frames] eV."""
    return np.array([frame.get_potential_energy() for frame in frames])


def errors(force_field: ForceField, frames: Sequence[Atoms]) -> Row:
    """Errors by category, element and molecule: energies in meV/atom, force components in meV/Angstrom."""
    known = [frame for frame in frames if {*frame.numbers.tolist()} <= {*force_field.elements}]
    predicted = predict(force_field, known)
    sizes = np.array([len(frame) for frame in known])
    energy = 1e3 * (energies(predicted) - energies(known)) / sizes
    labels = [frame.get_forces() for frame in known]
    force = [1e3 * (p.get_forces() - label) for p, label in zip(predicted, labels, strict=True)]

    def row(members: Sequence[int], element: int | None = None) -> Row:
        atoms = [known[i].numbers == element if element else np.ones(len(known[i]), bool) for i in members]
        wrong = np.concatenate([force[i][mask] for i, mask in zip(members, atoms, strict=True)])
        size = np.concatenate([labels[i][mask] for i, mask in zip(members, atoms, strict=True)])
        return {
            "frames": len(members),
            "energy_mae": float(np.abs(energy[members]).mean()),
            "energy_rmse": float(np.sqrt((energy[members] ** 2).mean())),
            "force_mae": float(np.abs(wrong).mean()),
            "force_rmse": float(np.sqrt((wrong**2).mean())),
            "force_size": float(1e3 * np.abs(size).mean()),
        }

    infos = [frame.info for frame in known]
    groups: dict[str, list[int]] = {"all": [*range(len(known))]}
    groups[WARM] = [i for i, x in enumerate(infos) if x["config_type"] in ("md", "mode") and x["temperature"] <= 1000]
    for name in sorted({info["config_type"] for info in infos}):
        groups[name] = [i for i, info in enumerate(infos) if info["config_type"] == name]
    molecules = sorted({str(infos[i]["smiles"]) for i in groups[WARM]})
    of_element = {z: [i for i, frame in enumerate(known) if z in frame.numbers] for z in force_field.elements}
    return {
        "frames": len(known),
        "left_out": len(frames) - len(known),
        "groups": {name: row(members) for name, members in groups.items() if members},
        "elements": {chemical_symbols[z]: row(members, z) for z, members in of_element.items() if members},
        "molecules": {n: row([i for i in groups[WARM] if str(infos[i]["smiles"]) == n]) for n in molecules},
    }


def torsions(force_field: ForceField, scans: Mapping[str, Scan]) -> dict[str, Row]:
    """Energies along each scan, relative to the point that is lowest in the reference, in eV."""
    rows = {}
    for name, scan in scans.items():
        reference, model = energies(scan.frames), energies(predict(force_field, scan.frames))
        lowest = int(reference.argmin())
        reference, model = reference - reference[lowest], model - model[lowest]
        rows[name] = {
            "x": scan.coordinate.tolist(),
            "reference": reference.tolist(),
            "model": model.tolist(),
            "mae": float(np.abs(model - reference).mean()),
            "barrier": [float(reference.max()), float(model.max())],
            "held_out": scan.held_out,
        }
    return rows


def dimers(force_field: ForceField, scans: Mapping[str, Scan]) -> dict[str, Row]:
    """Interaction energies along each scan in eV; errors where the reference is below `BOUND`."""
    rows = {}
    for name, scan in scans.items():
        apart = predict(force_field, scan.apart)
        reference = energies(scan.frames) - energies(scan.apart).sum()
        model = energies(predict(force_field, scan.frames)) - energies(apart).sum()
        near = reference < BOUND
        rows[name] = {
            "x": scan.coordinate.tolist(),
            "reference": reference.tolist(),
            "model": model.tolist(),
            "mae": float(np.abs(model - reference)[near].mean()),
            "depth": [float(-curve.min()) for curve in (reference, model)],
            "distance": [float(scan.coordinate[curve.argmin()]) for curve in (reference, model)],
            "held_out": scan.held_out,
        }
    return rows


def walls(force_field: ForceField) -> dict[str, Row]:
    """The curve of two atoms, for every pair of elements: does it rise all the way in?"""
    symbols = [chemical_symbols[z] for z in force_field.elements]
    pairs = combinations_with_replacement(symbols, 2)
    rows = {}
    for scan in dimer_scan(force_field, pairs, distances=np.linspace(0.25, 2.0, 176), dtype="float64"):
        rest = scan.equilibrium
        inner = scan.distances > WALL * rest - (scan.distances[1] - scan.distances[0])  # to the limit or just past
        wall = DimerScan(scan.pair, scan.distances[inner], scan.energies[inner])
        shown = wall.distances <= 1.3 * rest
        rows["-".join(scan.pair)] = {
            "equilibrium": rest,
            "minimum": not np.isclose(rest, contact_distance(*scan.pair)),
            "turn": wall.turn,
            "barrier": wall.barrier,
            "rises": wall.monotonic_wall,
            "x": (wall.distances[shown] / rest).round(4).tolist(),
            "energy": (wall.energies - np.interp(rest, wall.distances, wall.energies))[shown].round(4).tolist(),
        }
    return rows


def frequencies(atoms: Atoms, forces: Callable[[list[Atoms]], list[np.ndarray]]) -> np.ndarray:
    """Harmonic wavenumbers in 1/cm, ascending, imaginary ones negative, without translations and rotations.

    Args:
        atoms: at a minimum.
        forces: of each of some displaced copies, eV/Angstrom.
    """
    displaced = []
    for sign in (1, -1):
        for index in range(3 * len(atoms)):
            moved = atoms.copy()
            moved.positions.flat[index] += sign * STEP
            displaced.append(moved)
    ahead, behind = np.split(np.array([f.ravel() for f in forces(displaced)]), 2)
    hessian = (behind - ahead) / (2 * STEP)
    roots = np.sqrt(atoms.get_masses())[:, None]
    relative = atoms.positions - atoms.get_center_of_mass()
    rigid = [(roots * axis).ravel() for axis in np.eye(3)]
    rigid += [(roots * np.cross(relative, axis)).ravel() for axis in np.eye(3)]
    left, sizes, _ = np.linalg.svd(np.array(rigid).T, full_matrices=True)
    inner = left[:, np.count_nonzero(sizes > 1e-3 * sizes[0]) :]  # five for a linear molecule
    weights = np.repeat(roots.ravel(), 3)
    values = np.linalg.eigvalsh(inner.T @ (0.5 * (hessian + hessian.T) / np.outer(weights, weights)) @ inner)
    unit = units._hbar * 1e10 / np.sqrt(units._e * units._amu) / units.invcm  # 1/cm per sqrt(eV/Angstrom^2/u)
    return unit * np.sign(values) * np.sqrt(np.abs(values))


def bonds(atoms: Atoms, reach: float = BONDED) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs nearer than `reach` sums of covalent radii: both atoms, shifts, and distances in units of that sum."""
    radii = covalent_radii[atoms.numbers]
    first, second, shifts = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, 2 * reach * radii.max())
    vectors = atoms.positions[second] + shifts @ atoms.cell.array - atoms.positions[first]
    ratio = np.linalg.norm(vectors, axis=1) / (radii[first] + radii[second])
    near = (ratio < reach) & (first <= second)
    return first[near], second[near], shifts[near], ratio[near]


def geometry(force_field: ForceField, minima: Mapping[str, Atoms], known: Mapping[str, np.ndarray]) -> dict[str, Row]:
    """Minima and harmonic frequencies of molecules, from the reference's minimum downhill.

    Args:
        force_field: the model.
        minima: of the reference.
        known: the reference's wavenumbers, 1/cm.
    """
    relaxed = relax(
        force_field, list(minima.values()), fmax=FMAX, steps=1000, optimizer="lbfgs", dtype="float64", log=None
    )

    def forces(frames: list[Atoms]) -> list[np.ndarray]:
        return [frame.get_forces() for frame in predict(force_field, frames, "float64")]

    rows = {}
    for (name, reference), atoms, done in zip(minima.items(), relaxed.structures, relaxed.converged, strict=True):
        moved = atoms.copy()
        minimize_rotation_and_translation(reference, moved)
        first, second, _, _ = bonds(reference)
        lengths = [np.linalg.norm(x.positions[first] - x.positions[second], axis=1) for x in (reference, moved)]
        found = frequencies(atoms, forces)
        rows[name] = {
            "rmsd": float(np.sqrt(((moved.positions - reference.positions) ** 2).sum(axis=1).mean())),
            "bond_mae": float(np.abs(lengths[0] - lengths[1]).mean()),
            "converged": bool(done),
            "frequency_mae": float(np.abs(found - known[name]).mean()),
            "imaginary": int((found < 0).sum()),
            "reference": known[name].round(2).tolist(),
            "model": found.round(2).tolist(),
        }
    return rows
