"""Labelled toy structures for the tests of training: ASE's Morse potential plus a known energy per element."""

from __future__ import annotations

from dataclasses import replace

import ase
import jax
import numpy as np
from ase.build import molecule
from ase.calculators.morse import MorsePotential
from ase.calculators.singlepoint import SinglePointCalculator
from conftest import random_force_field

from ase_mlip.dataset import Example, LabelKeys, make_examples
from ase_mlip.dataset_info import DatasetInfo, Head
from ase_mlip.force_field import ForceField
from ase_mlip.networks.mace import MaceConfig

E0 = {"H": -3.0, "O": -7.0}
CUTOFF = 4.0
CONFIG = MaceConfig(num_channels=4, num_layers=1, l_max=1, correlation=2, radial_mlp=(8,), readout_mlp=4)
INFO = DatasetInfo.create(E0, CUTOFF, avg_num_neighbors=2.0)


def toy_frames(
    count: int, seed: int = 0, e0: dict[str, float] = E0, names: tuple[str, ...] = ("H2O", "OH")
) -> list[ase.Atoms]:
    """Rattled molecules in a periodic box of 6 Angstrom, with energy, forces and stress attached."""
    frames = []
    for number in range(count):
        atoms = molecule(names[number % len(names)], cell=(6.0, 6.0, 6.0), pbc=True)
        atoms.rattle(0.05, seed=1000 * seed + number)
        atoms.calc = MorsePotential(epsilon=0.5, rho0=2.0, r0=1.0, rcut1=2.0, rcut2=2.9)
        energy = atoms.get_potential_energy() + sum(e0[symbol] for symbol in atoms.symbols)
        labels = {"energy": energy, "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return frames


def toy_force_field(seed: int = 0, info: DatasetInfo = INFO) -> ForceField:
    """Random float32 weights, small enough that the toy labels are within reach; nothing is compiled."""
    made = random_force_field(CONFIG, info, seed)
    return ForceField(made.predictor, jax.tree.map(np.float32, made.params), {"name": "toy"})


def toy_committee(info: DatasetInfo = INFO, members: int = 3, seed: int = 0) -> ForceField:
    """Levels "base", and "new": the base plus the mean of some random heads, each with constants of its own."""
    rng = np.random.default_rng(seed)
    names = tuple(f"new_{number}" for number in range(1, members + 1))
    energies = rng.normal(size=(members, len(info.elements)))
    heads = [Head(name, tuple(e), scale=0.3 + 0.1 * n) for n, (name, e) in enumerate(zip(names, energies, strict=True))]
    config = replace(CONFIG, num_readout_heads=1 + members, head_names=("base", *names))
    made = random_force_field(config, info.with_heads((*info.heads, *heads)), seed)
    levels = (("base", ("base",)), ("new", ("base", *names)))
    return replace(made, predictor=replace(made.predictor, levels=levels, committees=(names,)))


def toy_examples(force_field: ForceField, frames: list[ase.Atoms]) -> list[Example]:
    """Examples at the newest level."""
    weights = force_field.predictor.head_weights()
    return make_examples(frames, force_field.elements, force_field.cutoff, weights, LabelKeys())


def leaves(force_field: ForceField) -> dict[str, np.ndarray]:
    """Parameters by name, such as "layer_0/skip/element_degree_0"."""
    with_path = jax.tree_util.tree_leaves_with_path(dict(force_field.params))
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in with_path}


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal in type, shape and every bit; unlike `==`, 0.0 differs from -0.0."""
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
