"""Kill a fine-tuning at random moments, resume it, and compare the file with that of an uninterrupted run, bit by bit.

python tests/benchmarks/kill.py BASE TRAIN --kills 10 --method lora --epochs 40
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(args: argparse.Namespace, folder: Path, name: str) -> list[str]:
    """The shell command of one run."""
    options = ["--method", args.method, "--epochs", str(args.epochs), "--check-ps", "0", "--batch-size", "4"]
    places = ["--folder", str(folder / name), "-o", str(folder / f"{name}.safetensors")]
    return [sys.executable, "-m", "ase_mlip.cli", "finetune", args.base, args.train, *options, *places]


def evaluations(folder: Path) -> int:
    """How many a run has written down."""
    history = folder / "history.jsonl"
    return len(history.read_text().splitlines()) if history.is_file() else 0


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Print each kill and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("train")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.monotonic()
        subprocess.run(command(args, folder, "whole"), check=True, stdout=subprocess.DEVNULL)
        whole = time.monotonic() - started
        print(f"uninterrupted: {whole:.0f} s", flush=True)
        for number in range(args.kills):
            least = evaluations(folder / "killed") + rng.randint(0, 2)
            process = subprocess.Popen(command(args, folder, "killed"), stdout=subprocess.DEVNULL)
            while evaluations(folder / "killed") < least and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.3 if least else 0.1) * whole / 10)
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                print(f"run {number} came to its end; take more epochs")
                break
            print(f"run {number}: killed with {evaluations(folder / 'killed')} evaluations done", flush=True)
        subprocess.run(command(args, folder, "killed"), check=True, stdout=subprocess.DEVNULL)
        same = digest(folder / "whole.safetensors") == digest(folder / "killed.safetensors")
        print("the final files are equal bit by bit" if same else "THE FINAL FILES DIFFER")
        raise SystemExit(not same)


if __name__ == "__main__":
    main()
