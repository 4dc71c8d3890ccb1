"""Make mace-torch's file of the network: `python make_model.py FILE CHANNELS HIDDEN_L_MAX DTYPE`; random weights."""

from __future__ import annotations

import os

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn's constants, which torch refuses otherwise

import sys

import numpy as np
import torch
from e3nn import o3
from mace import modules
from shared import CUTOFF, ENERGIES, NEIGHBORS


def main() -> None:
    """The published medium shape: two layers, l_max 3, correlation 3."""
    path, channels, hidden_l_max, dtype = sys.argv[1:]
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    degrees = range(int(hidden_l_max) + 1)
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=8,
        num_polynomial_cutoff=5,
        radial_type="bessel",
        radial_MLP=[64, 64, 64],
        max_ell=3,
        correlation=3,
        num_interactions=2,
        interaction_cls=block,
        interaction_cls_first=block,
        hidden_irreps=o3.Irreps("+".join(f"{channels}x{ell}{'eo'[ell % 2]}" for ell in degrees)),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        num_elements=len(ENERGIES),
        atomic_numbers=list(ENERGIES),
        atomic_energies=np.array(list(ENERGIES.values())),
        avg_num_neighbors=NEIGHBORS,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    torch.save(model, path)


if __name__ == "__main__":
    main()
