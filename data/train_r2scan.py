"""Fine-tune the accurate base model on frames labelled by r2SCAN-D4: the shipped model "r2scan".

They are those that `make_r2scan.py` and `make_transfers.py` labelled.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from ase_mlip import fine_tune

FOLDER = Path(os.path.relpath(Path(__file__).parent))
TRAIN = [str(FOLDER / f"r2scan_{name}.extxyz.xz") for name in ("train", "transfers")]
NAME = "ase_mlip base (r2scan), RKS r2SCAN-D4/def2-SVP (PySCF)"


def main() -> None:
    """Fine-tune, leave out the old level, which is no longer what it was, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="model file to write; the report goes beside it")
    parser.add_argument("--folder", type=Path, help="folder of checkpoints; the same call again goes on from there")
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    joined = options.output.with_suffix(".train.extxyz.xz")
    joined.write_bytes(b"".join(Path(name).read_bytes() for name in TRAIN))  # of xz, one file after another is a file
    tuned = fine_tune(
        "accurate",
        str(joined),
        str(FOLDER / "r2scan_valid.extxyz.xz"),
        method="full",
        level="r2scan",
        learning_rate=1.5e-3,
        epochs=options.epochs,
        output=str(options.output),
        folder=options.folder and str(options.folder),
    ).force_field
    provenance = {**tuned.provenance, "name": NAME}
    provenance["fine_tuning"][-1]["config"]["train"] = ", ".join(TRAIN)
    replace(tuned.with_levels(["r2scan"]), provenance=provenance).save(options.output)


if __name__ == "__main__":
    main()
