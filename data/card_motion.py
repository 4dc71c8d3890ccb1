"""The measurements of the model card in which atoms move far: random structures downhill, and dynamics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from card_parts import Row, bonds

from ase_mlip import relax, run_dynamics
from ase_mlip.force_field import ForceField
from ase_mlip.stability import nve_drift

BROKEN, TOO_CLOSE = 1.5, 0.5  # times the sum of the covalent radii
START = 0.4  # the same, at least, in the random structures before they are relaxed
TIMESTEP = {"nvt": 1.0, "nve": 0.5}  # fs
RECORD_EVERY = 50  # steps of dynamics at constant temperature


def random_structures(elements: Sequence[int], count: int, seed: int = 0) -> list[Atoms]:
    """Random atoms in a cube, every other one periodic; 40 % hydrogen, the other elements alike.

    Spheres of the covalent radii fill 4 to 20 % of the volume: water has 5, benzene 8, diamond 32. No two atoms are
    closer than `START` sums of covalent radii.
    """
    others = [z for z in elements if z != 1]
    share = np.array([0.4 if z == 1 and others else 0.6 / len(others or [1]) for z in elements])
    structures = []
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        numbers = rng.choice(elements, rng.integers(4, 17), p=share / share.sum())
        filling = np.exp(rng.uniform(np.log(0.04), np.log(0.2)))
        length = (4 / 3 * np.pi * (covalent_radii[numbers] ** 3).sum() / filling) ** (1 / 3)
        atoms = Atoms(cell=[length] * 3, pbc=bool(number % 2))
        while len(atoms) < len(numbers):
            more = atoms + Atoms([numbers[len(atoms)]], positions=[rng.uniform(0, length, 3)])
            atoms = atoms if len(bonds(more, START)[0]) else more
        structures.append(atoms)
    return structures


def collapse(force_field: ForceField, count: int, folder: Path) -> Row:
    """Relax random structures and look for atoms that fell onto each other."""
    frames = random_structures(force_field.elements, count)
    result = relax(force_field, frames, fmax=0.1, folder=folder, log=print)
    closest, failed = [], []
    for number, (atoms, problem) in enumerate(zip(result.structures, result.problems, strict=True)):
        first, second, _, ratio = bonds(atoms, 1.5)
        nearest = float(ratio.min(initial=1.5))
        closest.append(nearest)
        if atoms.calc is None:
            failed.append({"number": number, "formula": atoms.get_chemical_formula(), "why": problem})
        elif nearest < TOO_CLOSE:
            pair = "-".join(sorted(atoms.symbols[[first[ratio.argmin()], second[ratio.argmin()]]]))
            why = f"{pair} at {nearest:.2f} times the sum of the covalent radii"
            failed.append({"number": number, "formula": atoms.get_chemical_formula(), "why": why})
    counts, edges = np.histogram(closest, np.arange(0.0, 1.525, 0.025))
    odd = sum(problem is not None for problem in result.problems)
    return {
        "count": count,
        "converged": int(result.converged.sum()),
        "odd": odd,
        "closest": min(closest),
        "failed": failed,
        "edges": edges.round(3).tolist(),
        "counts": counts.tolist(),
    }


def torn(start: Atoms, frames: Iterable[Atoms]) -> tuple[int | None, str | None]:
    """The index of the first frame in which a bond of the start is longer than `BROKEN` radii, and which bond."""
    first, second, shifts, _ = bonds(start)
    radii = covalent_radii[start.numbers]
    for index, atoms in enumerate(frames):
        vectors = atoms.positions[second] + shifts @ atoms.cell.array - atoms.positions[first]
        lengths = np.linalg.norm(vectors, axis=1)
        ratio = lengths / (radii[first] + radii[second])
        if len(ratio) and not ratio.max() <= BROKEN:
            worst = int(ratio.argmax())
            pair = f"{start.symbols[first[worst]]}{first[worst]}-{start.symbols[second[worst]]}{second[worst]}"
            return index, f"{pair} at {lengths[worst]:.2f} Angstrom"
    return None, None


def constant_temperature(
    force_field: ForceField, starts: Mapping[str, Atoms], kelvin: float, ps: float, folder: Path
) -> dict[str, Row]:
    """Langevin dynamics of each structure: how long its bonds hold. Goes on where it was stopped."""
    steps = round(1e3 * ps / TIMESTEP["nvt"])
    options: Any = {"temperature": kelvin, "timestep": TIMESTEP["nvt"], "record_every": RECORD_EVERY, "folder": folder}
    result = run_dynamics(force_field, list(starts.values()), steps, **options)
    rows = {}
    for (name, start), frames, done, problem in zip(
        starts.items(), result.trajectories, result.steps, result.problems, strict=True
    ):
        index, bond = torn(start, frames)
        late = [frames[i].get_temperature() for i in range(len(frames) // 5, len(frames))]
        rows[name] = {
            "ps": float(1e-3 * TIMESTEP["nvt"] * done),
            "problem": problem,
            "broken": bond,
            "broken_ps": None if index is None else 1e-3 * TIMESTEP["nvt"] * frames[index].info["step"],
            "kelvin": float(np.mean(late)) if late else None,
        }
    return rows


def constant_energy(force_field: ForceField, starts: Mapping[str, Atoms], ps: float) -> dict[str, Row]:
    """Drift of the total energy at 300 K, meV/atom/ps, and its scatter around the line, meV/atom."""
    rows = {}
    for name, start in starts.items():
        result = nve_drift(force_field, start, temperature=300.0, picoseconds=ps, timestep=TIMESTEP["nve"])
        change = 1e3 * (result.energy - result.energy[0])
        line = np.polyval(np.polyfit(result.times, change, 1), result.times) if len(change) > 1 else change
        every = max(len(change) // 100, 1)
        rows[name] = {
            "drift": result.drift,
            "scatter": float(np.std(change - line)),
            "kelvin": float(result.temperature.mean()),
            "broke": result.broke,
            "ps": result.times[::every].round(4).tolist(),
            "change": change[::every].round(4).tolist(),
        }
    return rows
