"""The packages that foreign files come from, where installed: their energies are what a conversion must keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase

from ase_mlip.force_field import ForceField
from ase_mlip.importers import foreign_kind

# Padding of mlip's graphs relative to the first structure, so that all small structures share one compilation.
NODES, EDGES = 2, 100


class NotComparable(Exception):
    """The original package cannot be asked; the message says why."""


@dataclass(frozen=True)
class Original:
    """A model in the package that wrote it, in that package's own precision.

    Attributes:
        package: its name and version.
        dtype: of its energies.
        energy: of a structure at a level, eV.
        partly_periodic: whether it is right for slabs and wires.
    """

    package: str
    dtype: str
    energy: Callable[[ase.Atoms, str], float]
    partly_periodic: bool = True


def original_model(path: Path, force_field: ForceField) -> Original:
    """What the package that wrote a file makes of it; of trusted files only, mace-torch unpickles.

    Args:
        path: the foreign file.
        force_field: what our reader made of it.

    Raises:
        NotComparable: the package is not installed, or its version does not read this file.
    """
    makers = {"mace-torch": _mace_torch, "mlip": _mlip, "nequix": _nequix}
    try:
        return makers[foreign_kind(path)](path, force_field)
    except ImportError:
        raise NotComparable("its package is not installed here") from None


def _mace_torch(path: Path, force_field: ForceField) -> Original:
    from ase_mlip.importers.mace_torch import original_energies

    return Original(f"mace-torch {version('mace-torch')}", "float64", original_energies(path))


def _nequix(path: Path, force_field: ForceField) -> Original:
    from nequix.calculator import NequixCalculator

    calculator = NequixCalculator(model_path=path, use_kernel=False)

    def energy(atoms: ase.Atoms, level: str) -> float:
        return float(calculator.get_potential_energy(atoms))

    return Original(f"nequix {version('nequix')}", "float32", energy, partly_periodic=False)


def _mlip(path: Path, force_field: ForceField) -> Original:
    """0.2 reads archives of 0.1 with classes of their own, 0.1 none of 0.2; a head of 0.2 is chosen by its number."""
    from mlip.models.model_io import load_model_from_zip
    from mlip.simulation.ase.mlip_ase_calculator import MLIPForceFieldASECalculator

    package, archive = f"mlip {version('mlip')}", force_field.provenance["source_package"]
    old_package, old_archive = (name.startswith("mlip 0.1") for name in (package, archive))
    if old_package and not old_archive:
        raise NotComparable(f"{package}, which is installed here, does not read archives of {archive}")
    if old_archive and not old_package:
        from mlip.models_v1 import Mace
    else:
        from mlip.models import Mace
    model = load_model_from_zip(Mace, path)
    calculators: dict[str, Any] = {}

    def energy(atoms: ase.Atoms, level: str) -> float:
        if level not in calculators:
            chosen = model
            if not old_archive:
                from mlip.models.inference_context import InferenceContext

                chosen = replace(model, inference_context=InferenceContext(dataset_idx=force_field.heads.index(level)))
            calculators[level] = MLIPForceFieldASECalculator(
                atoms, EDGES, chosen, allow_nodes_to_change=True, node_capacity_multiplier=NODES
            )
        return float(calculators[level].get_potential_energy(atoms))

    return Original(package, "float32", energy)
