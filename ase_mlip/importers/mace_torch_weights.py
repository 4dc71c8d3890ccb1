"""Weights of a mace-torch model, block by block, as our parameters."""

from __future__ import annotations

from collections import defaultdict
from math import sqrt
from typing import Any

import numpy as np

from ase_mlip.importers.polynomials import contraction_weights
from ase_mlip.networks.coupling import clebsch_gordan, coupling_paths
from ase_mlip.networks.mace import GATED_DENSITY_WIDTH, MaceConfig
from ase_mlip.networks.radial import SIGMOID_NORM, SILU_NORM

Module = Any  # a torch module; torch is imported only where a file is read
Tree = dict[str, Any]

READOUTS = {
    "LinearReadoutBlock": "linear",
    "NonLinearReadoutBlock": "mlp",
    "NonLinearBiasReadoutBlock": "biased_mlp",
}


class Unsupported(Exception):
    """The name of something that cannot be carried over."""


class Weights:
    """Turns the blocks of a torch model into our parameters, and keeps count of what it has read.

    Signs and factors between the two: our vectors point to the neighbour, theirs to the centre, (-1)^l per path; each
    normalised activation has its own constant (torch's are sampled), which goes into the next matrix; our matrices are
    divided by the square root of their rows when they are used.
    """

    def __init__(self) -> None:
        self._read: set[int] = set()

    def has_read(self, tensor: Any) -> bool:
        """Whether a tensor was taken."""
        return id(tensor) in self._read

    def take(self, tensor: Any) -> np.ndarray:
        """A tensor in float64, marked as read."""
        self._read.add(id(tensor))
        return np.array(tensor.detach().numpy(), np.float64)

    def layer(self, block: Module, product: Module, config: MaceConfig, l_out: int) -> Tree:
        """Parameters of one `MaceLayer`."""
        gated = config.interaction == "gated"
        message = block.linear_1 if gated else block.linear
        radial, order = self._neighbor_sum(block, config)
        layer: Tree = {
            "linear_up": _named(self.linear(block.linear_up)),
            "neighbor_sum": {"radial": radial},
            "linear_message": _named(self.linear(message, order)),
            "contraction": self._contraction(product.symmetric_contractions, config, l_out),
            "linear_product": _named(self.linear(product.linear), l_out),
        }
        if gated:
            network = block.density_fn
            if network.hs[1:-1] != [GATED_DENSITY_WIDTH]:
                raise Unsupported(f"a density network of widths {network.hs}")
            layer["density"] = {"radial": self._radial_with_elements(block, network, 1)[0]}
            layer["linear_residual"] = _named(self.linear(block.linear_res))
            layer["skip"] = _named(self.linear(block.skip_tp), l_out)
            gate = block.equivariant_nonlin
            after = {0: gate._scalar_cst / SILU_NORM}
            gated_rows = self.linear(block.linear_2)
            layer["linear_gated"] = _named(
                {ell: w * after.get(ell, gate._gate_cst / SIGMOID_NORM) for ell, w in gated_rows.items()}
            )
            layer["alpha"], layer["beta"] = self.take(block.alpha), self.take(block.beta)
            return layer
        if config.interaction == "density":
            kernels = self._radial(block.density_fn)
            layer["density"] = {"radial": {"output": kernels["output"][:, None]}}
        layer["skip"] = self._skip(block.skip_tp, l_out if "Residual" in type(block).__name__ else config.l_max)
        return layer

    def linear(self, module: Module, order: dict[int, list[int]] | None = None, rescale: bool = True) -> dict[int, Any]:
        """Matrices [inputs, outputs] by degree; blocks of inputs of one degree in `order`, which may leave some out."""
        weight, start = self.take(module.weight), 0
        blocks: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
        for path in module.instructions:
            if path.i_in < 0:
                continue  # a bias
            count = int(np.prod(path.path_shape))
            ell = int(module.irreps_in[path.i_in].ir.l)
            matrix = weight[start : start + count].reshape(path.path_shape) * path.path_weight
            blocks[ell][path.i_in] = matrix
            start += count
        out = {}
        for ell, found in blocks.items():
            rows = np.concatenate([found[i] for i in sorted(found)])
            if order is not None:
                width = len(rows) // max(1, len(order[ell]))
                groups = rows.reshape(-1, width, rows.shape[1]) if width else rows[None]
                rows = groups[[i for i in order[ell] if i >= 0]].reshape(-1, rows.shape[1])
            out[ell] = rows * (sqrt(len(rows)) if rescale else 1.0)
        return out

    def _skip(self, module: Module, l_out: int) -> Tree:
        """One matrix per element and degree, from a tensor product with the one-hot element."""
        weight, start, out = self.take(module.weight), 0, {}
        for path in module.instructions:
            ell = int(module.irreps_in1[path.i_in1].ir.l)
            count = int(np.prod(path.path_shape))
            matrix = weight[start : start + count].reshape(path.path_shape).transpose(1, 0, 2)
            start += count
            if ell <= l_out:
                factor = path.path_weight / sqrt(2 * ell + 1) * sqrt(matrix.shape[1])
                out[f"element_degree_{ell}"] = matrix * factor
        return out

    def _neighbor_sum(self, block: Module, config: MaceConfig) -> tuple[Tree, dict[int, list[int]]]:
        """Radial network, and for each degree the place of our paths among theirs."""
        couple = block.conv_tp
        sent = widths_of(couple.irreps_in1)
        reached = [
            ell
            for ell in sent
            if ell in {int(block.linear_up.irreps_in[p.i_in].ir.l) for p in block.linear_up.instructions}
        ]
        if config.interaction == "gated":
            tree, last = self._radial_with_elements(block, block.conv_tp_weights, None)
        else:
            tree = self._radial(block.conv_tp_weights)
            last = tree["output"]
        paths = coupling_paths(tuple(reached), config.l_max)
        columns: dict[tuple[int, ...], np.ndarray] = {}
        biases: dict[tuple[int, ...], np.ndarray] = {}
        places: dict[int, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        start = 0
        for path in couple.instructions:
            if path.connection_mode != "uvu":
                raise Unsupported(f"tensor products of mode {path.connection_mode}")
            irreps = couple.irreps_in1[path.i_in1], couple.irreps_in2[path.i_in2], couple.irreps_out[path.i_out]
            degrees = (int(irreps[0].ir.l), int(irreps[1].ir.l), int(irreps[2].ir.l))
            width = int(np.prod(path.path_shape))
            factor = _coupling_ratio(*degrees) * (-1) ** degrees[1] * path.path_weight
            columns[degrees] = last[:, start : start + width] * factor
            if "output_bias" in tree:
                biases[degrees] = tree["output_bias"][start : start + width] * factor
            places[degrees[2]].append((path.i_out, degrees))
            start += width
        tree["output"] = np.stack([columns[path] for path in paths], axis=1)
        if "output_bias" in tree:
            tree["output_bias"] = np.stack([biases[path] for path in paths])
        order = {}
        for ell, found in places.items():
            theirs = [degrees for _, degrees in sorted(found)]
            ours = [path for path in paths if path[2] == ell]
            order[ell] = [theirs.index(path) for path in ours] + [-1] * (len(theirs) - len(ours))
        return tree, order

    def _radial(self, network: Module) -> Tree:
        """Bias-free network; the matrices of `RadialNetwork` without the split into paths."""
        layers, gain, tree = list(network), 1.0, {}
        for number, layer in enumerate(layers):
            last = number == len(layers) - 1
            scale = (layer.h_in * layer.var_in / (layer.var_out if last else 1.0)) ** -0.5
            kernel = self.take(layer.weight) * scale * gain
            tree["output" if last else f"layer_{number}"] = kernel * sqrt(len(kernel))
            if not last:
                if getattr(layer.act, "f", layer.act).__name__ != "silu":
                    raise Unsupported("a radial network with another activation than SiLU")
                gain = layer.act.cst / SILU_NORM * (1.0 if layer.var_out == 1 else layer.var_out**0.5)
        return tree

    def _radial_with_elements(self, block: Module, network: Module, paths: int | None) -> tuple[Tree, np.ndarray]:
        """Network with biases and layer norm; the embedded elements meet its first matrix here, once and for all."""
        linears = [layer for layer in network.net if type(layer).__name__ == "Linear"]
        norms = [layer for layer in network.net if type(layer).__name__ == "LayerNorm"]
        if any(norm.eps != 1e-5 for norm in norms):
            raise Unsupported("a layer norm with another epsilon than 1e-5")
        source, target = (
            self.linear(embedding, rescale=False)[0] for embedding in (block.source_embedding, block.target_embedding)
        )
        first = self.take(linears[0].weight).T  # [basis + neighbour + centre, width]
        basis = len(first) - source.shape[1] - target.shape[1]
        tree: Tree = {
            "layer_0": first[:basis] * sqrt(basis),
            "element_neighbor": source @ first[basis : basis + source.shape[1]],
            "element_center": target @ first[basis + source.shape[1] :] + self.take(linears[0].bias),
        }
        for number, norm in enumerate(norms):
            tree[f"norm_gain_{number}"], tree[f"norm_bias_{number}"] = self.take(norm.weight), self.take(norm.bias)
        for number, linear in enumerate(linears[1:-1], 1):
            kernel = self.take(linear.weight).T
            tree[f"layer_{number}"], tree[f"bias_{number}"] = kernel * sqrt(len(kernel)), self.take(linear.bias)
        output = self.take(linears[-1].weight).T
        output = output * sqrt(len(output))
        tree["output_bias"] = self.take(linears[-1].bias)
        if paths is not None:
            tree["output"], tree["output_bias"] = output[:, None], tree["output_bias"][None]
        return tree, output

    def _contraction(self, module: Module, config: MaceConfig, l_out: int) -> Tree:
        """Weights of the symmetric contraction, in our basis of polynomials."""
        tree = {}
        for ell, contraction in enumerate(module.contractions):
            top = int(contraction.correlation)
            weights = {top: self.take(contraction.weights_max)}
            weights |= {top - 1 - n: self.take(weight) for n, weight in enumerate(contraction.weights)}
            couplings = {n: contraction.U_tensors(n).numpy() for n in weights}
            if ell > l_out:
                continue
            name = f"element_degree_{ell}" if config.element_products else f"degree_{ell}"
            tree[name] = contraction_weights(config.l_max, ell, couplings, weights)
        return tree

    def head(self, readouts: Module, number: int, config: MaceConfig) -> Tree:
        """One head's columns of the readouts."""
        tree: Tree = {}
        rows = slice(number * config.readout_mlp, (number + 1) * config.readout_mlp)
        for layer, readout in enumerate(readouts):
            kind = READOUTS.get(type(readout).__name__)
            if kind == "linear":
                tree[f"layer_{layer}_output"] = self.linear(readout.linear)[0][:, number]
                continue
            if kind is None or layer < len(readouts) - 1:
                raise Unsupported(f"the readout {type(readout).__name__} in layer {layer}")
            activation = readout.non_linearity.acts[0]
            if getattr(activation, "f", activation).__name__ != "silu":
                raise Unsupported("a readout with another activation than SiLU")
            gain, name, width = activation.cst / SILU_NORM, f"layer_{layer}", config.readout_mlp
            tree[f"{name}_hidden"] = self.linear(readout.linear_1)[0][:, rows]
            last = self.linear(readout.linear_2, rescale=False)[0][rows, number]
            tree[f"{name}_output"] = last * gain * sqrt(width)
            if kind == "biased_mlp":
                middle = self.linear(readout.linear_mid, rescale=False)[0][rows, rows]
                tree[f"{name}_middle"] = middle * gain * sqrt(width)
                tree[f"{name}_bias"] = self.take(readout.linear_mid.bias)[rows]
                tree[f"{name}_constant_output"] = self.take(readout.linear_2.bias)[number]
        return tree


def widths_of(irreps: Any) -> dict[int, int]:
    """Multiplicity by degree; only natural parity is known here."""
    out: dict[int, int] = {}
    for mul, irrep in irreps:
        if irrep.p != (-1) ** irrep.l:
            raise Unsupported(f"irreps {irreps} (unnatural parity)")
        out[int(irrep.l)] = out.get(int(irrep.l), 0) + int(mul)
    return out


def _named(matrices: dict[int, np.ndarray], l_out: int | None = None) -> Tree:
    """Matrices by our parameter names, up to degree `l_out`."""
    return {f"degree_{ell}": matrix for ell, matrix in matrices.items() if l_out is None or ell <= l_out}


def _coupling_ratio(l_feature: int, l_edge: int, l_out: int) -> float:
    """Their Wigner 3j symbols over our coupling coefficients, a sign times a norm."""
    import torch
    from e3nn import o3

    ours = clebsch_gordan(l_feature, l_edge, l_out) * sqrt(2 * l_out + 1)
    theirs = o3.wigner_3j(l_feature, l_edge, l_out, dtype=torch.float64).numpy()
    ratio = float(np.sum(ours * theirs) / np.sum(ours * ours))
    if not np.allclose(theirs, ratio * ours, atol=1e-6):
        raise Unsupported(f"another convention of the coupling {l_feature} x {l_edge} -> {l_out}")
    return ratio
