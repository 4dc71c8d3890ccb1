"""Time the same network in several packages, side by side, and compare.

    python peers.py --mace-torch ENV1/bin/python --symmetrix ENV2/bin/python --mlip ENV3/bin/python --sizes 24,192,648

The network is a MACE of the published medium shape with random weights: 128 channels, L = 1, l_max 3, correlation 3,
two layers, cutoff 5 Angstrom. Two things are timed on periodic boxes: a step of VelocityVerlet through ASE, host
included, and, where a package lets us, the model alone with its inputs ready.

Each package runs in a process of its own with the Python that is given for it, this one for ase_mlip. All stay loaded
and take turns, never two at once: a few steps each, and all of it again each round. The tables hold medians over all
rounds, with quartiles, and the ratio of our time to theirs, by the clock on the wall and by processor seconds over all
threads, which other work on the machine hardly touches. Compare numbers of one run alone.

Before the clock starts, energies and forces are compared with ours on the same structure; a difference beyond rounding
ends the run. The network's file is made by mace-torch and converted to ours with it, so --mace-torch is needed unless
--model and --converted are given. mlip cannot read it: it has a network of the same shape with weights of its own,
which ours reads for the comparison.

With --nequix the network is a published Nequix model instead, which both read, and nequix is the only peer:

    python peers.py --nequix ENV/bin/python --model nequix-oam-1.nqx --system copper --sizes 32,108
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write

from ase_mlip.bench.machine import hardware, versions
from ase_mlip.bench.systems import build_system

HERE = Path(__file__).parent / "peers"
MARK = "answer: "  # before each answer of a worker
ROOT = Path(__file__).parents[2]
SCRIPTS = {
    "symmetrix": "symmetrix_xl.py",
    "mace_torch": "mace_torch.py",
    "mlip": "mlip_mace.py",
    "nequix": "nequix_jax.py",
}
# of the energy, reference energies included, for every atom: half a rounding of a sum in float32, one after the other
ENERGY_NOISE = 2.0**-25
FORCES_NOISE = 2e-4  # of the largest force


class Worker:
    """A process that holds one package's model, see `peers/shared.py`."""

    def __init__(self, python: str, script: str, model: Path, args: argparse.Namespace):
        command = [python, str(HERE / script), "--model", str(model), "--work", str(args.work), "--dtype", args.dtype]
        command += ["--channels", str(args.channels), "--hidden-l-max", str(args.hidden_l_max)]
        command += ["--cueq"] if args.cueq else []
        self.log = args.work / f"{script}.{model.suffix[1:]}.log"
        environment = environment_of(python) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # they share a GPU
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        about = self._answer()
        self.name, self.version = about["name"], about["version"]

    def ask(self, do: str, **request: Any) -> Any:
        """Send a request and wait for its answer."""
        print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> Any:
        for line in self.process.stdout:
            if line.startswith(MARK):  # a package may have printed something before
                return json.loads(line.removeprefix(MARK))
        raise SystemExit(f"{' '.join(self.process.args)} failed:\n{self.log.read_text()[-3000:]}")


def environment_of(python: str, *, ours: bool = False) -> dict[str, str]:
    """The variables of a process: another package's Python must not see our packages, unless it needs this one."""
    if python == sys.executable and not ours:
        return dict(os.environ)
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | ({"PYTHONPATH": str(ROOT)} if ours else {})


def make_models(args: argparse.Namespace) -> tuple[Path, Path]:
    """mace-torch's file of the network and ours, made where they are not given."""
    if args.nequix:
        if args.model is None or args.symmetrix or args.mace_torch or args.mlip:
            raise SystemExit("--nequix needs --model, a file of nequix, which no other package reads")
        return args.model.resolve(), args.model.resolve()
    model = args.model or args.work / f"mace_{args.channels}_{args.hidden_l_max}_{args.dtype}.model"
    converted = args.converted or model.with_suffix(".safetensors")
    if not (model.exists() and converted.exists()) and args.mace_torch is None:
        raise SystemExit("give --mace-torch to make the network's files, or --model and --converted")
    if not model.exists():
        options = [str(model), str(args.channels), str(args.hidden_l_max), args.dtype]
        run(args.mace_torch, [str(HERE / "make_model.py"), *options])
    if not converted.exists():
        code = (
            "import sys; from ase_mlip.importers import read_foreign; read_foreign(sys.argv[1], True).save(sys.argv[2])"
        )
        run(args.mace_torch, ["-c", code, str(model), str(converted)], ours=True)
    return model, converted


def run(python: str, arguments: list[str], *, ours: bool = False) -> None:
    """Run a command that has to succeed."""
    environment = environment_of(python, ours=ours)
    done = subprocess.run([python, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = (
            "\nThis Python needs our dependencies too, or convert the file elsewhere and give --converted."
            if ours
            else ""
        )
        raise SystemExit(f"{python} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}{hint}")


def prepare(worker: Worker, structure: Path, args: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray]:
    """Load a structure; its energy and time of the first evaluation, and its forces."""
    forces = args.work / "forces.npy"
    answer = worker.ask("prepare", structure=str(structure), timestep=args.timestep, forces=str(forces))
    return answer, np.load(forces)


def compare(
    name: str, atoms: int, ours: tuple[dict[str, Any], np.ndarray], theirs: tuple[dict[str, Any], np.ndarray]
) -> dict[str, Any]:
    """Print how far two packages are apart on one structure.

    Raises:
        SystemExit: too far to be the same network.
    """
    energy = abs(ours[0]["energy"] - theirs[0]["energy"])
    forces, largest = float(np.abs(ours[1] - theirs[1]).max()), float(np.abs(ours[1]).max())
    print(
        f"  {name}: energy {energy / atoms:.1e} eV/atom of {theirs[0]['energy'] / atoms:.3f}, "
        f"forces {forces:.1e} eV/Angstrom of {largest:.3g}",
        flush=True,
    )
    if energy > max(100, atoms) * ENERGY_NOISE * abs(theirs[0]["energy"]) or forces > FORCES_NOISE * largest:
        raise SystemExit(f"{name} and ase_mlip do not compute the same network: nothing to compare")
    return {"energy_per_atom": energy / atoms, "forces": forces, "largest_force": largest}


def time_structure(workers: dict[str, Worker], args: argparse.Namespace) -> dict[str, dict[str, list]]:
    """All rounds: for each package and each part, the runs of each round."""
    runs: dict[str, dict[str, list]] = {key: {"md": [], "model": []} for key in workers}
    for _ in range(args.rounds):
        for key, worker in workers.items():
            for part, found in runs[key].items():
                if (answer := worker.ask(part, runs=args.steps)) is not None:
                    found.append(answer)
    return runs


def summarise(runs: list[list[dict[str, float]]], ours: list[list[dict[str, float]]]) -> dict[str, Any] | None:
    """Medians, quartiles, and our time as a multiple of theirs; None if nothing was timed."""
    if not runs:
        return None
    clock, busy = ([[run[key] for run in found] for found in runs] for key in ("seconds", "processor_seconds"))
    own, own_busy = ([[run[key] for run in found] for found in ours] for key in ("seconds", "processor_seconds"))
    lower, median, upper = np.percentile(clock, [25, 50, 75])
    return {
        "median": median,
        "lower": lower,
        "upper": upper,
        "ratio": np.median(own) / median,
        "round_ratios": (np.median(own, axis=1) / np.median(clock, axis=1)).tolist(),
        "processor_seconds": np.median(busy),
        "processor_ratio": np.median(own_busy) / np.median(busy),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each package and part."""
    lines = [
        f"  {'':37}{'ms':>10}{'quartiles':>21}{'ours/theirs':>13}{'by rounds':>14}{'cpu ms':>10}{'ours/theirs':>13}"
    ]
    for part, title in (("md", "MD step"), ("model", "model")):
        for name, row in rows.items():
            if (found := row[part]) is None:
                continue
            quartiles = f"{1e3 * found['lower']:.2f}-{1e3 * found['upper']:.2f}"
            ratios = f"{min(found['round_ratios']):.2f}-{max(found['round_ratios']):.2f}"
            lines.append(
                f"  {name:28}{title:9}{1e3 * found['median']:10.2f}{quartiles:>21}{found['ratio']:13.3f}{ratios:>14}"
                f"{1e3 * found['processor_seconds']:10.1f}{found['processor_ratio']:13.3f}"
            )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--symmetrix", metavar="PYTHON", help="of an environment with symmetrix-xl and mace-torch")
    made.add_argument("--mace-torch", metavar="PYTHON", help="of an environment with mace-torch and our dependencies")
    made.add_argument("--mlip", metavar="PYTHON", help="of an environment with mlip 0.2")
    made.add_argument("--nequix", metavar="PYTHON", help="of an environment with nequix; for its own models")
    made.add_argument("--model", type=Path, help="mace-torch's file of the network; made by default; or nequix's")
    made.add_argument("--converted", type=Path, help="our file of the same; converted by default")
    made.add_argument("--channels", type=int, default=128)
    made.add_argument("--hidden-l-max", type=int, default=1)
    made.add_argument("--system", default="water", help="of structures whose elements are among H, C, N, O")
    made.add_argument("--sizes", default="24,192,648", help="numbers of atoms")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--steps", type=int, default=5, help="runs of each package in a round")
    made.add_argument("--processors", type=int, help="use the first ones alone (Linux); default: all")
    made.add_argument("--timestep", type=float, default=0.5, help="fs")
    made.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    made.add_argument("--cueq", action="store_true", help="mace-torch with cuEquivariance")
    made.add_argument("--work", type=Path, help="folder for the network's files and logs; kept")
    made.add_argument("--json", type=Path, help="everything, every run included")
    return made.parse_args()


def main() -> None:
    """Prepare, compare, time, for each size."""
    args = parse()
    if args.processors:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.processors])
    with tempfile.TemporaryDirectory() as temporary:
        args.work = (args.work or Path(temporary)).resolve()
        args.work.mkdir(parents=True, exist_ok=True)
        model, converted = make_models(args)
        workers = {"ours": Worker(sys.executable, "ours.py", converted, args)}
        reference = None  # ours, with mlip's weights
        for key, script in SCRIPTS.items():
            if python := getattr(args, key):
                workers[key] = Worker(python, script, model, args)
        if "mlip" in workers:
            reference = Worker(sys.executable, "ours.py", args.work / "mlip.zip", args)
        data = {"hardware": hardware(), "versions": versions(), "peers": {w.name: w.version for w in workers.values()}}
        print("\n".join(f"{name}: {value}" for name, value in {**data["hardware"], **data["peers"]}.items()))
        data |= {"channels": args.channels, "hidden_l_max": args.hidden_l_max, "dtype": args.dtype, "sizes": []}
        for size in map(int, args.sizes.split(",")):
            data["sizes"].append(measure(args, workers, reference, size))
        for worker in (*workers.values(), *([reference] if reference else [])):
            worker.close()
        if args.json:
            args.json.write_text(json.dumps(data, indent=1) + "\n")


def measure(
    args: argparse.Namespace, workers: dict[str, Worker], reference: Worker | None, size: int
) -> dict[str, Any]:
    """One structure in all packages: compare, then time."""
    atoms = build_system(args.system, size)
    structure = args.work / "structure.traj"
    write(structure, atoms)
    print(f"\n{args.system}, {len(atoms)} atoms; differences from ours:", flush=True)
    found = {key: prepare(worker, structure, args) for key, worker in workers.items()}
    agreement = {}
    for key, worker in workers.items():
        if key != "ours":
            ours = prepare(reference, structure, args) if key == "mlip" and reference else found["ours"]
            agreement[worker.name] = compare(worker.name, len(atoms), ours, found[key])
    runs = time_structure(workers, args)
    rows = {
        worker.name: {part: summarise(runs[key][part], runs["ours"][part]) for part in ("md", "model")}
        for key, worker in workers.items()
    }
    print(f"{args.rounds} rounds of {args.steps} runs, load {os.getloadavg()[0]:.1f}\n{table(rows)}", flush=True)
    first = {workers[key].name: answer["first_s"] for key, (answer, _) in found.items()}
    print("  first evaluation, s: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in first.items()), flush=True)
    return {"atoms": len(atoms), "agreement": agreement, "first_s": first, "results": rows, "runs": runs}


if __name__ == "__main__":
    main()
