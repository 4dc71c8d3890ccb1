"""Optimisers of many structures: the rules and parameters of `ase.optimize`, with a state for each structure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ase_mlip.journal import Ledger
from ase_mlip.many import Motion, explain
from ase_mlip.moving import MovingBatch
from ase_mlip.predictor import Prediction
from ase_mlip.structure import find_neighbors

LONGEST_STEP = 0.2  # Angstrom; FIRE counts the step of all atoms together, LBFGS that of the fastest one
# FIRE, times in ASE's units
TIME_STEP, LONGEST_TIME_STEP = 0.1, 1.0
PATIENCE, FASTER, SLOWER, MIXING, LESS_MIXING = 5, 1.1, 0.5, 0.1, 0.99
# LBFGS
STIFFNESS = 70.0  # eV/Angstrom^2, of the first guess
MEMORY = 100  # steps remembered


class Relaxation(Motion):
    """Moves structures until their forces are small or their steps used up, and writes down what became of them.

    Args:
        batch: where they move.
        frames: all structures, as given.
        fmax: eV/Angstrom.
        steps: of each structure, at most.
        ledger: gets a record of each: "converged", "steps", "problem", and where there is a prediction, "positions",
            "energy", "forces", "stress".
    """

    per_seat = (*Motion.per_seat, "parts")

    def __init__(self, batch: MovingBatch, frames: Sequence[ase.Atoms], fmax: float, steps: int, ledger: Ledger):
        super().__init__(batch)
        self.frames, self.fmax, self.most, self.ledger = frames, fmax, steps, ledger
        self.parts = np.zeros(batch.shape.graphs + 1, int)  # in which each structure was

    @abstractmethod
    def displacements(self, forces: np.ndarray) -> np.ndarray:
        """The next step of everyone, [rows, 3] Angstrom, and whatever is to be remembered; zero for free rows.

        Args:
            forces: [rows, 3] eV/Angstrom; zero for free rows.
        """

    def enter(self, number: int) -> None:
        atoms = self.frames[number]
        seat = self.seat(number, atoms)
        self.parts[seat] = count_parts(atoms, self.batch.force_field.cutoff)
        self.begin(seat)

    def begin(self, seat: int) -> None:
        """Set what is not zero in a structure's first step."""

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
        forces = np.where((batch.seat_of < batch.shape.graphs)[:, None], forces, 0.0)
        wanted = batch.positions + self.displacements(forces)
        self._hold(wanted, constrained)
        batch.positions[:] = wanted
        self.fresh[:] = False
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


class Fire(Relaxation):
    """The fast inertial relaxation engine (Bitzek et al., PRL 97, 170201), as `ase.optimize.FIRE`."""

    per_row = ("velocities",)
    per_seat = (*Relaxation.per_seat, "time_step", "mixing", "downhill")

    def __init__(self, batch: MovingBatch, frames: Sequence[ase.Atoms], fmax: float, steps: int, ledger: Ledger):
        super().__init__(batch, frames, fmax, steps, ledger)
        seats = batch.shape.graphs + 1
        self.velocities = np.zeros((batch.shape.nodes, 3))
        self.time_step, self.mixing = np.zeros(seats), np.zeros(seats)
        self.downhill = np.zeros(seats, int)  # steps since the last one uphill

    def begin(self, seat: int) -> None:
        self.time_step[seat], self.mixing[seat] = TIME_STEP, MIXING

    def displacements(self, forces: np.ndarray) -> np.ndarray:
        seat_of, total = self.batch.seat_of, self.batch.sum
        power = total((forces * self.velocities).sum(axis=1))
        squares = total((forces**2).sum(axis=1))
        speeds = total((self.velocities**2).sum(axis=1))
        downhill, ratio = power > 0, np.zeros(len(power))
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
        time_step = self.time_step[seat_of, None]
        # of free rows, too: what a structure that has left leaves behind stops here
        self.velocities = np.where((seat_of < len(power) - 1)[:, None], self.velocities + time_step * forces, 0.0)
        step = time_step * self.velocities
        return shortened(step, np.sqrt(total((step**2).sum(axis=1))), seat_of)


class Lbfgs(Relaxation):
    """Limited-memory BFGS without line search (Nocedal, Math. Comput. 35, 773), as `ase.optimize.LBFGS`."""

    per_row = ("last_positions", "last_forces", "moves", "changes")
    per_seat = (*Relaxation.per_seat, "inverse_curvatures", "stored")

    def __init__(self, batch: MovingBatch, frames: Sequence[ase.Atoms], fmax: float, steps: int, ledger: Ledger):
        super().__init__(batch, frames, fmax, steps, ledger)
        rows, seats, begun = batch.shape.nodes, batch.shape.graphs + 1, 16
        self.last_positions, self.last_forces = np.zeros((rows, 3)), np.zeros((rows, 3))
        # the history is a ring; it grows to MEMORY where it is needed
        self.moves, self.changes = np.zeros((rows, begun, 3)), np.zeros((rows, begun, 3))
        self.inverse_curvatures = np.zeros((seats, begun))
        self.stored = np.zeros(seats, int)  # steps, those that are forgotten included

    def displacements(self, forces: np.ndarray) -> np.ndarray:
        seat_of, total = self.batch.seat_of, self.batch.sum
        self._remember(forces)
        self.last_positions, self.last_forces = self.batch.positions.copy(), forces
        size = self.moves.shape[1]
        known = np.minimum(self.stored, size)
        rows, seats = np.arange(len(seat_of)), np.arange(len(known))
        step, recalled = forces.copy(), []
        for age in range(int(known.max(initial=0))):
            slot = (self.stored - 1 - age) % size
            move, change = self.moves[rows, slot[seat_of]], self.changes[rows, slot[seat_of]]
            inverse = np.where(age < known, self.inverse_curvatures[seats, slot], 0.0)
            share = inverse * total((move * step).sum(axis=1))
            step -= share[seat_of, None] * change
            recalled.append((move, change, inverse, share))
        step /= STIFFNESS
        for move, change, inverse, share in reversed(recalled):
            step += (share - inverse * total((change * step).sum(axis=1)))[seat_of, None] * move
        return shortened(step, np.sqrt(self.batch.max((step**2).sum(axis=1))), seat_of)

    def _remember(self, forces: np.ndarray) -> None:
        """Store the last step and what it changed, of everyone who has made one."""
        seat_of, size = self.batch.seat_of, self.moves.shape[1]
        going = ~self.fresh
        going[[*(seat for seat, atoms in enumerate(self.batch.atoms) if atoms is None), -1]] = False
        self.stored[~going] = 0
        if size < MEMORY and (self.stored >= size).any():
            more = min(2 * size, MEMORY) - size
            self.moves, self.changes = (np.pad(a, ((0, 0), (0, more), (0, 0))) for a in (self.moves, self.changes))
            self.inverse_curvatures = np.pad(self.inverse_curvatures, ((0, 0), (0, more)))
            size += more
        slot, rows = self.stored % size, np.flatnonzero(going[seat_of])
        move, change = self.batch.positions - self.last_positions, self.last_forces - forces
        curvature = self.batch.sum((move * change).sum(axis=1))
        self.moves[rows, slot[seat_of[rows]]] = move[rows]
        self.changes[rows, slot[seat_of[rows]]] = change[rows]
        use = going & (curvature != 0)
        self.inverse_curvatures[going, slot[going]] = np.divide(1.0, curvature, where=use, out=np.zeros(len(use)))[
            going
        ]
        self.stored[going] += 1


OPTIMIZERS: dict[str, type[Relaxation]] = {"fire": Fire, "lbfgs": Lbfgs}


def shortened(step: np.ndarray, lengths: np.ndarray, seat_of: np.ndarray) -> np.ndarray:
    """Steps [rows, 3], scaled so that no seat's length [seats + 1] is more than `LONGEST_STEP`."""
    factor = np.where(lengths > LONGEST_STEP, LONGEST_STEP / np.maximum(lengths, LONGEST_STEP), 1.0)
    return factor[seat_of, None] * step


def count_parts(atoms: ase.Atoms, cutoff: float) -> int:
    """Number of parts of a structure that are farther than `cutoff` from each other."""
    centers, others, _ = find_neighbors(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    shape = (len(atoms), len(atoms))
    return int(connected_components(coo_array((np.ones(len(centers)), (centers, others)), shape=shape))[0])
