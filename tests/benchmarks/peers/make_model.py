"""Make mace-torch's file of the network: `python make_model.py FILE CHANNELS HIDDEN_L_MAX DTYPE`; random weights."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch
from mace_torch_network import build_network
from shared import CUTOFF, ENERGIES, NEIGHBORS


def main() -> None:
    """Draw the weights and write them."""
    path, channels, hidden_l_max, dtype = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    torch.save(build_network(int(channels), int(hidden_l_max), CUTOFF, ENERGIES, NEIGHBORS), path)


if __name__ == "__main__":
    main()
