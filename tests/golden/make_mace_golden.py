"""Make `mace_NAME.safetensors` and `mace_NAME.json`: random mace-torch models, read by us, and their own numbers.

    pip install -e ".[torch]" && python tests/golden/make_mace_golden.py

Needs torch and mace-torch; each file keeps the versions it was made with. `tests/torch` does the same on fresh weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.build import bulk, molecule

HERE = Path(__file__).parent
ELEMENTS = (1, 6, 8, 29)
COMMON: dict[str, Any] = {
    "r_max": 3.6, "num_bessel": 5, "num_polynomial_cutoff": 6, "max_ell": 2, "num_interactions": 2,
    "interaction_cls": "RealAgnosticResidualInteractionBlock",
    "interaction_cls_first": "RealAgnosticResidualInteractionBlock",
    "hidden_irreps": "3x0e+3x1o", "MLP_irreps": "4x0e", "avg_num_neighbors": 9.5, "correlation": 2, "radial_MLP": [6],
    "heads": ["base"], "atomic_inter_scale": 15.0, "atomic_inter_shift": 0.1,
}  # fmt: skip
TWO = {"heads": ["pbe", "rpa"], "atomic_inter_scale": [15.0, 9.0], "atomic_inter_shift": [0.1, -0.2]}
DENSITY = "RealAgnosticDensityResidualInteractionBlock"
GATED = dict.fromkeys(("interaction_cls", "interaction_cls_first"), "RealAgnosticResidualNonLinearInteractionBlock")
# name: what differs from COMMON; "plain" has no scale and shift
MODELS: dict[str, dict[str, Any]] = {
    "two_heads": {"max_ell": 3, "correlation": 3, "radial_MLP": [8, 6], **TWO},
    "plain": {"interaction_cls_first": "RealAgnosticInteractionBlock", "hidden_irreps": "3x0e+3x1o+3x2e"},
    "density": {
        "interaction_cls": DENSITY, "interaction_cls_first": "RealAgnosticDensityInteractionBlock",
        "pair_repulsion": True, "distance_transform": "Agnesi", "num_polynomial_cutoff": 5,
    },
    "gated": {
        **GATED, **TWO, "pair_repulsion": True, "distance_transform": "Agnesi", "radial_MLP": [6, 5],
        "edge_irreps": "2x0e+2x1o", "use_agnostic_product": True, "apply_cutoff": False,
        "readout_cls": "NonLinearBiasReadoutBlock", "use_last_readout_only": True,
    },
    "gated_basis": {**GATED, "edge_irreps": "2x0e+2x1o", "use_edge_irreps_first": True, "keep_last_layer_irreps": True},
    "three_layers": {
        "num_interactions": 3, "hidden_irreps": "3x0e", "distance_transform": "Soft", "use_reduced_cg": False,
    },
    "one_layer": {
        "num_interactions": 1, "correlation": 4, "max_ell": 1, "interaction_cls_first": DENSITY, "radial_MLP": [],
    },
}  # fmt: skip


def structures() -> list[ase.Atoms]:
    """A molecule, a primitive cell smaller than the cutoff, a left-handed triclinic crystal, a wire, a close pair."""
    primitive = bulk("CuO", "zincblende", a=4.3)
    crystal = bulk("CuO", "rocksalt", a=4.1, cubic=True)
    crystal.set_cell(crystal.cell.array[[1, 0, 2]] @ (np.eye(3) + np.triu(np.full((3, 3), 0.08), 1)), scale_atoms=True)
    wire = ase.Atoms("CHCO", positions=[[1.3 * i, 0.4 * (-1) ** i, 0.1 * i] for i in range(4)], cell=(5.2, 8, 8))
    wire.pbc = (True, False, False)
    close = ase.Atoms("OCu", positions=[[0, 0, 0], [0.9, 0.3, 0.2]])
    found = [molecule("CH3OH"), primitive, crystal, wire, close]
    for number, atoms in enumerate(found):
        atoms.rattle(0.1, seed=number)
        atoms.positions = atoms.positions.round(6)
        atoms.cell[:] = atoms.cell.array.round(6)
    return found


def build(name: str, seed: int = 0) -> Any:
    """A mace-torch model with random weights."""
    import torch
    from e3nn import o3
    from mace import modules

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    options = COMMON | MODELS[name]
    kind = "ScaleShiftMACE"
    if name == "plain":
        kind = "MACE"
        options = {key: value for key, value in options.items() if not key.startswith("atomic_inter")}
    for key in ("interaction_cls", "interaction_cls_first", "readout_cls"):
        if key in options:
            options[key] = getattr(modules.blocks, options[key])
    for key in ("hidden_irreps", "MLP_irreps", "edge_irreps"):
        if key in options:
            options[key] = o3.Irreps(options[key])
    energies = np.round(np.random.default_rng(seed).normal(-3, 2, (len(options["heads"]), len(ELEMENTS))), 3)
    model = getattr(modules, kind)(
        num_elements=len(ELEMENTS), atomic_numbers=list(ELEMENTS), atomic_energies=energies,
        gate=torch.nn.functional.silu, **options,
    )  # fmt: skip
    with torch.no_grad():
        for weight in model.readouts.parameters():
            weight.mul_(3).add_(0.1)  # energies that matter, biases that are not zero
        for parameter in model.parameters():
            if (parameter == 1).all() or (parameter == 0).all():  # gains and biases at their start
                parameter.add_(0.3 * torch.randn_like(parameter))
        for block in model.interactions:
            for embedding in ("source_embedding", "target_embedding"):
                if hasattr(block, embedding):
                    getattr(block, embedding).weight.normal_()  # starts at a thousandth
    return model


def reference(model: Any, head: str, atoms: ase.Atoms) -> dict[str, Any]:
    """What mace-torch itself says."""
    from mace.calculators import MACECalculator

    atoms = atoms.copy()
    atoms.calc = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=head)
    out: dict[str, Any] = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist()}
    if atoms.pbc.all():  # mace counts an invented volume for slabs and wires
        out["stress"] = atoms.get_stress().tolist()
    return out


def main() -> None:
    """Write all golden files."""
    import os

    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # e3nn unpickles its own constants
    import mace
    import torch

    from ase_mlip.importers.mace_torch import read_mace_torch

    ase.io.write(HERE / "mace_structures.json", structures())
    for name in MODELS:
        model, scratch = build(name), Path(f"{name}.model")
        torch.save(model, scratch)
        read_mace_torch(scratch, trust=True).save(HERE / f"mace_{name}.safetensors")
        scratch.unlink()
        numbers = {head: [reference(model, head, atoms) for atoms in structures()] for head in model.heads}
        versions = f"mace-torch {mace.__version__}, torch {torch.__version__}"
        (HERE / f"mace_{name}.json").write_text(json.dumps({"versions": versions, "levels": numbers}) + "\n")
        print(name, numbers[model.heads[-1]][0]["energy"])


if __name__ == "__main__":
    main()
