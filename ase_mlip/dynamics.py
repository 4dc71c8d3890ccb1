"""Molecular dynamics of many structures at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
from ase import units
from ase.constraints import FixAtoms

from ase_mlip.dataset import Source, read_frames
from ase_mlip.force_field import ForceField
from ase_mlip.frame_store import FrameFiles, FrameMemory
from ase_mlip.journal import Ledger, Log, open_journal, run_identity
from ase_mlip.many import Motion, explain, keep_full, ready_model, take_in, with_results
from ase_mlip.moving import MovingBatch
from ase_mlip.predictor import Prediction

SKIN = 0.5  # Angstrom; more than a relaxation's, as everything keeps moving
RUNAWAY = 30_000.0  # K, or thirty times the temperature asked for; a single atom fluctuates to ten times
NOISE_BLOCK = 16  # steps for which random numbers are drawn at once


@dataclass(frozen=True)
class DynamicsResult:
    """Dynamics of structures, in the order in which they were given.

    Attributes:
        trajectories: [structures] frames, the start included, with momenta, `info["step"]`, and energy, forces and
            stress in a `SinglePointCalculator`. Read from its file at each access where there is a folder. Empty for a
            structure that could not be predicted.
        steps: [structures] steps done.
        problems: [structures] why one was stopped, in words; None for most.
    """

    trajectories: Sequence[Sequence[ase.Atoms]]
    steps: np.ndarray
    problems: list[str | None]

    @property
    def structures(self) -> list[ase.Atoms | None]:
        """The last frame of each structure; None where there is none."""
        return [frames[-1] if len(frames) else None for frames in self.trajectories]


def run_dynamics(
    force_field: ForceField | str | os.PathLike[str],
    structures: Source,
    steps: int,
    *,
    temperature: float = 300.0,
    friction: float = 0.01,
    timestep: float = 0.5,
    level: str | None = None,
    seed: int = 0,
    record_every: int = 100,
    batch_size: int | None = None,
    dtype: str = "float32",
    folder: str | os.PathLike[str] | None = None,
    log: Log | None = print,
) -> DynamicsResult:
    """Run molecular dynamics of many structures side by side, each with velocities and noise of its own.

    Langevin dynamics by the BAOAB splitting (Leimkuhler and Matthews, 10.1093/amrx/abs010), whose averages over
    positions hardly depend on the time step; without friction it is velocity Verlet at constant energy. Momenta that a
    structure has are kept; one that has none gets them at the temperature, without drift. Cells do not move. FixAtoms
    holds; other constraints are refused. A structure that cannot be predicted, or goes wrong on the way, is marked in
    `problems` and costs the others nothing.

    Args:
        force_field: a `ForceField`, a model file, or the name of a shipped or published model.
        structures: a file that ASE reads, or Atoms; they are not changed.
        steps: of each structure.
        temperature: K.
        friction: 1/fs; 0 for constant energy.
        timestep: fs.
        level: of the model; the newest by default.
        seed: of momenta and noise; a structure's depend on its number too, and not on the batch.
        record_every: steps between frames; the last step is recorded too.
        batch_size: structures at once, at most. By default a batch has 256 atoms on a CPU and 16384 elsewhere.
        dtype: "float32" or "float64", of the forces; momenta and positions are float64.
        folder: where each structure's frames go as they come (`000012.traj`, read by ASE). The same call with the same
            folder goes on from the last frames, after Ctrl-C or a kill. Without one they stay in memory.
        log: called with a line every ten seconds; None is silent.

    Raises:
        ValueError: options that cannot be, no structures, or a folder of another run.

    Example:
        >>> from ase.build import molecule
        >>> result = run_dynamics("default", [molecule("H2O"), molecule("CH4")], 20, record_every=10, log=None)
        >>> [frame.info["step"] for frame in result.trajectories[1]]
        [0, 10, 20]
    """
    if steps < 0 or record_every < 1 or not (timestep > 0 and min(temperature, friction, seed) >= 0):
        raise ValueError(
            f"steps={steps}, record_every={record_every}, timestep={timestep}, temperature={temperature}, "
            f"friction={friction}, seed={seed}: give a positive time step, at least 1 for "
            "record_every, and nothing negative"
        )
    model = ready_model(force_field, level, dtype)
    frames = read_frames(structures)
    settings = _Settings(steps, record_every, timestep * units.fs, temperature, friction / units.fs, seed)
    options = {"level": level, "dtype": dtype, "settings": settings}
    with open_journal(folder, "finished.jsonl", lambda: run_identity(model, frames, **options)) as journal:
        store = FrameFiles(Path(folder), len(frames), journal.new) if folder is not None else FrameMemory(len(frames))
        ledger = Ledger("finished", len(frames), journal, log)
        refused = {number: _refusal(frames[number]) for number in ledger.rest}
        intake = take_in(model, level, frames, [n for n, reason in refused.items() if not reason], SKIN, batch_size)
        for number, problem in (refused | intake.problems).items():
            if problem:
                ledger.keep(number, steps=0, problem=problem)
        if intake.groups:
            batch = MovingBatch(intake.force_field, level, intake.groups[0].shape, dtype, SKIN)
            with ledger.saying_where(folder):
                keep_full(_Langevin(batch, frames, settings, store, ledger), frames, intake.groups)
    records = [ledger.records[number] for number in range(len(frames))]
    done, problems = (np.array([r["steps"] for r in records]), [r["problem"] for r in records])
    stopped = [f"number {number}: {problem}" for number, problem in enumerate(problems) if problem]
    shown = f"; {len(stopped)} stopped, such as {stopped[0]}" if stopped else ""
    ledger.log(f"dynamics of {len(frames)} structures{shown}; {ledger.rate:.2f} structures/s")
    return DynamicsResult(store, done, problems)


@dataclass(frozen=True)
class _Settings:
    """What makes a run, in ASE's units."""

    steps: int
    record_every: int
    timestep: float
    temperature: float
    friction: float
    seed: int


def _refusal(atoms: ase.Atoms) -> str | None:
    """Why the constraints of a structure cannot be kept, if so."""
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            return f"the constraint {type(constraint).__name__} is not known here; FixAtoms is, others need ASE's MD"
    return None


class _Langevin(Motion):
    """BAOAB for every seat; rows that are fixed have neither velocity nor noise."""

    per_row = ("velocities", "inverse_masses", "free")

    def __init__(
        self,
        batch: MovingBatch,
        frames: Sequence[ase.Atoms],
        settings: _Settings,
        store: FrameMemory | FrameFiles,
        ledger: Ledger,
    ):
        super().__init__(batch)
        self.frames, self.settings, self.store, self.ledger = frames, settings, store, ledger
        rows = batch.shape.nodes
        self.velocities, self.inverse_masses, self.free = np.zeros((rows, 3)), np.zeros(rows), np.zeros(rows, bool)
        self._noise: dict[int, tuple[int, np.ndarray]] = {}  # by structure: the block's first step, [steps, atoms, 3]

    def enter(self, number: int) -> None:
        atoms, last = self.frames[number].copy(), self.store.last(number)
        if last is not None:  # of a run that was killed
            atoms.positions = last.positions
            atoms.set_momenta(last.get_momenta(), apply_constraint=False)
        seat = self.seat(number, atoms)
        rows = self.batch.rows(seat)
        self.inverse_masses[rows] = 1.0 / atoms.get_masses()
        self.free[rows] = True
        for constraint in atoms.constraints:
            self.free[rows[constraint.index]] = False
        if last is not None:
            self.steps[seat] = last.info["step"]
        elif not atoms.has("momenta"):
            atoms.set_momenta(self._draw_momenta(atoms, number), apply_constraint=False)
        self.velocities[rows] = atoms.get_velocities() * self.free[rows, None]

    def _draw_momenta(self, atoms: ase.Atoms, number: int) -> np.ndarray:
        """Momenta [atoms, 3] at the temperature; the total is zero where nothing is fixed."""
        masses = atoms.get_masses()[:, None]
        normal = self._generator(number, -1).standard_normal((len(atoms), 3))
        momenta = np.sqrt(masses * units.kB * self.settings.temperature) * normal
        if not atoms.constraints and len(atoms) > 1:
            momenta -= masses * momenta.sum(axis=0) / masses.sum()
        return momenta

    def advance(self, prediction: Prediction) -> None:
        batch, settings = self.batch, self.settings
        half = 0.5 * settings.timestep
        kick = np.where(self.free[:, None], half * self.inverse_masses[:, None] * prediction.forces, 0.0)
        arrived = ~self.fresh[batch.seat_of]
        self.velocities[arrived] += kick[arrived]
        new = self.fresh.copy()
        self.steps[~new] += 1
        self.fresh[:] = False
        for seat, (problem, record) in self._judge(prediction, new).items():
            if record:
                self.store.add(int(self.number[seat]), self._frame(seat, prediction))
            if problem or self.steps[seat] >= settings.steps:
                self._leave(seat, problem)
        moving = batch.seat_of < batch.shape.graphs
        self.velocities[moving] += kick[moving]
        batch.positions[moving] += half * self.velocities[moving]
        if settings.friction > 0:
            self._randomize()
        batch.positions[moving] += half * self.velocities[moving]

    def _judge(self, prediction: Prediction, new: np.ndarray) -> dict[int, tuple[str | None, bool]]:
        """Seats of which something is to be said: what is wrong with one, and whether its frame is recorded."""
        batch, settings, found = self.batch, self.settings, dict[int, tuple[str | None, bool]]()
        with np.errstate(all="ignore"):  # what is not finite leaves
            masses = np.divide(1.0, self.inverse_masses, where=self.free, out=np.zeros(len(self.free)))
            twice_kinetic = batch.sum(masses * (self.velocities**2).sum(axis=1))
            kelvin = twice_kinetic / (3 * units.kB * np.maximum(batch.sum(self.free), 1))
            finite = np.isfinite(batch.max((prediction.forces**2).sum(axis=1))[:-1]) & np.isfinite(prediction.energy)
        limit = max(RUNAWAY, 30 * settings.temperature)
        for seat in batch.seats:
            step, problem = int(self.steps[seat]), None
            if not finite[seat]:
                problem = f"{explain(self._moved(seat))}, after {step} steps"
            elif not kelvin[seat] < limit:
                problem = f"the temperature ran away to {kelvin[seat]:.0f} K after {step} steps"
            # a structure that goes on from a file begins with the frame that the file ends with
            begun = bool(new[seat]) and step > 0
            due = step % settings.record_every == 0 or step == settings.steps
            if problem or step >= settings.steps or due:
                found[seat] = problem, due and not begun and problem is None
        return found

    def _moved(self, seat: int) -> ase.Atoms:
        """A structure as it was given, where it is now."""
        atoms = self.frames[int(self.number[seat])].copy()
        atoms.positions = self.batch.positions[self.batch.rows(seat)]
        return atoms

    def _frame(self, seat: int, prediction: Prediction) -> ase.Atoms:
        """What is recorded of a structure."""
        atoms, rows = self._moved(seat), self.batch.rows(seat)
        atoms.set_momenta(self.velocities[rows] / self.inverse_masses[rows, None], apply_constraint=False)
        atoms.info["step"] = int(self.steps[seat])
        return with_results(atoms, prediction.energy[seat], prediction.forces[rows], prediction.stress[seat])

    def _leave(self, seat: int, problem: str | None) -> None:
        """Free a seat."""
        rows, number = self.batch.rows(seat), int(self.number[seat])
        self.batch.leave(seat)
        self.velocities[rows] = 0.0
        self._noise.pop(number, None)
        self.ledger.keep(number, steps=int(self.steps[seat]), problem=problem)

    def _randomize(self) -> None:
        """The exact solution of friction and noise over one time step."""
        batch, settings = self.batch, self.settings
        keep = np.exp(-settings.friction * settings.timestep)
        noise = np.zeros_like(self.velocities)
        for seat in batch.seats:
            rows = batch.rows(seat)
            noise[rows] = self._noise_of(int(self.number[seat]), int(self.steps[seat]), len(rows))
        width = np.sqrt((1 - keep**2) * units.kB * settings.temperature * self.inverse_masses * self.free)
        self.velocities = keep * self.velocities + width[:, None] * noise

    def _noise_of(self, number: int, step: int, atoms: int) -> np.ndarray:
        """Normal random numbers [atoms, 3] of a structure and a step, whoever else is in the batch."""
        start = step - step % NOISE_BLOCK
        known = self._noise.get(number)
        if known is None or known[0] != start:
            block = self._generator(number, start).standard_normal((NOISE_BLOCK, atoms, 3))
            known = self._noise[number] = start, block
        return known[1][step - start]

    def _generator(self, number: int, step: int) -> np.random.Generator:
        """Random numbers of a structure from a step on; step -1 is for its momenta."""
        return np.random.default_rng([self.settings.seed, number, step + 1])
