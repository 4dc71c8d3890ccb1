"""One contract for every architecture and every imported model; and that breaking it is noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_force_field

from ase_mlip.contract import ContractError, check_contract
from ase_mlip.force_field import ForceField
from ase_mlip.graph import Graph
from ase_mlip.networks.mace import Mace

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(p.name for kind in ("mace_*.safetensors", "*.nqx", "mlip_*.zip") for p in GOLDEN.glob(kind))


@pytest.mark.parametrize("name", FILES)
def test_contract_of_imported_models(name: str) -> None:
    """Derivatives, symmetries, padding and round trip of every golden file, foreign ones as they are."""
    check_contract(ForceField.load(GOLDEN / name))


def test_files_of_every_package() -> None:
    """The list above is not empty by accident."""
    assert {Path(name).suffix for name in FILES} >= {".safetensors", ".nqx"}


class Lopsided(Mace):
    """A network that prefers a direction."""

    def __call__(self, vectors: jax.Array, graph: Graph) -> jax.Array:
        """Adds what does not turn."""
        return super().__call__(vectors, graph) + jnp.sum(jnp.exp(-(vectors[..., 0] ** 2)), axis=1)[:, None]


class Stopped(Mace):
    """A network whose gradient is not that of its energy."""

    def __call__(self, vectors: jax.Array, graph: Graph) -> jax.Array:
        """The first component counts in the energy alone."""
        return super().__call__(jnp.concatenate([jax.lax.stop_gradient(vectors[..., :1]), vectors[..., 1:]], -1), graph)


@pytest.mark.parametrize(("network", "rule"), [(Lopsided, "rotation"), (Stopped, "gradient")])
def test_a_broken_contract_is_noticed(network: type[Mace], rule: str) -> None:
    """A network that is not invariant, and one whose forces are wrong."""
    sound = random_force_field()
    broken = network(sound.predictor.network.config, sound.predictor.network.dataset_info)
    with pytest.raises(ContractError, match=rule):
        check_contract(ForceField(replace(sound.predictor, network=broken), sound.params))


def test_fewer_elements_same_numbers() -> None:
    """Cut down to the elements in use, a model gives the same energy and forces, and its tables shrink."""
    from ase.build import molecule

    whole = ForceField.load(GOLDEN / "mace_gated.safetensors")
    small = whole.with_elements([8, 1])
    atoms = molecule("H2O")
    before, after = (f(f.graph(atoms), dtype="float64") for f in (whole, small))
    np.testing.assert_allclose(after.energy, before.energy, rtol=1e-14)
    np.testing.assert_allclose(after.forces, before.forces, atol=1e-12)
    assert small.elements == (1, 8)
    assert small.params["element_embedding"].shape[0] == 2
    assert whole.with_elements(whole.elements) is whole
    with pytest.raises(ValueError, match="Au"):
        whole.with_elements([1, 79])
