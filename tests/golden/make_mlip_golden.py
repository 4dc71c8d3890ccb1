"""Make `mlip_*.zip`, random MACE models of the package mlip, and `mlip_numbers_*.npz`, its numbers for them.

    PYTHON_WITH_MLIP_0_1 tests/golden/make_mlip_golden.py
    PYTHON_WITH_MLIP_0_2 tests/golden/make_mlip_golden.py

Each version writes its own files. Made with mlip 0.1.9 and 0.2.5, jax 0.10.2 and e3nn-jax 0.21.0: parameters in
float32, numbers in float64 but for a few constants (the files of numbers keep the versions). Most weights of the wide
radial networks are zeroed and all are rounded, so that the files are small.
"""

from __future__ import annotations

import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
from ase.build import bulk, molecule
from mlip.data import DatasetInfo
from mlip.models import ForceField, Mace
from mlip.models.model_io import load_model_from_zip, save_model_to_zip
from mlip.simulation.ase.mlip_ase_calculator import MLIPForceFieldASECalculator

FOLDER = Path(__file__).parent
OLD = version("mlip").startswith("0.1.")
ENERGIES = {29: -5.5, 1: -1.25, 8: -7.75, 6: -3.0}
DATASET = {
    "atomic_energies_map": ENERGIES, "avg_num_neighbors": 2.5, "avg_r_min_angstrom": 1.1, "scaling_mean": 0.1,
    "scaling_stdev": 1.3, ("cutoff_distance_angstrom" if OLD else "graph_cutoff_angstrom"): 3.6,
}  # fmt: skip
SIZES = {"num_channels": 3, "l_max": 2, "node_symmetry": 1, "correlation": 2, "readout_irreps": ("4x0e", "0e")}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pairs": (
        {"num_bessel": 5, "num_readout_heads": 2, "radial_envelope": "soft_envelope", "gate_nodes": True,
         "species_embedding_dim": 3, "symmetric_tensor_product_basis": True},
        {},
    ),
    "plain": (
        {"num_layers": 1, "num_bessel": 4, "correlation": 3, "num_species": 6, "avg_num_neighbors": 2.0,
         "avg_r_min": 0.9, "atomic_energies": "zero"},
        {},
    ),
} if OLD else {
    "heads": (
        {"num_rbf": 5, "num_readout_heads": 2, "radial_mlp_hidden": [8, 6], "correlation": 3},
        {"dataset_name": ["spice", "omol"],
         "atomic_energies_map": [ENERGIES, {z: 2 * energy for z, energy in ENERGIES.items()}]},
    ),
    "residual": (
        {"num_layers": 2, "num_rbf": 4, "radial_mlp_hidden": [8], "gate_nodes": True, "node_symmetry": 2,
         "radial_envelope": "cosine_cutoff", "residual_connection_first_layer": True,
         "symmetric_contraction_backend": "e3nn"},
        {"avg_r_min_angstrom": None, "avg_num_neighbors": 0.3},
    ),
}  # fmt: skip


def structures() -> list[ase.Atoms]:
    """A molecule, a primitive cell smaller than the cutoff, and a wire."""
    wire = ase.Atoms("CHCO", positions=[[1.3 * i, 0.4 * (-1) ** i, 0.1 * i] for i in range(4)], cell=(5.2, 8, 8))
    wire.pbc = (True, False, False)
    found = [molecule("CH3OH"), bulk("CuO", "zincblende", a=4.3), wire]
    for number, atoms in enumerate(found):
        atoms.rattle(0.1, seed=number)
    return found


def randomize(params: Any, seed: int) -> Any:
    """No array all zero, as biases are at first; wide matrices sparse; few digits."""
    rng = np.random.default_rng(seed)

    def change(weights: Any) -> np.ndarray:
        weights = np.array(weights, np.float32)
        if weights.size and not weights.any():
            weights = rng.normal(size=weights.shape).astype(np.float32)
        if weights.ndim == 2 and max(weights.shape) >= 64:
            weights *= 4 * (rng.random(weights.shape) < 1 / 16)
        return weights.astype(np.float16).astype(np.float32)

    return jax.tree.map(change, params)


def make_archive(path: Path, config: dict[str, Any], dataset: dict[str, Any], seed: int) -> None:
    """A random model, written by the package and compressed once more."""
    with jax.enable_x64(False):
        force_field = ForceField.from_mlip_network(
            Mace(Mace.Config(**config), DatasetInfo(**dataset)), seed=seed, **({"predict_stress": True} if OLD else {})
        )
        save_model_to_zip(path, ForceField(force_field.predictor, randomize(force_field.params, seed)))
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


def evaluate(path: Path, atoms: ase.Atoms, head: int) -> dict[str, np.ndarray]:
    """Energy and forces of one head; of all together in 0.1."""
    options: dict[str, Any] = {}
    if not OLD:
        from mlip.models.inference_context import InferenceContext

        options["inference_context"] = InferenceContext(dataset_idx=head)
    force_field = load_model_from_zip(Mace, path, **options)
    atoms = atoms.copy()
    atoms.calc = MLIPForceFieldASECalculator(atoms, 1.0, force_field)
    return {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}


def main() -> None:
    """Write the files beside this script."""
    out = {"versions": np.array([f"{name} {version(name)}" for name in ("mlip", "jax", "e3nn-jax")])}
    for number, atoms in enumerate(structures()):
        kept = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc}
        out.update({f"{number}/{key}": value for key, value in kept.items()})
    for seed, (name, (config, dataset)) in enumerate(MODELS.items()):
        path = FOLDER / f"mlip_{name}.zip"
        make_archive(path, SIZES | config, DATASET | dataset, seed)
        for head in range(1 if OLD else config.get("num_readout_heads", 1)):
            for number, atoms in enumerate(structures()):
                numbers = evaluate(path, atoms, head)
                out.update({f"{name}/{head}/{number}/{key}": value for key, value in numbers.items()})
                print(name, head, atoms.symbols, numbers["energy"], np.abs(numbers["forces"]).max())
        print(path.stat().st_size)
    np.savez_compressed(FOLDER / f"mlip_numbers_{'0_1' if OLD else '0_2'}.npz", **out)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
