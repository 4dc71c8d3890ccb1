"""The loop that trains: a loss checked against plain numpy, exact resuming, and the best step kept."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_data import leaves, same_bits, toy_examples, toy_force_field, toy_frames

from ase_mlip.batches import Batches
from ase_mlip.dataset import Example, Targets
from ase_mlip.evaluate import Errors, LossWeights, evaluate
from ase_mlip.force_field import ForceField
from ase_mlip.history import best_record
from ase_mlip.loss import loss_function, without_reference
from ase_mlip.predictor import compiled_interaction
from ase_mlip.report import write_results
from ase_mlip.training import TrainResult, TrainSettings, Validation, make_train_step, train

LOSS = LossWeights(energy=3.0, forces=0.5, stress=200.0, huber_delta=0.05)
SETTINGS = TrainSettings(epochs=4, batch_size=4, ema=0.9, eval_every=2)
loss_and_gradient = jax.jit(jax.value_and_grad(loss_function, has_aux=True), static_argnums=(1, 4))


@pytest.fixture(scope="module")
def force_field() -> ForceField:
    """The start of all trainings."""
    return toy_force_field()


@pytest.fixture(scope="module")
def examples(force_field: ForceField) -> list[Example]:
    """Six labelled molecules of three and two atoms."""
    return toy_examples(force_field, toy_frames(6))


@pytest.fixture(scope="module")
def one_batch(force_field: ForceField, examples: list[Example]) -> Example:
    """Three of them in float32, one graph and several nodes of padding, and every kind of missing label."""
    (joined,) = Batches(examples[:4], 4).epoch(None)
    graph, targets = without_reference(force_field.predictor, joined)
    nodes = np.arange(graph.shape.nodes)
    return Example(
        graph,
        replace(
            targets,
            energy_mask=np.array([True, True, False, True]),
            forces_mask=targets.forces_mask & ((nodes < 3) | (nodes >= 8)),  # of graphs 0 and 3
            stress_mask=np.array([False, True, True, False]),
            weight=np.float32([1.0, 0.5, 2.0, 0.25]),
        ),
    )


def watch(examples: list[Example]) -> list[Validation]:
    """One level, watched on these frames."""
    return [Validation("base", examples)]


def gradient(force_field: ForceField, batch: Example, targets: Targets) -> list[np.ndarray]:
    """Gradient of the loss, leaf by leaf."""
    _, found = loss_and_gradient(force_field.params, force_field.predictor, batch.graph, targets, LOSS)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]


def squared(error: float) -> float:
    """Twice Huber's function as Huber wrote it: e^2 within delta, delta (2 |e| - delta) beyond."""
    delta = LOSS.huber_delta
    return error**2 if abs(error) <= delta else delta * (2 * abs(error) - delta)


def test_loss_is_the_weighted_mean_over_present_labels(force_field: ForceField, one_batch: Example) -> None:
    graph, targets = one_batch.graph, one_batch.targets
    predicted = jax.tree.map(
        np.asarray, compiled_interaction(force_field.predictor, force_field.cast_params("float32"), graph, False)
    )
    energy, forces, stress = [], [], []
    for number in range(graph.num_graphs):
        nodes = np.flatnonzero(graph.node_graph == number)
        weight = targets.weight[number]
        if targets.energy_mask[number]:
            energy.append(weight * squared((predicted.energy[number] - targets.energy[number]) / len(nodes)))
        for node in nodes[targets.forces_mask[nodes]]:
            errors = predicted.forces[node] - targets.forces[node]
            forces.append(weight * sum(map(squared, errors)) / 3)
        if targets.stress_mask[number]:
            errors = (predicted.stress[number] - targets.stress[number]).ravel()
            stress.append(weight * sum(map(squared, errors)) / 9)
    assert [len(energy), len(forces), len(stress)] == [3, 5, 2]
    (loss, parts), _ = loss_and_gradient(force_field.params, force_field.predictor, graph, targets, LOSS)
    for name, values in (("energy", energy), ("forces", forces), ("stress", stress)):
        assert np.mean(values) > 0
        np.testing.assert_allclose(parts[name], np.mean(values), rtol=1e-5)
    expected = 3.0 * np.mean(energy) + 0.5 * np.mean(forces) + 200.0 * np.mean(stress)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_absent_labels_leave_no_trace(force_field: ForceField, one_batch: Example) -> None:
    targets = one_batch.targets
    garbage = replace(
        targets,
        energy=np.where(targets.energy_mask, targets.energy, np.float32(1e6)),
        forces=np.where(targets.forces_mask[:, None], targets.forces, np.float32(1e6)),
        stress=np.where(targets.stress_mask[:, None, None], targets.stress, np.float32(1e6)),
    )
    for ours, theirs in zip(*(gradient(force_field, one_batch, t) for t in (targets, garbage)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    nothing = replace(targets, **{f"{k}_mask": getattr(targets, f"{k}_mask") & False for k in ("energy", "stress")})
    nothing = replace(nothing, forces_mask=targets.forces_mask & False)
    assert not any(leaf.any() for leaf in gradient(force_field, one_batch, nothing))
    only_energy = replace(nothing, energy_mask=targets.energy_mask)
    moved = replace(only_energy, forces=targets.forces + 1, stress=targets.stress + 1)
    for ours, theirs in zip(*(gradient(force_field, one_batch, t) for t in (only_energy, moved)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(leaf.any() for leaf in gradient(force_field, one_batch, only_energy))


def test_weight_of_a_graph_scales_its_gradient(force_field: ForceField, one_batch: Example) -> None:
    def at(*weight: float) -> np.ndarray:
        targets = replace(one_batch.targets, weight=np.float32(weight))
        return np.concatenate([leaf.ravel() for leaf in gradient(force_field, one_batch, targets)])

    first, rest, both = at(1, 0, 0, 0), at(0, 1, 1, 1), at(3, 1, 1, 1)
    scale = np.abs(first).max()
    assert scale > 0
    np.testing.assert_allclose(both, 3 * first + rest, atol=1e-4 * scale)
    assert np.abs(both - rest).max() > 0.1 * scale


def test_coarse_products_are_the_networks_alone(force_field: ForceField, one_batch: Example) -> None:
    """With TF32 the vectors between atoms are computed as before, cells included; the gradient's products follow."""
    products = {}
    for precision in ("float32", "tensorfloat32"):
        arguments = (force_field.params, force_field.predictor, one_batch.graph, one_batch.targets, LOSS, precision)
        text = jax.jit(jax.grad(loss_function, has_aux=True), static_argnums=(1, 4, 5)).lower(*arguments).as_text()
        products[precision] = Counter(re.findall(r"dot_general.*precision = \[(\w+), \w+\]", text))
    assert set(products["float32"]) == {"HIGHEST"}
    assert set(products["tensorfloat32"]) == {"HIGH", "HIGHEST"}
    vectors = jax.jit(lambda graph: graph.vectors(4.0)).lower(one_batch.graph).as_text()
    assert products["tensorfloat32"]["HIGHEST"] >= vectors.count("dot_general") > 0
    assert products["tensorfloat32"]["HIGH"] > 0.8 * products["float32"]["HIGHEST"]


def test_coarse_products_are_refused_where_there_are_none(force_field: ForceField, examples: list[Example]) -> None:
    settings = replace(SETTINGS, matmul_precision="tensorfloat32")
    with pytest.raises(ValueError, match="matmul_precision='tensorfloat32' has no effect on a CPU"):
        train(force_field, examples, watch(examples), optax.sgd(1e-3), settings)


def test_reference_energies_come_off_in_float64(force_field: ForceField, examples: list[Example]) -> None:
    (joined,) = Batches(examples, 6).epoch(None)
    graph, targets = without_reference(force_field.predictor, joined)
    expected = [energy - (-13.0 if n % 2 == 0 else -10.0) for n, energy in enumerate(joined.targets.energy)]
    np.testing.assert_allclose(targets.energy, expected, atol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves((graph, targets))} <= {np.dtype(t) for t in ("f4", "i4", "?")}


def test_step_and_moving_average(force_field: ForceField, one_batch: Example) -> None:
    """Plain gradient descent and its average, followed by hand."""
    step = make_train_step(force_field.predictor, optax.sgd(1e-3), replace(SETTINGS, loss=LOSS))
    copy = lambda: jax.tree.map(jnp.array, force_field.params)  # noqa: E731
    params, average, state = copy(), copy(), optax.sgd(1e-3).init(force_field.params)
    by_hand = [np.array(leaf, float) for leaf in jax.tree.leaves(force_field.params)]
    mean = [leaf.copy() for leaf in by_hand]
    for _ in range(3):
        current = ForceField(force_field.predictor, jax.tree.map(np.asarray, params))
        for number, slope in enumerate(gradient(current, one_batch, one_batch.targets)):
            by_hand[number] -= 1e-3 * slope
            mean[number] = 0.9 * mean[number] + 0.1 * by_hand[number]
        params, average, state, _ = step(params, average, state, {}, one_batch.graph, one_batch.targets)
    pairs = ((params, by_hand), (average, mean))
    for found, expected in pairs:
        for ours, theirs in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
    assert max(np.abs(a - b).max() for a, b in zip(by_hand, mean, strict=True)) > 2e-5


Run = Callable[[int, Path | None], TrainResult]


@pytest.fixture(scope="module")
def run(force_field: ForceField, examples: list[Example]) -> Run:
    """The same training for a number of epochs, in a folder or without one."""

    def run(epochs: int, folder: Path | None) -> TrainResult:
        settings = replace(SETTINGS, epochs=epochs)
        return train(
            force_field, examples, watch(examples), optax.adam(3e-2), settings, folder=folder, log=lambda _: None
        )

    return run


@pytest.fixture(scope="module")
def uninterrupted(run: Run) -> TrainResult:
    """Twelve epochs at once."""
    return run(12, None)


def test_loss_falls(uninterrupted: TrainResult) -> None:
    losses = [record["valid_loss"] for record in uninterrupted.history]
    assert uninterrupted.best["valid_loss"] < 0.5 * losses[0]
    assert [record["epoch"] for record in uninterrupted.history] == [0, 2, 4, 6, 8, 10, 12]
    assert [record["step"] for record in uninterrupted.history] == [0, 4, 8, 12, 16, 20, 24]
    assert uninterrupted.history[0]["train_loss"] is None


def test_kept_parameters_are_those_of_the_best_evaluation(uninterrupted: TrainResult, examples: list[Example]) -> None:
    errors = evaluate(uninterrupted.force_field, Batches(examples, 4))
    assert errors.loss(SETTINGS.loss) == pytest.approx(min(r["valid_loss"] for r in uninterrupted.history), rel=1e-6)


def test_resuming_is_exact(uninterrupted: TrainResult, run: Run, tmp_path: Path) -> None:
    run(6, tmp_path / "run")
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == [0, 2, 4, 6]
    resumed = run(12, tmp_path / "run")
    assert resumed.history == uninterrupted.history
    ours, theirs = leaves(resumed.force_field), leaves(uninterrupted.force_field)
    assert all(same_bits(ours[name], theirs[name]) for name in theirs)
    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == uninterrupted.history


def test_worse_than_the_start_returns_the_start(force_field: ForceField, examples: list[Example]) -> None:
    """Uphill: every step is worse, so step 0 is kept; the caller's own arrays, jax or not, stay usable."""
    start = ForceField(force_field.predictor, jax.tree.map(jnp.array, force_field.params), {"name": "toy"})
    result = train(start, examples, watch(examples), optax.sgd(-1e-3), replace(SETTINGS, epochs=2), log=lambda _: None)
    assert result.history[-1]["valid_loss"] > result.history[0]["valid_loss"]
    assert result.best["epoch"] == 0
    kept, original, own = leaves(result.force_field), leaves(force_field), leaves(start)
    assert all(same_bits(kept[name], original[name]) for name in original)
    assert all(same_bits(own[name], original[name]) for name in original)
    assert result.force_field.provenance == {"name": "toy"}


def test_nonfinite_loss_stops(force_field: ForceField, examples: list[Example]) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) in epoch 1; lower the learning rate"):
        train(force_field, examples, watch(examples), optax.sgd(1e20), SETTINGS, log=lambda _: None)


def test_best_is_the_first_of_equals() -> None:
    history = [{"epoch": n, "valid_loss": loss} for n, loss in enumerate([3.0, 1.0, 2.0, 1.0])]
    assert best_record(history)["epoch"] == 1


def test_errors_and_their_loss_against_numpy() -> None:
    rng = np.random.default_rng(0)
    energy, forces = rng.normal(size=(2, 5)), rng.normal(size=(2, 12))
    errors = Errors(energy, forces, np.zeros((2, 0)), 5)
    summary = errors.summary()
    assert set(summary) == {"energy_mae", "energy_rmse", "forces_mae", "forces_rmse"}
    assert summary["energy_rmse"] == pytest.approx(np.linalg.norm(energy[1] - energy[0]) / 5**0.5)
    assert summary["forces_mae"] == pytest.approx(sum(abs(forces[1] - forces[0])) / 12)
    expected = 3.0 * np.mean([squared(e) for e in energy[1] - energy[0]])
    expected += 0.5 * np.mean([squared(e) for e in forces[1] - forces[0]])
    assert errors.loss(LOSS) == pytest.approx(expected)


def test_report_files(uninterrupted: TrainResult, examples: list[Example], tmp_path: Path) -> None:
    errors = evaluate(uninterrupted.force_field, Batches(examples, 4))
    path = write_results(
        tmp_path / "new" / "toy.safetensors", uninterrupted.force_field, uninterrupted.history, errors, errors
    )
    assert ForceField.load(path).provenance == {"name": "toy"}
    records = [json.loads(line) for line in path.with_suffix(".history.jsonl").read_text().splitlines()]
    assert records == uninterrupted.history
    picture = path.with_suffix(".png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture.endswith(b"IEND\xaeB`\x82")


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", -1), ("batch_size", 0), ("eval_every", 0), ("max_shapes", 0), ("ema", 1.0), ("patience", 0)],
)
def test_settings_that_cannot_be(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}={value}"):
        TrainSettings(**{field: value})


@pytest.mark.parametrize("options", [{"energy": -1}, {"energy": 0, "forces": 0}, {"huber_delta": 0}])
def test_loss_weights_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"weights|huber_delta"):
        LossWeights(**options)
