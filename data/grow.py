"""A larger MACE that begins as a smaller one: the same energies, and new channels, degrees and paths to train.

python data/grow.py SMALL LARGE --channels 128 --l-max 3 --radial-mlp 64,64

A width that is not given stays. What is new reads random features and is read with weights of zero, so that the energy
does not change, and every weight of zero has a gradient (after Net2Net, arXiv:1511.05641).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import ase.build
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ase_mlip import ForceField, MaceConfig
from ase_mlip.networks.coupling import coupling_paths
from ase_mlip.networks.mace import Mace
from ase_mlip.networks.symmetric import symmetric_contractions


def grow(
    small: ForceField,
    *,
    channels: int | None = None,
    l_max: int | None = None,
    radial_mlp: tuple[int, ...] | None = None,
    seed: int = 0,
) -> ForceField:
    """A force field of the larger shape with the smaller one's energies; what is None stays.

    Raises:
        ValueError: the model is no MACE, or the shape is not larger in every respect.
    """
    network = small.predictor.network
    if not isinstance(network, Mace):
        raise ValueError(f"only a MACE grows; this model is {type(network).__name__}")
    old = network.config
    shape: dict[str, Any] = {"num_channels": channels, "l_max": l_max, "radial_mlp": radial_mlp}
    new = replace(old, **{name: value for name, value in shape.items() if value is not None})
    widths = [(c.num_channels, c.l_max, *c.radial_mlp) for c in (old, new)]
    if len(old.radial_mlp) != len(new.radial_mlp) or any(b < a for a, b in zip(*widths, strict=True)):
        raise ValueError(f"{new} is not larger than {old} in every respect: give more channels, degrees and widths")
    large = ForceField.from_mlip_network(Mace(new, network.dataset_info), seed=seed)
    values = flatten_dict(large.params)
    for path, value in flatten_dict(small.params).items():
        values[path] = _grown(path, np.asarray(value), np.array(values[path]), old, new)
    predictor = replace(small.predictor, network=large.predictor.network)
    return ForceField(predictor, unflatten_dict(values), small.provenance)


def _grown(path: tuple[str, ...], old: np.ndarray, new: np.ndarray, small: MaceConfig, large: MaceConfig) -> np.ndarray:
    """One parameter: the old values where they belong, zeros where old results would read what is new."""
    name = "/".join(path)
    if path[-1] == "element_embedding":
        new[:, : old.shape[1]] = old
        return new
    if "contraction" in path:
        degree = int(path[-1].removeprefix("element_degree_"))
        new[..., : old.shape[2]] = np.einsum("zpc,pq->zqc", old, same_polynomials(small, large, degree))
        return new
    if "linear_message" in path:  # inputs are paths * channels
        degree = int(path[-1].removeprefix("degree_"))
        features = (0,) if path[0] == "layer_0" else tuple(range(small.hidden_l_max + 1))
        if degree > small.l_max:
            return new
        before, after = ([p for p in coupling_paths(features, c.l_max) if p[2] == degree] for c in (small, large))
        width, wide = small.num_channels, large.num_channels
        by_path, out = old.reshape(len(before), width, -1), new.reshape(len(after), wide, -1)
        out[:, :, :width] = 0
        for place, coupling in enumerate(before):
            out[after.index(coupling), :width, :width] = by_path[place] * (len(new) / len(old)) ** 0.5
        return out.reshape(new.shape)
    if name.endswith("radial/output"):  # [width, paths, channels]
        features = (0,) if path[0] == "layer_0" else tuple(range(small.hidden_l_max + 1))
        before, after = (coupling_paths(features, c.l_max) for c in (small, large))
        for place, coupling in enumerate(before):
            new[:, after.index(coupling), : old.shape[2]] = 0
            new[: len(old), after.index(coupling), : old.shape[2]] = old[:, place] * (len(new) / len(old)) ** 0.5
        return new
    if name.endswith("_output"):  # [inputs]: of a readout
        new[:] = 0
        new[: len(old)] = old * (len(new) / len(old)) ** 0.5
        return new
    inputs, outputs = old.shape[-2:]
    new[..., :outputs] = 0
    new[..., :inputs, :outputs] = old * (new.shape[-2] / inputs) ** 0.5
    return new


def same_polynomials(small: MaceConfig, large: MaceConfig, degree: int) -> np.ndarray:
    """How the larger network's basis makes each polynomial of the smaller one's, [polynomials, polynomials]."""
    before, after = (symmetric_contractions(c.l_max, degree, c.correlation) for c in (small, large))
    ones = [(c.l_max + 1) ** 2 for c in (small, large)]
    rows, wanted = [], []
    for one, other in zip(before, after, strict=True):
        place = {tuple(m): number for number, m in enumerate(other.factors.tolist())}
        target = np.zeros((len(one.coefficients), len(place)))
        for column, monomial in zip(one.coefficients.T, one.factors.tolist(), strict=True):
            target[:, place[tuple(ones[1] if i == ones[0] else i for i in monomial)]] = column
        rows.append(other.coefficients)
        wanted.append(target)
    basis, target = np.concatenate(rows, axis=1), np.concatenate(wanted, axis=1)
    solution = np.linalg.lstsq(basis.T, target.T, rcond=None)[0].T
    assert np.allclose(solution @ basis, target, atol=1e-10)
    return solution


def main() -> None:
    """Grow a model and compare its energies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small")
    parser.add_argument("large")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--l-max", type=int)
    parser.add_argument("--radial-mlp", type=lambda text: tuple(int(width) for width in text.split(",")))
    args = parser.parse_args()
    small = ForceField.load(args.small)
    large = grow(small, channels=args.channels, l_max=args.l_max, radial_mlp=args.radial_mlp)
    atoms = ase.build.molecule("CH3COOH")
    energies = [float(m(m.graph(atoms), dtype="float64").energy[0]) for m in (small, large)]
    sizes = f"{small.num_params:,} -> {large.num_params:,} parameters"
    print(f"{sizes}; acetic acid {energies[0]:.6f}, {energies[1]:.6f} eV")
    large.save(args.large)


if __name__ == "__main__":
    main()
