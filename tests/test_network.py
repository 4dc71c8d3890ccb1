"""Symmetries of the whole potential, smoothness, and every configuration."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations, pairwise
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CUTOFF, INFO, TINY, build_zoo, predict, random_force_field
from scipy.spatial.transform import Rotation

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.networks import contraction, neighbor_sum
from ase_mlip.networks.blocks import map_node_blocks
from ase_mlip.networks.mace import MaceConfig
from ase_mlip.predictor import Prediction

SIMPLE = replace(TINY, num_layers=1, l_max=1, hidden_l_max=0, correlation=1)
VARIANTS = {
    "scalar": replace(TINY, hidden_l_max=0, correlation=1),
    "quadrupole": replace(TINY, hidden_l_max=2, correlation=3),
    "four_body": replace(TINY, num_layers=1, correlation=4),
    "octupole": replace(TINY, l_max=3, correlation=3, num_channels=3, cutoff_order=6),
    "plain": replace(TINY, first_layer="plain"),
    "three_layers": replace(TINY, num_layers=3, num_readout_heads=2),
    "four_body_vector": replace(TINY, correlation=4, hidden_l_max=1, num_channels=2),
}


@pytest.fixture(scope="module")
def everything(force_field: ForceField) -> tuple[dict[str, ase.Atoms], dict[str, Prediction]]:
    """All structures of the zoo, and one of them in other words, in one batch: one compilation for many tests."""
    zoo = build_zoo()
    for name in ("exchanged", "reversed"):
        zoo[name] = zoo["triclinic"].copy()
    zoo["exchanged"].cell[:] = zoo["triclinic"].cell.array[[1, 0, 2]]
    zoo["reversed"].cell[2] *= -1
    return zoo, dict(zip(zoo, split(force_field, list(zoo.values())), strict=True))


def split(force_field: ForceField, structures: list[ase.Atoms], shape: PadShape | None = None) -> list[Prediction]:
    """Predict structures as one batch in float64, and take it apart again."""
    whole, ends = predict(force_field, structures, shape), np.cumsum([0, *(len(a) for a in structures)])
    rows = [slice(*pair) for pair in pairwise(ends)]
    assert not whole.forces[ends[-1] :].any()
    return [
        Prediction(whole.energy[g], whole.forces[r], whole.stress[g], whole.node_energies[r])
        for g, r in enumerate(rows)
    ]


def check_symmetries(force_field: ForceField, structures: list[ase.Atoms]) -> None:
    """Rotation with inversion, lattice translation, permutation and supercell, all in one batch with the originals."""
    rng = np.random.default_rng(3)
    rotation = -Rotation.random(random_state=11).as_matrix()
    orders = [rng.permutation(len(atoms)) for atoms in structures]
    family = []
    for atoms, order in zip(structures, orders, strict=True):
        rotated, translated = atoms.copy(), atoms.copy()
        rotated.set_cell(atoms.cell.array @ rotation.T)
        rotated.positions = atoms.positions @ rotation.T
        shifts = rng.integers(-3, 4, atoms.positions.shape) * atoms.pbc
        translated.positions += shifts @ atoms.cell.array + [0.3, -7.0, 1.1]
        family += [atoms, rotated, translated, atoms[order], atoms.repeat(np.where(atoms.pbc, [2, 1, 2], 1))]
    predictions = split(force_field, family)
    for number, order in enumerate(orders):
        first, rotated, translated, permuted, supercell = predictions[5 * number : 5 * number + 5]
        copies = len(supercell.forces) // len(first.forces)
        scale = np.abs(first.forces).max()
        assert scale > 1e-4  # equal zeros would prove nothing
        near = {"atol": 1e-10 * scale, "rtol": 1e-10, "err_msg": str(structures[number])}
        for other, factor in [(rotated, 1), (translated, 1), (permuted, 1), (supercell, copies)]:
            np.testing.assert_allclose(other.energy, factor * first.energy, rtol=1e-12)
        np.testing.assert_allclose(rotated.forces, first.forces @ rotation.T, **near)
        np.testing.assert_allclose(translated.forces, first.forces, **near)
        np.testing.assert_allclose(permuted.forces, first.forces[order], **near)
        np.testing.assert_allclose(supercell.forces, np.tile(first.forces, (copies, 1)), **near)
        np.testing.assert_allclose(permuted.node_energies, first.node_energies[order], rtol=1e-12)
        np.testing.assert_allclose(rotated.stress, rotation @ first.stress @ rotation.T, atol=1e-12)
        for other in (translated, permuted, supercell):
            np.testing.assert_allclose(other.stress, first.stress, atol=1e-12)
        np.testing.assert_allclose(first.stress, first.stress.T, atol=1e-12)


def test_symmetries(force_field: ForceField) -> None:
    """For bulk smaller than the cutoff, slab, wire and molecule."""
    zoo = build_zoo()
    check_symmetries(force_field, [zoo[name] for name in ("primitive", "slab", "wire", "molecule")])


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str) -> None:
    """Every kind of network runs, and keeps the symmetries."""
    check_symmetries(random_force_field(VARIANTS[name], seed=2), [build_zoo()["molecule"]])


def test_left_handed_cell_is_only_a_name(everything: tuple[dict[str, ase.Atoms], dict[str, Prediction]]) -> None:
    """The same crystal with its cell vectors exchanged, or one of them reversed: same energy, forces and stress."""
    first = everything[1]["triclinic"]
    assert np.abs(first.stress).max() > 1e-4
    for name in ("exchanged", "reversed"):
        other = everything[1][name]
        np.testing.assert_allclose(other.energy, first.energy, rtol=1e-13)
        np.testing.assert_allclose(other.forces, first.forces, atol=1e-13)
        np.testing.assert_allclose(other.stress, first.stress, atol=1e-14)


def test_batching_and_padding(
    force_field: ForceField,
    everything: tuple[dict[str, ase.Atoms], dict[str, Prediction]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A graph's numbers depend neither on its company, nor on padding, nor on doing nodes in blocks; none is NaN."""
    zoo, together = everything
    for module in (neighbor_sum, contraction):
        monkeypatch.setattr(module, "map_node_blocks", lambda function, arrays, _: map_node_blocks(function, arrays, 2))
    names = ["slab", "molecule", "atom", "far_pair"]
    with jax.debug_nans(True):
        apart = split(force_field, [zoo[name] for name in names], PadShape(7, 33, 21))
    for name, prediction in zip(names, apart, strict=True):
        np.testing.assert_allclose(prediction.energy, together[name].energy, rtol=1e-13)
        np.testing.assert_allclose(prediction.node_energies, together[name].node_energies, rtol=1e-12)
        np.testing.assert_allclose(prediction.forces, together[name].forces, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(prediction.stress, together[name].stress, rtol=1e-10, atol=1e-14)


def test_isolated_atoms_have_their_own_energy(
    everything: tuple[dict[str, ase.Atoms], dict[str, Prediction]],
) -> None:
    """Atoms beyond the cutoff: energies of single atoms, forces exactly zero; no stress without a full cell."""
    together = everything[1]
    assert not together["atom"].forces.any()
    assert not together["far_pair"].forces.any()
    assert together["far_pair"].node_energies[0] == together["atom"].node_energies[0] == together["atom"].energy
    for name in ("sheet", "molecule", "atom", "far_pair"):
        assert not together[name].stress.any()


def test_no_gradient_across_graphs(force_field: ForceField) -> None:
    """The derivative of one graph's energy by another graph's or padding's positions is exactly zero."""
    zoo = build_zoo()
    graph = batch([force_field.graph(zoo[name]) for name in ("molecule", "wire")], PadShape(3, 12, 8))
    network, params = force_field.predictor.network, force_field.params

    def energy(positions: jax.Array) -> jax.Array:
        moved = replace(single, positions=positions)
        return network.apply({"params": params}, moved.vectors(CUTOFF), moved)[:6].sum()

    single = graph.astype("float32")
    gradient = np.asarray(jax.jit(jax.grad(energy))(jnp.asarray(single.positions)))
    assert np.abs(gradient[:6]).max() > 1e-3
    assert not gradient[6:].any()


def test_smooth_through_the_cutoff(force_field: ForceField) -> None:
    """An atom leaves the neighbourhood of a pair: energy, forces and their slopes go to zero together."""
    distances = CUTOFF - np.array([1e-7, 2e-2, 1e-2, -1e-7, -0.2])
    trimers = [ase.Atoms("OHC", positions=[[0, 0, 0], [-0.5, -0.9, 0.2], [d, 0, 0]]) for d in distances]
    # the list reaches farther than the cutoff, as it does in the calculator
    weights = force_field.predictor.head_weights()
    graphs = [Graph.from_atoms(atoms, force_field.elements, CUTOFF + 1.0, weights) for atoms in trimers]
    p = force_field(batch(graphs), dtype="float64")
    forces, change = p.forces.reshape(5, 3, 3), p.energy - p.energy[4]
    pulls = np.abs(forces[:, 2]).max(axis=1)
    assert change[3] == 0
    assert not pulls[3:].any()
    assert 0 < pulls[0] < 1e-12
    assert abs(change[0]) < 1e-14 < abs(change[1])
    assert 7.5 < pulls[1] / pulls[2] < 8.5  # F ~ (c - r)^3, one power from the Bessel functions: smooth to third order
    np.testing.assert_allclose(forces[0], forces[4], atol=1e-12)


def test_each_config_field_counts() -> None:
    """Changing any field of the config changes the parameters or, where it does not, the energy."""
    other: dict[str, Any] = {
        "num_channels": 3, "num_layers": 1, "l_max": 1, "hidden_l_max": 0, "correlation": 1, "num_bessel": 5,
        "cutoff_order": 3, "radial_mlp": (8, 8), "readout_mlp": 5, "first_layer": "plain", "num_readout_heads": 2,
        "head_names": ("other",), "interaction": "density", "edge_channels": (4, 2), "distance_transform": "agnesi",
        "envelope": "messages", "element_products": False, "readouts": "last_layer", "readout": "biased_mlp",
        "cutoff_function": "soft", "gated_products": True, "pair_embedding": 2,
    }  # fmt: skip
    assert set(other) == {field.name for field in fields(MaceConfig)}

    def shapes(config: MaceConfig) -> Any:
        return jax.tree.map(np.shape, dict(random_force_field(config).params))

    silent = {name for name, value in other.items() if shapes(replace(TINY, **{name: value})) == shapes(TINY)}
    assert silent == {"cutoff_function", "cutoff_order", "distance_transform", "envelope"}
    atoms = [build_zoo()["molecule"]]

    def energy(**changed: Any) -> float:
        return float(predict(random_force_field(replace(SIMPLE, **changed)), atoms).energy[0])

    energies = [
        energy(),
        energy(distance_transform="soft"),
        energy(cutoff_function="cosine"),
        *(energy(**{name: other[name]}) for name in sorted(silent)),
    ]
    assert min(abs(a - b) for a, b in combinations(energies, 2)) > 1e-4


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_layers": 0},
        {"hidden_l_max": 3},
        {"correlation": 5},
        {"first_layer": "none"},
        {"head_names": ("a", "b")},
        {"edge_channels": (3,)},
        {"interaction": "gated", "radial_mlp": ()},
    ],
)
def test_wrong_config(wrong: dict[str, Any]) -> None:
    """The error names the field and what is allowed."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(TINY, **wrong)


def test_constants_of_the_dataset_count() -> None:
    """Mean neighbours, scale, shift and E0 reach the energy, the last three linearly."""
    atoms = [build_zoo()["wire"]]
    (head,) = INFO.heads

    def energy(info: DatasetInfo) -> float:
        return float(predict(random_force_field(SIMPLE, info), atoms).energy[0])

    raw = energy(INFO.with_heads([replace(head, scale=1.0, shift=0.0, atomic_energies=(0.0,) * 4)]))
    assert abs(raw) > 1e-2
    assert energy(INFO) == pytest.approx(0.8 * raw + 4 * (0.1 - 1.3), rel=1e-12)
    assert abs(energy(replace(INFO, avg_num_neighbors=5.0)) - energy(INFO)) > 1e-4
