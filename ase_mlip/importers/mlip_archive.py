"""Reader of `.zip` archives of InstaDeep's package mlip (github.com/instadeepai/mlip), versions 0.1 and 0.2, for MACE.

An archive holds `hyperparams.json` and `params.npz`. Nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import zipfile
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ase_mlip.force_field import ForceField
from ase_mlip.importers import ZIP_ERRORS
from ase_mlip.importers.mlip_header import Description, read_header
from ase_mlip.importers.mlip_weights import ROOT, Version1, Version2
from ase_mlip.importers.polynomials import contraction_weights
from ase_mlip.model_file import ModelFileError, brief
from ase_mlip.networks.coupling import coupling_paths
from ase_mlip.networks.mace import Mace
from ase_mlip.networks.neighbor_sum import PAIR_MLP
from ase_mlip.networks.radial import SAMPLED_SILU_NORM, SILU_NORM
from ase_mlip.predictor import Predictor

Tree = dict[str, Any]
Arrays = dict[str, np.ndarray]
LICENCE = re.compile(r"licen[cs]e(\.txt|\.md)?", re.IGNORECASE)
SILU_GAIN = SAMPLED_SILU_NORM / SILU_NORM  # mlip's constant over ours


def read_mlip(path: str | os.PathLike[str]) -> ForceField:
    """Read a MACE model of mlip; its weights are kept in float64.

    The heads of 0.1 are summed: they become one level, "mlip". Those of 0.2 are alternatives: each is a level of its
    own, and the first, which mlip takes where it is not told otherwise, is the default level.

    Args:
        path: a `.zip` archive as mlip writes it.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: the file is truncated, damaged or foreign, or uses an option that `Mace` lacks.
    """
    payload = Path(path).read_bytes()
    try:
        header, arrays, licence = _unpack(payload)
        version = _version(arrays)
        description = read_header(header, version)
        params = _Reader(description, arrays, version).params()
    except ValueError as error:
        raise ModelFileError(f"{path} {brief(error, 500)}") from error
    provenance = {
        "name": Path(path).stem,
        "source_file": Path(path).name,
        "source_sha256": hashlib.sha256(payload).hexdigest(),
        "source_package": f"mlip 0.{version}",
        "architecture": "Mace",
    }
    provenance |= {"training_data": description.data} if description.data else {}
    provenance |= {"licence_text": licence} if licence else {}
    return ForceField(Predictor(Mace(description.config, description.info), description.levels), params, provenance)


def _unpack(payload: bytes) -> tuple[Any, Arrays, str]:
    """Hyper-parameters, arrays, and the text of a licence, empty where there is none."""
    names = ("hyperparams.json", "params.npz")
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            wanted = [name for name in archive.namelist() if name in names or LICENCE.fullmatch(Path(name).name)]
            content = {name: archive.read(name) for name in wanted}
    except ZIP_ERRORS as error:
        reason = brief(error)
        raise ValueError(f"is no zip archive, or truncated or damaged ({reason}); copy or download it again") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"is no archive of mlip: it lacks {' and '.join(missing)}")
    text, packed = (content.pop(name) for name in names)
    licence = "\n".join(part.decode(errors="replace") for part in content.values())
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("is damaged: its hyperparams.json is not JSON; copy or download it again") from error
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy's parser raises many kinds
        raise ValueError(f"is damaged: its params.npz cannot be read ({brief(error)})") from error
    return header, arrays, licence


def _version(arrays: Arrays) -> int:
    """1 or 2, from the names of the arrays: mlip 0.2 also writes models of 0.1."""
    for version, marker in enumerate((Version1.marker, Version2.marker), 1):
        if any(name.startswith(marker) for name in arrays):
            return version
    blocks = sorted({name.removeprefix(ROOT).split("#")[0] for name in arrays})
    raise ValueError(f"holds a network of {', '.join(blocks[:5]) or 'no arrays'}; of mlip's models only MACE is read")


class _Reader:
    """Puts the arrays where our parameters are. Matrices go over bit by bit, except for constants: those of the radial
    basis and of activations go into the next matrix, the number of elements into per-element tables."""

    def __init__(self, description: Description, arrays: Arrays, version: int):
        self.description, self.config = description, description.config
        elements, channels = len(description.info.elements), self.config.num_channels
        self.weights: Version1 | Version2
        if version == 1:
            self.weights = Version1(
                _without_devices(arrays), elements, channels, description.species, description.basis
            )
        else:
            self.weights = Version2(arrays, elements, channels, description.basis)

    def params(self) -> Tree:
        """All parameters."""
        config, weights = self.config, self.weights
        tree: Tree = {"element_embedding": weights.embedding()}
        if config.pair_embedding is not None and isinstance(weights, Version1):
            tree["element_pair_embedding"] = weights.pair_embedding(config.pair_embedding)
        tree |= {f"layer_{layer}": self._layer(layer) for layer in range(config.num_layers)}
        for number, head in enumerate(self.description.info.heads):
            tree[f"head_{head.name}"] = self._head(number)
        if weights.left:
            names = sorted(weights.left)
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"has the arrays {', '.join(names[:3])}{more}, for which its hyper-parameters have no use")
        return tree

    def _layer(self, layer: int) -> Tree:
        config, weights, channels = self.config, self.weights, self.config.num_channels
        sent = range(1 if layer == 0 else config.hidden_l_max + 1)
        kept = range(1 if layer == config.num_layers - 1 else config.hidden_l_max + 1)
        reached = range(config.l_max + 1)
        residual = layer > 0 or config.first_layer == "residual"
        paths = coupling_paths(tuple(sent), config.l_max)
        theirs = weights.path_order(paths)
        order = [theirs.index(path) for path in paths]
        tree: Tree = {
            "linear_up": {f"degree_{ell}": weights.linear_up(layer, ell) for ell in sent},
            "neighbor_sum": self._neighbor_sum(layer, paths, order),
            "linear_message": {},
            "skip": {},
            "contraction": {},
            "linear_product": {f"degree_{ell}": weights.linear_product(layer, ell) for ell in kept},
        }
        for ell in reached:
            first = next(place for place, path in enumerate(theirs) if path[2] == ell)
            ours = [place - first for place, path in zip(order, paths, strict=True) if path[2] == ell]
            blocks = weights.linear_message(layer, ell, len(ours))[ours]
            tree["linear_message"][f"degree_{ell}"] = blocks.reshape(-1, channels)
        for ell in set(sent) & set(kept) if residual else reached:
            tree["skip"][f"element_degree_{ell}"] = weights.skip(layer, ell, residual)
        for ell in kept:
            product = weights.product(layer, ell, config.l_max, kept[-1], config.correlation)
            tree["contraction"][f"element_degree_{ell}"] = contraction_weights(config.l_max, ell, *product)
        if config.gated_products:
            kernel, bias = weights.gate(layer, channels * len(kept))
            tree["gate"] = {"kernel": {"element_degree_0": kernel * sqrt(channels)}, "element_bias": bias}
        return tree

    def _neighbor_sum(self, layer: int, paths: list[tuple[int, int, int]], order: list[int]) -> Tree:
        """Radial network, and that of element pairs."""
        config, weights = self.config, self.weights
        columns = len(paths) * config.num_channels
        signs = np.array([weights.path_sign(path) for path in paths])[:, None]

        def by_path(last: np.ndarray) -> np.ndarray:
            return last.reshape(*last.shape[:-1], len(paths), -1)[..., order, :]

        widths = [config.num_bessel, *config.radial_mlp, columns]
        radial: Tree = {}
        for place in range(len(widths) - 1):
            gain = SILU_GAIN if place else self.description.radial_factor
            radial[f"layer_{place}"] = weights.radial(layer, place, *widths[place : place + 2]) * gain
        radial["output"] = by_path(radial.pop(f"layer_{len(widths) - 2}")) * signs
        if config.pair_embedding is None or not isinstance(weights, Version1):
            return {"radial": radial}
        widths, pair = [3 * config.pair_embedding, *PAIR_MLP, columns], Tree()
        for place in range(len(widths) - 1):
            kernel, bias = weights.pair_network(layer, place, *widths[place : place + 2])
            pair[f"layer_{place}"], pair[f"bias_{place}"] = kernel * (SILU_GAIN if place else 1.0), bias
        last = len(widths) - 2
        pair["output"], pair["output_bias"] = by_path(pair.pop(f"layer_{last}")), by_path(pair.pop(f"bias_{last}"))
        return {"radial": radial, "pair": pair}

    def _head(self, number: int) -> Tree:
        """Readouts of one head."""
        last = self.config.num_layers - 1
        tree = {f"layer_{layer}_output": self.weights.readout(layer, number, None)[0][:, 0] for layer in range(last)}
        hidden, output = self.weights.readout(last, number, self.config.readout_mlp)
        return tree | {f"layer_{last}_hidden": hidden, f"layer_{last}_output": output[:, 0] * SILU_GAIN}


def _without_devices(arrays: Arrays) -> Arrays:
    """Models of 0.1 that were trained on several devices keep the same arrays once for each."""
    embedding = arrays.get(ROOT + "MaceBlock_0#LinearNodeEmbeddingBlock_0#embeddings")
    several = embedding is not None and embedding.ndim == 3 and all(array.ndim > 1 for array in arrays.values())
    return {name: array[0] for name, array in arrays.items()} if several else arrays
