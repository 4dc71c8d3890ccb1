"""What a MACE has to compute and to move for energies and forces, counted from its shape: the floor of its time.

Counted is what is done for every channel; a multiply-add is two operations. Harmonics, the radial basis and activation
functions have no channels or are few, and are left out, as is all that depends on the elements alone. The gradient is
the one with respect to positions: parameters need none. The formulation is the cheapest that we know: radial functions
are tables, each neighbour is visited once forward and once in the gradient, coupling comes after the sum, and nothing
of size pairs x channels is stored. What the radial network would cost instead of the tables is counted beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flax.traverse_util import flatten_dict

from ase_mlip.bench.machine import Peaks
from ase_mlip.force_field import ForceField
from ase_mlip.networks.coupling import coupling_paths
from ase_mlip.networks.mace import Mace, MaceConfig
from ase_mlip.networks.symmetric import symmetric_contractions

INDEX_BYTES = 4
DEGREE = re.compile(r"(?:element_)?degree_(\d+)")  # a matrix [..., inputs, outputs] that acts on 2 l + 1 components


@dataclass(frozen=True)
class Work:
    """Operations, and bytes to and from memory.

    Attributes:
        operations: floating-point operations.
        moved: bytes, if each array between two parts is written once and read once, and so is its gradient.
        gathered: bytes, if every pair fetches its neighbour's features, again in the gradient, and adds to theirs; what
            lies in a cache is not moved from memory.
    """

    operations: float = 0.0
    moved: float = 0.0
    gathered: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.moved + other.moved, self.gathered + other.gathered)

    def __mul__(self, factor: float) -> Work:
        return Work(self.operations * factor, self.moved * factor, self.gathered * factor)

    def seconds(self, peaks: Peaks) -> float:
        """The least time on a machine with these peaks: operations and transfers at once."""
        return max(self.operations / peaks.operations_per_s, self.moved / peaks.bytes_per_s)


@dataclass(frozen=True)
class Floor:
    """The least work of one evaluation of energies and forces, by part.

    Attributes:
        parts: with radial functions as tables.
        radial_network: the radial network instead of the part "radial tables".
    """

    parts: Mapping[str, Work]
    radial_network: Work

    @property
    def total(self) -> Work:
        """All parts."""
        return sum(self.parts.values(), Work())

    @property
    def total_with_network(self) -> Work:
        """All parts, with the radial network in the place of the tables."""
        others = (work for name, work in self.parts.items() if name != "radial tables")
        return sum(others, self.radial_network)


def count_floor(force_field: ForceField, atoms: int, pairs: int, itemsize: int = 4) -> Floor | None:
    """The least work of one evaluation; None for an architecture that is not counted.

    Args:
        force_field: its network's shape counts.
        atoms: number of atoms.
        pairs: ordered pairs within the cutoff.
        itemsize: bytes of a real number.
    """
    network = force_field.predictor.network
    if not isinstance(network, Mace):
        return None
    config, params = network.config, flatten_dict(dict(force_field.params))
    layers = [(number, *_degrees_and_channels(config, number)) for number in range(config.num_layers)]
    neighbors, tables = Work(), Work()
    for number, degrees, channels in layers:
        paths = coupling_paths(degrees, config.l_max)
        message = sum(2 * out + 1 for _, _, out in paths) * channels
        neighbors += neighbor_sum(degrees, config.l_max, channels, number > 0, itemsize) * pairs
        neighbors += Work(moved=4 * itemsize * message) * atoms
        tables += radial_tables(len(paths), channels) * pairs
    parts = {
        "neighbour sums": neighbors,
        "radial tables": tables,
        "contractions": contractions(config, itemsize) * atoms,
        "linear maps": linear_maps(params, config, itemsize) * atoms,
        "parameters": Work(moved=2.0 * itemsize * force_field.num_params),
    }
    return Floor(parts, radial_networks(params, itemsize) * pairs)


def neighbor_sum(degrees: tuple[int, ...], l_max: int, channels: int, features_move: bool, itemsize: int = 4) -> Work:
    """One pair in one layer: weight x features x harmonics into each path, and the gradient.

    With w weighted feature components and n products of such a component with a coupled harmonic, per channel: forward
    w multiplications and n multiply-adds. The gradient contracts the messages' gradient with the harmonics (n) and,
    summed over channels, with the weighted features (n); what the former gives goes to the weights and, where the
    features depend on positions, to them (w each). Each layer reads the neighbour's index and vector, forward and in
    the gradient, and writes the vector's gradient.

    Args:
        degrees: of the features that neighbours send.
        l_max: of the harmonics and the messages.
        channels: of the features.
        features_move: whether the features depend on positions: not in the first layer.
        itemsize: bytes of a real number.
    """
    paths = coupling_paths(degrees, l_max)
    weighted = sum(2 * feature + 1 for feature, _, _ in paths)
    products = sum((2 * feature + 1) * (2 * out + 1) for feature, _, out in paths)
    operations = (weighted + 2 * products) + 2 * (2 * products) + 2 * weighted * (2 if features_move else 1)
    components = sum(2 * degree + 1 for degree in degrees)
    return Work(
        operations=operations * channels,
        moved=2 * INDEX_BYTES + 9 * itemsize,
        gathered=(3 if features_move else 0) * components * channels * itemsize,
    )


def radial_tables(paths: int, channels: int) -> Work:
    """One pair in one layer: a cubic for each path and channel, forward and again with its slope in the gradient."""
    value, slope, into_gradient = 6, 4, 2
    return Work(operations=(2 * value + slope + into_gradient) * paths * channels)


def radial_networks(params: Mapping[tuple[str, ...], np.ndarray], itemsize: int = 4) -> Work:
    """One pair in all layers: every kernel once forward and once in the gradient; path weights are stored."""
    work = Work()
    for path, value in params.items():
        if "radial" in path and np.ndim(value) > 1 and not path[-1].startswith("element_"):
            stored = math.prod(np.shape(value)[1:]) if path[-1] == "output" else 0
            work += Work(operations=4.0 * np.size(value), moved=4.0 * itemsize * stored)
    return work


def contractions(config: MaceConfig, itemsize: int = 4) -> Work:
    """One atom in all layers: polynomials of the density by Horner's rule, one multiply-add for each monomial."""
    work = Work()
    for number in range(config.num_layers):
        top = 0 if number == config.num_layers - 1 else config.hidden_l_max
        monomials = sum(
            len(contraction.factors)
            for degree in range(top + 1)
            for contraction in symmetric_contractions(config.l_max, degree, config.correlation)
        )
        arrays = (config.l_max + 1) ** 2 + (top + 1) ** 2
        work += Work(4.0 * monomials * config.num_channels, 4.0 * itemsize * arrays * config.num_channels)
    return work


def linear_maps(params: Mapping[tuple[str, ...], np.ndarray], config: MaceConfig, itemsize: int = 4) -> Work:
    """One atom in all layers: matrices that mix channels, forward and transposed; of elements' own, one of them."""
    work = Work()
    constant = {"linear_up", "linear_residual"} | ({"skip"} if config.first_layer == "residual" else set())
    for path, value in params.items():
        found, readout = DEGREE.fullmatch(path[-1]), path[0].startswith("head_")
        if found and path[1] != "contraction" and not (path[0] == "layer_0" and path[1] in constant):
            components = 2 * int(found[1]) + 1
            inputs, outputs = np.shape(value)[-2:]
            work += Work(4.0 * components * inputs * outputs, 4.0 * itemsize * components * outputs)
        elif readout:
            work += Work(4.0 * np.size(value))
    return work


def _degrees_and_channels(config: MaceConfig, layer: int) -> tuple[tuple[int, ...], int]:
    """Degrees and width of the features that neighbours send in a layer."""
    degrees = tuple(range(config.hidden_l_max + 1)) if layer else (0,)
    return degrees, config.edge_channels[layer] if config.edge_channels else config.num_channels
