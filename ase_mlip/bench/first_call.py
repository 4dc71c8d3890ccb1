"""The time from the start of a process to the first forces.

`python -m ase_mlip.bench.first_call MODEL SYSTEM ATOMS DTYPE` prints one line of JSON: seconds for imports,
for the model, for the structure's forces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from statistics import median

WARM_RUNS = 3
CACHE_SETTINGS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


@dataclass(frozen=True)
class Start:
    """Seconds of one start.

    Attributes:
        process: from starting Python to having the forces.
        imports: of the package and all that it needs.
        model: reading the file, making the calculator.
        forces: neighbours, compilation or what was kept of it, and the forces.
    """

    process: float
    imports: float
    model: float
    forces: float


@dataclass(frozen=True)
class FirstCall:
    """Starts with nothing compiled, C++ neither, and, medians, with everything compiled by an earlier process.

    Attributes:
        atoms: number of atoms in the structure.
    """

    system: str
    atoms: int
    cold: Start
    warm: Start


def time_first_call(model: str, system: str, atoms: int, dtype: str) -> FirstCall:
    """Start processes one after the other with an empty compilation cache of their own.

    Args:
        model: file of the model.
        system: see `systems.build_system`.
        atoms: number of atoms that is wanted.
        dtype: of the calculator.

    Raises:
        OSError: a process failed; its message is given.
    """
    from ase_mlip.bench.systems import build_system  # not at the top: the new process counts its imports

    environment = {name: value for name, value in os.environ.items() if name not in CACHE_SETTINGS}
    environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # this process may hold most of a GPU
    with tempfile.TemporaryDirectory() as folder:
        environment["ASE_MLIP_CACHE"] = folder
        command = [sys.executable, "-m", __spec__.name, model, system, str(atoms), dtype]
        cold, *warm = (_start(command, environment) for _ in range(1 + WARM_RUNS))
    middle = Start(*(median(values) for values in zip(*(vars(start).values() for start in warm), strict=True)))
    return FirstCall(system, len(build_system(system, atoms)), cold, middle)


def _start(command: list[str], environment: dict[str, str]) -> Start:
    """Run one process until its line has come."""
    started = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stderr
        line = child.stdout.readline()
        seconds = time.perf_counter() - started
        _, complaint = child.communicate()
    if child.returncode or not line:
        raise OSError(f"{' '.join(command)} failed:\n{complaint}")
    return Start(seconds, **json.loads(line))


def main() -> None:
    """The process that is timed."""
    marks = [time.perf_counter()]
    model, system, atoms, dtype = sys.argv[1:]
    from ase_mlip.bench.systems import build_system
    from ase_mlip.calculator import MLIPCalculator

    structure = build_system(system, int(atoms))
    marks.append(time.perf_counter())
    structure.calc = MLIPCalculator(model, dtype=dtype)
    marks.append(time.perf_counter())
    structure.get_forces()
    marks.append(time.perf_counter())
    names = ("imports", "model", "forces")
    print(json.dumps({name: b - a for name, a, b in zip(names, marks, marks[1:], strict=False)}), flush=True)


if __name__ == "__main__":
    main()
