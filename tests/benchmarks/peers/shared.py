"""What all workers have in common: the options, the requests, the clock. Needs ASE and NumPy alone.

A worker is a process that holds one package's model. It reads requests from its standard input, one line of JSON each,
and answers each with one line: `prepare` a structure, take `md` steps with it, evaluate the `model` alone. So the
packages can take turns without loading anything twice.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io import read
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

CUTOFF = 5.0  # Angstrom
NEIGHBORS = 40.0  # what the sum over neighbours is divided by
ENERGIES = {1: -13.6, 6: -1029.0, 7: -1484.0, 8: -2042.0}  # eV, of the elements that the network knows
WARMUP = 3
MARK = "answer: "  # before each answer
Call = Callable[[], object]  # evaluates energies and forces, and waits for them


@dataclass(frozen=True)
class Task:
    """The network and how to run it.

    Attributes:
        model: mace-torch's file of the network.
        work: folder for what a worker makes of it.
        channels: width of the network.
        hidden_l_max: highest degree of the features between layers.
        dtype: "float32" or "float64".
        cueq: whether mace-torch uses cuEquivariance.
    """

    model: Path
    work: Path
    channels: int
    hidden_l_max: int
    dtype: str
    cueq: bool


class Peer(Protocol):
    """A package with its model loaded."""

    name: str
    version: str

    def calculator(self, atoms: Atoms) -> Calculator:
        """A new calculator for a structure like this one."""

    def model_call(self, atoms: Atoms) -> Call | None:
        """The model alone, with inputs made from the structure with its calculator; None if it cannot be had."""


def read_task() -> Task:
    """The task from the command line of a worker."""
    made = argparse.ArgumentParser()
    for name, kind in (("model", Path), ("work", Path), ("channels", int), ("hidden-l-max", int), ("dtype", str)):
        made.add_argument(f"--{name}", type=kind, required=True)
    made.add_argument("--cueq", action="store_true")
    return Task(**vars(made.parse_args()))


def serve(make: Callable[[Task], Peer]) -> None:
    """Answer requests until the standard input ends; whatever a package prints meanwhile goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(what: Any) -> None:
        print(f"{MARK}{json.dumps(what)}", file=answers, flush=True)

    peer = make(read_task())
    bench = _Bench(peer)
    answer({"name": peer.name, "version": peer.version})
    for line in sys.stdin:
        request = json.loads(line)
        answer(getattr(bench, request.pop("do"))(**request))


class _Bench:
    """The structure in work."""

    def __init__(self, peer: Peer):
        self.peer = peer

    def prepare(self, structure: str, timestep: float, forces: str) -> dict[str, Any]:
        """Load a structure, evaluate it for the first time, warm up; the forces are written to a file.

        Returns:
            Seconds of the first evaluation, and its energy in eV.
        """
        atoms = read(structure)
        started = time.perf_counter()
        atoms.calc = self.peer.calculator(atoms)
        energy, found = atoms.get_potential_energy(), atoms.get_forces()
        seconds = time.perf_counter() - started
        np.save(forces, found)
        self.call = self.peer.model_call(atoms)
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng(0))
        self.dynamics = VelocityVerlet(atoms, timestep * units.fs)
        self.dynamics.run(WARMUP)
        for _ in range(WARMUP if self.call else 0):
            self.call()
        return {"first_s": seconds, "energy": float(energy)}

    def md(self, runs: int) -> list[dict[str, float]]:
        """Go on with the dynamics, and time each step."""
        return [_clock(self.dynamics.step) for _ in range(runs)]

    def model(self, runs: int) -> list[dict[str, float]] | None:
        """Evaluate the model alone."""
        return [_clock(self.call) for _ in range(runs)] if self.call else None


def _clock(function: Call) -> dict[str, float]:
    """Seconds on the wall and of all processors."""
    started, busy = time.perf_counter(), time.process_time()
    function()
    return {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - busy}


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
