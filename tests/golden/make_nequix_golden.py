"""Make `nequix_*.nqx`, random models of the package nequix, and `nequix_numbers.npz`, its numbers for them.

    PYTHON_WITH_NEQUIX tests/golden/make_nequix_golden.py

Made with nequix 0.4.5, jax 0.10.2 and e3nn-jax 0.21.0 in float64 (the file of numbers keeps the versions). The package
drops the cell of what is not periodic in three directions: slab and wire are given to it with vacuum, as crystals.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import ase
import equinox as eqx
import jax
import jraph
import numpy as np
from ase.build import bulk, fcc111, molecule
from nequix.data import atomic_numbers_to_indices, dict_to_graphstuple, preprocess_graph
from nequix.model import Nequix, load_model, save_model

FOLDER = Path(__file__).parent
COMMON = {
    "atomic_numbers": [29, 1, 8, 6], "cutoff": 3.6, "radial_basis_size": 5, "radial_mlp_size": 6, "mlp_init_scale": 4.0,
    "shift": 0.1, "scale": 1.3, "avg_n_neighbors": 9.5,
}  # fmt: skip
MODELS = {
    "norm": {
        "hidden_irreps": "4x0e + 3x1o + 2x2e", "lmax": 2, "n_layers": 3, "radial_mlp_layers": 2,
        "radial_polynomial_p": 6.0, "index_weights": False, "layer_norm": True,
    },
    "indexed": {
        "hidden_irreps": "3x0e+2x1o", "lmax": 3, "n_layers": 2, "radial_mlp_layers": 1,
        "radial_polynomial_p": 5.0, "index_weights": True, "layer_norm": False,
    },
}  # fmt: skip


def structures() -> list[ase.Atoms]:
    """Molecule, primitive cell smaller than the cutoff, left-handed triclinic crystal, slab, wire, isolated atom."""
    primitive = bulk("CuO", "zincblende", a=4.3)
    crystal = bulk("CuO", "rocksalt", a=4.1, cubic=True)
    crystal.set_cell(crystal.cell.array[[1, 0, 2]] @ (np.eye(3) + np.triu(np.full((3, 3), 0.08), 1)), scale_atoms=True)
    slab = fcc111("Cu", (1, 1, 3), a=3.6, vacuum=4.0)
    slab.pbc = (True, True, False)
    wire = ase.Atoms("CHCO", positions=[[1.3 * i, 0.4 * (-1) ** i, 0.1 * i] for i in range(4)], cell=(5.2, 8, 8))
    wire.pbc = (True, False, False)
    found = [molecule("CH3OH"), primitive, crystal, slab, wire, ase.Atoms("O")]
    for number, atoms in enumerate(found):
        atoms.rattle(0.1, seed=number)
        atoms.positions = np.float32(atoms.positions)  # the package keeps no more digits
        atoms.cell = np.float32(atoms.cell.array)
    return found


def evaluate(model: Nequix, hyper: dict, atoms: ase.Atoms) -> dict[str, np.ndarray]:
    """Energy, forces and, for what has a volume, stress."""
    solid = atoms.copy()
    solid.pbc = atoms.pbc.any()
    graph = dict_to_graphstuple(
        preprocess_graph(solid, atomic_numbers_to_indices(hyper["atomic_numbers"]), hyper["cutoff"], False)
    )
    graph = jax.tree.map(lambda x: np.float64(x) if np.issubdtype(x.dtype, np.floating) else x, graph)
    graph = jraph.pad_with_graphs(graph, len(atoms) + 1, int(graph.n_edge[0]) + 1)
    energy, forces, stress = eqx.filter_jit(model)(graph)
    numbers = {"energy": energy[0], "forces": forces[: len(atoms)]}
    if atoms.pbc.any():
        numbers["stress"] = stress[0]
    assert all(np.asarray(x).dtype == np.float64 for x in numbers.values())
    return numbers


def make_model(path: Path, hyper: dict, seed: int) -> None:
    """A random model whose norms and reference energies are not all equal."""
    arguments = {key: value for key, value in hyper.items() if key != "atomic_numbers"}
    with jax.enable_x64(False):
        rng = np.random.default_rng(seed)
        energies = rng.uniform(-9, -1, len(hyper["atomic_numbers"])).astype(np.float32)
        model = Nequix(jax.random.key(seed), len(energies), atom_energies=energies, **arguments)
        if hyper["layer_norm"]:
            norms = lambda m: [gain for layer in m.layers for gain in layer.layer_norm.affine_weight]  # noqa: E731
            gains = [jax.numpy.asarray(rng.uniform(1.0, 4.0, len(gain)), "float32") for gain in norms(model)]
            model = eqx.tree_at(norms, model, gains)
        save_model(str(path), model, hyper)


def main() -> None:
    """Write the files beside this script."""
    out = {"versions": np.array([f"{name} {version(name)}" for name in ("nequix", "jax", "e3nn-jax")])}
    for number, atoms in enumerate(structures()):
        kept = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
        out.update({f"{number}/{key}": value for key, value in kept.items()})
    for seed, (name, options) in enumerate(MODELS.items()):
        path = FOLDER / f"nequix_{name}.nqx"
        make_model(path, COMMON | options, seed)
        with jax.enable_x64(False):
            model, hyper = load_model(str(path))
        for number, atoms in enumerate(structures()):
            numbers = evaluate(model, hyper, atoms)
            out.update({f"{name}/{number}/{key}": value for key, value in numbers.items()})
            print(name, atoms.symbols, numbers["energy"], np.abs(numbers["forces"]).max())
    np.savez_compressed(FOLDER / "nequix_numbers.npz", **out)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
