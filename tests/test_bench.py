"""The benchmark: what it counts, by hand and by XLA's own analysis, and one run of everything on a toy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.neighborlist import neighbor_list
from conftest import INFO, TINY, random_force_field
from toy_data import toy_force_field
from typer.testing import CliRunner

from ase_mlip import cli
from ase_mlip.bench import first_call, floor, machine, timing
from ase_mlip.bench.floor import Work, count_floor
from ase_mlip.bench.machine import Peaks, measure_peaks
from ase_mlip.bench.run import BenchSettings, choose_systems, random_model, read_sizes, run_bench
from ase_mlip.bench.systems import SIZES, build_system
from ase_mlip.force_field import ForceField
from ase_mlip.networks.nequip import Nequip, NequipConfig
from ase_mlip.predictor import Predictor

PATHS = {0: [(0, 0), (0, 1), (0, 2)], 1: [(1, 1), (1, 0), (1, 2), (1, 1)]}  # feature degree -> (edge, output), l_max 2


def flops(function: Callable, *arguments: object) -> float:
    """XLA's own count for the compiled function."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("size", SIZES[:4])
def test_water(size: int) -> None:
    """As many atoms as asked for, at 1 g/cm^3, whole molecules that do not overlap."""
    box = build_system("water", size)
    assert len(box) == size
    assert box.pbc.all()
    density = box.get_masses().sum() * 1.66053907 / box.get_volume()
    assert density == pytest.approx(1.0, abs=0.002)
    if size > 24:
        return
    bonds = neighbor_list("i", box, {("O", "H"): 1.15})
    assert np.array_equal(np.bincount(bonds), np.where(box.numbers == 8, 2, 1))
    assert neighbor_list("d", box, 2.5).min() > 0.85
    assert np.array_equal(box.positions, build_system("water", size).positions)


def test_copper() -> None:
    """The nearest cube of fcc cells: twelve neighbours each."""
    crystal = build_system("copper", 192)
    assert len(crystal) == 256
    assert np.all(np.bincount(neighbor_list("i", crystal, 3.1)) == 12)
    with pytest.raises(ValueError, match=r"'gold'.*'copper'"):
        build_system("gold", 10)


def test_neighbor_sum_by_hand() -> None:
    """Scalars with l_max 1: two weights, 1 + 3 products; per channel 2 + 8 forward, 16 + 4 in the gradient."""
    work = floor.neighbor_sum((0,), 1, channels=4, features_move=False)
    assert work == Work(operations=4 * 30, moved=2 * 4 + 9 * 4, gathered=0)
    # scalars and vectors: 1 + 3 + 1 + 3 weighted components, 1 + 3 + 3 + 9 products; four components of features
    work = floor.neighbor_sum((0, 1), 1, channels=4, features_move=True)
    assert work == Work(operations=4 * (8 + 32 + 64 + 32), moved=44, gathered=3 * 4 * 4 * 4)


def test_contraction_by_hand() -> None:
    """One layer, l_max 1, quadratic, scalars: the monomials s, s^2, x^2, y^2, z^2."""
    config = replace(TINY, num_layers=1, l_max=1, hidden_l_max=0, correlation=2)
    assert floor.contractions(config) == Work(4.0 * 5 * config.num_channels, 4.0 * 4 * (4 + 1) * config.num_channels)


def test_linear_maps_by_hand() -> None:
    """A multiply-add forward and one backward for each entry and component; none for what only elements decide."""
    config = replace(TINY, num_layers=1, l_max=1, hidden_l_max=0)
    params = {
        ("element_embedding",): np.zeros((4, 4)),
        ("layer_0", "linear_up", "degree_0"): np.zeros((4, 4)),
        ("layer_0", "skip", "element_degree_0"): np.zeros((4, 4, 4)),
        ("layer_0", "linear_message", "degree_1"): np.zeros((8, 4)),
        ("layer_0", "contraction", "element_degree_0"): np.zeros((4, 9, 4)),
        ("layer_1", "skip", "element_degree_0"): np.zeros((4, 4, 4)),
        ("head_base", "layer_0_output"): np.zeros(4),
    }
    work = floor.linear_maps(params, config)
    assert work == Work(4.0 * (3 * 32 + 16 + 4), 4.0 * 4 * (3 * 4 + 4))


def test_neighbor_sum_by_xla() -> None:
    """XLA counts our operations for messages of a whole table of neighbours, and their gradient."""
    nodes, slots, channels, rng = 3, 20, 32, np.random.default_rng(0)
    features = [jnp.asarray(rng.normal(size=(nodes, slots, 2 * ell + 1, channels))) for ell in PATHS]
    paths = [(a, out) for a, found in PATHS.items() for _, out in found]
    weights = [jnp.asarray(rng.normal(size=(nodes, slots, channels))) for _ in paths]
    edges = [jnp.asarray(rng.normal(size=(nodes, slots, 2 * a + 1, 2 * out + 1))) for a, out in paths]
    into = [jnp.asarray(rng.normal(size=(nodes, 2 * out + 1, channels))) for _, out in paths]

    def total(weights: list, features: list, edges: list) -> jax.Array:
        energy = jnp.zeros(())
        for (a, _), weight, edge, given in zip(paths, weights, edges, into, strict=True):
            weighted = weight[:, :, None] * features[a]
            energy += jnp.sum(given * jnp.einsum("nkam,nkac->nmc", edge, weighted))
        return energy

    counted = floor.neighbor_sum((0, 1), 2, channels, features_move=True) * (nodes * slots)
    assert flops(jax.value_and_grad(total, (0, 1, 2)), weights, features, edges) == pytest.approx(
        counted.operations, rel=0.25
    )


def test_radial_network_by_xla() -> None:
    """And for the radial network: every kernel forward and transposed."""
    pairs, rng = 50, np.random.default_rng(0)
    shapes = {"layer_0": (8, 32), "layer_1": (32, 32), "output": (32, 5, 16)}
    kernels = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}

    def network(x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(jnp.tanh(x @ kernels["layer_0"]) @ kernels["layer_1"])
        return jnp.sum(jnp.einsum("ph,hkc->pkc", hidden, kernels["output"]) ** 2)

    params = {("layer_0", "neighbor_sum", "radial", name): kernel for name, kernel in kernels.items()}
    counted = floor.radial_networks(params) * pairs
    assert flops(jax.grad(network), jnp.ones((pairs, 8))) == pytest.approx(counted.operations, rel=0.25)


def test_whole_network_by_xla() -> None:
    """And for energies and forces of a whole network by its plain formulas."""
    config = replace(TINY, num_channels=32, radial_mlp=(32,), l_max=1, hidden_l_max=1)
    force_field = random_force_field(config).with_elements([29])
    graph = force_field.graph(build_system("copper", 4)).astype("float32")
    counted = count_floor(force_field, 4, graph.slot_mask.size)
    assert counted
    plain, params = partial(Predictor.interaction, force_field.predictor), force_field.cast_params("float32")
    assert flops(plain, params, graph) == pytest.approx(counted.total_with_network.operations, rel=0.25)


def test_floor() -> None:
    """Parts add up, the network costs more than tables, more pairs cost more; other architectures are not counted."""
    force_field = random_force_field()
    less, more = (count_floor(force_field, 10, pairs) for pairs in (200, 400))
    assert less
    assert more
    assert less.total.operations == sum(work.operations for work in less.parts.values())
    assert less.total_with_network.operations > less.total.operations
    assert more.parts["neighbour sums"].operations == 2 * less.parts["neighbour sums"].operations
    assert more.parts["contractions"] == less.parts["contractions"]
    assert less.parts["parameters"].moved == 8 * force_field.num_params
    assert less.total.seconds(Peaks(1.0, 1e99)) == less.total.operations
    assert less.total.seconds(Peaks(1e99, 1.0)) == less.total.moved


def test_timing() -> None:
    """Median, quartiles and mean; what is compiled in a block is counted, what is known is not."""
    found = timing.Timing.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert found == timing.Timing(3.0, 2.0, 4.0, 22.0, 5)
    function, calls = jax.jit(lambda x: 2 * x), []
    with timing.Compilations() as first:
        function(1.0)
    with timing.Compilations() as again:
        assert timing.time_runs(lambda: calls.append(function(1.0)), reps=4, warmup=2).reps == 4
    assert (first.count, again.count, len(calls)) == (1, 0, 6)
    assert first.seconds > 0


def test_nothing_kept() -> None:
    """The user's setting comes back, also after an error."""
    before = jax.config.jax_enable_compilation_cache

    def fail() -> None:
        with timing.nothing_kept():
            assert not jax.config.jax_enable_compilation_cache
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert jax.config.jax_enable_compilation_cache == before


def test_machine() -> None:
    """Figures that any machine has."""
    peaks = measure_peaks(size=64, megabytes=1)
    assert peaks.operations_per_s > 1e6
    assert peaks.bytes_per_s > 1e6
    facts = machine.hardware()
    assert facts["cores"] >= 1
    assert facts["cpu"]
    machine.reset_host_peak()
    before = machine.host_peak()
    np.ones(2**24)
    assert before + 2**26 < machine.host_peak() < facts["memory_bytes"]
    assert {"python", "jax", "numpy", "ase"} <= set(machine.versions())


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is measured in this process: a table, all of it as JSON, a picture."""
    monkeypatch.setattr(machine, "measure_peaks", lambda dtype: Peaks(1e9, 1e9))
    monkeypatch.setattr("ase_mlip.bench.run.describe", lambda network: "the toy path")
    toy_force_field().save(tmp_path / "toy.safetensors")
    model, output, picture = (str(tmp_path / name) for name in ("toy.safetensors", "out.json", "out.png"))
    options = ["--sizes", "24,81", "--reps", "2", "--parts", "model,md,accuracy,train", "--frames", "2"]
    result = CliRunner().invoke(
        cli.app, ["bench", model, *options, "--json", output, "--plot", picture], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "the toy path" in result.output
    assert "medians of 2 runs (fewer than 20)" in result.output
    assert "the radial network instead of tables" in result.output
    data = json.loads(Path(output).read_text())
    assert [speed["atoms"] for speed in data["speeds"]] == [24, 81]
    for speed, least in zip(data["speeds"], data["floors"], strict=True):
        assert 0 < speed["model"]["lower"] <= speed["model"]["median"] <= speed["model"]["upper"]
        assert speed["md"]["reps"] == 2
        assert speed["first_s"] > speed["compile_s"] > 0
        assert speed["compilations"] >= 1
        assert speed["later_compilations"] == 0
        assert speed["slots"] * speed["atoms"] >= speed["pairs"] > 0
        assert least["seconds"] > 0
    assert data["accuracies"][0]["forces"] < 1e-4 * max(1.0, data["accuracies"][0]["largest_force"])
    (training,) = data["training"]
    assert training["frames_per_s"] == pytest.approx(2 / training["step"]["median"])
    assert data["settings"]["reps"] == 2
    assert Path(picture).stat().st_size > 10_000


def test_first_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New processes, the first of which compiles."""
    monkeypatch.setattr(first_call, "WARM_RUNS", 1)
    toy_force_field().save(tmp_path / "toy.safetensors")
    found = first_call.time_first_call(str(tmp_path / "toy.safetensors"), "water", 20, "float32")
    assert found.atoms == 24
    for start in (found.cold, found.warm):
        assert start.process > start.imports + start.model + start.forces > 0
    with pytest.raises(OSError, match="no such model"):
        first_call._start([sys.executable, "-c", "raise SystemExit('no such model')"], {})


def test_random_model() -> None:
    """A shape becomes a network; copper comes with it."""
    made = random_model("4,2,0,1")
    config = made.predictor.network.config
    assert (config.num_channels, config.l_max, config.hidden_l_max, config.correlation) == (4, 2, 0, 1)
    assert choose_systems(made, None) == ("water", "copper")
    with pytest.raises(ValueError, match="128,3,1,3"):
        random_model("4,2,0")


def test_refusals() -> None:
    """What cannot be measured is said before anything runs."""
    toy = toy_force_field()
    assert choose_systems(toy, None) == ("water",)
    with pytest.raises(ValueError, match=r"knows H, O: .* water, not on copper"):
        choose_systems(toy, ("water", "copper"))
    with pytest.raises(ValueError, match="such as 24,192"):
        read_sizes("24,many")
    with pytest.raises(ValueError, match="not both"):
        run_bench("default", "4,1,0,1", BenchSettings())
    for wrong in ({"parts": ("speed",)}, {"systems": ("gold",)}, {"reps": 0}, {"timestep": 0.0}, {"dtype": "half"}):
        with pytest.raises(ValueError, match=str(*wrong)):
            BenchSettings(**wrong)


def test_nequip_has_no_floor() -> None:
    """An architecture that is not counted."""
    network = Nequip(NequipConfig(channels=(4, 4), num_layers=1, l_max=1), INFO)
    assert count_floor(ForceField(Predictor.from_network(network), {}), 1, 1) is None
