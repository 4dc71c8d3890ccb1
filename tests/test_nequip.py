"""NequIP: the numbers of nequix for its own files, symmetries, derivatives, heads, and files that are not whole."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from conftest import CUTOFF, INFO, build_zoo, random_weights
from flax.traverse_util import flatten_dict, unflatten_dict
from scipy.spatial.transform import Rotation

from ase_mlip.calculator import MLIPCalculator
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.importers.nequix import read_nequix
from ase_mlip.model_file import ModelFileError
from ase_mlip.networks import nequip_sum
from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.nequip import Nequip, NequipConfig
from ase_mlip.predictor import Prediction, Predictor
from ase_mlip.transfer import add_heads

GOLDEN = Path(__file__).parent / "golden"
TINY = NequipConfig(channels=(3, 2), num_layers=2, l_max=2, embedding_channels=4, num_bessel=4, radial_mlp=(6,))
SIMPLE = replace(TINY, channels=(3,), num_layers=1, l_max=0)


def random_force_field(config: NequipConfig = TINY, info: DatasetInfo = INFO, seed: int = 0) -> ForceField:
    """A NequIP with random weights."""
    return random_weights(Nequip(config, info), seed)


def split(force_field: ForceField, structures: list[ase.Atoms], shape: PadShape | None = None) -> list[Prediction]:
    """Predict structures as one batch in float64, and take it apart again."""
    whole = force_field(batch([force_field.graph(atoms) for atoms in structures], shape), dtype="float64")
    rows = [slice(*pair) for pair in pairwise(np.cumsum([0, *(len(a) for a in structures)]))]
    return [
        Prediction(whole.energy[g], whole.forces[r], whole.stress[g], whole.node_energies[r])
        for g, r in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def force_field() -> ForceField:
    """Two layers with layer norm."""
    return random_force_field()


@pytest.mark.parametrize("name", ["norm", "indexed"])
def test_equal_to_nequix(name: str) -> None:
    """Energies, forces and stress of random nequix models (see `golden/make_nequix_golden.py`)."""
    data = dict(np.load(GOLDEN / "nequix_numbers.npz"))
    force_field = read_nequix(GOLDEN / f"nequix_{name}.nqx")
    structures = [ase.Atoms(**{k: data[f"{i}/{k}"] for k in ("numbers", "positions", "cell", "pbc")}) for i in range(6)]
    assert sorted(atoms.pbc.sum() for atoms in structures) == [0, 0, 1, 2, 3, 3]
    predictions = split(force_field, structures)
    for number, prediction in enumerate(predictions):
        key = f"{name}/{number}/"
        np.testing.assert_allclose(prediction.energy, data[f"{key}energy"], atol=1e-11)
        np.testing.assert_allclose(prediction.forces, data[f"{key}forces"], atol=1e-12)
        if f"{key}stress" in data:
            np.testing.assert_allclose(prediction.stress, data[f"{key}stress"], atol=1e-13)
            assert np.abs(prediction.stress).max() > 1e-5
    assert all(np.abs(prediction.forces).max() > 0.01 for prediction in predictions[:5])
    assert force_field.levels == {"nequix": ("nequix",)}
    assert {np.asarray(leaf).dtype for leaf in jax.tree.leaves(force_field.params)} == {np.dtype("float32")}
    assert force_field.provenance["source_file"] == f"nequix_{name}.nqx"
    assert len(force_field.provenance["source_sha256"]) == 64


def test_symmetries(force_field: ForceField) -> None:
    """Rotation with inversion and permutation, for bulk smaller than the cutoff, slab, wire and molecule."""
    structures = [build_zoo()[name] for name in ("primitive", "slab", "wire", "molecule")]
    rotation = -Rotation.random(random_state=11).as_matrix()
    family = []
    for atoms in structures:
        rotated = atoms.copy()
        rotated.set_cell(atoms.cell.array @ rotation.T)
        rotated.positions = atoms.positions @ rotation.T
        family += [atoms, rotated, atoms[::-1]]
    predictions = split(force_field, family)
    for first, rotated, permuted in zip(predictions[::3], predictions[1::3], predictions[2::3], strict=True):
        scale = np.abs(first.forces).max()
        assert scale > 1e-3
        np.testing.assert_allclose([rotated.energy, permuted.energy], first.energy, rtol=1e-12)
        np.testing.assert_allclose(rotated.forces, first.forces @ rotation.T, atol=1e-10 * scale)
        np.testing.assert_allclose(rotated.stress, rotation @ first.stress @ rotation.T, atol=1e-12)
        np.testing.assert_allclose(permuted.forces, first.forces[::-1], atol=1e-10 * scale)
        np.testing.assert_allclose(first.stress, first.stress.T, atol=1e-12)


@pytest.mark.parametrize("name", ["primitive", "slab", "sheet", "wire", "molecule"])
def test_finite_differences(name: str, force_field: ForceField) -> None:
    """Forces and stress are the derivatives of the energy."""
    atoms = build_zoo()[name]
    atoms.calc = MLIPCalculator(force_field, dtype="float64")
    forces = atoms.get_forces()
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-5), atol=1e-7, rtol=0)
    if atoms.cell.rank == 3:
        stress = atoms.get_stress()
        assert np.abs(stress).max() > 1e-5
        np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5), atol=1e-8, rtol=0)


@pytest.mark.parametrize("kernels", [True, False])
def test_blocks_company_and_padding(force_field: ForceField, monkeypatch: pytest.MonkeyPatch, kernels: bool) -> None:
    """A graph's numbers depend neither on its company, nor on padding, nor on doing nodes in blocks."""
    zoo = build_zoo()
    structures = [zoo[name] for name in ("slab", "molecule", "atom", "far_pair")]
    apart = [split(force_field, [atoms])[0] for atoms in structures]
    blocks: list[int] = []

    def by_two(function: Callable[[Any], jax.Array], arrays: Any, block: int) -> jax.Array:
        blocks.append(block)
        return map_node_blocks(function, arrays, 2)

    monkeypatch.setattr(nequip_sum, "map_node_blocks", by_two)
    if not kernels:
        monkeypatch.setattr(Nequip, "has_kernels", False)
    # as many slots as no other test has: nothing is compiled yet
    together = split(force_field, structures, PadShape(7, 33, 21 + kernels))
    assert bool(blocks) is not kernels
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_allclose(other.node_energies, one.node_energies, rtol=1e-11)
        np.testing.assert_allclose(other.forces, one.forces, atol=1e-12)
        np.testing.assert_allclose(other.stress, one.stress, atol=1e-13)
    assert not together[2].forces.any()
    assert not together[3].forces.any()


@pytest.mark.parametrize(("dtype", "silent"), [("float32", False), ("float32", True), ("float64", False)])
def test_gradients_are_finite(dtype: str, silent: bool) -> None:
    """Forces and their gradients by the parameters, for isolated atoms, padding, and features that are all zero."""
    force_field, zoo = random_force_field(), build_zoo()
    padded = batch([force_field.graph(zoo[name]) for name in ("atom", "far_pair", "boxed_molecule")], PadShape(4, 9, 5))
    alone = force_field.graph(zoo["atom"])
    assert alone.neighbors.shape == (1, 0)
    with jax.enable_x64(dtype == "float64"), jax.debug_nans(True):
        params = jax.tree.map(
            lambda x: jnp.asarray(0.0 if silent else x, dtype) * jnp.ones(x.shape, dtype), force_field.params
        )

        def loss(params: Any, graph: Graph) -> jax.Array:
            prediction = force_field.predictor.interaction(params, graph)
            return jnp.sum(prediction.energy**2) + jnp.sum(prediction.forces**2) + jnp.sum(prediction.stress**2)

        for graph in (padded, alone):
            gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(params, graph.astype(dtype)))
            assert all(np.isfinite(gradient).all() for gradient in gradients)
            assert silent or max(np.abs(gradient).max() for gradient in gradients) > 1e-3


def test_random_start_is_sane() -> None:
    """A network as a user makes it has outputs of the order of one, with and without layer norm, thin or wide."""
    structures = [build_zoo()[name] for name in ("primitive", "wire", "molecule")]
    for config in (NequipConfig(channels=(32, 16, 8), num_layers=3, l_max=2), replace(TINY, layer_norm=False)):
        force_field = ForceField.from_mlip_network(Nequip(config, INFO))
        graphs = batch([force_field.graph(atoms) for atoms in structures])
        bare = force_field(graphs).node_energies - force_field.predictor.reference(graphs)
        assert 0.03 < np.std(bare) < 3


def test_only_the_elements_in_use_count(force_field: ForceField) -> None:
    """Cut to fewer elements by slicing the first axis of every `element_` parameter, a model keeps its numbers."""
    for config in (TINY, replace(TINY, element_skip=True)):
        whole = random_force_field(config)
        kept = [0, 2]  # H and O
        (head,) = INFO.heads
        head = replace(head, atomic_energies=tuple(head.atomic_energies[i] for i in kept))
        info = replace(INFO, elements=tuple(INFO.elements[i] for i in kept), heads=(head,))
        flat = flatten_dict(dict(whole.params))
        assert sum(path[-1].startswith("element_") for path in flat) == (2 if config is TINY else 3)
        params = {path: x[kept] if path[-1].startswith("element_") else x for path, x in flat.items()}
        part = ForceField(Predictor.from_network(Nequip(config, info)), unflatten_dict(params))
        water = [build_zoo()["boxed_molecule"]]
        np.testing.assert_allclose(split(part, water)[0].energy, split(whole, water)[0].energy, rtol=1e-13)


def test_each_config_field_counts() -> None:
    """Changing any field of the config changes the parameters or, where it does not, the energy."""
    other: dict[str, Any] = {
        "channels": (3, 2, 1), "num_layers": 1, "l_max": 1, "embedding_channels": 5, "num_bessel": 5,
        "cutoff_order": 3, "radial_mlp": (6, 6), "layer_norm": False, "element_skip": True, "num_readout_heads": 2,
        "head_names": ("other",),
    }  # fmt: skip
    assert set(other) == {field.name for field in fields(NequipConfig)}

    def shapes(config: NequipConfig) -> Any:
        return jax.tree.map(np.shape, dict(random_force_field(config).params))

    deep = replace(TINY, num_layers=3)  # vectors couple with l = 2 in a middle layer alone
    silent = {name for name, value in other.items() if shapes(replace(deep, **{name: value})) == shapes(deep)}
    assert silent == {"cutoff_order"}
    atoms = [build_zoo()["molecule"]]
    energies = [split(random_force_field(replace(SIMPLE, cutoff_order=order)), atoms)[0].energy for order in (6, 3)]
    assert abs(energies[0] - energies[1]) > 1e-4
    crowded = random_force_field(SIMPLE, replace(INFO, avg_num_neighbors=3.0))
    assert abs(split(crowded, atoms)[0].energy - energies[0]) > 1e-4


@pytest.mark.parametrize(
    "wrong",
    [{"num_layers": 0}, {"channels": ()}, {"channels": (4, 0)}, {"channels": (1, 1, 1, 1)}, {"radial_mlp": (0,)},
     {"cutoff_order": 2.5}, {"head_names": ("a", "b")}],
)  # fmt: skip
def test_wrong_config(wrong: dict[str, Any]) -> None:
    """The error names the field and what is allowed."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*give"):
        replace(TINY, **wrong)


def test_file_keeps_bits(tmp_path: Path) -> None:
    """Save and load: equal predictor, equal bits, equal numbers."""
    force_field = read_nequix(GOLDEN / "nequix_norm.nqx")
    force_field.save(tmp_path / "model.safetensors")
    loaded = ForceField.load(tmp_path / "model.safetensors")
    assert loaded.predictor == force_field.predictor
    assert loaded.dataset_info.heads[0].atomic_energies == force_field.dataset_info.heads[0].atomic_energies
    assert loaded.provenance == force_field.provenance
    ours, theirs = flatten_dict(dict(force_field.params)), flatten_dict(dict(loaded.params))
    assert ours.keys() == theirs.keys()
    assert all((ours[k].dtype, ours[k].tobytes()) == (theirs[k].dtype, theirs[k].tobytes()) for k in ours)


def test_new_head_is_silent_and_can_learn() -> None:
    """A head added to a published model changes nothing at first, the old level never; its gradient is alive."""
    base = read_nequix(GOLDEN / "nequix_norm.nqx")
    grown, blocks = add_heads(base, ["delta"])
    assert blocks == ["head_delta"]
    assert grown.levels == {"nequix": ("nequix",), "delta": ("nequix", "delta")}
    atoms = build_zoo()["molecule"]
    graphs = {level: grown.graph(atoms, level=level) for level in grown.levels}
    before = base(base.graph(atoms), dtype="float64")
    for graph in graphs.values():
        after = grown(graph, dtype="float64")
        np.testing.assert_allclose(after.energy, before.energy, rtol=0, atol=1e-13)
        np.testing.assert_allclose(after.forces, before.forces, rtol=0, atol=1e-13)

    def energy(params: Any) -> jax.Array:
        return grown.predictor.interaction(params, graphs["delta"].astype("float32")).energy[0]

    gradient = jax.jit(jax.grad(energy))(grown.cast_params("float32"))
    assert np.abs(gradient["head_delta"]["output"]).min() > 1e-4


def reshape_header(change: dict[str, Any]) -> Callable[[bytes], bytes]:
    """Replace hyper-parameters of a file; None removes one."""

    def edit(payload: bytes) -> bytes:
        line, rest = payload.split(b"\n", 1)
        header = {k: v for k, v in (json.loads(line) | change).items() if v is not None}
        return json.dumps(header).encode() + b"\n" + rest

    return edit


def npy_record(array: np.ndarray) -> bytes:
    """One array in NumPy's format."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def replace_first(array: np.ndarray) -> Callable[[bytes], bytes]:
    """Put another array where the reference energies are."""

    def edit(payload: bytes) -> bytes:
        line, rest = payload.split(b"\n", 1)
        return line + b"\n" + npy_record(array) + rest[128 + 4 * 4 :]

    return edit


BAD_FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "is empty"),
    "pickle": (lambda _: pickle.dumps({"w": 1}), "not JSON"),
    "zip": (lambda _: b"PK\x03\x04" + bytes(200), "not JSON"),
    "list": (lambda _: b"[1, 2]\n", "not an object"),
    "other_json": (lambda _: b'{"a": 1}\n', "lacks the hyper-parameters atomic_numbers, hidden_irreps"),
    "no_weights": (lambda p: p[: p.index(b"\n")], "truncated after its hyper-parameters"),
    "missing_key": (reshape_header({"scale": None}), "lacks the hyper-parameters scale"),
    "unknown_key": (reshape_header({"attention": True}), "attention, which this reader does not know"),
    "repulsion": (reshape_header({"add_repulsion": True}), "add_repulsion=True, which this reader does not support"),
    "not_a_number": (reshape_header({"cutoff": "5"}), "cutoff='5'; expected a number"),
    "negative_cutoff": (reshape_header({"cutoff": -5.0}), "cutoff=-5.0"),
    "broken_order": (reshape_header({"radial_polynomial_p": 2.5}), "radial_polynomial_p=2.5; expected a whole number"),
    "no_layers": (reshape_header({"n_layers": 0}), "num_layers=0"),
    "flag": (reshape_header({"layer_norm": 1}), "layer_norm=1; expected true or false"),
    "elements": (reshape_header({"atomic_numbers": [1, 1, 6, 8]}), "expected different atomic numbers"),
    "parity": (reshape_header({"hidden_irreps": "4x0e+3x1e+2x2e"}), "natural parity"),
    "too_high": (reshape_header({"lmax": 1}), "at most l_max=1"),
    "other_width": (reshape_header({"radial_mlp_size": 7}), r"\(5, 6\) of type <f4 for layer_0/neighbor_sum/hidden_0"),
    "fewer_layers": (reshape_header({"n_layers": 2}), "layer_1"),
    "too_few": (lambda p: p[: -(128 + 4 * 4)], "ends before head_nequix/output"),
    "truncated_record": (lambda p: p[:-3], "truncated in head_nequix/output"),
    "too_many": (lambda p: p + npy_record(np.ones((2, 2), np.float32)), "has more than the 37 arrays"),
    "foreign_tail": (lambda p: p + b"\x00" * 30, "unknown content after its 37 arrays"),
    "objects": (replace_first(np.array([None] * 4)), r"type \|O for atomic_energies"),
    "integers": (replace_first(np.arange(4)), "type <i8 for atomic_energies"),
    "nan": (replace_first(np.array([1, 2, np.nan, 4], np.float32)), "numbers in atomic_energies are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_say_what_is_wrong(name: str, tmp_path: Path) -> None:
    """One line that names the file and the fault."""
    edit, message = BAD_FILES[name]
    bad = tmp_path / "bad.nqx"
    bad.write_bytes(edit((GOLDEN / "nequix_norm.nqx").read_bytes()))
    with pytest.raises(ModelFileError, match=message) as caught:
        read_nequix(bad)
    assert str(caught.value).startswith(str(bad))
    assert "\n" not in str(caught.value)


def test_truncated_or_flipped_anywhere(tmp_path: Path) -> None:
    """Every truncation is refused; a flipped bit is refused or, in a number, unnoticed, and never anything else."""
    payload, bad = (GOLDEN / "nequix_indexed.nqx").read_bytes(), tmp_path / "bad.nqx"
    for end in range(0, len(payload), 13):
        bad.write_bytes(payload[:end])
        with pytest.raises(ModelFileError):
            read_nequix(bad)
    refused, bits = 0, np.random.default_rng(0).integers(0, 8, len(payload))
    for place in range(0, len(payload), 5):
        damaged = bytearray(payload)
        damaged[place] ^= 1 << int(bits[place])
        bad.write_bytes(damaged)
        try:
            read_nequix(bad)
        except ModelFileError:
            refused += 1
    assert refused > 200


def test_harmless_tails_are_read(tmp_path: Path) -> None:
    """Published files end in a line break or in single numbers that belong to no weight."""
    payload, good = (GOLDEN / "nequix_norm.nqx").read_bytes(), tmp_path / "good.nqx"
    first = read_nequix(GOLDEN / "nequix_norm.nqx").params
    for tail in (b"\n", npy_record(np.float64(-1.5)) + npy_record(np.array(29))):
        good.write_bytes(payload + tail)
        assert jax.tree.all(jax.tree.map(np.array_equal, read_nequix(good).params, first))


def test_elements_are_sorted(tmp_path: Path) -> None:
    """The file lists copper first; its weights are in ascending order."""
    payload = (GOLDEN / "nequix_norm.nqx").read_bytes()
    assert json.loads(payload.split(b"\n", 1)[0])["atomic_numbers"] == [29, 1, 8, 6]
    assert read_nequix(GOLDEN / "nequix_norm.nqx").elements == (1, 6, 8, 29)


def test_messages_end_at_the_cutoff(force_field: ForceField) -> None:
    """A pair that leaves the cutoff: energy and force go to zero together."""
    pairs = [ase.Atoms("OC", positions=[[0, 0, 0], [d, 0, 0]]) for d in CUTOFF - np.array([0.2, 1e-3, -1e-3])]
    graphs = [Graph.from_atoms(atoms, INFO.elements, CUTOFF + 1, [1.0]) for atoms in pairs]
    prediction = force_field(batch(graphs), dtype="float64")
    change, pulls = np.abs(prediction.energy - prediction.energy[2]), np.abs(prediction.forces).max(axis=1)[::2]
    assert change[0] > 1e-5 > 1e-9 > change[1] > 0
    assert pulls[0] > 1e-3 > 1e-6 > pulls[1] > 0 == pulls[2]
