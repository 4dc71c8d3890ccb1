"""Train the base model that ships with the package on the GFN2-xTB set: `python data/train_base.py --work FOLDER`.

An interrupted run goes on from its last checkpoint when called again with the same folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import optax

from ase_mlip.batches import Batches
from ase_mlip.dataset import LabelKeys, make_examples, read_frames
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.evaluate import evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.networks.mace import Mace
from ase_mlip.training import LossWeights, TrainSettings, train

HERE = Path(__file__).parent
CONFIG = Mace.Config(num_channels=32, l_max=2, hidden_l_max=1, correlation=3, radial_mlp=(32, 32))
CUTOFF = 4.5


def main() -> None:
    """Train, evaluate on the held-out molecules, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of checkpoints and history")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--output", type=Path, default=HERE.parent / "ase_mlip" / "models" / "default.safetensors")
    args = parser.parse_args()

    sets = {name: read_frames(HERE / f"base_{name}.extxyz.xz") for name in ("train", "valid", "test")}
    atoms = [a for a in sets["train"] if len(a) == 1]
    energies = {int(a.numbers[0]): a.get_potential_energy() for a in atoms}
    bound = [a for a in sets["train"] if len(a) > 2]
    shift = np.mean([(a.get_potential_energy() - sum(energies[z] for z in a.numbers)) / len(a) for a in bound])
    scale = np.sqrt(np.mean(np.concatenate([a.get_forces() for a in bound]) ** 2))
    info = DatasetInfo.create(energies, CUTOFF, 1.0, float(scale), float(shift))
    examples = {
        name: make_examples(frames, info.elements, CUTOFF, np.ones(1), LabelKeys()) for name, frames in sets.items()
    }
    neighbors = np.concatenate([e.graph.slot_mask.sum(axis=1) for e in examples["train"]])
    info = DatasetInfo.create(energies, CUTOFF, float(neighbors.mean()), float(scale), float(shift))
    provenance = {
        "name": "ase_mlip base",
        "levels": {"base": "GFN2-xTB (tblite)"},
        "training_data": "data/base_train.extxyz.xz",
        "licence": "MIT",
    }
    start = ForceField.from_mlip_network(Mace(CONFIG, info))
    start = ForceField(start.predictor, start.params, provenance)

    settings = TrainSettings(
        epochs=args.epochs, batch_size=16, ema=0.998, max_shapes=3, loss=LossWeights(40.0, 1.0, huber_delta=0.2)
    )
    steps = args.epochs * sum(1 for _ in Batches(examples["train"], 16, 3).epoch((0, 0)))
    schedule = optax.warmup_cosine_decay_schedule(1e-4, 1e-2, 200, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.amsgrad(schedule))
    result = train(start, examples["train"], examples["valid"], optimizer, settings, folder=args.work)
    print("test:", evaluate(result.force_field, Batches(examples["test"], 16)))
    args.output.parent.mkdir(exist_ok=True)
    result.force_field.save(args.output)


if __name__ == "__main__":
    main()
