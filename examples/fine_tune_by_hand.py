"""The same by hand: one more readout head, transferred parameters, and an optimiser that moves the new head alone."""

import sys
from dataclasses import replace

import optax

from ase_mlip import ForceField, LabelKeys, LossWeights, Mace, TrainSettings
from ase_mlip.dataset import make_examples, read_frames
from ase_mlip.finetune import mask_optimizer_for_finetuning, transfer_params
from ase_mlip.reference_energies import fit_energy_correction, with_energies
from ase_mlip.training import Validation, train


def main(trajectory: str, epochs: int = 20) -> ForceField:
    """Train the new head on nine tenths of the frames and validate on the rest; return the fine-tuned model."""
    pretrained = ForceField.load("default")
    config = replace(pretrained.predictor.network.config, num_readout_heads=2, head_names=None)
    initial = ForceField.from_mlip_network(Mace(config, pretrained.dataset_info))
    params, blocks = transfer_params(pretrained.params, initial.params, scale_factor=0.1)
    force_field = ForceField(initial.predictor, params)
    print(f"heads {force_field.heads}, levels {list(force_field.levels)}, new blocks {blocks}")

    frames = read_frames(trajectory)
    weights = force_field.predictor.head_weights("head_1")
    examples = make_examples(frames, force_field.elements, force_field.cutoff, weights, LabelKeys())
    correction, _ = fit_energy_correction(force_field, examples)
    force_field = with_energies(force_field, ["head_1"], correction)

    settings = TrainSettings(epochs=epochs, batch_size=8, loss=LossWeights(energy=100.0, forces=1.0))
    optimizer = mask_optimizer_for_finetuning(optax.adam(1e-3), params, blocks)
    cut = len(examples) // 10
    valid = [Validation("head_1", examples[:cut])]
    tuned = train(force_field, examples[cut:], valid, optimizer, settings).force_field
    tuned.save("by_hand.safetensors")
    return tuned


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
