"""The hyper-parameters of an mlip archive, versions 0.1 and 0.2, as the configuration and constants of our MACE."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from ase.data import chemical_symbols

from ase_mlip.dataset_info import DatasetInfo, Head
from ase_mlip.force_field import precision
from ase_mlip.importers.mlip_weights import Basis
from ase_mlip.networks.mace import MaceConfig
from ase_mlip.networks.radial import CutoffFunction, bessel_basis, cutoff_envelope

NAME = "mlip"
FLAG, SILU = (False, True), ("silu", "swish")
ENVELOPES: dict[str, CutoffFunction] = {
    "polynomial_envelope": "polynomial", "soft_envelope": "soft", "cosine_cutoff": "cosine",
}  # fmt: skip
BASES: dict[Any, Basis] = {
    "e3j": "powers", "e3nn": "full", "e3nn_symmetric": "symmetric", False: "full", True: "symmetric",
}  # fmt: skip
# Options with the values that this reader knows, the package's default first; by version 0.1 and 0.2.
CHOICES: tuple[dict[str, tuple[Any, ...]], ...] = (
    {
        "include_pseudotensors": (False,), "activation": SILU, "gate_nodes": FLAG,
        "radial_envelope": ("polynomial_envelope", "soft_envelope"), "symmetric_tensor_product_basis": FLAG,
    },
    {
        "include_pseudotensors": (False,), "activation": SILU, "radial_mlp_activation": SILU, "gate_nodes": FLAG,
        "soft_normalization": (None,), "predict_partial_charges": (False,), "use_coulomb_term": (False,),
        "use_total_charge_embedding": (False,), "use_gaunt_tp_message_passing": (False,),
        "radial_envelope": tuple(ENVELOPES), "symmetric_contraction_backend": ("e3j", "e3nn", "e3nn_symmetric"),
        "add_atomic_energies": (True, False), "residual_connection_first_layer": FLAG,
    },
)  # fmt: skip
SIZES = ("num_layers", "num_channels", "l_max", "correlation", "num_readout_heads")
# Other options that are read, or change no number. 0.2 takes the last three from the data, whatever they say.
SHARED = ("readout_irreps", "node_symmetry", "deterministic_scatter_ops", "avg_num_neighbors", "avg_r_min",
          "num_species")  # fmt: skip
OTHERS = (
    ("num_bessel", "atomic_energies", "species_embedding_dim"),
    ("num_rbf", "radial_mlp_hidden", "embed_activation"),
)
DATASET = tuple(
    """atomic_energies_map cutoff_distance_angstrom graph_cutoff_angstrom avg_num_neighbors avg_r_min_angstrom
    scaling_mean scaling_stdev dataset_name num_graphs total_charge_set long_range_cutoff_angstrom
    atomic_energies_removed""".split()
)
Options = Mapping[str, Any]


@dataclass(frozen=True)
class Description:
    """What the hyper-parameters say.

    Attributes:
        config: shape of the network.
        info: its constants.
        levels: names of levels and their heads.
        basis: of the symmetric contraction's weights.
        species: rows of the arrays with one row for each element.
        radial_factor: of the radial basis, which mlip scales to unit mean square.
        data: names of the data sets; empty where none are given.
    """

    config: MaceConfig
    info: DatasetInfo
    levels: tuple[tuple[str, tuple[str, ...]], ...]
    basis: Basis
    species: int
    radial_factor: float
    data: str


def read_header(header: Any, version: int) -> Description:
    """Check all hyper-parameters.

    Args:
        header: content of the JSON file.
        version: 1 or 2, for 0.1 or 0.2.

    Raises:
        ValueError: one is missing, unknown or has a value that our network cannot have.
    """
    options, dataset = (_part(header, name) for name in ("config", "dataset_info"))
    _known(header, ("config", "dataset_info", "predict_stress", "available_properties", "version"))
    _known(dataset, DATASET)
    choices = CHOICES[version - 1]
    _known(options, (*choices, *SIZES, *SHARED, *OTHERS[version - 1]))
    for key, known in choices.items():
        value = options.get(key, known[0])
        if not any(value is choice or (value == choice and isinstance(value, str)) for choice in known):
            raise ValueError(f"uses {key}={value!r}; this reader knows {', '.join(map(repr, known))}")
    if version == 1:
        own = {"avg_num_neighbors": options.get("avg_num_neighbors"), "avg_r_min_angstrom": options.get("avg_r_min")}
        dataset = {**dataset, **{key: value for key, value in own.items() if value is not None}}
    energies = _energies(options, dataset, version)
    names = _head_names(options, dataset)
    config = _config(options, names, version)
    info = _info(dataset, energies, names, version)
    elements = len(info.elements)
    species = elements if version == 2 or options.get("num_species") is None else _size(options, "num_species")
    if species < elements:
        raise ValueError(f"has num_species={species} for {elements} elements")
    levels = ((NAME, names),) if version == 1 else tuple((name, (name,)) for name in reversed(names))
    contraction = "symmetric_tensor_product_basis" if version == 1 else "symmetric_contraction_backend"
    basis = BASES[options.get(contraction, choices[contraction][0])]
    sets = dataset.get("dataset_name") or []
    data = ", ".join(map(str, sets)) if isinstance(sets, list) else str(sets)
    return Description(config, info, levels, basis, species, _radial_factor(dataset, config, info), data)


def _part(header: Any, name: str) -> Options:
    part = header.get(name) if isinstance(header, dict) else None
    if not isinstance(part, dict):
        raise ValueError(f"is no archive of mlip: its hyper-parameters lack {name!r}")
    return part


def _known(options: Options, known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"has the hyper-parameters {', '.join(unknown)}, which this reader does not know")


def _number(options: Options, key: str, default: float | None = None) -> float:
    value = options.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"has {key}={value!r}; expected a number")
    return float(value)


def _size(options: Options, key: str) -> int:
    value = options.get(key)
    if type(value) is not int or not 0 <= value <= 10_000:
        raise ValueError(f"has {key}={value!r}; expected a whole number of 0 to 10000")
    return value


def _config(options: Options, names: tuple[str, ...], version: int) -> MaceConfig:
    sizes = {key: _size(options, key) for key in SIZES}
    hidden = re.fullmatch(r"([1-9][0-9]{0,3})x0e", str(_readout(options)[0]))
    if hidden is None or _readout(options)[1] not in ("0e", "1x0e"):
        raise ValueError(f"uses readout_irreps={_readout(options)}; this reader knows scalars such as ['16x0e', '0e']")
    radial_mlp = options.get("radial_mlp_hidden", [64, 64, 64])
    if not isinstance(radial_mlp, list) or not all(type(width) is int and 0 < width <= 10_000 for width in radial_mlp):
        raise ValueError(f"has radial_mlp_hidden={radial_mlp!r}; expected a list of whole numbers")
    highest = "l_max" if options.get("node_symmetry") is None else "node_symmetry"
    residual = version == 2 and options.get("residual_connection_first_layer", False)
    return MaceConfig(
        num_channels=sizes["num_channels"],
        num_layers=sizes["num_layers"],
        l_max=sizes["l_max"],
        hidden_l_max=_size(options, highest),
        correlation=sizes["correlation"],
        num_bessel=_size(options, "num_bessel" if version == 1 else "num_rbf"),
        cutoff_function=ENVELOPES[options.get("radial_envelope", "polynomial_envelope")],
        radial_mlp=tuple(radial_mlp),
        readout_mlp=int(hidden[1]),
        first_layer="residual" if residual else "plain",
        gated_products=options.get("gate_nodes", False),
        pair_embedding=None
        if options.get("species_embedding_dim") is None
        else _size(options, "species_embedding_dim"),
        num_readout_heads=len(names),
        head_names=names,
    )


def _readout(options: Options) -> list[Any]:
    irreps = options.get("readout_irreps", ["16x0e", "0e"])
    if not isinstance(irreps, list) or len(irreps) != 2:
        raise ValueError(f"has readout_irreps={irreps!r}; expected a list of two")
    return irreps


def _head_names(options: Options, dataset: Options) -> tuple[str, ...]:
    """Those of the datasets where there is one for each head."""
    count, names = _size(options, "num_readout_heads"), dataset.get("dataset_name")
    if isinstance(names, list) and len(names) == count == len({str(name) for name in names}):
        return tuple(str(name).replace("/", "-") for name in names)
    return (NAME, *(f"{NAME}_{number}" for number in range(1, count)))


def _energies(options: Options, dataset: Options, version: int) -> list[dict[int, float]]:
    """Reference energies by atomic number; one table, or one for each head."""
    tables = dataset.get("atomic_energies_map")
    tables = tables if isinstance(tables, list) and version == 2 else [tables]
    found = []
    for table in tables:
        numbers = list(table) if isinstance(table, dict) else []
        valid = all(re.fullmatch("[1-9][0-9]{0,2}", z) and int(z) < len(chemical_symbols) for z in numbers)
        if not numbers or not valid:
            raise ValueError(f"has atomic_energies_map={str(table)[:80]}; expected energies by atomic number")
        found.append({int(z): _number(table, z) for z in sorted(numbers, key=int)})
    if any(table.keys() != found[0].keys() for table in found):
        raise ValueError("has an atomic_energies_map with other elements in each dataset, which this reader refuses")
    if len(found) > 1 and len(found) != _size(options, "num_readout_heads"):
        raise ValueError(f"has {len(found)} datasets for num_readout_heads={options['num_readout_heads']}")
    treatment = options.get("atomic_energies")
    if treatment == "zero" or options.get("add_atomic_energies") is False:
        return [dict.fromkeys(table, 0.0) for table in found]
    if treatment not in (None, "average"):
        raise ValueError(f"uses atomic_energies={str(treatment)[:80]}; this reader knows None, 'average' and 'zero'")
    return found


def _info(dataset: Options, energies: list[dict[int, float]], names: tuple[str, ...], version: int) -> DatasetInfo:
    """Constants; the heads of 0.1 are summed, so that E0 and the shift belong to the first one alone."""
    scale, shift = _number(dataset, "scaling_stdev", 1.0), _number(dataset, "scaling_mean", 0.0)
    if scale == 0:
        raise ValueError("has scaling_stdev=0; its energies would not depend on positions")
    elements = tuple(energies[0])
    heads = []
    for number, name in enumerate(names):
        counts = float(version == 2 or number == 0)
        table = energies[min(number, len(energies) - 1)]
        heads.append(Head(name, tuple(counts * energy for energy in table.values()), scale, counts * shift))
    cutoff = "cutoff_distance_angstrom" if "cutoff_distance_angstrom" in dataset else "graph_cutoff_angstrom"
    neighbors = _number(dataset, "avg_num_neighbors", 1.0)
    return DatasetInfo(elements, _number(dataset, cutoff), neighbors, tuple(heads))


def _radial_factor(dataset: Options, config: MaceConfig, info: DatasetInfo) -> float:
    """mlip scales the radial basis to a mean square of one over 1000 distances from the smallest to the cutoff."""
    if dataset.get("avg_r_min_angstrom") is None:
        return 1.0
    smallest = _number(dataset, "avg_r_min_angstrom")
    if not 0 < smallest < info.cutoff:
        raise ValueError(f"has avg_r_min_angstrom={smallest}; expected a distance below the cutoff, {info.cutoff}")
    with precision("float64"):
        distances = jnp.linspace(smallest, info.cutoff, 1000)
        envelope = cutoff_envelope(config.cutoff_function, distances, info.cutoff, config.cutoff_order)
        basis = bessel_basis(distances, info.cutoff, config.num_bessel) * envelope[:, None]
        square = float(jnp.mean(basis**2))
    if not 0 < square < math.inf:
        raise ValueError(f"has avg_r_min_angstrom={smallest} and the cutoff {info.cutoff}: its radial basis vanishes")
    return float(square**-0.5)
