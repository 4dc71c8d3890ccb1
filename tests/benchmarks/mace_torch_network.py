"""The network of the benchmarks as mace-torch builds it: the published medium shape, random weights."""

from __future__ import annotations

import os

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn's constants, which torch refuses otherwise

from collections.abc import Mapping

import numpy as np
import torch
from e3nn import o3
from mace import modules


def build_network(
    channels: int,
    hidden_l_max: int,
    cutoff: float,
    atomic_energies: Mapping[int, float],
    neighbors: float,
    scale: float = 1.0,
) -> torch.nn.Module:
    """Two layers, l_max 3, correlation 3, 8 Bessel functions, a radial network of 64 x 3, a readout of 16.

    Args:
        channels: width of every feature.
        hidden_l_max: highest degree of the features between layers.
        cutoff: Angstrom.
        atomic_energies: eV, by the atomic numbers that the network knows.
        neighbors: what the sum over neighbours is divided by.
        scale: of the interaction energy, eV.
    """
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    degrees = range(hidden_l_max + 1)
    return modules.ScaleShiftMACE(
        r_max=cutoff,
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
        num_elements=len(atomic_energies),
        atomic_numbers=list(atomic_energies),
        atomic_energies=np.array(list(atomic_energies.values())),
        avg_num_neighbors=neighbors,
        atomic_inter_scale=scale,
        atomic_inter_shift=0.0,
    )
