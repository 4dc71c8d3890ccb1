"""What trains under each method: adapters that start at nothing, move what they name, merge into ordinary weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import ase
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY, predict, random_force_field, random_weights
from flax.traverse_util import flatten_dict
from toy_data import leaves, same_bits

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.force_field import ForceField
from ase_mlip.methods import choose_adapters, make_optimizer, matrices
from ase_mlip.networks.mace import MaceConfig
from ase_mlip.networks.nequip import Nequip, NequipConfig
from ase_mlip.presets import METHODS
from ase_mlip.transfer import add_heads
from ase_mlip.tuning import Adapters, TrainAll, count_variables

INFO = DatasetInfo.create({"H": -0.4, "O": -2.1}, 3.4, avg_num_neighbors=4.0, scale=0.8)
EVERY_PART = replace(TINY, pair_embedding=3, gated_products=True)
CONFIGS = {
    "mean": TINY,
    "density": replace(TINY, interaction="density"),
    "gated": replace(TINY, interaction="gated", l_max=1),
    "gates": EVERY_PART,
}
INTERACTIONS = {"linear_up", "neighbor_sum", "linear_message", "skip"}


@pytest.fixture(scope="module")
def grown() -> tuple[ForceField, list[str]]:
    """A random two-layer MACE with a silent new head."""
    return add_heads(random_force_field(TINY, INFO), ["new"])


@pytest.fixture
def float64() -> Iterator[None]:
    """Variables in float64."""
    with jax.enable_x64(True):
        yield


def adapters(grown: tuple[ForceField, list[str]], method: str, **changes: object) -> Adapters:
    """The method's adapters, with other settings if given."""
    force_field, blocks = grown
    preset = replace(METHODS[method], **changes)
    return choose_adapters(force_field.params, force_field.predictor.network, blocks, preset.freeze, preset.rank)


def moved(force_field: ForceField, tuning: Adapters, seed: int = 0) -> tuple[object, ForceField]:
    """All variables displaced at random, and the force field that they stand for."""
    rng = np.random.default_rng(seed)
    variables = tuning.start(force_field.params)
    variables = jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape), variables)
    return variables, replace(force_field, params=tuning.merge(dict(force_field.params), variables))


@pytest.mark.parametrize("method", METHODS)
def test_step_zero_is_exact(method: str, grown: tuple[ForceField, list[str]]) -> None:
    force_field, _ = grown
    tuning = adapters(grown, method)
    start = jax.tree.map(np.asarray, tuning.start(force_field.params))
    merged = replace(force_field, params=tuning.merge(dict(force_field.params), start))
    old, new = leaves(force_field), leaves(merged)
    assert all(np.array_equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_named_moves(method: str, grown: tuple[ForceField, list[str]]) -> None:
    force_field, _ = grown
    tuning = adapters(grown, method)
    _, result = moved(force_field, tuning)
    old, new = leaves(force_field), leaves(result)
    changed = {name for name in old if not same_bits(old[name], new[name])}
    assert changed == set(tuning.ranks)
    heads = {"head_new/layer_0_output", "head_new/layer_1_hidden", "head_new/layer_1_output"}
    kept = {
        "heads": set(old) - heads,
        "freeze": {name for name in old if "embedding" in name or set(name.split("/")) & INTERACTIONS},
        "lora": {name for name in old if old[name].ndim < 2} - heads,
        "full": set(),
    }
    assert changed == set(old) - kept[method]
    assert heads <= changed


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_change_against_numpy(rank: int, grown: tuple[ForceField, list[str]], float64: None) -> None:
    """W + rms(W) A B / sqrt(rank), matrix by matrix; element-dependent weights have one A and B per element."""
    force_field, _ = grown
    tuning = adapters(grown, "lora", rank=rank)
    variables, result = moved(force_field, tuning)
    old, new = leaves(force_field), leaves(result)
    plain, by_element = "layer_0/neighbor_sum/radial/output", "layer_0/skip/element_degree_0"
    for name, count in ((plain, 1), (by_element, 2)):
        w = old[name].reshape(count, old[name].shape[0 if count == 1 else 1], -1)
        change = (new[name] - old[name]).reshape(w.shape)
        for z in range(count):
            a, b = variables[name]["down"][z], variables[name]["up"][z]
            expected = np.sqrt(np.mean(old[name] ** 2)) * (a @ b) / np.sqrt(a.shape[1])
            np.testing.assert_allclose(change[z], expected, atol=1e-12)
            assert np.linalg.matrix_rank(change[z], tol=1e-9) == min(rank, *w.shape[1:])


def test_low_rank_has_fewer_variables(grown: tuple[ForceField, list[str]]) -> None:
    force_field, _ = grown
    full, low = (count_variables(adapters(grown, m).start(force_field.params)) for m in ("full", "lora"))
    one = count_variables(adapters(grown, "lora", rank=1).start(force_field.params))
    assert full == force_field.num_params
    assert one < low
    assert one < 0.7 * full


def test_merged_is_unmerged(grown: tuple[ForceField, list[str]], zoo_pair: list[ase.Atoms], float64: None) -> None:
    """The merged file predicts what the network with its adapters predicted in training."""
    force_field, _ = grown
    tuning = adapters(grown, "lora")
    variables, merged = moved(force_field, tuning)
    graph = force_field.graph(zoo_pair[0])
    unmerged = jax.jit(lambda v: force_field.predictor.interaction(tuning.merge(force_field.params, v), graph))
    inside = force_field.predictor.add_reference(graph, jax.tree.map(np.asarray, unmerged(variables)))
    outside = merged(graph, dtype="float64")
    np.testing.assert_allclose(inside.energy, outside.energy, rtol=0, atol=1e-10)
    np.testing.assert_allclose(inside.forces, outside.forces, rtol=0, atol=1e-10)
    before = force_field(graph, dtype="float64")
    assert np.abs(outside.forces - before.forces).max() > 1e-3


@pytest.fixture
def zoo_pair() -> list[ase.Atoms]:
    """A small molecule, and the same turned and inverted."""
    rng = np.random.default_rng(5)
    atoms = ase.Atoms("OH3", positions=rng.normal(size=(4, 3)) * 0.8)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned = ase.Atoms(atoms.numbers, positions=-atoms.positions @ rotation.T)
    turned.info["rotation"] = -rotation
    return [atoms, turned]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_changed_weights_stay_equivariant(
    method: str, grown: tuple[ForceField, list[str]], zoo_pair: list[ase.Atoms], float64: None
) -> None:
    force_field, _ = grown
    _, result = moved(force_field, adapters(grown, method))
    before, after = (predict(result, [atoms]) for atoms in zoo_pair)
    np.testing.assert_allclose(after.energy, before.energy, atol=1e-10)
    np.testing.assert_allclose(after.forces[:4], before.forces[:4] @ zoo_pair[1].info["rotation"].T, atol=1e-10)


def test_weight_decay_pulls_to_the_pretrained_weights(grown: tuple[ForceField, list[str]]) -> None:
    force_field, _ = grown
    tuning = adapters(grown, "full")
    variables, far = moved(force_field, tuning)
    optimizer = make_optimizer(0.1, 1.0, 100, schedule="constant", weight_decay=0.5, accumulate=1)
    variables = jax.tree.map(jnp.asarray, variables)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, variables), optimizer.init(variables), variables)
    near = tuning.merge(dict(force_field.params), jax.tree.map(np.asarray, optax.apply_updates(variables, updates)))
    start, old, new = leaves(force_field), leaves(far), leaves(replace(far, params=near))
    for name in start:
        np.testing.assert_allclose(new[name] - start[name], 0.95 * (old[name] - start[name]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_mace_is_in_one_part(name: str) -> None:
    check_parts(random_force_field(CONFIGS[name], INFO))


@pytest.mark.parametrize("options", [{"layer_norm": True}, {"element_skip": True}])
def test_every_parameter_of_nequip_is_in_one_part(options: dict[str, bool]) -> None:
    config = NequipConfig(channels=(4, 2), num_layers=2, l_max=1, embedding_channels=3, radial_mlp=(4,), **options)
    check_parts(random_weights(Nequip(config, INFO)))


def check_parts(force_field: ForceField) -> None:
    """Freezing one part after the other freezes each pretrained parameter once."""
    network, params = force_field.predictor.network, force_field.params
    trained = []
    for part in network.parts:
        others = [other for other in network.parts if other != part]
        try:
            free = choose_adapters(params, network, [], others, None)
        except ValueError:  # a part that this configuration does not have
            continue
        trained += list(free.ranks)
    assert sorted(trained) == sorted(leaves(force_field))


@pytest.mark.parametrize("entry", ["embeding", "layer_7/*", "head_new"])
def test_a_pattern_that_matches_nothing_is_refused(entry: str, grown: tuple[ForceField, list[str]]) -> None:
    with pytest.raises(
        ValueError, match=rf"freeze='{entry.replace('*', '.')}' matches no parameter; give 'embedding', "
    ):
        adapters(grown, "freeze", freeze=(entry,))


def test_a_pattern_of_names(grown: tuple[ForceField, list[str]]) -> None:
    force_field, _ = grown
    ranks = adapters(grown, "freeze", freeze=("layer_0/*",)).ranks
    assert set(ranks) == {name for name in leaves(force_field) if not name.startswith("layer_0/")}


def test_all_parameters_are_their_own_variables(grown: tuple[ForceField, list[str]]) -> None:
    force_field, _ = grown
    variables = TrainAll().start(force_field.params)
    assert TrainAll().merge(force_field.params, variables) is variables
    assert count_variables(variables) == force_field.num_params


def test_accumulated_batches_make_one_update() -> None:
    """Two gradients of 1 and 3 move as one of 2."""
    options = {"schedule": "constant", "weight_decay": 0.0}
    twice = make_optimizer(0.1, 10.0, 10, accumulate=2, **options)
    once = make_optimizer(0.1, 10.0, 10, accumulate=1, **options)
    start = {"w": jnp.zeros(3)}
    state, params = twice.init(start), start
    for slope in (1.0, 3.0):
        updates, state = twice.update({"w": jnp.full(3, slope)}, state, params, value=jnp.zeros(()))
        params = optax.apply_updates(params, updates)
    updates, _ = once.update({"w": jnp.full(3, 2.0)}, once.init(start), start)
    np.testing.assert_allclose(params["w"], updates["w"], rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_muon_takes_the_maps_between_features(config: MaceConfig) -> None:
    """Whatever multiplies all features is a matrix; what an element has, and a vector, is none."""
    params = random_force_field(config, INFO).params
    flat = flatten_dict(dict(params), sep="/")
    axes = flatten_dict(matrices(params), sep="/")
    assert set(axes) == set(flat)
    taken = {name for name, found in axes.items() if found is not None}
    never = ("embedding", "contraction", "bias", "norm", "alpha", "beta")
    never += ("element_neighbor", "element_center", "element_degree")
    assert {name for name, x in flat.items() if x.ndim >= 2 and not any(word in name for word in never)} == taken


@pytest.mark.parametrize("method", ["full", "lora"])
def test_muon_takes_the_same_matrices_of_a_change(grown: tuple[ForceField, list[str]], method: str) -> None:
    """A free change has its parameter's axes, a low-rank one two matrices; the variables keep their structure."""
    variables = adapters(grown, method).start(grown[0].params)
    found, whole = matrices(variables), flatten_dict(matrices(grown[0].params), sep="/")
    assert set(found) == set(variables)
    for name, parts in found.items():
        assert set(parts) == set(variables[name])
        if "change" in parts:
            assert parts["change"] == whole[name]
        elif whole[name] is not None:
            assert parts["down"] == parts["up"] == (1, 2)


def test_muon_makes_updates_of_matrices_orthogonal() -> None:
    """Singular values from 1 to 64 become alike, each path of a radial network by itself; vectors move as with Adam."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(2))
    matrix = jnp.asarray(left @ np.diag(np.geomspace(1, 64, 16)) @ right)
    gradient = {
        "linear": {"degree_0": matrix},
        "radial": {"output": jnp.stack([matrix, 100.0 * matrix], axis=1)},
        "alpha": jnp.array([3.0, -200.0]),
    }
    optimizer = make_optimizer(0.1, 1e9, 10, schedule="constant", weight_decay=0.0, accumulate=1, optimizer="muon")
    start = jax.tree.map(jnp.zeros_like, gradient)
    updates, _ = optimizer.update(gradient, optimizer.init(start), start)
    adam = optax.nadam(0.1).init({"x": gradient["alpha"]})
    expected, _ = optax.nadam(0.1).update({"x": gradient["alpha"]}, adam)
    np.testing.assert_allclose(updates["alpha"], expected["x"], rtol=1e-5)
    for update in (updates["linear"]["degree_0"], *jnp.moveaxis(updates["radial"]["output"], 1, 0)):
        values = np.linalg.svd(np.asarray(update), compute_uv=False)
        assert values.max() / values.min() < 2
        assert np.sum(update * matrix) < 0
        assert np.sqrt(np.mean(update**2)) == pytest.approx(0.1 * 0.2, rel=0.2)


def test_plateau_halves_the_rate() -> None:
    optimizer = make_optimizer(0.1, 10.0, 10, schedule="plateau", weight_decay=0.0, accumulate=1)
    params = {"w": jnp.zeros(1)}

    @jax.jit
    def step(state: object) -> tuple[object, jax.Array]:
        updates, state = optimizer.update({"w": jnp.ones(1)}, state, params, value=jnp.ones(()))
        return state, updates["w"]

    state, sizes = optimizer.init(params), []
    for _ in range(500):
        state, size = step(state)
        sizes.append(abs(float(size[0])))
    assert sizes[0] == pytest.approx(0.1, rel=1e-3)
    assert sizes[-1] == pytest.approx(sizes[10] / 4, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "schedule='linear': give one of 'cosine', 'plateau', 'constant'"),
        ({"optimizer": "sgd"}, "optimizer='sgd': give one of 'amsgrad', 'muon'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0"),
    ],
)
def test_optimisers_that_cannot_be(changes: dict[str, object], message: str) -> None:
    usual = {"learning_rate": 0.1, "clip": 1.0, "steps": 10, "schedule": "cosine", "weight_decay": 0.0, "accumulate": 1}
    with pytest.raises(ValueError, match=message):
        make_optimizer(**{**usual, **changes})
