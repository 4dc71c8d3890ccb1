"""Conversion of another package's model, with a check against that package."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ase_mlip.contract import check_structures
from ase_mlip.dataset import elements_of
from ase_mlip.force_field import ForceField
from ase_mlip.graph import batch
from ase_mlip.importers import read_foreign
from ase_mlip.importers.original import NotComparable, Original, original_model

SAME = 1e-4  # eV per atom, beside the rounding of the original's own sum


def convert_model(
    source: str | Path, output: Path, trust: bool = False, log: Callable[[str], None] = print
) -> ForceField:
    """Read, write, read back, and compare energies of a few structures with the original package where it is installed.

    Raises:
        ModelFileError: not a model that can be read.
        ValueError: the converted model does not give the original energies.
    """
    foreign = read_foreign(source, trust)
    foreign.save(output)
    converted = ForceField.load(output)
    levels = ", ".join(converted.levels)
    log(f"{source}: {type(converted.predictor.network).__name__}, {converted.num_params:,} parameters")
    log(f"{len(converted.elements)} elements, cutoff {converted.cutoff:g} Angstrom; levels: {levels}")
    try:
        original = original_model(Path(source), foreign)
    except NotComparable as reason:
        log(f"not compared with the original: {reason}")
    else:
        _compare(converted, original, log)
    log(f"wrote {output}")
    return converted


def _compare(force_field: ForceField, original: Original, log: Callable[[str], None]) -> None:
    """Print energies side by side, and refuse to call different ones a conversion."""
    structures = check_structures(force_field.elements, force_field.cutoff)
    reduced = force_field.for_elements(elements_of(structures.values()))
    cases = [(level, title, atoms) for level in force_field.levels for title, atoms in structures.items()]
    ours = reduced(batch([reduced.graph(atoms, level) for level, _, atoms in cases]), dtype="float64").energy
    log(f"compared with {original.package} in {original.dtype}")
    log(f"{'structure':24s} {'level':16s} {'original, eV':>18s} {'converted, eV':>18s} {'per atom':>10s}")
    differences, wrong = [], False
    for (level, title, atoms), after in zip(cases, ours, strict=True):
        if not original.partly_periodic and atoms.pbc.any() and not atoms.pbc.all():
            log(f"{title:24s} {level:16s} {'wrong for this':>18s} {after:18.8f}")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                before = original.energy(atoms, level)
        except Exception as error:  # whatever another package cannot do
            log(f"{title:24s} {level:16s} {type(error).__name__:>18s} {after:18.8f}")
            continue
        differences.append(difference := abs(after - before) / len(atoms))
        wrong |= not difference < SAME + 4 * np.finfo(original.dtype).eps * abs(before) / len(atoms)
        log(f"{title:24s} {level:16s} {before:18.8f} {after:18.8f} {difference:10.1e}")
    worst = f"{np.max(differences):.1e} eV per atom" if differences else "unknown: nothing could be compared"
    log(f"largest difference {worst}")
    if wrong:
        raise ValueError(f"the converted model differs by {worst} from {original.package}; please report this")
