"""Conversion of another package's model, with a check against that package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase

from ase_mlip.contract import check_structures
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
    for title, atoms in check_structures(force_field.elements, force_field.cutoff).items():
        if atoms.pbc.any() and not atoms.pbc.all():
            continue  # nequix takes a slab for a molecule
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
