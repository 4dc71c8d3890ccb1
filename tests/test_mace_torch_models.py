"""Random mace-torch models, read once with torch: they must give mace-torch's numbers without it."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest

from ase_mlip.force_field import ForceField
from ase_mlip.graph import batch

GOLDEN = Path(__file__).parent / "golden"
NAMES = ["two_heads", "plain", "density", "gated", "gated_basis", "three_layers", "one_layer"]


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_mace_torch(name: str) -> None:
    """Energies, forces and stress of every level and structure (see `golden/make_mace_golden.py`)."""
    force_field = ForceField.load(GOLDEN / f"mace_{name}.safetensors")
    structures = ase.io.read(GOLDEN / "mace_structures.json", ":")
    numbers = json.loads((GOLDEN / f"mace_{name}.json").read_text())["levels"]
    assert list(force_field.levels) == list(numbers)
    graphs = batch([force_field.graph(atoms, level=level) for level in numbers for atoms in structures])
    found, start = force_field(graphs, dtype="float64"), 0
    wanted = [reference for level in numbers for reference in numbers[level]]
    for number, (atoms, reference) in enumerate(zip(structures * len(numbers), wanted, strict=True)):
        rows = slice(start, start := start + len(atoms))
        np.testing.assert_allclose(found.energy[number], reference["energy"], atol=1e-10)
        np.testing.assert_allclose(found.forces[rows], reference["forces"], atol=1e-10)
        if "stress" in reference:
            voigt = found.stress[number][[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            np.testing.assert_allclose(voigt, reference["stress"], atol=1e-11)
    assert np.abs(found.forces).max() > 0.03
