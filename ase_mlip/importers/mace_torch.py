"""Models of mace-torch (`.model`): MACE and ScaleShiftMACE in all published variants.

Such a file is a pickled torch module, so reading it needs torch and mace-torch (`pip install "ase-mlip[torch]"`) and
runs whatever code the file contains. What comes out is an ordinary force field, saved without any of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import ase
import e3nn_jax
import numpy as np

from ase_mlip.dataset_info import DatasetInfo, Head
from ase_mlip.force_field import ForceField
from ase_mlip.importers.polynomials import contraction_weights
from ase_mlip.model_file import ModelFileError
from ase_mlip.networks.coupling import coupling_paths
from ase_mlip.networks.mace import GATED_DENSITY_WIDTH, Mace, MaceConfig
from ase_mlip.networks.radial import AGNESI, SIGMOID_NORM, SILU_NORM, SOFT_STEEPNESS
from ase_mlip.predictor import Predictor
from ase_mlip.repulsion import Repulsion

Module = Any  # a torch module; torch is imported only where a file is read
Tree = dict[str, Any]

INTERACTIONS = {  # class name -> (interaction, residual)
    "RealAgnosticInteractionBlock": ("mean", False),
    "RealAgnosticResidualInteractionBlock": ("mean", True),
    "RealAgnosticDensityInteractionBlock": ("density", False),
    "RealAgnosticDensityResidualInteractionBlock": ("density", True),
    "RealAgnosticResidualNonLinearInteractionBlock": ("gated", True),
}
READOUTS = {
    "LinearReadoutBlock": "linear",
    "NonLinearReadoutBlock": "mlp",
    "NonLinearBiasReadoutBlock": "biased_mlp",
}


def read_mace_torch(path: str | Path, trust: bool = False) -> ForceField:
    """Read a model of mace-torch; each of its heads becomes a level of that name.

    Weights are kept in float64, so that no digit of the original is lost.

    Args:
        path: the `.model` file.
        trust: that its author may run code here; needed because unpickling does.

    Raises:
        ModelFileError: without trust, without torch, or for a file that is no such model or has a part that this
            package does not know; the message names it.
    """
    path = Path(path)
    if not trust:
        raise ModelFileError(
            f"{path} is a pickled torch model: reading it runs code that the file contains. If you made it or trust "
            f"its source, convert it once with `ase-mlip convert {path} OUT.safetensors --trust`"
        )
    model = _unpickle(path)
    kind = type(model).__name__
    if kind not in ("MACE", "ScaleShiftMACE"):
        raise ModelFileError(f"{path} holds a {kind}; known are MACE and ScaleShiftMACE")
    try:
        force_field = _Reader(model).force_field()
    except _Unsupported as error:
        raise ModelFileError(f"{path} uses {error}, which this package does not have") from None
    provenance = {
        "source_file": path.name,
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "source_package": f"mace-torch ({kind})",
    }
    return ForceField(force_field.predictor, force_field.params, provenance)


class _Unsupported(Exception):
    """The name of something that cannot be carried over."""


def _unpickle(path: Path) -> Module:
    """The torch module in a file."""
    try:
        with _silence():
            import torch
    except ImportError:
        raise ModelFileError(
            f"{path} is a pickled torch model; reading it needs torch and mace-torch: pip install 'ase-mlip[torch]'"
        ) from None
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with _silence():
            model = torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise ModelFileError(
            f"{path} needs the package {error.name!r} to be read: pip install 'ase-mlip[torch]' (convert a model made "
            "for cuEquivariance back with mace-torch's `mace_cueq_to_e3nn` first)"
        ) from None
    except Exception as error:
        raise ModelFileError(f"{path} cannot be unpickled, it is damaged or no torch file: {error}") from error
    if not isinstance(model, torch.nn.Module):
        what = "a training checkpoint (weights alone)" if isinstance(model, dict) else f"a {type(model).__name__}"
        raise ModelFileError(f"{path} holds {what}, not a model; give the `.model` file that mace-torch writes")
    return model.double()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep other packages' warnings and notices to themselves; e3nn unpickles its own constants on import."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


class _Reader:
    """Turns one torch model into our parameters, and keeps count of what it has read.

    Signs and factors between the two: our vectors point to the neighbour, theirs to the centre, (-1)^l per path; each
    normalised activation has its own constant (torch's are sampled), which goes into the next matrix; our matrices are
    divided by the square root of their rows when they are used.
    """

    def __init__(self, model: Module):
        self.model = model
        self.read: set[int] = set()
        self.numbers = [int(z) for z in model.atomic_numbers]
        self.heads = [str(head) for head in getattr(model, "heads", None) or ["Default"]]
        self.layers = list(model.interactions)

    def force_field(self) -> ForceField:
        """The whole model."""
        config = self._config()
        params: Tree = {"element_embedding": self._linear(self.model.node_embedding.linear, rescale=False)[0]}
        for number, (block, product) in enumerate(zip(self.layers, self.model.products, strict=True)):
            l_out = 0 if number == len(self.layers) - 1 else config.hidden_l_max
            params[f"layer_{number}"] = self._layer(block, product, config, l_out)
        for number, head in enumerate(self.heads):
            params[f"head_{head}"] = self._head(number, config)
        left = [name for name, p in self.model.named_parameters() if id(p) not in self.read and p.numel()]
        if left:
            raise _Unsupported(f"the parameters {', '.join(left[:5])}{' and more' if len(left) > 5 else ''}")
        network = Mace(config, self._info())
        return ForceField(Predictor(network, tuple((head, (head,)) for head in self.heads)), params)

    def _take(self, tensor: Any) -> np.ndarray:
        self.read.add(id(tensor))
        return np.array(tensor.detach().numpy(), np.float64)

    def _config(self) -> MaceConfig:
        """Shape of the network; refuses what we do not have."""
        model, blocks = self.model, self.layers
        for name in ("joint_embedding", "embedding_readout", "lora"):
            if hasattr(model, name):
                raise _Unsupported(f"{name} (embeddings of charge, spin and the like)")
        if getattr(model, "use_so3", False):
            raise _Unsupported("use_so3 (harmonics without parity)")
        kinds = [type(block).__name__ for block in blocks]
        for kind in kinds:
            if kind not in INTERACTIONS:
                raise _Unsupported(f"the interaction block {kind}")
        if len({INTERACTIONS[kind][0] for kind in kinds}) > 1 or not all(INTERACTIONS[kind][1] for kind in kinds[1:]):
            raise _Unsupported(f"the combination of interaction blocks {', '.join(kinds)}")
        hidden = _irreps(model.products[0].linear.irreps_out)
        channels, l_max = hidden[0], len(_irreps(blocks[0].edge_attrs_irreps)) - 1
        if set(hidden.values()) != {channels} or list(hidden) != list(range(len(hidden))):
            raise _Unsupported(f"hidden irreps {blocks[0].hidden_irreps} (of different width, or with gaps)")
        if _irreps(blocks[0].edge_attrs_irreps) != dict.fromkeys(range(l_max + 1), 1):
            raise _Unsupported(f"edge irreps {blocks[0].edge_attrs_irreps}")
        sent = [_irreps(block.linear_up.irreps_out) for block in blocks]
        if any(len(set(widths.values())) > 1 for widths in sent):
            raise _Unsupported(f"edge features {sent} of different widths in one layer")
        edges = tuple(widths[0] for widths in sent)
        correlations = {int(c.correlation) for p in model.products for c in p.symmetric_contractions.contractions}
        if len(correlations) > 1:
            raise _Unsupported(f"correlation orders {sorted(correlations)} that differ by layer")
        final = type(model.readouts[-1]).__name__
        if final not in READOUTS:
            raise _Unsupported(f"the readout {final}")
        radial = model.radial_embedding
        if type(radial.bessel_fn).__name__ != "BesselBasis":
            raise _Unsupported(f"the radial basis {type(radial.bessel_fn).__name__}")
        frequencies = self._take(radial.bessel_fn.bessel_weights)
        usual = np.pi / float(model.r_max) * np.arange(1, len(frequencies) + 1)
        if not np.allclose(frequencies, usual, rtol=1e-6):
            raise _Unsupported("trained frequencies of the Bessel basis")
        width = _irreps(model.readouts[-1].hidden_irreps)[0] // len(self.heads) if READOUTS[final] != "linear" else 1
        return MaceConfig(
            num_channels=channels,
            num_layers=len(blocks),
            l_max=l_max,
            hidden_l_max=len(hidden) - 1,
            correlation=correlations.pop(),
            num_bessel=len(frequencies),
            cutoff_order=int(radial.cutoff_fn.p),
            radial_mlp=tuple(int(width) for width in blocks[0].conv_tp_weights.hs[1:-1]),
            readout_mlp=width,
            first_layer="residual" if INTERACTIONS[kinds[0]][1] else "plain",
            interaction=INTERACTIONS[kinds[0]][0],  # type: ignore[arg-type]
            edge_channels=None if set(edges) == {channels} else edges,
            distance_transform=self._transform(),  # type: ignore[arg-type]
            envelope="basis" if getattr(radial, "apply_cutoff", True) else "messages",
            element_products=not getattr(model, "use_agnostic_product", False),
            readouts="last_layer" if len(model.readouts) < len(blocks) else "every_layer",
            readout=READOUTS[final],  # type: ignore[arg-type]
            num_readout_heads=len(self.heads),
            head_names=tuple(self.heads),
        )

    def _transform(self) -> str:
        transform = getattr(self.model.radial_embedding, "distance_transform", None)
        kind = type(transform).__name__
        if transform is None:
            return "none"
        known = {"AgnesiTransform": ("agnesi", "aqp", AGNESI), "SoftTransform": ("soft", ["alpha"], (SOFT_STEEPNESS,))}
        if kind not in known:
            raise _Unsupported(f"the distance transform {kind}")
        name, attributes, usual = known[kind]
        values = [float(self._take(getattr(transform, attribute))) for attribute in attributes]
        if not np.allclose(values, usual, rtol=1e-6):
            raise _Unsupported(f"constants {values} of {kind}, others than {list(usual)}")
        return name

    def _info(self) -> DatasetInfo:
        """Elements, reference energies, scales, shifts and the pair repulsion."""
        model, count = self.model, len(self.heads)
        table = np.atleast_2d(model.atomic_energies_fn.atomic_energies.numpy())
        energies = np.broadcast_to(table, (count, len(self.numbers)))
        scales, shifts = np.ones(count), np.zeros(count)
        if hasattr(model, "scale_shift"):
            scales = np.broadcast_to(np.atleast_1d(model.scale_shift.scale.numpy()), count)
            shifts = np.broadcast_to(np.atleast_1d(model.scale_shift.shift.numpy()), count)
        zbl = getattr(model, "pair_repulsion_fn", None)
        repulsion = None
        if zbl is not None:
            repulsion = Repulsion(int(zbl.p), float(self._take(zbl.a_prefactor)), float(self._take(zbl.a_exp)))
        heads = (
            Head(head, tuple(e0), float(scale), float(shift), float(scale) if repulsion else 0.0)
            for head, e0, scale, shift in zip(self.heads, energies.tolist(), scales, shifts, strict=True)
        )
        if sorted(self.numbers) != self.numbers:
            raise _Unsupported("elements out of order")
        neighbors = float(self.layers[0].avg_num_neighbors)
        return DatasetInfo(tuple(self.numbers), float(model.r_max), neighbors, tuple(heads), repulsion)

    def _layer(self, block: Module, product: Module, config: MaceConfig, l_out: int) -> Tree:
        """Parameters of one `MaceLayer`."""
        gated = config.interaction == "gated"
        message = block.linear_1 if gated else block.linear
        radial, order = self._neighbor_sum(block, config)
        layer: Tree = {
            "linear_up": _named(self._linear(block.linear_up)),
            "neighbor_sum": {"radial": radial},
            "linear_message": _named(self._linear(message, order)),
            "contraction": self._contraction(product.symmetric_contractions, config, l_out),
            "linear_product": _named(self._linear(product.linear), l_out),
        }
        if gated:
            network = block.density_fn
            if network.hs[1:-1] != [GATED_DENSITY_WIDTH]:
                raise _Unsupported(f"a density network of widths {network.hs}")
            layer["density"] = {"radial": self._radial_with_elements(block, network, 1)[0]}
            layer["linear_residual"] = _named(self._linear(block.linear_res))
            layer["skip"] = _named(self._linear(block.skip_tp), l_out)
            gate = block.equivariant_nonlin
            after = {0: gate._scalar_cst / SILU_NORM}
            gated_rows = self._linear(block.linear_2)
            layer["linear_gated"] = _named(
                {ell: w * after.get(ell, gate._gate_cst / SIGMOID_NORM) for ell, w in gated_rows.items()}
            )
            layer["alpha"], layer["beta"] = self._take(block.alpha), self._take(block.beta)
            return layer
        if config.interaction == "density":
            kernels = self._radial(block.density_fn)
            layer["density"] = {"radial": {"output": kernels["output"][:, None]}}
        layer["skip"] = self._skip(block.skip_tp, l_out if "Residual" in type(block).__name__ else config.l_max)
        return layer

    def _linear(
        self, module: Module, order: dict[int, list[int]] | None = None, rescale: bool = True
    ) -> dict[int, Any]:
        """Matrices [inputs, outputs] by degree; blocks of inputs of one degree in `order`, which may leave some out."""
        weight, start = self._take(module.weight), 0
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
        weight, start, out = self._take(module.weight), 0, {}
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
        sent = _irreps(couple.irreps_in1)
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
                raise _Unsupported(f"tensor products of mode {path.connection_mode}")
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
            kernel = self._take(layer.weight) * scale * gain
            tree["output" if last else f"layer_{number}"] = kernel * sqrt(len(kernel))
            if not last:
                if getattr(layer.act, "f", layer.act).__name__ != "silu":
                    raise _Unsupported("a radial network with another activation than SiLU")
                gain = layer.act.cst / SILU_NORM * (1.0 if layer.var_out == 1 else layer.var_out**0.5)
        return tree

    def _radial_with_elements(self, block: Module, network: Module, paths: int | None) -> tuple[Tree, np.ndarray]:
        """Network with biases and layer norm; the embedded elements meet its first matrix here, once and for all."""
        linears = [layer for layer in network.net if type(layer).__name__ == "Linear"]
        norms = [layer for layer in network.net if type(layer).__name__ == "LayerNorm"]
        if any(norm.eps != 1e-5 for norm in norms):
            raise _Unsupported("a layer norm with another epsilon than 1e-5")
        source, target = (
            self._linear(embedding, rescale=False)[0] for embedding in (block.source_embedding, block.target_embedding)
        )
        first = self._take(linears[0].weight).T  # [basis + neighbour + centre, width]
        basis = len(first) - source.shape[1] - target.shape[1]
        tree: Tree = {
            "layer_0": first[:basis] * sqrt(basis),
            "element_neighbor": source @ first[basis : basis + source.shape[1]],
            "element_center": target @ first[basis + source.shape[1] :] + self._take(linears[0].bias),
        }
        for number, norm in enumerate(norms):
            tree[f"norm_gain_{number}"], tree[f"norm_bias_{number}"] = self._take(norm.weight), self._take(norm.bias)
        for number, linear in enumerate(linears[1:-1], 1):
            kernel = self._take(linear.weight).T
            tree[f"layer_{number}"], tree[f"bias_{number}"] = kernel * sqrt(len(kernel)), self._take(linear.bias)
        output = self._take(linears[-1].weight).T
        output = output * sqrt(len(output))
        tree["output_bias"] = self._take(linears[-1].bias)
        if paths is not None:
            tree["output"], tree["output_bias"] = output[:, None], tree["output_bias"][None]
        return tree, output

    def _contraction(self, module: Module, config: MaceConfig, l_out: int) -> Tree:
        """Weights of the symmetric contraction, in our basis of polynomials."""
        tree = {}
        for ell, contraction in enumerate(module.contractions):
            top = int(contraction.correlation)
            weights = {top: self._take(contraction.weights_max)}
            weights |= {top - 1 - n: self._take(weight) for n, weight in enumerate(contraction.weights)}
            couplings = {n: contraction.U_tensors(n).numpy() for n in weights}
            if ell > l_out:
                continue
            name = f"element_degree_{ell}" if config.element_products else f"degree_{ell}"
            tree[name] = contraction_weights(config.l_max, ell, couplings, weights)
        return tree

    def _head(self, number: int, config: MaceConfig) -> Tree:
        """One head's columns of the readouts."""
        tree: Tree = {}
        rows = slice(number * config.readout_mlp, (number + 1) * config.readout_mlp)
        for layer, readout in enumerate(self.model.readouts):
            kind = READOUTS.get(type(readout).__name__)
            if kind == "linear":
                tree[f"layer_{layer}_output"] = self._linear(readout.linear)[0][:, number]
                continue
            if kind is None or layer < len(self.model.readouts) - 1:
                raise _Unsupported(f"the readout {type(readout).__name__} in layer {layer}")
            activation = readout.non_linearity.acts[0]
            if getattr(activation, "f", activation).__name__ != "silu":
                raise _Unsupported("a readout with another activation than SiLU")
            gain, name, width = activation.cst / SILU_NORM, f"layer_{layer}", config.readout_mlp
            tree[f"{name}_hidden"] = self._linear(readout.linear_1)[0][:, rows]
            last = self._linear(readout.linear_2, rescale=False)[0][rows, number]
            tree[f"{name}_output"] = last * gain * sqrt(width)
            if kind == "biased_mlp":
                middle = self._linear(readout.linear_mid, rescale=False)[0][rows, rows]
                tree[f"{name}_middle"] = middle * gain * sqrt(width)
                tree[f"{name}_bias"] = self._take(readout.linear_mid.bias)[rows]
                tree[f"{name}_constant_output"] = self._take(readout.linear_2.bias)[number]
        return tree


def _irreps(irreps: Any) -> dict[int, int]:
    """Multiplicity by degree; only natural parity is known here."""
    out: dict[int, int] = {}
    for mul, irrep in irreps:
        if irrep.p != (-1) ** irrep.l:
            raise _Unsupported(f"irreps {irreps} (unnatural parity)")
        out[int(irrep.l)] = out.get(int(irrep.l), 0) + int(mul)
    return out


def _named(matrices: dict[int, np.ndarray], l_out: int | None = None) -> Tree:
    """Matrices by our parameter names, up to degree `l_out`."""
    return {f"degree_{ell}": matrix for ell, matrix in matrices.items() if l_out is None or ell <= l_out}


def _coupling_ratio(l_feature: int, l_edge: int, l_out: int) -> float:
    """Their Wigner 3j symbols over our coupling coefficients, a sign times a norm."""
    import torch
    from e3nn import o3

    ours = np.asarray(e3nn_jax.clebsch_gordan(l_feature, l_edge, l_out)) * sqrt(2 * l_out + 1)
    theirs = o3.wigner_3j(l_feature, l_edge, l_out, dtype=torch.float64).numpy()
    ratio = float(np.sum(ours * theirs) / np.sum(ours * ours))
    if not np.allclose(theirs, ratio * ours, atol=1e-6):
        raise _Unsupported(f"another convention of the coupling {l_feature} x {l_edge} -> {l_out}")
    return ratio


def original_energies(path: str | os.PathLike[str]) -> Callable[[ase.Atoms, str], float]:
    """The energies that mace-torch itself gives at each level, in float64; call it on trusted files only.

    Raises:
        ImportError: mace-torch is not installed.
    """
    from mace.calculators import MACECalculator

    model = _unpickle(Path(path))

    def energy(atoms: ase.Atoms, level: str) -> float:
        with _silence():
            calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64", head=level)
            return float(calculator.get_potential_energy(atoms))

    return energy
