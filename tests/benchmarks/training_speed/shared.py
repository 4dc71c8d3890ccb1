"""What all runners have in common: the options, the frames, the clock. Needs ASE and NumPy alone.

The task is the same for all: batches of molecules, energies and forces in the loss, float32, Adam, a moving average of
the parameters. The network is a MACE of two layers with L = 1, l_max 3, correlation 3, cutoff 5 Angstrom, 8 Bessel
functions, a radial network of 64 x 3 and a readout of 16. What happens to the frames before the step is not timed.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.neighborlist import neighbor_list

CUTOFF = 5.0  # Angstrom
LEARNING_RATE = 1e-3
EMA = 0.99


@dataclass(frozen=True)
class Task:
    """What a runner trains on.

    Attributes:
        frames: each with its labels in a calculator: eV and eV/Angstrom.
        channels: width of the network.
        batch_size: frames in a batch.
        warmup: steps before the clock starts.
        steps: steps that are timed.
    """

    frames: list[ase.Atoms]
    channels: int
    batch_size: int
    warmup: int
    steps: int

    @property
    def elements(self) -> list[int]:
        """Atomic numbers, ascending."""
        return sorted({number for atoms in self.frames for number in atoms.numbers.tolist()})

    @property
    def atomic_energies(self) -> dict[int, float]:
        """The mean energy per atom, eV, for every element: it keeps the first losses small and is not learned."""
        mean = float(np.mean([atoms.get_potential_energy() / len(atoms) for atoms in self.frames]))
        return dict.fromkeys(self.elements, mean)

    @property
    def neighbors(self) -> float:
        """Mean number of neighbours within the cutoff."""
        return len(neighbor_list("i", self.frames[0], CUTOFF)) / len(self.frames[0])

    @property
    def force_scale(self) -> float:
        """Root mean square of the force components, eV/Angstrom."""
        return float(np.sqrt(np.mean([atoms.get_forces() ** 2 for atoms in self.frames])))


def parser(description: str | None, *, several: bool = False) -> argparse.ArgumentParser:
    """The options of every runner; with `several`, widths of the network are a list."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path, help="labelled molecules as extended XYZ, which may be compressed by xz")
    made.add_argument("--energy-key", default="energy")
    made.add_argument("--forces-key", default="forces")
    made.add_argument(
        "--channels", type=int, nargs="+" if several else None, default=[64, 128] if several else 64, help="width"
    )
    made.add_argument("--batch-size", type=int, default=5)
    made.add_argument("--warmup", type=int, default=5, help="steps before the clock starts: torch needs several")
    made.add_argument("--steps", type=int, default=10)
    return made


def read_task(args: argparse.Namespace) -> Task:
    """Read as many frames as the steps need, or all if there are fewer."""
    text = (lzma.open if args.data.suffix == ".xz" else open)(args.data, "rt").read()
    wanted = args.batch_size * (args.warmup + args.steps)
    frames = read(io.StringIO(text), index=f":{wanted}", format="extxyz")
    for atoms in frames:
        results = atoms.calc.results if atoms.calc else {}
        energy = atoms.info.get(args.energy_key, results.get(args.energy_key))
        forces = atoms.arrays.get(args.forces_key, results.get(args.forces_key))
        if energy is None or forces is None:
            raise SystemExit(f"no {args.energy_key!r} or no {args.forces_key!r} in {args.data}: give the labels' keys")
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy), forces=forces)
    return Task(frames, args.channels, args.batch_size, args.warmup, args.steps)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cycle(batches: Sequence, count: int) -> list:
    """The first `count` batches of an endless repetition."""
    return [batches[number % len(batches)] for number in range(count)]


def time_steps(task: Task, step: Callable[[int], float], sizes: Sequence[int], **about: object) -> None:
    """Take all steps and print a line of JSON about them.

    Args:
        step: takes the step of this number; returns its loss when everything is done.
        sizes: frames in the batch of each step, the warm-up included.
        about: what to add to the record.
    """
    seconds, processor, losses = [], [], []
    for number in range(task.warmup + task.steps):
        started, busy = time.perf_counter(), time.process_time()
        losses.append(float(step(number)))
        seconds.append(time.perf_counter() - started)
        processor.append(time.process_time() - busy)
    if not np.isfinite(losses).all():
        raise SystemExit(f"the losses are {losses}: the training itself does not work")
    timed = slice(task.warmup, None)
    record = {
        **about,
        "channels": task.channels,
        "processors": processors(),
        "first_step_s": round(seconds[0], 2),
        "frames": list(sizes[timed]),
        "seconds": [round(second, 4) for second in seconds[timed]],
        "processor_seconds": [round(second, 4) for second in processor[timed]],
        "losses": [losses[0], losses[-1]],
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(record), flush=True)
