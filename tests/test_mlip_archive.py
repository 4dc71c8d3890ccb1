"""Archives of the package mlip: its numbers (see `golden/make_mlip_golden.py`), and bad files."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
import pytest
from conftest import INFO, TINY, random_force_field
from flax.traverse_util import flatten_dict

from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph, batch
from ase_mlip.importers.mlip_archive import read_mlip
from ase_mlip.model_file import ModelFileError
from ase_mlip.predictor import Prediction

GOLDEN = Path(__file__).parent / "golden"
NUMBERS = {key: value for n in "12" for key, value in np.load(GOLDEN / f"mlip_numbers_0_{n}.npz").items()}
STRUCTURES = [
    ase.Atoms(**{key: NUMBERS[f"{number}/{key}"] for key in ("numbers", "positions", "cell", "pbc")})
    for number in range(3)
]
MODELS = {"pairs": ["mlip"], "plain": ["mlip"], "heads": ["spice", "omol"], "residual": ["mlip"]}


def predict(force_field: ForceField, levels: list[str]) -> Prediction:
    """All structures at all levels, as one batch in float64."""
    graph = batch([force_field.graph(a, level=x) for x in levels for a in STRUCTURES])
    return force_field(graph, per_head=True, dtype="float64")


@pytest.mark.parametrize("name", MODELS)
def test_equal_to_mlip(name: str) -> None:
    """Energies and forces of every level."""
    force_field, levels = read_mlip(GOLDEN / f"mlip_{name}.zip"), MODELS[name]
    prediction = predict(force_field, levels)
    keys = [f"{name}/{head}/{number}" for head in range(len(levels)) for number in range(3)]
    energies = np.array([NUMBERS[f"{key}/energy"] for key in keys])
    forces = [NUMBERS[f"{key}/forces"] for key in keys]
    assert min(np.abs(f).max() for f in forces) > 1e-3
    np.testing.assert_allclose(prediction.energy, energies, rtol=0, atol=1e-6)
    np.testing.assert_allclose(prediction.forces, np.concatenate(forces), rtol=0, atol=2e-6 * np.abs(forces[0]).max())
    assert sorted(force_field.levels) == sorted(levels)


def test_heads_of_0_1_are_summed() -> None:
    """One level of two heads: E0 and the shift count once, the scale for both; each head has its part."""
    force_field = read_mlip(GOLDEN / "mlip_pairs.zip")
    assert force_field.levels == {"mlip": ("mlip", "mlip_1")}
    first, second = force_field.dataset_info.heads
    assert (first.shift, second.shift, first.scale, second.scale) == (0.1, 0.0, 1.3, 1.3)
    assert first.atomic_energies == (-1.25, -3.0, -7.75, -5.5)
    assert not any(second.atomic_energies)
    energies = predict(force_field, ["mlip"]).head_energies[0]
    np.testing.assert_allclose(energies.sum(), NUMBERS["pairs/0/0/energy"], rtol=0, atol=1e-6)
    assert abs(energies[1]) > 1e-3


def test_heads_of_0_2_are_levels() -> None:
    """Named as the datasets; the first, which mlip takes by default, is the default."""
    force_field = read_mlip(GOLDEN / "mlip_heads.zip")
    assert force_field.levels == {"omol": ("omol",), "spice": ("spice",)}
    assert list(force_field.levels)[-1] == "spice"


def test_file_keeps_bits(tmp_path: Path) -> None:
    """Save and load: equal predictor, equal bits, equal provenance."""
    force_field = read_mlip(GOLDEN / "mlip_pairs.zip")
    force_field.save(tmp_path / "model.safetensors")
    loaded = ForceField.load(tmp_path / "model.safetensors")
    assert loaded.predictor == force_field.predictor
    assert loaded.provenance == force_field.provenance
    assert loaded.provenance["source_package"] == "mlip 0.1"
    ours, theirs = flatten_dict(dict(force_field.params)), flatten_dict(dict(loaded.params))
    assert ours.keys() == theirs.keys()
    assert all((ours[k].dtype, ours[k].tobytes()) == (theirs[k].dtype, theirs[k].tobytes()) for k in ours)


def test_parameters_are_those_of_the_network() -> None:
    """Same names and shapes as a fresh network of that configuration."""
    for name in MODELS:
        force_field = read_mlip(GOLDEN / f"mlip_{name}.zip")
        graph = force_field.graph(STRUCTURES[0]).astype("float32")
        network = force_field.predictor.network
        fresh = jax.eval_shape(network.init, jax.random.key(0), graph.vectors(force_field.cutoff), graph)["params"]
        expected = {path: leaf.shape for path, leaf in flatten_dict(dict(fresh)).items()}
        assert {path: leaf.shape for path, leaf in flatten_dict(dict(force_field.params)).items()} == expected


def test_fewer_elements() -> None:
    """Cut down to fewer elements, a model with all per-element parameters keeps its numbers."""
    small = read_mlip(GOLDEN / "mlip_pairs.zip").with_elements((1, 6, 8))
    names = {path[-1]: len(leaf) for path, leaf in flatten_dict(dict(small.params)).items() if "element" in path[-1]}
    assert {"element_pair_embedding", "element_bias"} < set(names)
    assert set(names.values()) == {3}
    prediction = small(small.graph(STRUCTURES[0]), dtype="float64")
    np.testing.assert_allclose(prediction.energy[0], NUMBERS["pairs/0/0/energy"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "option", [{"cutoff_function": "soft"}, {"cutoff_function": "cosine"}, {"gated_products": True},
               {"pair_embedding": 2}],
)  # fmt: skip
def test_options_count(option: dict[str, Any]) -> None:
    """Each option of the network that came with this reader changes the energy, and beyond the cutoff is nothing."""
    simple = replace(TINY, num_layers=1, l_max=1, hidden_l_max=0, correlation=1)
    pairs = [ase.Atoms("OC", positions=[[0, 0, 0], [d, 0, 0]]) for d in INFO.cutoff - np.array([2.0, 1e-6, -1e-6])]

    def energies(config: Any) -> np.ndarray:
        force_field = random_force_field(config)
        weights = force_field.predictor.head_weights()
        graphs = [Graph.from_atoms(a, INFO.elements, INFO.cutoff + 1, weights) for a in pairs]
        return np.asarray(force_field(batch(graphs), dtype="float64").energy)

    changed = energies(replace(simple, **option))
    assert abs(changed[0] - energies(simple)[0]) > 1e-4
    assert abs(changed[0] - changed[2]) > 1e-4 > 1e-9 > abs(changed[1] - changed[2])


def test_wrong_config() -> None:
    """The error names the field and what is allowed."""
    for wrong in ({"cutoff_function": "hard"}, {"pair_embedding": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*give"):
            replace(TINY, **wrong)


Content = dict[str, bytes]


def unpack(name: str) -> Content:
    """The files of a golden archive."""
    with zipfile.ZipFile(GOLDEN / f"mlip_{name}.zip") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(content: Content) -> bytes:
    """An archive of these files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return stream.getvalue()


def header(part: str, **changes: Any) -> Callable[[Content], Content]:
    """Replace hyper-parameters of one part; None removes one."""

    def edit(content: Content) -> Content:
        data = json.loads(content["hyperparams.json"])
        data[part] = {key: value for key, value in (data[part] | changes).items() if value is not ...}
        return content | {"hyperparams.json": json.dumps(data).encode()}

    return edit


def arrays(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Callable[[Content], Content]:
    """Replace arrays."""

    def edit(content: Content) -> Content:
        stream = io.BytesIO()
        np.savez(stream, **change(dict(np.load(io.BytesIO(content["params.npz"])))))
        return content | {"params.npz": stream.getvalue()}

    return edit


def replace_first(value: np.ndarray) -> Callable[[Content], Content]:
    """Put another array where the embedding is."""
    return arrays(lambda found: {k: value if "#embed" in k else v for k, v in found.items()})


BAD: dict[str, tuple[Callable[[Content], Content], str]] = {
    "no_arrays": (lambda c: {"hyperparams.json": c["hyperparams.json"]}, "lacks params.npz"),
    "no_json": (lambda c: {"params.npz": c["params.npz"]}, "lacks hyperparams.json"),
    "torch": (lambda c: {"archive/data.pkl": b""}, "lacks hyperparams.json and params.npz"),
    "broken_json": (lambda c: c | {"hyperparams.json": b'{"config": {'}, "not JSON"),
    "list": (lambda c: c | {"hyperparams.json": b"[]"}, "lack 'config'"),
    "no_dataset": (lambda c: c | {"hyperparams.json": b'{"config": {}}'}, "lack 'dataset_info'"),
    "broken_arrays": (lambda c: c | {"params.npz": c["params.npz"][:-100]}, "params.npz cannot be read"),
    "pickle": (lambda c: c | {"params.npz": pickle.dumps({"w": 1})}, "params.npz cannot be read"),
    "objects": (replace_first(np.array([None] * 4)), "params.npz cannot be read"),
    "other_network": (
        arrays(lambda found: {"params#mlip_network#VisnetBlock_0#w": np.ones(2)}), "VisnetBlock_0.*only MACE"
    ),
    "lost": (arrays(lambda found: {k: v for k, v in found.items() if "#embed" not in k}), "lacks the array .*embed"),
    "too_many": (arrays(lambda found: found | {"params#more": np.ones(2)}), "params#more, for which"),
    "shape": (replace_first(np.ones((4, 5))), r"\(4, 5\) of type <f8 .*call for \(4, 3\)"),
    "integers": (replace_first(np.ones((4, 3), np.int32)), "type <i4"),
    "nan": (replace_first(np.full((4, 3), np.nan)), "not finite"),
    "unknown_option": (header("config", attention=True), "attention, which this reader does not know"),
    "unknown_dataset": (header("dataset_info", weather=1), "weather, which this reader does not know"),
    "missing": (header("config", num_channels=...), "num_channels=None; expected a whole number"),
    "text": (header("dataset_info", scaling_mean="1"), "scaling_mean='1'; expected a number"),
    "flag": (header("config", gate_nodes=1), "uses gate_nodes=1"),
    "no_cutoff": (header("dataset_info", graph_cutoff_angstrom=...), "graph_cutoff_angstrom=None"),
    "cutoff": (header("dataset_info", graph_cutoff_angstrom=-1.0), "avg_r_min_angstrom=1.1; expected|cutoff=-1.0"),
    "far": (header("dataset_info", graph_cutoff_angstrom=1e308), "cutoff 1e.308: its radial basis vanishes"),
    "scale": (header("dataset_info", scaling_stdev=0.0), "scaling_stdev=0"),
    "elements": (header("dataset_info", atomic_energies_map={"X": 1.0}), "atomic_energies_map="),
    "datasets": (header("dataset_info", atomic_energies_map=[{"1": 0.0}] * 3), "3 datasets for num_readout_heads=2"),
    "other_elements": (header("dataset_info", atomic_energies_map=[{"1": 0.0}, {"6": 0.0}]), "other elements"),
    "symmetry": (header("config", node_symmetry=3), "hidden_l_max=3"),
    "readout": (header("config", readout_irreps=["4x0e+2x1o", "0e"]), "uses readout_irreps="),
    "fewer_layers": (header("config", num_layers=1), "layers_0#readout_block"),
    "other_width": (header("config", radial_mlp_hidden=[8, 7]), r"call for \(8, 7\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_is_wrong(name: str, tmp_path: Path) -> None:
    """One line that names the file and the fault."""
    edit, message = BAD[name]
    bad = tmp_path / "bad.zip"
    bad.write_bytes(pack(edit(unpack("heads"))))
    with pytest.raises(ModelFileError, match=message) as caught:
        read_mlip(bad)
    assert str(caught.value).startswith(str(bad))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("include_pseudotensors", True), ("activation", "tanh"), ("radial_mlp_activation", "relu"),
     ("soft_normalization", 10.0), ("predict_partial_charges", True), ("use_coulomb_term", True),
     ("use_total_charge_embedding", True), ("use_gaunt_tp_message_passing", True), ("radial_envelope", "hard"),
     ("symmetric_contraction_backend", "gaunt_tp")],
)  # fmt: skip
def test_options_we_lack_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    """By name and value."""
    bad = tmp_path / "bad.zip"
    bad.write_bytes(pack(header("config", **{key: value})(unpack("heads"))))
    with pytest.raises(ModelFileError, match=f"uses {key}={value!r}"):
        read_mlip(bad)


def test_trained_on_several_devices(tmp_path: Path) -> None:
    """Models of 0.1 may keep each array once for each device."""
    several = tmp_path / "several.zip"
    several.write_bytes(pack(arrays(lambda found: {k: np.stack([v] * 2) for k, v in found.items()})(unpack("plain"))))
    ours, theirs = (flatten_dict(dict(read_mlip(path).params)) for path in (GOLDEN / "mlip_plain.zip", several))
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_truncated_or_flipped(tmp_path: Path) -> None:
    """Every truncation is refused; a flipped bit is refused or changes nothing."""
    payload, bad = (GOLDEN / "mlip_residual.zip").read_bytes(), tmp_path / "bad.zip"
    whole = flatten_dict(dict(read_mlip(GOLDEN / "mlip_residual.zip").params))
    for end in range(0, len(payload), 211):
        bad.write_bytes(payload[:end])
        with pytest.raises(ModelFileError):
            read_mlip(bad)
    for place in range(0, len(payload), 101):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << place % 8
        bad.write_bytes(damaged)
        try:
            found = flatten_dict(dict(read_mlip(bad).params))
        except ModelFileError:
            continue
        assert all(np.array_equal(whole[key], found[key]) for key in whole)


def test_no_file() -> None:
    """A path without a file is not a bad file."""
    with pytest.raises(FileNotFoundError):
        read_mlip("nothing.zip")
