"""The C++ kernels against sums written out with numpy, finite differences, and the plain formulas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from conftest import INFO, random_weights

from ase_mlip import MLIPCalculator
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.force_field import ForceField, precision
from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.kernels import build, contraction, describe, neighbor_sum, usable
from ase_mlip.kernels.contraction import Terms, contract
from ase_mlip.kernels.neighbor_sum import Layout, Pairs, sum_neighbors, sum_tabulated
from ase_mlip.networks import tabulate
from ase_mlip.networks.mace import Mace, MaceConfig
from ase_mlip.networks.nequip import Nequip, NequipConfig
from ase_mlip.networks.symmetric import symmetric_contractions
from ase_mlip.predictor import compiled_interaction

NODES, SLOTS, CHANNELS = 5, 4, 16
ROWS = 12  # of weights, for 20 slots
OFFSET = np.array([0.3, 1.1, 2.6])  # Angstrom between two molecules
PATHS = ((0, 0, 0), (1, 1, 0), (0, 1, 1), (2, 1, 1), (1, 2, 3), (2, 2, 2))
LAYOUT = Layout(PATHS, (0, 1, 2))
CONFIG = MaceConfig(num_channels=16, l_max=3, hidden_l_max=1, num_bessel=4, radial_mlp=(8,), readout_mlp=4)


@pytest.fixture(scope="module")
def factors() -> tuple[list[np.ndarray], Pairs]:
    """Random weights, features, couplings and messages; some pairs are outside, some share their weights."""
    rng = np.random.default_rng(0)
    shapes = [
        (ROWS, len(PATHS), CHANNELS),
        (NODES, LAYOUT.feature_rows, CHANNELS),
        (NODES, SLOTS, LAYOUT.couplings),
        (NODES, LAYOUT.message_rows, CHANNELS),
    ]
    inside = rng.random((NODES, SLOTS)) < 0.7
    neighbors = rng.integers(NODES, size=(NODES, SLOTS)).astype(np.int32)
    places = rng.permutation(2 * ROWS)[: NODES * SLOTS].reshape(NODES, SLOTS).astype(np.int32)
    return [rng.normal(size=shape) for shape in shapes], Pairs(neighbors, inside, places)


def written_out(factors: list[np.ndarray], pairs: Pairs) -> float:
    """The total, term by term as the header of neighbor_sum.cc states it."""
    weights, features, couplings, messages = factors
    first_feature = dict(zip((0, 1, 2), (0, 1, 4), strict=True))
    rows = [(c, m, p) for c in range(4) for m in range(2 * c + 1) for p, path in enumerate(PATHS) if path[2] == c]
    starts = np.cumsum([0] + [(2 * a + 1) * (2 * c + 1) for a, _, c in PATHS])
    total = 0.0
    for n, k in np.argwhere(pairs.inside):
        for p, (degree_in, _, degree_out) in enumerate(PATHS):
            size = (2 * degree_in + 1, 2 * degree_out + 1)
            coupling = couplings[n, k, starts[p] : starts[p + 1]].reshape(size)
            feature = features[pairs.neighbors[n, k], first_feature[degree_in] :][: size[0]]
            message = np.array([messages[n, rows.index((degree_out, m, p))] for m in range(size[1])])
            total += np.einsum("c,ac,am,mc->", weights[pairs.rows[n, k] % ROWS, p], feature, coupling, message)
    return total


def test_messages_are_the_sum_that_the_header_states(factors: tuple[list[np.ndarray], Pairs]) -> None:
    arrays, pairs = factors
    with precision("float64"):
        messages = np.asarray(sum_neighbors(LAYOUT, *arrays[:3], pairs))
    assert np.sum(messages * arrays[3]) == pytest.approx(written_out(arrays, pairs), rel=1e-12)


@pytest.mark.parametrize("factor", [0, 1, 2])
def test_derivatives_are_differences_of_the_linear_sum(factors: tuple[list[np.ndarray], Pairs], factor: int) -> None:
    """The total is linear in each factor, so that one difference is exact."""
    arrays, pairs = factors
    direction = np.random.default_rng(factor).normal(size=arrays[factor].shape)

    def total(x: jax.Array) -> jax.Array:
        changed = [*arrays[:factor], x, *arrays[factor + 1 : 3]]
        return jnp.sum(sum_neighbors(LAYOUT, *changed, pairs) * arrays[3])

    with precision("float64"):
        slope = float(np.sum(np.asarray(jax.grad(total)(jnp.asarray(arrays[factor]))) * direction))
    moved = [*arrays[:factor], arrays[factor] + direction, *arrays[factor + 1 :]]
    assert slope == pytest.approx(written_out(moved, pairs) - written_out(arrays, pairs), rel=1e-10)


def test_second_and_third_derivatives_of_the_sum(factors: tuple[list[np.ndarray], Pairs]) -> None:
    """Along one line the total is a cubic polynomial: its derivatives follow from four values."""
    arrays, pairs = factors
    rng = np.random.default_rng(1)
    directions = [rng.normal(size=x.shape) for x in arrays[:3]]

    def along(t: jax.Array) -> jax.Array:
        moved = [x + t * d for x, d in zip(arrays[:3], directions, strict=True)]
        return jnp.sum(sum_neighbors(LAYOUT, *moved, pairs) * arrays[3])

    def exactly(t: float) -> float:
        return written_out([*(x + t * d for x, d in zip(arrays[:3], directions, strict=True)), arrays[3]], pairs)

    cubic = np.polynomial.Polynomial.fit([-1.0, 0.0, 1.0, 2.0], [exactly(t) for t in (-1.0, 0.0, 1.0, 2.0)], 3)
    derivative = along
    with precision("float64"):
        for order in (1, 2, 3):
            derivative = jax.grad(derivative)
            assert float(derivative(jnp.float64(0.3))) == pytest.approx(cubic.deriv(order)(0.3), rel=1e-9)


def test_same_bits_every_time_and_with_empty_rows(factors: tuple[list[np.ndarray], Pairs]) -> None:
    arrays, pairs = factors
    nobody = replace(pairs, inside=np.zeros_like(pairs.inside))
    with precision("float64"):
        assert not np.asarray(sum_neighbors(LAYOUT, *arrays[:3], nobody)).any()
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(sum_neighbors(LAYOUT, arrays[0], x, arrays[2], pairs) ** 2)))
        first, *others = (np.asarray(gradient(jnp.asarray(arrays[1]))) for _ in range(4))
    assert all(np.array_equal(first, other) for other in others)


def test_contraction_and_its_derivatives_against_products_written_out() -> None:
    rng = np.random.default_rng(2)
    factors = [c.factors for ell in (0, 1) for c in symmetric_contractions(2, ell, 3)]
    terms = Terms.from_factors(factors, one=9)
    count = sum(map(len, factors))
    density, table = rng.normal(size=(NODES, 9, CHANNELS)), rng.normal(size=(2, count, CHANNELS))
    directions = rng.normal(size=density.shape), rng.normal(size=table.shape)
    species = np.array([0, 1, 1, 0, 1], np.int32)
    weight = rng.normal(size=(NODES, len(factors), CHANNELS))

    def written(t: float) -> float:
        extended = np.concatenate([density + t * directions[0], np.ones((NODES, 1, CHANNELS))], axis=1)
        products = np.concatenate([np.prod(extended[:, rows], axis=2) for rows in factors], axis=1)
        rows = np.repeat(np.arange(len(factors)), [len(f) for f in factors])
        return float(np.sum((table + t * directions[1])[species] * products * weight[:, rows]))

    def along(t: jax.Array) -> jax.Array:
        moved = density + t * directions[0], table + t * directions[1]
        return jnp.sum(contract(terms, *moved, species) * weight)

    places = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    quartic = np.polynomial.Polynomial.fit(places, [written(t) for t in places], 4)
    derivative = along
    with precision("float64"):
        assert float(along(jnp.float64(0.5))) == pytest.approx(written(0.5), rel=1e-12)
        for order in (1, 2):
            derivative = jax.grad(derivative)
            assert float(derivative(jnp.float64(0.2))) == pytest.approx(quartic.deriv(order)(0.2), rel=1e-8)


NETWORKS = {
    "plain": CONFIG,
    "density": replace(
        CONFIG, hidden_l_max=2, l_max=2, correlation=2, interaction="density", distance_transform="agnesi"
    ),
    "gated": replace(CONFIG, interaction="gated", envelope="messages", l_max=2, correlation=4, element_products=False),
    "pairs": replace(CONFIG, pair_embedding=3, edge_channels=(32, 16), gated_products=True, l_max=1),
    "nequip": NequipConfig((20, 5, 5, 5), num_layers=3, embedding_channels=7, num_bessel=4, radial_mlp=(8,)),
    "nequip_widening": NequipConfig((3, 33), num_layers=2, l_max=2, num_bessel=4, radial_mlp=(8, 6), layer_norm=False),
}


def network_of(config: MaceConfig | NequipConfig, info: DatasetInfo) -> Mace | Nequip:
    """The network that the configuration is of."""
    return (Mace if isinstance(config, MaceConfig) else Nequip)(config, info)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("pairs", [0, 90], ids=["slots", "listed"])
def test_network_and_its_training_gradient_are_those_of_the_plain_formulas(name: str, pairs: int) -> None:
    force_field = random_weights(network_of(NETWORKS[name], INFO))
    structures = [molecule("CH3OH"), bulk("CuO", "zincblende", a=4.3)]
    graph = batch([force_field.graph(atoms).with_pairs() for atoms in structures], PadShape(3, 12, 24, pairs))
    fast = force_field.predictor.with_kernels()
    assert fast.network.kernels is not None
    with precision("float64"):
        params = force_field.cast_params("float64")

        def loss(predictor, params):
            prediction = predictor.interaction(params, graph)
            return jnp.sum(prediction.forces**2) + jnp.sum(prediction.energy**2), prediction

        plain, quick = (
            jax.jit(jax.grad(lambda p, predictor=predictor: loss(predictor, p), has_aux=True))(params)
            for predictor in (force_field.predictor, fast)
        )
    for right, found in zip(*map(jax.tree.leaves, (plain, quick)), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-11 * max(1.0, float(np.abs(right).max())))


@pytest.fixture(scope="module", params=["plain", "nequip_widening"])
def water(request: pytest.FixtureRequest) -> tuple[ForceField, ase.Atoms]:
    """A random model whose radial networks are tables in float32, and a structure."""
    info = DatasetInfo.create({"H": -1.0, "O": -2.0}, 4.0, avg_num_neighbors=9.0)
    atoms = ase.Atoms("OH2" * 2, positions=[*molecule("H2O").positions, *(molecule("H2O").positions + OFFSET)])
    return ForceField.from_mlip_network(network_of(NETWORKS[request.param], info)), atoms


def test_table_has_the_error_that_it_states_and_forces_are_its_gradient(water: tuple[ForceField, ase.Atoms]) -> None:
    force_field, atoms = water
    predictor, params = force_field.predictor.tabulated(force_field.params)
    assert predictor.network.kernels.knots >= tabulate.FIRST_KNOTS
    graph = force_field.graph(atoms)
    with precision("float64"):
        exact = jax.jit(force_field.predictor.interaction)(force_field.cast_params("float64"), graph)
        params = jax.tree.map(lambda x: jnp.asarray(x, "float64"), dict(params))
        energy = jax.jit(lambda graph: predictor.interaction(params, graph))
        found = energy(graph)
        step = np.zeros_like(graph.positions)
        step[1, 2] = 1e-5
        up, down = (
            float(energy(replace(graph, positions=graph.positions + sign * step)).energy[0]) for sign in (1, -1)
        )
        found, exact = jax.tree.map(np.asarray, (found, exact))
    assert abs(found.energy[0] - exact.energy[0]) / len(atoms) < 1e-6
    np.testing.assert_allclose(found.forces, exact.forces, atol=1e-5)
    assert found.forces[1, 2] == pytest.approx(-(up - down) / 2e-5, abs=1e-8)


def test_calculator_uses_the_table_in_float32_and_the_network_in_float64(water: tuple[ForceField, ase.Atoms]) -> None:
    force_field, atoms = water
    single, double = (MLIPCalculator(force_field, dtype=dtype) for dtype in ("float32", "float64"))
    assert force_field.prepared("float32")[0].network.kernels.knots > 0
    assert force_field.prepared("float64")[0] == force_field.predictor
    with precision("float64"):
        plain = force_field.predictor.interaction(force_field.cast_params("float64"), force_field.graph(atoms))
        forces = np.asarray(plain.forces)
    for calculator, tolerance in ((single, 1e-5), (double, 1e-10)):
        np.testing.assert_allclose(calculator.get_forces(atoms), forces, atol=tolerance)


def test_error_of_a_table_falls_with_the_fourth_power_of_its_spacing(
    water: tuple[ForceField, ase.Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    force_field, _ = water
    errors = []
    original = tabulate._midpoint_error
    monkeypatch.setattr(tabulate, "_midpoint_error", lambda *args: errors.append(original(*args)) or errors[-1])
    monkeypatch.setattr(tabulate, "TOLERANCE", 0.0)
    monkeypatch.setattr(tabulate, "LAST_KNOTS", 1024)
    kernels, _ = tabulate.tabulate(force_field.predictor.network, force_field.params)
    assert kernels.knots == 1024
    assert all(10 < coarse / fine < 20 for coarse, fine in pairwise(errors))


def test_shapes_without_kernels_take_the_plain_path() -> None:
    assert usable(32)
    assert not usable(20)
    for change in ({"num_channels": 4}, {"edge_channels": (8, 16)}):
        network = Mace(replace(CONFIG, **change), INFO)
        assert network.with_kernels() is network
        assert network.tabulated({}) == (network, {})


@pytest.fixture
def fresh_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and nothing known of compilers; all is known again afterwards."""
    monkeypatch.setenv("ASE_MLIP_CACHE", str(tmp_path))
    forget = (build.problem, build.load, build._find_compiler)
    for function in forget:
        function.cache_clear()
    yield tmp_path
    for function in forget:
        function.cache_clear()


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch, fresh_build: Path) -> None:
    monkeypatch.setenv(build.SWITCH, "off")
    assert describe() == "plain JAX: switched off by ASE_MLIP_KERNELS=off"
    assert not usable(16)


def test_without_a_compiler_the_reason_is_named(monkeypatch: pytest.MonkeyPatch, fresh_build: Path) -> None:
    monkeypatch.setenv("PATH", str(fresh_build))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    assert "no C++ compiler" in describe()


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, fresh_build: Path) -> None:
    broken = fresh_build / "compiler"
    broken.write_text("#!/bin/sh\necho 'this compiler is broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert "this compiler is broken" in describe()
    assert not usable(16)


def test_a_process_finds_the_libraries_that_another_one_compiled() -> None:
    """Two processes, one folder: the second one must not need a compiler."""
    assert usable(16)
    code = (
        "from ase_mlip import kernels\n"
        "from ase_mlip.kernels import build\n"
        "def refuse(*args, **kwargs): raise AssertionError('compiled again')\n"
        "run = build.subprocess.run\n"
        "build.subprocess.run = lambda c, **k: run(c, **k) if '-shared' not in c else refuse()\n"
        "assert build.problem() is None, build.problem()\n"
        "print(kernels.describe())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("C++ kernels compiled here")
    assert describe(Mace(CONFIG, INFO)) == done.stdout.strip()
    assert "do not cover" in describe(Mace(replace(CONFIG, num_channels=4), INFO))


def test_kernels_say_what_is_wrong_with_their_arguments() -> None:
    """Channels that do not fill vectors never reach the kernels through a network; the kernels check all the same."""
    weights, features = np.zeros((2, 1, 1, 3), np.float32), np.zeros((2, 1, 3), np.float32)
    pairs = Pairs(np.zeros((2, 1), np.int32), np.ones((2, 1), bool), np.zeros((2, 1), np.int32))
    with pytest.raises(Exception, match="do not fill vectors"):
        jax.block_until_ready(
            neighbor_sum.sum_neighbors(Layout(((0, 0, 0),), (0,)), weights, features, np.ones((2, 1, 1), "f4"), pairs)
        )
    terms = contraction.Terms((0, 0, 0, 0), (0, 1, 0, 1))
    with pytest.raises(Exception, match="do not fill vectors"):
        jax.block_until_ready(contract(terms, features, np.zeros((1, 1, 3), np.float32), np.zeros(2, np.int32)))


def test_table_outside_a_graph_of_many_sizes(water: tuple[ForceField, ase.Atoms]) -> None:
    """Distances near zero and at the cutoff stay inside the table, and padding counts nothing."""
    force_field, atoms = water
    graph = force_field.graph(atoms)
    padded = batch([graph], PadShape(2, 16, 12))
    results = [
        compiled_interaction(*force_field.prepared("float32"), g.astype("float32"), False) for g in (graph, padded)
    ]
    assert float(results[0].energy[0]) == pytest.approx(float(results[1].energy[0]), rel=1e-6)
    np.testing.assert_allclose(results[0].forces, results[1].forces[: len(atoms)], atol=2e-6)
    pair = Graph.from_atoms(ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.02]]), force_field.elements, 4.0)
    close = compiled_interaction(*force_field.prepared("float32"), pair.astype("float32"), False)
    assert np.isfinite(close.energy).all()
    layout = Layout(((0, 0, 0),), (0,))
    knots = np.zeros((4, 1, 2, 16), np.float32)
    knots[:, 0, 0] = np.arange(4.0)[:, None]  # the weight is distance / spacing
    knots[:, 0, 1] = 1.0
    distances = np.array([[0.0], [0.75], [1.5]], np.float32)
    ones = np.ones((3, 1, 16), np.float32), np.ones((3, 1, 1), np.float32)
    pairs = Pairs(np.array([[1], [2], [0]], np.int32), np.ones((3, 1), bool))
    messages = sum_tabulated(layout, 0.5, knots, distances, *ones, pairs)
    np.testing.assert_allclose(messages[:, 0, 0], [0.0, 1.5, 3.0], rtol=1e-6)
