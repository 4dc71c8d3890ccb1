"""Models of mace-torch (`.model`): MACE and ScaleShiftMACE in all published variants.

Such a file is a pickled torch module, so reading it needs torch and mace-torch (`pip install "ase-mlip[torch]"`) and
runs whatever code the file contains. What comes out is an ordinary force field, saved without any of them.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ase
import numpy as np

from ase_mlip.dataset_info import DatasetInfo, Head
from ase_mlip.force_field import ForceField
from ase_mlip.importers import ZIP_ERRORS
from ase_mlip.importers.mace_torch_weights import READOUTS, Module, Tree, Unsupported, Weights, widths_of
from ase_mlip.model_file import ModelFileError, brief, file_sha256
from ase_mlip.networks.mace import Mace, MaceConfig
from ase_mlip.networks.radial import AGNESI, SOFT_STEEPNESS
from ase_mlip.predictor import Predictor
from ase_mlip.repulsion import Repulsion

INTERACTIONS = {  # class name -> (interaction, residual)
    "RealAgnosticInteractionBlock": ("mean", False),
    "RealAgnosticResidualInteractionBlock": ("mean", True),
    "RealAgnosticDensityInteractionBlock": ("density", False),
    "RealAgnosticDensityResidualInteractionBlock": ("density", True),
    "RealAgnosticResidualNonLinearInteractionBlock": ("gated", True),
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
    except Unsupported as error:
        raise ModelFileError(f"{path} uses {error}, which this package does not have") from None
    provenance = {
        "source_file": path.name,
        "source_sha256": file_sha256(path),
        "source_package": f"mace-torch ({kind})",
    }
    return ForceField(force_field.predictor, force_field.params, provenance)


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
    check_archive(path)
    try:
        with _silence():
            model = torch.load(path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise ModelFileError(
            f"{path} needs the package {error.name!r} to be read: pip install 'ase-mlip[torch]' (convert a model made "
            "for cuEquivariance back with mace-torch's `mace_cueq_to_e3nn` first)"
        ) from None
    except Exception as error:
        raise ModelFileError(f"{path} cannot be unpickled, it is damaged or no torch file: {brief(error)}") from error
    if not isinstance(model, torch.nn.Module):
        what = "a training checkpoint (weights alone)" if isinstance(model, dict) else f"a {type(model).__name__}"
        raise ModelFileError(f"{path} holds {what}, not a model; give the `.model` file that mace-torch writes")
    return model.double()


def check_archive(path: Path) -> None:
    """Compare the checksums of a zip archive with its content; torch does not, and would load a flipped bit."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except ZIP_ERRORS as error:
        raise ModelFileError(f"{path} is truncated or damaged ({brief(error)}); copy or download it again") from error
    if damaged:
        raise ModelFileError(f"{path} is damaged: {damaged} does not match its checksum; copy or download it again")


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
    """What a torch model is: its shape, its constants, and its weights as ours."""

    def __init__(self, model: Module):
        self.model = model
        self.weights = Weights()
        self.numbers = [int(z) for z in model.atomic_numbers]
        self.heads = [str(head) for head in getattr(model, "heads", None) or ["Default"]]
        self.layers = list(model.interactions)

    def force_field(self) -> ForceField:
        """The whole model."""
        config, weights = self._config(), self.weights
        params: Tree = {"element_embedding": weights.linear(self.model.node_embedding.linear, rescale=False)[0]}
        for number, (block, product) in enumerate(zip(self.layers, self.model.products, strict=True)):
            l_out = 0 if number == len(self.layers) - 1 else config.hidden_l_max
            params[f"layer_{number}"] = weights.layer(block, product, config, l_out)
        for number, head in enumerate(self.heads):
            params[f"head_{head}"] = weights.head(self.model.readouts, number, config)
        left = [name for name, p in self.model.named_parameters() if not weights.has_read(p) and p.numel()]
        if left:
            raise Unsupported(f"the parameters {', '.join(left[:5])}{' and more' if len(left) > 5 else ''}")
        network = Mace(config, self._info())
        return ForceField(Predictor(network, tuple((head, (head,)) for head in self.heads)), params)

    def _config(self) -> MaceConfig:
        """Shape of the network; refuses what we do not have."""
        model, blocks = self.model, self.layers
        for name in ("joint_embedding", "embedding_readout", "lora"):
            if hasattr(model, name):
                raise Unsupported(f"{name} (embeddings of charge, spin and the like)")
        if getattr(model, "use_so3", False):
            raise Unsupported("use_so3 (harmonics without parity)")
        kinds = [type(block).__name__ for block in blocks]
        for kind in kinds:
            if kind not in INTERACTIONS:
                raise Unsupported(f"the interaction block {kind}")
        if len({INTERACTIONS[kind][0] for kind in kinds}) > 1 or not all(INTERACTIONS[kind][1] for kind in kinds[1:]):
            raise Unsupported(f"the combination of interaction blocks {', '.join(kinds)}")
        hidden = widths_of(model.products[0].linear.irreps_out)
        channels, l_max = hidden[0], len(widths_of(blocks[0].edge_attrs_irreps)) - 1
        if set(hidden.values()) != {channels} or list(hidden) != list(range(len(hidden))):
            raise Unsupported(f"hidden irreps {blocks[0].hidden_irreps} (of different width, or with gaps)")
        if widths_of(blocks[0].edge_attrs_irreps) != dict.fromkeys(range(l_max + 1), 1):
            raise Unsupported(f"edge irreps {blocks[0].edge_attrs_irreps}")
        sent = [widths_of(block.linear_up.irreps_out) for block in blocks]
        if any(len(set(widths.values())) > 1 for widths in sent):
            raise Unsupported(f"edge features {sent} of different widths in one layer")
        edges = tuple(widths[0] for widths in sent)
        correlations = {int(c.correlation) for p in model.products for c in p.symmetric_contractions.contractions}
        if len(correlations) > 1:
            raise Unsupported(f"correlation orders {sorted(correlations)} that differ by layer")
        final = type(model.readouts[-1]).__name__
        if final not in READOUTS:
            raise Unsupported(f"the readout {final}")
        radial = model.radial_embedding
        if type(radial.bessel_fn).__name__ != "BesselBasis":
            raise Unsupported(f"the radial basis {type(radial.bessel_fn).__name__}")
        frequencies = self.weights.take(radial.bessel_fn.bessel_weights)
        usual = np.pi / float(model.r_max) * np.arange(1, len(frequencies) + 1)
        if not np.allclose(frequencies, usual, rtol=1e-6):
            raise Unsupported("trained frequencies of the Bessel basis")
        width = widths_of(model.readouts[-1].hidden_irreps)[0] // len(self.heads) if READOUTS[final] != "linear" else 1
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
            raise Unsupported(f"the distance transform {kind}")
        name, attributes, usual = known[kind]
        values = [float(self.weights.take(getattr(transform, attribute))) for attribute in attributes]
        if not np.allclose(values, usual, rtol=1e-6):
            raise Unsupported(f"constants {values} of {kind}, others than {list(usual)}")
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
            repulsion = Repulsion(
                int(zbl.p), float(self.weights.take(zbl.a_prefactor)), float(self.weights.take(zbl.a_exp))
            )
        heads = (
            Head(head, tuple(e0), float(scale), float(shift), float(scale) if repulsion else 0.0)
            for head, e0, scale, shift in zip(self.heads, energies.tolist(), scales, shifts, strict=True)
        )
        if sorted(self.numbers) != self.numbers:
            raise Unsupported("elements out of order")
        neighbors = float(self.layers[0].avg_num_neighbors)
        return DatasetInfo(tuple(self.numbers), float(model.r_max), neighbors, tuple(heads), repulsion)


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
