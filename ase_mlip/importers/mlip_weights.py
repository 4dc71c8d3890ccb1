"""Where the arrays of an mlip archive are, and how they are laid out, in versions 0.1 (e3nn) and 0.2 (e3j).

Both give matrices [inputs, outputs] that are divided by the square root of their inputs when used, as ours are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import sqrt
from typing import Literal

import e3nn_jax as e3nn
import numpy as np

Basis = Literal["full", "symmetric", "powers"]  # of the symmetric contraction
Path = tuple[int, int, int]  # degrees of (feature, edge, output)
ROOT = "params#mlip_network#"


class Archive:
    """The arrays of one archive: each is taken by its name, checked against the shape that it must have.

    Attributes:
        elements: rows of per-element arrays that are used.
        channels: width of the features.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], elements: int, channels: int):
        self.left = {name: array for name, array in arrays.items() if array.size}
        self.elements, self.channels = elements, channels

    def take(self, name: str, *shape: int) -> np.ndarray:
        """The array in float64.

        Raises:
            ValueError: it is not there, or of another shape or type.
        """
        array = self.left.pop(ROOT + name, None)
        if array is None:
            raise ValueError(f"lacks the array {ROOT + name}, which its hyper-parameters call for")
        if array.shape != shape or array.dtype.str not in ("<f4", "<f8"):
            raise ValueError(
                f"has an array {array.shape} of type {array.dtype.str} for {ROOT + name}; its hyper-parameters call "
                f"for {shape} of type <f4 or <f8"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"is damaged: numbers in {ROOT + name} are not finite")
        return array.astype(np.float64)


class Version1(Archive):
    """Names and layouts of version 0.1.

    Attributes:
        species: rows of per-element arrays; the model may have more than it has elements.
        basis: of the symmetric contraction.
    """

    marker = ROOT + "MaceBlock_0#"

    def __init__(
        self, arrays: Mapping[str, np.ndarray], elements: int, channels: int, species: int, basis: Basis
    ) -> None:
        super().__init__(arrays, elements, channels)
        self.species, self.basis = species, basis

    def embedding(self) -> np.ndarray:
        """[elements, channels]."""
        table = self.take("MaceBlock_0#LinearNodeEmbeddingBlock_0#embeddings", self.species, self.channels)
        return table[: self.elements] / sqrt(self.species)

    def pair_embedding(self, width: int) -> np.ndarray:
        """[elements, width]."""
        return self.take("MaceBlock_0#species_embedding#embedding", self.species, width)[: self.elements]

    def radial(self, layer: int, place: int, rows: int, columns: int) -> np.ndarray:
        """Matrix `place` of the radial network; the last one's columns are paths by `path_order`, then channels."""
        return self.take(f"{self._radial(layer, 0)}#Dense_{place}#kernel", rows, columns)

    def pair_network(self, layer: int, place: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Matrix and bias of the network of element pairs, columns as in `radial`."""
        name = f"{self._radial(layer, 1)}#Dense_{place}"
        return self.take(f"{name}#kernel", rows, columns), self.take(f"{name}#bias", columns) / sqrt(rows)

    @staticmethod
    def path_order(paths: list[Path]) -> list[Path]:
        """Their order: what is passed on as it is (edge degree 0) before the proper products."""
        return sorted(paths, key=lambda path: (path[2], path[1] > 0, path[0], path[1]))

    @staticmethod
    def path_sign(path: Path) -> int:
        """Their vectors point to the neighbour, as ours do."""
        return 1

    def linear_up(self, layer: int, ell: int) -> np.ndarray:
        """Matrix before the sum over neighbours."""
        return self._linear(layer, "InteractionBlock_0#linear_up", ell, self.channels, self.channels)

    def linear_message(self, layer: int, ell: int, paths: int) -> np.ndarray:
        """[paths by `path_order`, channels, channels] after the sum over neighbours."""
        matrix = self._linear(layer, "InteractionBlock_0#linear_down", ell, paths * self.channels, self.channels)
        return matrix.reshape(paths, self.channels, self.channels)

    def linear_product(self, layer: int, ell: int) -> np.ndarray:
        """Matrix after the product."""
        return self._linear(layer, "EquivariantProductBasisBlock_0#Linear_0", ell, self.channels, self.channels)

    def skip(self, layer: int, ell: int, residual: bool) -> np.ndarray:
        """[elements, channels, channels] of the skip connection or the first layer's map of messages."""
        width, ir = self.channels, _irrep(ell)
        name = f"w[{ell},0,{ell}] {width}x{ir},{self.species}x0e,{width}x{ir}"
        matrix = self.take(
            f"{self._layer(layer)}#FullyConnectedTensorProduct_0#{name}", width, self.species, width
        ).transpose(1, 0, 2)
        return matrix[: self.elements] / sqrt(self.species)

    def product(self, layer: int, ell: int, l_max: int, l_out: int, correlation: int) -> Products:
        """Coupling tensors and weights of the symmetric contraction onto degree `ell`."""
        place = f"{self._layer(layer)}#EquivariantProductBasisBlock_0#SymmetricContraction_0"
        return _named_products(self, place, self.species, _tensor_basis(self.basis, l_max, l_out, correlation)[ell])

    def gate(self, layer: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights [elements, channels, width] and bias [elements, width] of the gate."""
        place = f"{self._layer(layer)}#EquivariantProductBasisBlock_0#species_wise_gate"
        weights = self.take(f"{place}_weights", self.species, self.channels, width)
        return weights[: self.elements], self.take(f"{place}_bias", self.species, width)[: self.elements]

    def readout(self, layer: int, head: int, hidden: int | None) -> list[np.ndarray]:
        """Matrices of a head's readout: one, or two with a hidden layer."""
        kind = "LinearReadoutBlock" if hidden is None else "NonLinearReadoutBlock"
        widths = [self.channels, 1] if hidden is None else [self.channels, hidden, 1]
        return [
            self._linear(layer, f"{kind}_{head}#Linear_{place}", 0, *widths[place : place + 2])
            for place in range(len(widths) - 1)
        ]

    @staticmethod
    def _layer(layer: int) -> str:
        return f"MaceBlock_0#layer_{layer}"

    def _radial(self, layer: int, which: int) -> str:
        place = f"{self._layer(layer)}#InteractionBlock_0#MessagePassingConvolution_0"
        return f"{place}#MultiLayerPerceptron_{which}"

    def _linear(self, layer: int, place: str, ell: int, rows: int, columns: int) -> np.ndarray:
        name = f"w[{ell},{ell}] {rows}x{_irrep(ell)},{columns}x{_irrep(ell)}"
        return self.take(f"{self._layer(layer)}#{place}#{name}", rows, columns)


class Version2(Archive):
    """Names and layouts of version 0.2, which has no element pairs; the other methods are those of `Version1`."""

    marker = ROOT + "layers_0#expansion_block#"

    def __init__(self, arrays: Mapping[str, np.ndarray], elements: int, channels: int, basis: Basis) -> None:
        super().__init__(arrays, elements, channels)
        self.basis = basis

    def embedding(self) -> np.ndarray:
        """[elements, channels]."""
        name = "embedding_block#node_embedding_block#embed#embedding"
        return self.take(name, self.elements, self.channels) / sqrt(self.elements)

    def radial(self, layer: int, place: int, rows: int, columns: int) -> np.ndarray:
        """A matrix of the radial network."""
        return self.take(f"layers_{layer}#interaction_block#radial_mlp#layers_{place}#kernel", rows, columns)

    @staticmethod
    def path_order(paths: list[Path]) -> list[Path]:
        """Their order is ours."""
        return paths

    @staticmethod
    def path_sign(path: Path) -> int:
        """Their vectors point to the centre."""
        return (-1) ** path[1]

    def linear_up(self, layer: int, ell: int) -> np.ndarray:
        """Matrix before the sum over neighbours."""
        return self._linear(layer, "interaction_block#linear_in", ell, self.channels, self.channels)

    def linear_message(self, layer: int, ell: int, paths: int) -> np.ndarray:
        """Their rows are channels, then paths."""
        matrix = self._linear(layer, "interaction_block#linear_out", ell, paths * self.channels, self.channels)
        return matrix.reshape(self.channels, paths, self.channels).transpose(1, 0, 2)

    def linear_product(self, layer: int, ell: int) -> np.ndarray:
        """Matrix after the product."""
        return self._linear(layer, "expansion_block#linear_block", ell, self.channels, self.channels)

    def skip(self, layer: int, ell: int, residual: bool) -> np.ndarray:
        """[elements, channels, channels]."""
        block = "residual_block" if residual else "linear_by_species_block"
        name = f"layers_{layer}#{block}#{_weight(ell)}"
        return self.take(name, self.elements, self.channels, self.channels).transpose(0, 2, 1)

    def product(self, layer: int, ell: int, l_max: int, l_out: int, correlation: int) -> Products:
        """Coupling tensors and weights of the symmetric contraction."""
        place = f"layers_{layer}#expansion_block#symmetric_contraction"
        couplings = _tensor_basis(self.basis, l_max, l_out, correlation)[ell]
        if self.basis != "powers":
            return _named_products(self, place, self.elements, couplings)
        counts = [couplings[degree].shape[-1] for degree in sorted(couplings)]
        name = f"{place}#LinearIndexwise_0#{_weight(ell)}"
        weights = self.take(name, self.elements, self.channels, 1, sum(counts))[:, :, 0].transpose(0, 2, 1)
        by_degree = np.split(weights, np.cumsum(counts)[:-1], axis=1)
        return couplings, dict(enumerate(by_degree, 1))

    def gate(self, layer: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Weights and bias of the gate."""
        place = f"layers_{layer}#expansion_block#species_wise_gate"
        weights = self.take(f"{place}_weights", self.elements, self.channels, width)
        return weights, self.take(f"{place}_bias", self.elements, width)

    def readout(self, layer: int, head: int, hidden: int | None) -> list[np.ndarray]:
        """Matrices of a head's readout."""
        widths = [self.channels, 1] if hidden is None else [self.channels, hidden, 1]
        return [
            self._linear(layer, f"readout_block#ReadoutBlock_{head}#Linear_{place}", 0, *widths[place : place + 2])
            for place in range(len(widths) - 1)
        ]

    def _linear(self, layer: int, place: str, ell: int, rows: int, columns: int) -> np.ndarray:
        return self.take(f"layers_{layer}#{place}#{_weight(ell)}", columns, rows).T


Couplings = dict[int, np.ndarray]  # by degree, [2 l + 1, (l_max + 1)^2, ..., paths]
Products = tuple[Couplings, dict[int, np.ndarray]]  # and weights by degree, [elements, paths, channels]


def _irrep(ell: int) -> str:
    return f"{ell}{'eo'[ell % 2]}"


def _weight(ell: int) -> str:
    return f"weight{ell}_{ell}_{(-1) ** ell}"


def _named_products(archive: Archive, place: str, rows: int, couplings: Couplings) -> Products:
    """Weights that have one array per degree."""
    ell = (len(couplings[1]) - 1) // 2
    weights = {}
    for degree, coupling in couplings.items():
        shape = rows, coupling.shape[-1], archive.channels
        weights[degree] = archive.take(f"{place}#w{degree}_{_irrep(ell)}", *shape)[: archive.elements]
    return couplings, weights


@lru_cache(maxsize=8)
def _tensor_basis(basis: Basis, l_max: int, l_out: int, correlation: int) -> list[Couplings]:
    """Coupling tensors onto degrees 0 ... l_out."""
    if basis == "powers":
        return _power_basis(l_max, l_out, correlation)
    density = e3nn.Irreps.spherical_harmonics(l_max)
    kept = [irrep for _, irrep in e3nn.Irreps.spherical_harmonics(l_out)]
    found: list[Couplings] = [{} for _ in kept]
    for degree in range(1, correlation + 1):
        if basis == "symmetric":
            tensors = e3nn.reduced_symmetric_tensor_product_basis(density, degree, keep_ir=kept)
        else:
            tensors = e3nn.reduced_tensor_product_basis([density] * degree, keep_ir=kept)
        for (_, irrep), tensor in zip(tensors.irreps, tensors.chunks, strict=True):
            found[irrep.l][degree] = np.moveaxis(np.asarray(tensor, np.float64), -1, 0)
    return found


def _power_basis(l_max: int, l_out: int, correlation: int) -> list[Couplings]:
    """Repeated coupling with the density: of each block of a power, sorted by degree and natural parity first, with
    each degree of the density."""
    size = (l_max + 1) ** 2
    eye = np.eye(size)
    power = {(ell, 0): eye[:, None, ell**2 : (ell + 1) ** 2] for ell in range(l_max + 1)}  # (l, 1 if unnatural)
    found: list[Couplings] = [{1: np.moveaxis(power[ell, 0], -1, 0)} for ell in range(l_out + 1)]
    for degree in range(2, correlation + 1):
        reach = l_out + l_max * (correlation - degree)
        blocks: dict[tuple[int, int], list[np.ndarray]] = {}
        for (left, odd), tensor in sorted(power.items()):
            for right in range(l_max + 1):
                for ell in range(abs(left - right), min(left + right, reach) + 1):
                    kind = ell, (odd + left + right + ell) % 2
                    if degree == correlation and kind[1]:
                        continue
                    block = np.zeros((*tensor.shape[:-2], size, tensor.shape[-2], 2 * ell + 1))
                    coupling = e3nn.clebsch_gordan(ell, left, right)
                    np.einsum("...ka,cab->...bkc", tensor, coupling, out=block[..., right**2 : (right + 1) ** 2, :, :])
                    blocks.setdefault(kind, []).append(block)
        power = {kind: np.concatenate(tensors, axis=-2) for kind, tensors in blocks.items()}
        for ell, couplings in enumerate(found):
            couplings[degree] = np.moveaxis(power[ell, 0], -1, 0)
    return found
