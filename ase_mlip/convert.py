"""Conversion of another package's model, with a check against that package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase
import numpy as np
from ase.data import atomic_numbers, covalent_radii

from ase_mlip.force_field import ForceField
from ase_mlip.importers import read_foreign, source_energies


def convert_model(
    source: str | Path, output: Path, trust: bool = False, log: Callable[[str], None] = print
) -> ForceField:
    """Read, write, read back, and compare energies of a few structures with the original package where it is installed.

    Raises:
        ModelFileError: not a model that can be read.
        ValueError: the converted model does not give the original energies.
    """
    original = read_foreign(source, trust)
    original.save(output)
    converted = ForceField.load(output)
    levels = ", ".join(converted.levels)
    log(f"{source}: {type(converted.predictor.network).__name__}, {converted.num_params:,} parameters")
    log(f"{len(converted.elements)} elements, cutoff {converted.cutoff:g} Angstrom; levels: {levels}")
    energy = source_energies(source)
    if energy is None:
        log("not compared with the original: its package is not installed here")
    else:
        _compare(converted, energy, log)
    log(f"wrote {output}")
    return converted


def _compare(force_field: ForceField, original: Callable[[ase.Atoms, str], float], log: Callable[[str], None]) -> None:
    """Print energies side by side, and refuse to call different ones a conversion."""
    log(f"{'structure':24s} {'level':16s} {'original, eV':>18s} {'converted, eV':>18s} {'per atom':>10s}")
    worst = 0.0
    for title, atoms in check_structures(force_field.elements):
        reduced = force_field.for_elements(atoms.numbers.tolist())
        for level in force_field.levels:
            before = original(atoms, level)
            after = float(reduced(reduced.graph(atoms, level), dtype="float64").energy[0])
            difference = abs(after - before) / len(atoms)
            worst = max(worst, difference)
            log(f"{title:24s} {level:16s} {before:18.8f} {after:18.8f} {difference:10.1e}")
    log(f"largest difference {worst:.1e} eV per atom")
    if not worst < 1e-4:
        raise ValueError(
            f"the converted model differs by {worst:.1e} eV per atom from the original; please report this"
        )


def check_structures(elements: tuple[int, ...]) -> list[tuple[str, ase.Atoms]]:
    """A chain, a crystal and a cluster of the model's own elements, at about bonding distances."""
    common = [atomic_numbers[s] for s in ("O", "H", "C", "Si", "Cu", "Na") if atomic_numbers[s] in elements]
    chosen = (common or list(elements))[:4]
    radii = [covalent_radii[z] for z in chosen]
    pair = radii[0] + radii[-1]
    rng = np.random.default_rng(0)
    chain = ase.Atoms(chosen, positions=[[1.6 * radii[0] * i, 0.3 * i**2, 0.1 * i] for i in range(len(chosen))])
    rocksalt = ase.Atoms(
        [chosen[0], chosen[-1]],
        scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.45]],
        cell=1.1 * pair * (1 - np.eye(3)),
        pbc=True,
    )
    grid = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T * 1.2 * 2 * max(radii)
    cluster = ase.Atoms(
        [chosen[i % len(chosen)] for i in range(8)], positions=grid + rng.normal(scale=0.1, size=(8, 3))
    )
    return [
        (f"{a.get_chemical_formula()} {t}", a)
        for t, a in (("chain", chain), ("crystal", rocksalt), ("cluster", cluster))
    ]
