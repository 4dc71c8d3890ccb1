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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ase_mlip.dataset import Source, read_frames
from ase_mlip.force_field import ForceField
from ase_mlip.journal import Ledger, Log, open_journal, run_identity
from ase_mlip.many import Motion, explain, keep_full, ready_model, take_in, with_results
from ase_mlip.moving import MovingBatch
from ase_mlip.predictor import Prediction
from ase_mlip.select import check_output
from ase_mlip.structure import find_neighbors

SKIN = 0.3  # Angstrom
JOURNAL = "relaxed.jsonl"
# FIRE as in ase.optimize: times in ASE's units, the longest step of a structure in Angstrom
TIME_STEP, LONGEST_TIME_STEP, LONGEST_STEP = 0.1, 1.0, 0.2
PATIENCE, FASTER, SLOWER, MIXING, LESS_MIXING = 5, 1.1, 0.5, 0.1, 0.99


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
    batch_size: int | None = None,
    dtype: str = "float32",
    folder: str | os.PathLike[str] | None = None,
    log: Log | None = print,
) -> RelaxResult:
    """Relax many structures side by side: FIRE, by the rule and with the parameters of `ase.optimize.FIRE`.

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
        batch_size: structures at once, at most. By default a batch has 1024 atoms on a CPU and 16384 elsewhere.
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
    model = ready_model(force_field, level, dtype)
    frames = read_frames(structures)
    options = {"level": level, "fmax": fmax, "steps": steps, "dtype": dtype}
    with open_journal(folder, JOURNAL, lambda: run_identity(model, frames, **options)) as journal:
        ledger = Ledger("relaxed", len(frames), journal, log)
        intake = take_in(model, frames, ledger.rest, SKIN, batch_size)
        for number, problem in intake.problems.items():
            ledger.keep(number, converged=False, steps=0, problem=problem)
        if intake.groups:
            batch = MovingBatch(intake.force_field, level, intake.groups[0].shape, dtype, SKIN)
            with ledger.saying_where(folder):
                keep_full(_Fire(batch, frames, fmax, steps, ledger), frames, intake.groups)
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


class _Fire(Motion):
    """The fast inertial relaxation engine (Bitzek et al., PRL 97, 170201), one of each per structure."""

    per_row = ("velocities",)
    per_seat = (*Motion.per_seat, "time_step", "mixing", "downhill", "parts")

    def __init__(self, batch: MovingBatch, frames: Sequence[ase.Atoms], fmax: float, steps: int, ledger: Ledger):
        super().__init__(batch)
        self.frames, self.fmax, self.most, self.ledger = frames, fmax, steps, ledger
        seats = batch.shape.graphs + 1
        self.velocities = np.zeros((batch.shape.nodes, 3))
        self.time_step, self.mixing = np.zeros(seats), np.zeros(seats)
        self.downhill = np.zeros(seats, int)  # steps since the last one uphill
        self.parts = np.zeros(seats, int)  # in which the structure was

    def enter(self, number: int) -> None:
        atoms = self.frames[number]
        seat = self.seat(number, atoms)
        self.time_step[seat], self.mixing[seat] = TIME_STEP, MIXING
        self.parts[seat] = count_parts(atoms, self.batch.force_field.cutoff)

    def advance(self, prediction: Prediction) -> None:
        batch = self.batch
        forces = prediction.forces
        constrained = [seat for seat in batch.seats if batch.atoms[seat].constraints]  # type: ignore[union-attr]
        if constrained:
            forces = forces.copy()
            self._constrain(forces, constrained)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite leaves
            largest = batch.max((forces**2).sum(axis=1))
        finite = np.isfinite(largest[:-1]) & np.isfinite(prediction.energy)
        converged = largest[:-1] < self.fmax**2
        done = ~finite | converged | (self.steps[:-1] >= self.most)
        for seat in batch.seats:
            if done[seat]:
                self._finish(seat, prediction, bool(finite[seat]), bool(converged[seat]), float(largest[seat]) ** 0.5)
        self._move(np.where((batch.seat_of < batch.shape.graphs)[:, None], forces, 0.0), constrained)

    def _move(self, forces: np.ndarray, constrained: list[int]) -> None:
        """One step of everyone who is still seated."""
        batch, seat_of, total = self.batch, self.batch.seat_of, self.batch.sum
        power = total((forces * self.velocities).sum(axis=1))
        downhill = power > 0
        ratio = np.zeros(len(power))
        squares = total((forces**2).sum(axis=1))
        speeds = total((self.velocities**2).sum(axis=1))
        ratio[downhill] = self.mixing[downhill] * np.sqrt(speeds[downhill] / squares[downhill])
        keep = np.where(downhill, 1.0 - self.mixing, 0.0)
        self.velocities = keep[seat_of, None] * self.velocities + ratio[seat_of, None] * forces
        faster = downhill & (self.downhill > PATIENCE)
        self.time_step[faster] = np.minimum(self.time_step[faster] * FASTER, LONGEST_TIME_STEP)
        self.mixing[faster] *= LESS_MIXING
        self.downhill = np.where(downhill, self.downhill + 1, 0)
        uphill = ~downhill & ~self.fresh
        self.mixing[uphill] = MIXING
        self.time_step[uphill] *= SLOWER
        self.fresh[:] = False
        time_step = self.time_step[seat_of, None]
        self.velocities += time_step * forces
        step = time_step * self.velocities
        length = np.sqrt(total((step**2).sum(axis=1)))
        shorten = np.where(length > LONGEST_STEP, LONGEST_STEP / np.maximum(length, LONGEST_STEP), 1.0)
        wanted = batch.positions + shorten[seat_of, None] * step
        self._hold(wanted, constrained)
        batch.positions[:] = wanted
        self.steps += 1

    def _constrain(self, forces: np.ndarray, constrained: list[int]) -> None:
        """Let ASE's constraints change the forces, as `Atoms.get_forces` does."""
        for seat in constrained:
            rows, atoms = self.batch.rows(seat), self.batch.atoms[seat]
            assert atoms is not None
            atoms.positions = self.batch.positions[rows]
            own = forces[rows]
            for constraint in atoms.constraints:
                constraint.adjust_forces(atoms, own)
            forces[rows] = own

    def _hold(self, wanted: np.ndarray, constrained: list[int]) -> None:
        """Let ASE's constraints change the positions to come, as `Atoms.set_positions` does."""
        for seat in constrained:
            atoms = self.batch.atoms[seat]
            if atoms is not None:
                rows = self.batch.rows(seat)
                atoms.positions = self.batch.positions[rows]
                atoms.set_positions(wanted[rows])
                wanted[rows] = atoms.positions

    def _finish(self, seat: int, prediction: Prediction, finite: bool, converged: bool, largest: float) -> None:
        """Write down what became of a structure, and free its seat."""
        batch, rows = self.batch, self.batch.rows(seat)
        atoms = self.frames[int(self.number[seat])].copy()
        atoms.positions = batch.positions[rows]
        steps = int(self.steps[seat])
        found: dict[str, Any] = {"converged": finite and converged, "steps": steps, "problem": None}
        if not finite:
            found["problem"] = f"{explain(atoms)}, after {steps} steps"
        else:
            found |= {"positions": atoms.positions, "energy": float(prediction.energy[seat])}
            found |= {"forces": prediction.forces[rows], "stress": prediction.stress[seat].copy()}
            parts = count_parts(atoms, batch.force_field.cutoff)
            if parts > self.parts[seat]:
                found["problem"] = f"it fell into {parts} parts, each farther than the cutoff from the others"
            elif not converged:
                found["problem"] = f"not converged: the largest force is {largest:.3g} eV/Angstrom after {steps} steps"
        self.ledger.keep(int(self.number[seat]), **found)
        batch.leave(seat)
        self.velocities[rows] = 0.0


def count_parts(atoms: ase.Atoms, cutoff: float) -> int:
    """Number of parts of a structure that are farther than `cutoff` from each other."""
    centers, others, _ = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    shape = (len(atoms), len(atoms))
    return int(connected_components(coo_array((np.ones(len(centers)), (centers, others)), shape=shape))[0])
