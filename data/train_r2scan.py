"""Fine-tune the accurate base model on the frames that `make_r2scan.py` labelled: the shipped model "r2scan"."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from ase_mlip import fine_tune

FOLDER = Path(os.path.relpath(Path(__file__).parent))
NAME = "ase_mlip base (r2scan), RKS r2SCAN-D4/def2-SVP (PySCF)"


def main() -> None:
    """Fine-tune, leave out the old level, which is no longer what it was, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="model file to write; the report goes beside it")
    parser.add_argument("--folder", type=Path, help="folder of checkpoints; the same call again goes on from there")
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    tuned = fine_tune(
        "accurate",
        str(FOLDER / "r2scan_train.extxyz.xz"),
        str(FOLDER / "r2scan_valid.extxyz.xz"),
        method="full",
        level="r2scan",
        learning_rate=1.5e-3,
        epochs=options.epochs,
        output=str(options.output),
        folder=options.folder and str(options.folder),
    ).force_field
    replace(tuned.with_levels(["r2scan"]), provenance={**tuned.provenance, "name": NAME}).save(options.output)


if __name__ == "__main__":
    main()
