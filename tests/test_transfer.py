"""The steps of fine-tuning by hand: transfer the parameters, mask the optimiser, train."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_data import CONFIG, INFO, leaves, same_bits, toy_examples, toy_force_field, toy_frames

from ase_mlip.finetune import mask_optimizer_for_finetuning, transfer_params
from ase_mlip.force_field import ForceField
from ase_mlip.networks.mace import Mace
from ase_mlip.training import TrainSettings, Validation, train


def tree() -> dict[str, Any]:
    """Parameters of an imaginary one-head network."""
    return {"trunk": {"a": np.float32([1, -2, 3]), "b": np.float32([[0.5]])}, "head_base": {"w": np.float32([7.0])}}


def grown() -> dict[str, Any]:
    """The same network with random values everywhere and two more blocks, one of them nested."""
    return {
        "trunk": {"a": np.zeros(3, np.float32), "b": np.ones((1, 1), np.float32), "extra": {"c": np.float32([4.0])}},
        "head_base": {"w": np.float32([0.0])},
        "head_new": {"w": np.float32([10.0, -30.0]), "v": np.float32([1.0])},
    }


@pytest.mark.parametrize("factor", [0.1, 0.0, 1.0])
def test_transfer_copies_the_old_and_scales_the_new(factor: float) -> None:
    old, new = tree(), grown()
    params, blocks = transfer_params(old, new, scale_factor=factor)
    assert sorted(blocks) == ["head_new", "trunk/extra"]
    assert jax.tree.structure(params) == jax.tree.structure(new)
    for path in (("trunk", "a"), ("trunk", "b"), ("head_base", "w")):
        assert same_bits(params[path[0]][path[1]], old[path[0]][path[1]])
    np.testing.assert_allclose(params["head_new"]["w"], [10 * factor, -30 * factor], rtol=1e-6)
    np.testing.assert_allclose(params["trunk"]["extra"]["c"], [4 * factor], rtol=1e-6)
    assert params["head_new"]["w"].dtype == np.float32
    assert new["head_new"]["w"].tolist() == [10.0, -30.0]  # the input stays as it was


def test_transfer_damps_to_a_tenth_by_default() -> None:
    params, _ = transfer_params(tree(), grown())
    np.testing.assert_allclose(params["head_new"]["w"], [1.0, -3.0], rtol=1e-6)


def test_transfer_refuses_what_does_not_fit() -> None:
    lost, other_shape = grown(), grown()
    del lost["trunk"]["b"]
    other_shape["trunk"]["a"] = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match=r"no place for the pretrained parameters \['trunk/b'\]"):
        transfer_params(tree(), lost)
    with pytest.raises(ValueError, match=r"trunk/a has the shape \(3,\) in the pretrained network and \(4,\)"):
        transfer_params(tree(), other_shape)
    with pytest.raises(ValueError, match="no block that the pretrained one lacks"):
        transfer_params(tree(), tree())


def after_steps(optimizer: optax.GradientTransformation, params: dict[str, Any]) -> dict[str, Any]:
    """Five steps with gradients of one everywhere."""

    @jax.jit
    def run(params: dict[str, Any]) -> dict[str, Any]:
        state = optimizer.init(params)
        for _ in range(5):
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
        return params

    return jax.tree.map(np.asarray, run(params))


def test_weight_decay_moves_only_the_named_blocks() -> None:
    params, blocks = transfer_params(tree(), grown())
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    bare = after_steps(optimizer, params)
    masked = after_steps(mask_optimizer_for_finetuning(optimizer, params, blocks), params)
    for path in (("trunk", "a"), ("trunk", "b"), ("head_base", "w")):
        assert same_bits(masked[path[0]][path[1]], params[path[0]][path[1]])
        assert not same_bits(bare[path[0]][path[1]], params[path[0]][path[1]])
    # the blocks move exactly as they would alone
    for name in ("w", "v"):
        assert np.abs(masked["head_new"][name] - params["head_new"][name]).min() > 0.01
        np.testing.assert_allclose(masked["head_new"][name], bare["head_new"][name], rtol=1e-6)
    assert np.abs(masked["trunk"]["extra"]["c"] - params["trunk"]["extra"]["c"]).min() > 0.01


def test_clipping_sees_only_the_named_blocks() -> None:
    """Eight gradients of one have the norm 8^0.5, the block's three 3^0.5: clipped to 1, each is 3^-0.5."""
    params, _ = transfer_params(tree(), grown())
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    masked = after_steps(mask_optimizer_for_finetuning(optimizer, params, ["head_new"]), params)
    np.testing.assert_allclose(params["head_new"]["w"] - masked["head_new"]["w"], 5 / 3**0.5, rtol=1e-5)
    assert same_bits(masked["trunk"]["extra"]["c"], params["trunk"]["extra"]["c"])


def test_unknown_blocks_are_refused() -> None:
    optimizer = optax.sgd(1.0)
    # the beginning of a name is not a block
    for blocks in (["head_nwe"], ["head_new", "head"], ["trunk/ex"], []):
        with pytest.raises(ValueError, match=r"the network has the blocks \['head_base', 'head_new', 'trunk'\]"):
            mask_optimizer_for_finetuning(optimizer, grown(), blocks)


def test_the_recipe_by_hand() -> None:
    """A second readout head on a pretrained network, each step explicit."""
    pretrained = toy_force_field(seed=3)
    options = {**asdict(CONFIG), "num_readout_heads": 2}
    mace = Mace(Mace.Config(**options), INFO)
    initial = ForceField.from_mlip_network(mace)
    params, blocks = transfer_params(pretrained.params, initial.params, scale_factor=0.1)
    optimizer = mask_optimizer_for_finetuning(optax.adam(1e-2), params, blocks)
    force_field = ForceField(initial.predictor, params)

    assert blocks == ["head_head_1"]
    assert force_field.levels == {"base": ("base",), "head_1": ("base", "head_1")}
    old, start, untrained = leaves(pretrained), leaves(force_field), leaves(initial)
    assert all(same_bits(start[name], old[name]) for name in old)
    for name in set(start) - set(old):
        np.testing.assert_allclose(start[name], 0.1 * untrained[name], rtol=1e-6)

    frames = toy_frames(4, seed=5)
    examples = toy_examples(force_field, frames)
    settings = TrainSettings(epochs=2, batch_size=4)
    result = train(force_field, examples, [Validation("head_1", examples)], optimizer, settings, log=lambda _: None)
    assert result.best["epoch"] > 0
    final = leaves(result.force_field)
    assert all(same_bits(final[name], old[name]) for name in old)
    assert all(np.abs(final[name] - start[name]).max() > 1e-4 for name in set(start) - set(old))

    def energy(model: ForceField, atoms: ase.Atoms, level: str) -> float:
        return float(model(model.graph(atoms, level), dtype="float64").energy[0])

    trained = replace(result.force_field, provenance={})
    assert energy(trained, frames[0], "base") == energy(pretrained, frames[0], "base")
    assert abs(energy(trained, frames[0], "head_1") - energy(trained, frames[0], "base")) > 1e-4
