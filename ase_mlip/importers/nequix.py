"""Reader of `.nqx` files, the published models of the package nequix (github.com/atomicarchitects/nequix).

A file is one line of JSON with the hyper-parameters, then the leaves of the network in order, each a NumPy `.npy`
record: reference energies; of each layer the radial network, the linear map before the sum over neighbours, the one
after it, the skip connection and the layer norm, each by ascending degree; the readout. Nothing in it is executed. The
format has no checksum: a changed weight cannot be noticed, only a changed structure.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
from ase.data import chemical_symbols
from flax.traverse_util import unflatten_dict
from numpy.lib import format as npy

from ase_mlip.dataset_info import DatasetInfo, Head
from ase_mlip.force_field import ForceField
from ase_mlip.model_file import ModelFileError, brief
from ase_mlip.networks.coupling import coupling_paths
from ase_mlip.networks.nequip import Nequip, NequipConfig
from ase_mlip.networks.nequip_sum import RADIAL_GAIN, radial_scale
from ase_mlip.predictor import Predictor

HEAD = "nequix"
# Keys of the JSON line that shape the network or its constants; all must be there.
INTEGERS = ("lmax", "n_layers", "radial_basis_size", "radial_mlp_size", "radial_mlp_layers")
NUMBERS = ("cutoff", "radial_polynomial_p", "avg_n_neighbors", "scale", "shift")
FLAGS = ("index_weights", "layer_norm")
# Keys that say how a model was made; they change nothing here. The weights hold the reference energies.
IGNORED = frozenset(
    """atom_energies avg_n_edges avg_n_nodes batch_size cache_dir checkpoint_grad_energy ema_decay energy_weight
    extra_energy_weight extra_force_weight extra_stress_weight extra_train_path extra_train_steps extra_val_path
    finetune_from force_weight grad_clip_norm hessian_weight kernel learning_rate log_every loss_type max_n_edges
    max_n_nodes mlp_init_scale n_epochs n_graph optimizer readout_initialization resume_from state_path stress_weight
    train_path val_every val_path valid_frac valid_path warmup_epochs warmup_factor weight_decay""".split()
)
SWITCHED_OFF = ("add_repulsion",)  # options of the package that this reader knows only as false
MAX_HEADER = 10_000_000  # bytes


def read_nequix(path: str | os.PathLike[str]) -> ForceField:
    """Read a published or self-trained nequix model, as one level with one head, both named "nequix".

    Args:
        path: a `.nqx` file. Files of the package's PyTorch twin (`.pt`) are not read.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: the file is truncated, damaged or foreign, or uses an option that `Nequip` lacks.
    """
    payload = Path(path).read_bytes()
    stream = io.BytesIO(payload)
    try:
        description = _description(stream)
        records = {leaf.name: _read_record(stream, leaf) for leaf in description.leaves()}
        _check_end(stream, len(records))
        provenance = {
            "name": Path(path).stem,
            "source_file": Path(path).name,
            "source_sha256": hashlib.sha256(payload).hexdigest(),
            "source_package": "nequix",
            "architecture": "Nequip",
        }
        provenance |= {"training_data": description.data} if description.data else {}
        return description.force_field(records, provenance)
    except ValueError as error:
        raise ModelFileError(f"{path} {brief(error, 500)}") from error


@dataclass(frozen=True)
class Leaf:
    """One array of the file: our name for it and its shape there."""

    name: str
    shape: tuple[int, ...]
    divisor: float = 1.0


@dataclass(frozen=True)
class Description:
    """What the JSON line says."""

    config: NequipConfig
    elements: tuple[int, ...]
    constants: Mapping[str, float]
    data: str  # names of the training sets

    def leaves(self) -> Iterator[Leaf]:
        """The arrays in the order of the file, named as our parameters are."""
        config, elements = self.config, len(self.elements)
        yield Leaf("atomic_energies", (elements,))
        for number in range(config.num_layers):
            layer, first = f"layer_{number}", number == 0
            kept = config.channels[:1] if number == config.num_layers - 1 else config.channels
            widths = (kept[0] + sum(kept[1:]), *kept[1:])
            inputs = (elements,) if first else config.channels
            paths = [p for p in coupling_paths(tuple(range(len(inputs))), config.l_max) if p[2] < len(widths)]

            radial = (config.num_bessel, *config.radial_mlp, sum(inputs[p[0]] for p in paths))
            names = [*(f"hidden_{place}" for place in range(len(radial) - 2)), "output"]
            for place, name in enumerate(names):
                scale = radial_scale(radial[place], 1.0 if name == "output" else RADIAL_GAIN)
                yield Leaf(f"{layer}/neighbor_sum/{name}", radial[place : place + 2], scale)
            for ell, width in enumerate(inputs):
                name = "element_embedding" if first else f"linear_up/degree_{ell}"
                yield Leaf(f"{layer}/{name}", (width, width))
            for ell, width in enumerate(widths):
                rows = sum(inputs[p[0]] for p in paths if p[2] == ell)
                yield Leaf(f"{layer}/linear_message/degree_{ell}", (rows, width))
            for ell, (rows, width) in enumerate(zip(inputs, widths, strict=False)):
                degree = f"element_degree_{ell}" if config.element_skip else f"degree_{ell}"
                shape = (elements, rows, width) if config.element_skip else (rows, width)
                yield Leaf(f"{layer}/element_skip" if first else f"{layer}/skip/{degree}", shape)
            if config.layer_norm:
                for ell, width in enumerate(widths):
                    yield Leaf(f"{layer}/layer_norm/degree_{ell}", (width,))
        yield Leaf(f"head_{HEAD}/output", (config.channels[0], 1))

    def force_field(self, records: Mapping[str, np.ndarray], provenance: Mapping[str, Any]) -> ForceField:
        """Our model with these weights, bit by bit but for the two tables that see elements one-hot.

        Their factor 1 / sqrt(elements) goes into the weights, so that the model can be cut down to fewer elements. The
        maps of the radial networks have a factor, a power of two, here and none there.
        """
        params = dict(records)
        energies = tuple(float(e) for e in params.pop("atomic_energies"))
        for name in ("layer_0/element_embedding", "layer_0/element_skip"):
            table = params[name]
            rows = np.einsum("zzc->zc", table) if table.ndim == 3 else table  # an element's matrix meets only itself
            params[name] = (rows.astype(np.float64) / math.sqrt(len(self.elements))).astype(table.dtype)
        params[f"head_{HEAD}/output"] = params[f"head_{HEAD}/output"][:, 0]
        head = Head(HEAD, energies, self.constants["scale"], self.constants["shift"])
        info = DatasetInfo(self.elements, self.constants["cutoff"], self.constants["avg_n_neighbors"], (head,))
        network = Nequip(self.config, info)
        tree = unflatten_dict({tuple(name.split("/")): array for name, array in params.items()})
        return ForceField(Predictor.from_network(network), tree, provenance)


def _description(stream: BinaryIO) -> Description:
    """Read and check the JSON line."""
    line = stream.readline(MAX_HEADER)
    if not line:
        raise ValueError("is empty; copy or download it again")
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not a nequix model (.nqx): its first line is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError("is not a nequix model (.nqx): its first line is JSON, but not an object")
    required = ("atomic_numbers", "hidden_irreps", *INTEGERS, *NUMBERS, *FLAGS)
    missing = [key for key in required if key not in header]
    if missing:
        raise ValueError(f"lacks the hyper-parameters {', '.join(missing)}; is it a nequix model (.nqx)?")
    if not line.endswith(b"\n"):
        raise ValueError("is truncated after its hyper-parameters; copy or download it again")
    unknown = sorted(set(header) - set(required) - IGNORED - set(SWITCHED_OFF))
    if unknown:
        raise ValueError(f"has the hyper-parameters {', '.join(unknown)}, which this reader does not know")
    for key in SWITCHED_OFF:
        if header.get(key, False) is not False:
            raise ValueError(f"uses {key}={header[key]!r}, which this reader does not support")
    for key in (*INTEGERS, *NUMBERS):
        value = header[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"has {key}={value!r}; expected a number")
        if key in (*INTEGERS, "radial_polynomial_p") and (value != int(value) or not 0 <= value <= 10_000):
            raise ValueError(f"has {key}={value!r}; expected a whole number of 0 to 10000")
    for key in FLAGS:
        if not isinstance(header[key], bool):
            raise ValueError(f"has {key}={header[key]!r}; expected true or false")
    if header["scale"] == 0:
        raise ValueError("has scale=0; its energies would not depend on positions")
    elements = _elements(header["atomic_numbers"])
    config = NequipConfig(
        channels=_channels(header["hidden_irreps"]),
        num_layers=int(header["n_layers"]),
        l_max=int(header["lmax"]),
        embedding_channels=len(elements),
        num_bessel=int(header["radial_basis_size"]),
        cutoff_order=int(header["radial_polynomial_p"]),
        radial_mlp=(int(header["radial_mlp_size"]),) * int(header["radial_mlp_layers"]),
        layer_norm=header["layer_norm"],
        element_skip=header["index_weights"],
        head_names=(HEAD,),
    )
    paths = header.get("train_path", [])
    names = ("/".join(Path(str(path)).parts[-2:]) for path in (paths if isinstance(paths, list) else [paths]))
    return Description(config, elements, {key: float(header[key]) for key in NUMBERS}, ", ".join(dict.fromkeys(names)))


def _elements(numbers: Any) -> tuple[int, ...]:
    """Atomic numbers in the order of the weights, which is ascending whatever the order in the file."""
    valid = isinstance(numbers, list) and all(type(z) is int and 0 < z < len(chemical_symbols) for z in numbers)
    if not valid or not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(f"has atomic_numbers={str(numbers)[:80]}; expected different atomic numbers")
    return tuple(sorted(numbers))


def _channels(irreps: Any) -> tuple[int, ...]:
    """Widths by degree from a text such as "128x0e + 64x1o"."""
    terms = [re.fullmatch(r"([1-9][0-9]{0,4})x([0-9])([eo])", term.strip()) for term in str(irreps).split("+")]
    found = [(int(term[2]), term[3]) for term in terms if term]
    if len(found) < len(terms) or found != [(ell, "eo"[ell % 2]) for ell in range(len(found))]:
        raise ValueError(f"has hidden_irreps={irreps!r}; only degrees 0, 1, ... of natural parity are supported")
    return tuple(int(term[1]) for term in terms if term)


def _record_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the record that begins here."""
    try:
        if npy.read_magic(stream) != (1, 0):
            raise ValueError("not version 1.0 of the .npy format")
        shape, fortran_order, dtype = npy.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TokenError) as error:
        raise ValueError(brief(error)) from error
    if fortran_order and len(shape) > 1:
        raise ValueError("an array in Fortran order")
    return shape, dtype


def _read_record(stream: BinaryIO, leaf: Leaf) -> np.ndarray:
    """The next array of the file; nothing is allocated before its shape is known to be right."""
    rest = stream.tell()
    if not stream.read(1):
        raise ValueError(f"ends before {leaf.name}; copy or download it again")
    stream.seek(rest)
    try:
        shape, dtype = _record_header(stream)
    except ValueError as error:
        raise ValueError(f"is truncated or damaged at {leaf.name}: {error}") from error
    if shape != leaf.shape or dtype.str not in ("<f4", "<f8"):
        raise ValueError(
            f"has an array {shape} of type {dtype.str} for {leaf.name}; "
            f"its hyper-parameters call for {leaf.shape} of type <f4 or <f8"
        )
    size = math.prod(shape) * dtype.itemsize
    content = stream.read(size)
    if len(content) < size:
        raise ValueError(f"is truncated in {leaf.name}; copy or download it again")
    with np.errstate(over="ignore"):
        array = np.frombuffer(content, dtype).reshape(shape) / dtype.type(leaf.divisor)
    if not np.isfinite(array).all():
        raise ValueError(f"is damaged: numbers in {leaf.name} are not finite")
    return array


def _check_end(stream: BinaryIO, count: int) -> None:
    """After the weights, published files have white space or single numbers, nothing that looks like weights."""
    while rest := stream.read().lstrip():
        stream = io.BytesIO(rest)
        try:
            shape, dtype = _record_header(stream)
        except ValueError as error:
            raise ValueError(f"has unknown content after its {count} arrays; copy or download it again") from error
        if shape or dtype.hasobject or len(stream.read(dtype.itemsize)) < dtype.itemsize:
            raise ValueError(f"has more than the {count} arrays that its hyper-parameters call for")
