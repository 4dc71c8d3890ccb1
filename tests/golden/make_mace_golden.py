"""Make `mace_*.npz`: random mace-torch models mapped to our parameters, with their numbers for four structures.

    python tests/golden/make_mace_golden.py PYTHON_WITH_MACE_TORCH

runs itself a second time under the other interpreter to build and evaluate the torch models. Made with mace-torch
0.3.16, torch 2.13.0 and e3nn 0.4.4 (each file keeps the versions it was made with). The torch half writes plain
matrices, with all of its factors multiplied in; the other half knows only our layout.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from math import sqrt
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.build import bulk, molecule

ELEMENTS = (1, 6, 8, 29)
CUTOFF, NEIGHBORS, BESSEL, ORDER, READOUT, CHANNELS = 3.6, 9.5, 5, 6, 4, 4
# name: class, first interaction, hidden irreps, l_max, correlation, heads, radial network
MODELS = {
    "two_heads": ("ScaleShiftMACE", "RealAgnosticResidualInteractionBlock", "4x0e+4x1o", 3, 3, ["pbe", "rpa"], [8, 6]),
    "plain": ("MACE", "RealAgnosticInteractionBlock", "4x0e+4x1o+4x2e", 2, 2, ["base"], [8]),
}
Arrays = dict[str, np.ndarray]


def structures() -> list[ase.Atoms]:
    """A molecule, a primitive cell smaller than the cutoff, a left-handed triclinic crystal, and a wire."""
    primitive = bulk("CuO", "zincblende", a=4.3)
    crystal = bulk("CuO", "rocksalt", a=4.1, cubic=True)
    crystal.set_cell(crystal.cell.array[[1, 0, 2]] @ (np.eye(3) + np.triu(np.full((3, 3), 0.08), 1)), scale_atoms=True)
    wire = ase.Atoms("CHCO", positions=[[1.3 * i, 0.4 * (-1) ** i, 0.1 * i] for i in range(4)], cell=(5.2, 8, 8))
    wire.pbc = (True, False, False)
    found = [molecule("CH3OH"), primitive, crystal, wire]
    for number, atoms in enumerate(found):
        atoms.rattle(0.1, seed=number)
    return found


def torch_half(folder: Path) -> None:
    """Build each torch model, evaluate it, and write its matrices."""
    import e3nn
    import mace
    import torch
    from mace import modules
    from mace.calculators import MACECalculator

    torch.set_default_dtype(torch.float64)
    for name, (kind, first, hidden, l_max, correlation, heads, radial) in MODELS.items():
        torch.manual_seed(len(name))
        energies = np.round(np.random.default_rng(0).normal(-3, 2, (len(heads), len(ELEMENTS))), 3)
        extra: dict[str, Any] = {}
        if kind == "ScaleShiftMACE":
            extra = {"atomic_inter_scale": [15.0, 9.0], "atomic_inter_shift": [0.1, -0.2]}
        model = getattr(modules, kind)(
            r_max=CUTOFF, num_bessel=BESSEL, num_polynomial_cutoff=ORDER, max_ell=l_max, num_interactions=2,
            interaction_cls=modules.RealAgnosticResidualInteractionBlock, interaction_cls_first=getattr(modules, first),
            num_elements=len(ELEMENTS), hidden_irreps=e3nn.o3.Irreps(hidden), atomic_numbers=list(ELEMENTS),
            MLP_irreps=e3nn.o3.Irreps(f"{READOUT}x0e"), atomic_energies=energies, gate=torch.nn.functional.silu,
            avg_num_neighbors=NEIGHBORS, correlation=correlation, radial_MLP=radial, heads=heads, **extra,
        )  # fmt: skip
        with torch.no_grad():
            for weight in model.readouts.parameters():
                weight.mul_(4)  # energies that matter
        out: Arrays = {"energies": energies, "scale": np.ones(len(heads)), "shift": np.zeros(len(heads))}
        if extra:
            out["scale"], out["shift"] = np.array(extra["atomic_inter_scale"]), np.array(extra["atomic_inter_shift"])
        out["versions"] = np.array(f"mace-torch {mace.__version__}, torch {torch.__version__}, e3nn {e3nn.__version__}")
        out["embedding"] = _linear(model.node_embedding.linear)[0]
        for number, (block, product) in enumerate(zip(model.interactions, model.products, strict=True)):
            _layer(out, f"{number}/", block, product)
        out["gain"] = np.array(model.readouts[-1].non_linearity.acts[0].cst)
        out["readout_0"] = _linear(model.readouts[0].linear)[0]
        out["hidden"], out["output"] = (_linear(getattr(model.readouts[1], k))[0] for k in ("linear_1", "linear_2"))
        for head, (number, atoms) in itertools.product(heads, enumerate(structures())):
            atoms.calc = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=head)
            atoms.info["head"] = head
            key = f"{head}/{number}/"
            out[f"{key}energy"], out[f"{key}forces"] = atoms.get_potential_energy(), atoms.get_forces()
            out[f"{key}node_energies"] = atoms.calc.results["node_energy"]  # without E0
            if atoms.pbc.all():  # mace counts an invented volume for slabs and wires
                out[f"{key}stress"] = atoms.get_stress(voigt=False)
        np.savez(folder / f"{name}.npz", **out)


def _linear(module: Any, skip: bool = False) -> Arrays:
    """Matrices by degree; with the one-hot element in the middle for the skip connection."""
    found: dict[int, list[np.ndarray]] = {}
    start, weight = 0, module.weight.detach().numpy()
    for path in module.instructions:
        ell = (module.irreps_in1[path.i_in1] if skip else module.irreps_in[path.i_in]).ir.l
        count = int(np.prod(path.path_shape))
        factor = path.path_weight / (sqrt(2 * ell + 1) if skip else 1)
        found.setdefault(ell, []).append(weight[start : start + count].reshape(path.path_shape) * factor)
        start += count
    return {ell: np.concatenate(blocks) for ell, blocks in found.items()}


def _layer(out: Arrays, key: str, block: Any, product: Any) -> None:
    """The matrices, radial networks and polynomials of one layer."""
    from e3nn import o3

    for name, module in [("up", block.linear_up), ("message", block.linear), ("product", product.linear)]:
        out.update({f"{key}{name}/{ell}": w for ell, w in _linear(module).items()})
    out.update({f"{key}skip/{ell}": w.transpose(1, 0, 2) for ell, w in _linear(block.skip_tp, skip=True).items()})
    layers, gain = list(block.conv_tp_weights), 1.0
    for number, layer in enumerate(layers):
        kernel = out[f"{key}radial/{number}"] = layer.weight.detach().numpy() * layer.h_in**-0.5 * gain
        gain = layer.act.cst if number < len(layers) - 1 else 1.0
    couple = block.conv_tp
    for number, path in enumerate(couple.instructions):
        irreps = couple.irreps_in1[path.i_in1].ir, couple.irreps_in2[path.i_in2].ir, couple.irreps_out[path.i_out].ir
        degrees = [irrep.l for irrep in irreps]
        name = "_".join(map(str, degrees))
        out[f"{key}path/{name}"] = kernel[:, number * CHANNELS : (number + 1) * CHANNELS] * path.path_weight
        out[f"{key}w3j/{name}"] = o3.wigner_3j(*degrees).numpy()
    for ell, contraction in enumerate(product.symmetric_contractions.contractions):
        top = contraction.correlation
        for degree in range(1, top + 1):
            coupling = contraction.U_tensors(degree).numpy()
            weights = contraction.weights_max if degree == top else contraction.weights[top - 1 - degree]
            coupling = coupling.reshape(2 * ell + 1, -1, coupling.shape[-1])
            out[f"{key}polynomial/{ell}/{degree}"] = np.einsum("mik,zkc->micz", coupling, weights.detach().numpy())


def our_half(folder: Path) -> None:
    """Map the matrices to our parameters and write the golden files beside this script."""
    from dataclasses import asdict

    from flax.traverse_util import flatten_dict

    from ase_mlip.dataset_info import DatasetInfo, Head
    from ase_mlip.networks.coupling import coupling_paths
    from ase_mlip.networks.mace import MaceConfig
    from ase_mlip.networks.radial import SILU_NORM

    for name, (_, first, hidden, l_max, correlation, heads, radial) in MODELS.items():
        dump = dict(np.load(folder / f"{name}.npz"))
        params: dict[str, Any] = {"embedding": dump["embedding"] * sqrt(len(ELEMENTS))}
        for number in range(2):
            key, features = f"{number}/", (0,) if number == 0 else tuple(range(hidden.count("+") + 1))
            paths = coupling_paths(features, l_max)
            # torch's vectors point to the receiver, ours away from it; both activations have their own constant
            weights = [_path(dump, key, path) / SILU_NORM for path in paths]
            kernels = {f"radial_{n}": dump[f"{key}radial/{n}"] / (SILU_NORM if n else 1) for n in range(len(radial))}
            kernels["radial_output"] = np.stack(weights, axis=1)
            params[f"layer_{number}"] = {
                "linear_up": _rows(_get(dump, f"{key}up/")),
                "neighbor_sum": _rows(kernels),
                "linear_message": _rows(_get(dump, f"{key}message/")),
                "skip": {k: v * sqrt(v.shape[0] * v.shape[1]) for k, v in _get(dump, f"{key}skip/").items()},
                "contraction": _contractions(dump, key, l_max, correlation),
                "linear_product": _rows(_get(dump, f"{key}product/")),
            }
        for number, head in enumerate(heads):
            columns = slice(number * READOUT, (number + 1) * READOUT)
            params[f"head_{head}"] = {
                "layer_0_output": dump["readout_0"][:, number] * sqrt(CHANNELS),
                "layer_1_hidden": dump["hidden"][:, columns] * sqrt(CHANNELS),
                "layer_1_output": dump["output"][columns, number] * sqrt(READOUT) * dump["gain"] / SILU_NORM,
            }
        constants = zip(heads, dump["energies"].tolist(), dump["scale"].tolist(), dump["shift"].tolist(), strict=True)
        info = DatasetInfo(ELEMENTS, CUTOFF, NEIGHBORS, tuple(Head(h, tuple(e), s, t) for h, e, s, t in constants))
        config = MaceConfig(
            CHANNELS, 2, l_max, hidden.count("+"), correlation, BESSEL, ORDER, tuple(radial), READOUT,
            "residual" if "Residual" in first else "plain", len(heads),
        )  # fmt: skip
        out = {"/".join(("params", *k)): v for k, v in flatten_dict(params).items()}
        out |= {k: v for k, v in dump.items() if k == "versions" or k.split("/")[0] in heads}
        for number, atoms in enumerate(structures()):
            for field, value in [("numbers", atoms.numbers), ("positions", atoms.positions), ("pbc", atoms.pbc)]:
                out[f"{number}/{field}"] = value
            out[f"{number}/cell"] = atoms.cell.array
        text = json.dumps({"config": asdict(config), "dataset_info": info.to_dict()})
        np.savez_compressed(Path(__file__).parent / f"mace_{name}.npz", description=np.array(text), **out)


def _get(dump: Arrays, key: str) -> Arrays:
    """The matrices of one block, by our names."""
    return {f"degree_{name[len(key) :]}": matrix for name, matrix in dump.items() if name.startswith(key)}


def _rows(kernels: Arrays) -> Arrays:
    """Our kernels are divided by the square root of their inputs when they are used."""
    return {name: kernel * sqrt(len(kernel)) for name, kernel in kernels.items()}


def _path(dump: Arrays, key: str, path: tuple[int, int, int]) -> np.ndarray:
    """Output kernel of one coupling path, [inputs, channels], for our sign and norm of the coupling."""
    import e3nn_jax

    name = "_".join(map(str, path))
    ours, theirs = e3nn_jax.clebsch_gordan(*path) * sqrt(2 * path[2] + 1), dump[f"{key}w3j/{name}"]
    ratio = np.sum(ours * theirs) / np.sum(ours * ours)
    np.testing.assert_allclose(theirs, ratio * ours, atol=1e-10)
    return dump[f"{key}path/{name}"] * ratio * (-1) ** path[1]


def _contractions(dump: Arrays, key: str, l_max: int, correlation: int) -> Arrays:
    """Weights of our independent polynomials, from torch's dependent ones by an exact change of basis."""
    from ase_mlip.networks.symmetric import path_counts, symmetric_contractions

    out, size = {}, (l_max + 1) ** 2
    for ell in range(len({k for k in dump if k.startswith(f"{key}polynomial/") and k.endswith("/1")})):
        weights, ends = [], np.cumsum([0, *path_counts(l_max, ell, correlation)]).tolist()
        for degree in range(1, correlation + 1):
            orderings = [tuple(sorted(i)) for i in itertools.product(range(size), repeat=degree)]
            place = {monomial: number for number, monomial in enumerate(dict.fromkeys(orderings))}
            theirs = dump[f"{key}polynomial/{ell}/{degree}"]
            target = np.zeros((2 * ell + 1, len(place), *theirs.shape[2:]))
            np.add.at(target, (slice(None), [place[i] for i in orderings]), theirs)
            ours = slice(ends[degree - 1], ends[degree])
            basis = np.zeros((2 * ell + 1, len(place), ours.stop - ours.start))
            for m, contraction in enumerate(symmetric_contractions(l_max, ell, correlation)):
                for factors, column in zip(contraction.factors, contraction.coefficients.T, strict=True):
                    if (factors < size).sum() == degree:
                        basis[m, place[tuple(sorted(factors[factors < size]))]] = column[ours]
            matrix, flat = basis.reshape(-1, basis.shape[-1]), target.reshape(-1, np.prod(target.shape[2:]))
            found = np.linalg.lstsq(matrix, flat)[0]
            np.testing.assert_allclose(matrix @ found, flat, atol=1e-12)  # the same function space
            weights.append(found.reshape(-1, *target.shape[2:]).transpose(2, 0, 1))
        out[f"degree_{ell}"] = np.concatenate(weights, axis=1)
    return out


if __name__ == "__main__":
    if sys.argv[1] == "--torch":
        torch_half(Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run([sys.argv[1], __file__, "--torch", scratch], check=True)
            our_half(Path(scratch))
