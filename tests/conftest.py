"""Shared fixtures: tiny force fields with random weights, and the zoo of structures that every test walks through."""

from __future__ import annotations

import os
import tempfile

# compile faster, run slower: the networks here are tiny and each runs a few times; must be set before jax is imported
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
CACHE = tempfile.TemporaryDirectory()  # of this run alone: what is compiled twice is compiled once
os.environ["ASE_MLIP_CACHE"] = CACHE.name

from collections.abc import Iterator, Sequence
from dataclasses import replace

import ase
import jax
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule

from ase_mlip.dataset_info import DatasetInfo, Head
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.networks.mace import Mace, MaceConfig
from ase_mlip.predictor import Network, Prediction, Predictor

CUTOFF = 3.4
TINY = MaceConfig(num_channels=4, l_max=2, correlation=2, num_bessel=4, radial_mlp=(8,), readout_mlp=4)
INFO = DatasetInfo.create(
    {"H": -0.4, "C": -1.3, "O": -2.1, "Cu": -3.2}, CUTOFF, avg_num_neighbors=9.0, scale=0.8, shift=0.1
)


def random_force_field(config: MaceConfig = TINY, info: DatasetInfo = INFO, seed: int = 0) -> ForceField:
    """A MACE with random weights."""
    return random_weights(Mace(config, info), seed)


def random_weights(network: Network, seed: int = 0) -> ForceField:
    """Unit-normal weights drawn by numpy: only the shapes are asked of the network, so that nothing is compiled."""
    info = network.dataset_info
    graph = Graph.from_atoms(ase.Atoms("H"), info.elements, info.cutoff, np.ones(network.config.num_readout_heads))
    graph = batch([graph.astype("float32")], PadShape(1, 4, 4))
    shapes = jax.eval_shape(network.init, jax.random.key(0), graph.vectors(info.cutoff), graph)["params"]
    rng = np.random.default_rng(seed)
    return ForceField(Predictor.from_network(network), jax.tree.map(lambda x: rng.normal(size=x.shape), shapes))


def predict(force_field: ForceField, structures: Sequence[ase.Atoms], shape: PadShape | None = None) -> Prediction:
    """Evaluate structures as one batch in float64."""
    return force_field(batch([force_field.graph(atoms) for atoms in structures], shape), dtype="float64")


def build_zoo() -> dict[str, ase.Atoms]:
    """One structure for every kind of periodicity and for every trap; at most 8 atoms each."""
    copper = bulk("Cu", cubic=True)
    shear = np.array([[1.0, 0.1, 0.05], [0.0, 1.0, 0.2], [0.1, 0.0, 1.0]])
    triclinic = copper.copy()
    triclinic.set_cell(copper.cell.array @ shear, scale_atoms=True)
    left_handed = triclinic.copy()
    left_handed.set_cell(triclinic.cell.array[[1, 0, 2]])
    slab = fcc111("Cu", (2, 1, 2), a=3.6, vacuum=4.0, orthogonal=False)
    slab.pbc = (True, True, False)
    sheet = slab.copy()
    sheet.cell[2] = 0.0
    wire = ase.Atoms("C4", positions=[[1.3 * i, 0.2 * (-1) ** i, 0.1 * i] for i in range(4)], cell=(5.2, 8, 8))
    wire.pbc = (True, False, False)
    zoo = {
        "bulk": copper,
        "primitive": bulk("CuO", "zincblende", a=4.3),
        "triclinic": triclinic,
        "left_handed": left_handed,
        "slab": slab,
        "sheet": sheet,
        "wire": wire,
        "molecule": molecule("CH3OH"),
        "boxed_molecule": ase.Atoms("OH2", positions=molecule("H2O").positions, cell=(6, 6, 6)),
        "atom": ase.Atoms("O"),
        "far_pair": ase.Atoms("OC", positions=[[0, 0, 0], [0, 0, CUTOFF + 1]]),
    }
    for number, atoms in enumerate(zoo.values()):
        atoms.rattle(0.06, seed=number)
    return zoo


@pytest.fixture(scope="module", autouse=True)
def free_compiled_code() -> Iterator[None]:
    """Each compiled function holds memory maps; Linux allows a process 65,530, and the whole suite needs more."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def force_field() -> ForceField:
    """One head, two layers, random weights as a user would make them."""
    return ForceField.from_mlip_network(Mace(TINY, INFO))


@pytest.fixture(scope="session")
def two_head_force_field() -> ForceField:
    """Two additive heads, `base` and `delta`, with their own constants; levels of the same names."""
    heads = (*INFO.heads, Head("delta", (0.01, -0.02, 0.03, -0.04), scale=0.3, shift=-0.05))
    return random_force_field(replace(TINY, num_readout_heads=2), INFO.with_heads(heads), seed=1)
