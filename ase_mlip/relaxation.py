"""Relaxing many structures side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np

from ase_mlip.dataset import Source, read_frames
from ase_mlip.force_field import ForceField
from ase_mlip.journal import Ledger, Log, open_journal, run_identity
from ase_mlip.many import keep_full, ready_model, take_in, with_results
from ase_mlip.moving import MovingBatch
from ase_mlip.optimizers import OPTIMIZERS
from ase_mlip.select import check_output

SKIN = 0.3  # Angstrom
JOURNAL = "relaxed.jsonl"


@dataclass(frozen=True)
class RelaxResult:
    """Relaxed structures, in the order in which they were given.

    Attributes:
        structures: copies, moved, with energy, forces and stress in a `SinglePointCalculator`. One that could not be
            predicted is as it was given, without a calculator.
        converged: [structures] whether the largest force is below fmax.
        steps: [structures] how often each was moved.
        problems: [structures] what is wrong with one, in words; None for most. A structure that fell into parts may
            have converged all the same.
    """

    structures: list[ase.Atoms]
    converged: np.ndarray
    steps: np.ndarray
    problems: list[str | None]

    def __str__(self) -> str:
        odd = [number for number, problem in enumerate(self.problems) if problem]
        shown = "; ".join(f"number {number}: {self.problems[number]}" for number in odd[:3])
        more = f"; and {len(odd) - 3} more" if len(odd) > 3 else ""
        return f"{int(self.converged.sum())} of {len(self.structures)} converged" + (f" ({shown}{more})" if odd else "")


def relax(
    force_field: ForceField | str | os.PathLike[str],
    structures: Source,
    *,
    level: str | None = None,
    fmax: float = 0.05,
    steps: int = 500,
    optimizer: str = "fire",
    batch_size: int | None = None,
    dtype: str = "float32",
    folder: str | os.PathLike[str] | None = None,
    log: Log | None = print,
) -> RelaxResult:
    """Relax many structures side by side, by the rules and with the parameters of `ase.optimize`.

    Each structure walks the path that it would walk alone, up to rounding: its state and neighbour list are its own.
    Those that are done leave the batch and others enter. Positions move; cells do not. Constraints hold as in ASE.
    A structure that no prediction can be made for (unknown elements, atoms on top of each other, coordinates that are
    not finite) is marked in `problems` and costs the others nothing.

    Args:
        force_field: a `ForceField`, a model file, or the name of a shipped or published model.
        structures: a file that ASE reads, or Atoms; they are not changed.
        level: of the model; the newest by default.
        fmax: eV/Angstrom; converged means that no atom's force is as large, constraints applied.
        steps: of each structure, at most.
        optimizer: "fire", which forgives a bad start, or "lbfgs", which takes half the steps from a good one.
        batch_size: structures at once, at most. By default a batch has 256 atoms on a CPU and 16384 elsewhere.
        dtype: "float32", or "float64" for a small fmax.
        folder: where finished structures are written as they finish (`relaxed.jsonl`). The same call with the same
            folder goes on from there, after Ctrl-C or a kill.
        log: called with a line every ten seconds; None is silent.

    Raises:
        ValueError: options that cannot be, no structures, or a folder of another run.

    Example:
        >>> from ase.build import molecule
        >>> result = relax("default", [molecule("H2O"), molecule("CH4")], fmax=0.1, log=None)
        >>> result.converged.tolist(), result.structures[1].get_chemical_formula()
        ([True, True], 'CH4')
    """
    if not fmax > 0 or steps < 0:
        raise ValueError(f"fmax={fmax}, steps={steps}: give a positive force, and steps that are not negative")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer={optimizer!r}: give one of {', '.join(map(repr, OPTIMIZERS))}")
    model = ready_model(force_field, level, dtype)
    frames = read_frames(structures)
    options = {"level": level, "fmax": fmax, "steps": steps, "optimizer": optimizer, "dtype": dtype}
    with open_journal(folder, JOURNAL, lambda: run_identity(model, frames, **options)) as journal:
        ledger = Ledger("relaxed", len(frames), journal, log)
        intake = take_in(model, level, frames, ledger.rest, SKIN, batch_size)
        for number, problem in intake.problems.items():
            ledger.keep(number, converged=False, steps=0, problem=problem)
        if intake.groups:
            batch = MovingBatch(intake.force_field, level, intake.groups[0].shape, dtype, SKIN)
            with ledger.saying_where(folder):
                keep_full(OPTIMIZERS[optimizer](batch, frames, fmax, steps, ledger), frames, intake.groups)
    result = _gather(frames, [ledger.records[number] for number in range(len(frames))])
    ledger.log(f"{result}; {ledger.rate:.2f} structures/s")
    return result


def relax_file(source: str, output: Path, model: str, log: Log, **options: Any) -> RelaxResult:
    """Relax the frames of a file and write them to another, in order.

    Until they are all done they are kept in the folder `<output>.part`: the same call after a kill goes on from there.
    In the output, `info` of each has "relax_converged", "relax_steps", and "relax_problem" where there is one.

    Args:
        source: any file that ASE reads, or FILE@INDEX.
        output: file to write, extended XYZ or ASE's trajectory.
        model: a model file or name.
        log: called with each line to print.
        options: of `relax`.

    Raises:
        ValueError: another format of the output, or a folder of another run.
    """
    check_output(output)
    part = output.with_name(f"{output.name}.part")
    result = relax(model, source, folder=part, log=log, **options)
    columns = zip(result.structures, result.converged.tolist(), result.steps.tolist(), result.problems, strict=True)
    for atoms, converged, steps, problem in columns:
        atoms.info |= {"relax_converged": converged, "relax_steps": steps}
        if problem:
            atoms.info["relax_problem"] = problem
    ase.io.write(output, result.structures)
    (part / JOURNAL).unlink()
    part.rmdir()
    return result


def _gather(frames: Sequence[ase.Atoms], records: list[dict[str, Any]]) -> RelaxResult:
    """The result, from the structures as given and what became of them."""
    structures = []
    for atoms, record in zip(frames, records, strict=True):
        atoms = atoms.copy()
        if "energy" in record:
            atoms.positions = record["positions"]
            with_results(atoms, record["energy"], record["forces"], record["stress"])
        structures.append(atoms)
    return RelaxResult(
        structures,
        np.array([record["converged"] for record in records]),
        np.array([record["steps"] for record in records]),
        [record["problem"] for record in records],
    )
