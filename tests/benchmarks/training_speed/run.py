"""Train the same network with several packages, side by side, and compare their throughput.

    python run.py aspirin.extxyz --energy-key REF_energy --forces-key REF_forces \\
        --mace-torch ENV1/bin/python --mlip ENV2/bin/python --channels 64 128 --rounds 2

Each package runs in a process of its own with the Python that is given for it, this one for ase_mlip; the processes
take turns, never two at once, and all of it again each round. The tables hold the medians over the steps of all rounds:

* frames/s, by the clock on the wall; right on a machine that does nothing else. Beside it, each round by itself.
* processor seconds per frame, over all threads; other work on the machine hardly touches it, and with `--processors 1`
  nothing else does, because no thread waits for another.

Compare numbers of one run alone. With less than all processors the processes are bound to the first ones (Linux).
The parameters of ase_mlip are fewer because its symmetric contraction leaves out what is linearly dependent in the
others' (`use_reduced_cg` of mace-torch does too, where cuEquivariance is installed); the functions are the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from shared import parser, processors

HERE = Path(__file__).parent


def train(python: str, script: str, options: list[str], *, isolated: bool) -> dict[str, Any]:
    """Run one script and return its record; what it prints besides is shown if it fails."""
    left_out = ("PYTHONPATH", "PYTHONHOME") if isolated else ()
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    done = subprocess.run(
        [python, str(HERE / script), *options], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{python} {script} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians over the steps of several runs of one package."""

    def per_second(record: dict[str, Any]) -> list[float]:
        return [frames / seconds for frames, seconds in zip(record["frames"], record["seconds"], strict=True)]

    costs = [
        seconds / frames
        for record in records
        for frames, seconds in zip(record["frames"], record["processor_seconds"], strict=True)
    ]
    return {
        "name": f"{records[0]['package']} {records[0]['version']}",
        "parameters": records[0]["parameters"],
        "pairs": records[0]["pairs"],
        "first": median(record["first_step_s"] for record in records),
        "rate": median(rate for record in records for rate in per_second(record)),
        "rounds": [median(per_second(record)) for record in records],
        "cost": median(costs),
        "load": [record["load"] for record in records],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each package, the first one being what the others are compared with."""
    lines = [
        f"{'':24}{'parameters':>11}{'pairs':>7}{'1st step s':>11}{'frames/s':>10}{'ratio':>7}"
        f"{'cpu s/frame':>13}{'ratio':>7}   rounds (load)"
    ]
    for row in rows:
        rounds = "  ".join(f"{rate:.2f} ({load:.1f})" for rate, load in zip(row["rounds"], row["load"], strict=True))
        lines.append(
            f"{row['name']:24}{row['parameters']:11,}{row['pairs']:7}{row['first']:11.1f}{row['rate']:10.2f}"
            f"{rows[0]['rate'] / row['rate']:7.2f}{row['cost']:13.4f}{row['cost'] / rows[0]['cost']:7.2f}   {rounds}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run all packages in turn for each width."""
    made = parser(__doc__, several=True)
    made.add_argument("--mace-torch", metavar="PYTHON", help="of an environment with mace-torch")
    made.add_argument("--mlip", metavar="PYTHON", help="of an environment with mlip 0.2")
    made.add_argument("--rounds", type=int, default=2)
    made.add_argument("--processors", type=int, default=processors())
    made.add_argument("--output", type=Path, help="all records, one line of JSON each, are added to it")
    args = made.parse_args()
    if args.processors < processors():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.processors])
    runners = [(sys.executable, "ours.py")]
    runners += [(args.mace_torch, "mace_torch.py")] if args.mace_torch else []
    runners += [(args.mlip, "mlip_train.py")] if args.mlip else []
    fixed = [str(args.data), "--energy-key", args.energy_key, "--forces-key", args.forces_key]
    for name in ("batch_size", "warmup", "steps"):
        fixed += ["--" + name.replace("_", "-"), str(getattr(args, name))]
    for channels in args.channels:
        records: dict[str, list[dict[str, Any]]] = {script: [] for _, script in runners}
        for number in range(args.rounds):
            for python, script in runners:
                options = [*fixed, "--channels", str(channels)]
                record = {"round": number, **train(python, script, options, isolated=script != "ours.py")}
                records[script].append(record)
                if args.output:
                    with args.output.open("a") as file:
                        file.write(json.dumps(record) + "\n")
        print(
            f"\n{channels} channels, {args.batch_size} frames a batch, {processors()} processors, "
            f"{args.rounds} x {args.steps} steps\n{table([summarise(found) for found in records.values()])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
