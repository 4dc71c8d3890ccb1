"""The Pallas kernels, interpreted on a CPU, against plain formulas, written-out sums and differences."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from conftest import INFO, random_weights
from jax import export

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.kernels import choice, gpu_contraction, launch
from ase_mlip.kernels.contraction import Terms
from ase_mlip.networks.mace import Mace, MaceConfig
from ase_mlip.predictor import Prediction

CONFIG = MaceConfig(num_channels=48, l_max=2, hidden_l_max=1, num_bessel=4, radial_mlp=(8,), readout_mlp=4)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU that has the kernels; `launch` still sees a CPU and interprets them."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(choice, "gpu_problem", lambda: None)


def structures() -> list[ase.Atoms]:
    """A molecule, and a crystal so small that atoms are their own neighbours."""
    water = molecule("H2O")
    water.rattle(0.1, seed=1)
    crystal = bulk("MgO", "rocksalt", a=4.2)
    crystal.numbers[:] = [1, 8]
    crystal.rattle(0.1, seed=2)
    return [water, crystal]


@pytest.fixture(scope="module")
def force_field() -> ForceField:
    return random_weights(Mace(CONFIG, DatasetInfo.create({1: 0.0, 8: 0.0}, cutoff=4.0, avg_num_neighbors=20.0)))


@pytest.fixture(scope="module")
def graph(force_field: ForceField) -> Graph:
    """Both structures, padded in every way."""
    graphs = [Graph.from_atoms(atoms, force_field.elements, 4.3) for atoms in structures()]
    return batch(graphs, PadShape(3, 8, max(g.neighbors.shape[1] for g in graphs) + 3)).astype("float32")


def predict(force_field: ForceField, graph: Graph) -> Prediction:
    """As compiled now, by whatever path is chosen now."""
    predictor, params = force_field.predictor.tabulated(force_field.params)
    return jax.tree.map(np.asarray, jax.jit(predictor.interaction)(params, jax.tree.map(jnp.asarray, graph)))


def test_same_numbers_as_the_plain_formulas(force_field: ForceField, graph: Graph, gpu: None) -> None:
    assert force_field.predictor.network.has_tables
    found = predict(force_field, graph)
    plain = jax.jit(force_field.predictor.interaction)(force_field.params, jax.tree.map(jnp.asarray, graph))
    scale = np.abs(plain.forces[:5]).max()
    np.testing.assert_allclose(found.energy[:2], plain.energy[:2], rtol=3e-6)
    np.testing.assert_allclose(found.forces[:5], plain.forces[:5], atol=1e-5 * scale)
    np.testing.assert_allclose(found.stress[:2], plain.stress[:2], atol=1e-5 * np.abs(plain.stress[1]).max())


def test_forces_are_differences_of_the_energy(force_field: ForceField, graph: Graph, gpu: None) -> None:
    predictor, params = force_field.predictor.tabulated(force_field.params)
    energy = jax.jit(lambda positions: predictor.interaction(params, graph.moved(positions, graph.cell)))
    rng = np.random.default_rng(0)
    direction = np.where(np.arange(8)[:, None] < 5, rng.normal(size=(8, 3)), 0.0).astype("f4")
    step = 4e-3  # Angstrom; float32 allows no less
    ahead, behind = (energy(graph.positions + sign * step * direction).energy[:2].sum() for sign in (1, -1))
    slope = -np.sum(np.asarray(energy(graph.positions).forces)[:5] * direction[:5])
    assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=5e-3)


def test_reverse_slots_hold_the_pair_seen_from_the_other_side(graph: Graph) -> None:
    reverse = np.asarray(graph.reverse_slots())
    nodes, slots = np.nonzero(graph.slot_mask)
    others = graph.neighbors[nodes, slots]
    back = reverse[nodes, slots]
    assert len(nodes) > 40
    np.testing.assert_array_equal(graph.neighbors[others, back], nodes)
    np.testing.assert_array_equal(graph.shifts[others, back], -graph.shifts[nodes, slots])


def test_sums_in_a_fixed_order_are_the_scattered_sums(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(*graph.slot_mask.shape, 3)).astype("f4") * graph.slot_mask[..., None]
    nodes = rng.normal(size=(len(values), 2)).astype("f4")
    scattered = graph.sum_to_neighbors(jnp.asarray(values)), graph.sum_graphs(jnp.asarray(nodes))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    collected = graph.sum_to_neighbors(jnp.asarray(values)), graph.sum_graphs(jnp.asarray(nodes))
    for one, other in zip(scattered, collected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_contraction_written_out() -> None:
    rng = np.random.default_rng(2)
    factors = [np.array([[0, 4, 4], [1, 2, 4], [0, 1, 3]]), np.array([[2, 2, 2]])]  # 4 stands for no factor
    terms = Terms.from_factors(factors, one=4)
    density, table = rng.normal(size=(3, 4, 16)).astype("f4"), rng.normal(size=(2, 4, 16)).astype("f4")
    species = np.array([0, 1, 1], np.int32)
    out, pull = jax.vjp(lambda a: gpu_contraction.contract(terms, a, table, species), jnp.asarray(density))
    (gradient,) = pull(jnp.ones_like(out))
    a, t = density.transpose(1, 0, 2), table[species].transpose(1, 0, 2)
    first = t[0] * a[0] + t[1] * a[1] * a[2] + t[2] * a[0] * a[1] * a[3]
    np.testing.assert_allclose(out, np.stack([first, t[3] * a[2] ** 3], axis=1), rtol=1e-5, atol=1e-5)
    by_2 = t[1] * a[1] + 3 * t[3] * a[2] ** 2
    np.testing.assert_allclose(gradient[:, 2], by_2, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient[:, 0], t[0] + t[2] * a[1] * a[3], rtol=1e-5, atol=1e-5)


def abstract_h100() -> AbstractContextManager[Any]:
    """What JAX from 0.12 on must be told to lower for a GPU that is not there; nothing where it has no such thing."""
    if not hasattr(jax.sharding, "AbstractDevice"):
        return nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("nodes", [8, 4000])
def test_whole_model_lowers_for_cuda(
    force_field: ForceField, nodes: int, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to the kernels' Triton code, with and without sharing out the messages; what follows needs a GPU."""
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    predictor, params = force_field.predictor.tabulated(force_field.params)
    graph = batch([force_field.graph(structures()[0])], PadShape(1, nodes, 12)).astype("float32")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.asarray(x).dtype), (params, graph))
    unchecked = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    with abstract_h100():
        module = export.export(jax.jit(predictor.interaction), platforms=["cuda"], disabled_checks=unchecked)(*shapes)
    # two sums with their gradients, two contractions with theirs, and what the second layer's neighbours collect
    assert module.mlir_module().count("__gpu$xla.gpu.triton") == 9


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ({"compute_capability": "9.0", "device_kind": "H100"}, None),
        ({"compute_capability": "7.0", "device_kind": "V100"}, "compute capability 7.0"),
        ({"compute_capability": "gfx90a", "device_kind": "MI250"}, "written for NVIDIA, and this is MI250"),
    ],
)
def test_which_gpus_run_the_kernels(
    device: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch, force_field: ForceField
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(**device)])
    choice.gpu_problem.cache_clear()
    text = choice.describe(force_field.predictor.network)
    assert reason in text if reason else text.startswith("Pallas kernels on H100")
    assert "do not cover" in choice.describe(Mace(MaceConfig(num_channels=20), INFO)) or reason
    assert "do not cover" in choice.describe(Mace(MaceConfig(num_channels=16, correlation=4), INFO)) or reason
    assert not choice.usable(16)  # training takes the plain formulas
    monkeypatch.setenv("ASE_MLIP_KERNELS", "off")
    choice.gpu_problem.cache_clear()
    assert "switched off" in choice.describe()
    choice.gpu_problem.cache_clear()
