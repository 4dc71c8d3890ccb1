"""The ASE calculator."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import ase
import jax
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ase_mlip.cache import keep_compiled
from ase_mlip.force_field import ForceField, precision
from ase_mlip.graph import Graph
from ase_mlip.kernels import on_gpu
from ase_mlip.neighbor_cache import NeighborCache
from ase_mlip.parts import Part, cut, most_atoms, on_device, predict_in_parts
from ase_mlip.predictor import Params, Predictor, compiled_interaction
from ase_mlip.structure import InvalidStructure, overlapping_pair, symbol_of
from ase_mlip.uncertainty import deviation, has_committee, member_predictions

DEVIATIONS = ("energy_std", "forces_std")
SKINS = {False: 0.3, True: 0.6}  # Angstrom, on a CPU and on a GPU


class MLIPCalculator(Calculator):
    """ASE calculator of a multi-head force field.

    Energy, free energy (equal to it), energies, forces, and stress where the structure is periodic in a
    three-dimensional cell; eV and Angstrom, stress positive in tension. Compiles once per pad shape (structures of
    similar size share one); equal models share their compilations. During MD the neighbour list is rebuilt only when an
    atom has moved far enough.

    At a level with a committee of heads (`fine_tune` with n_heads > 1), `get_property` also gives "energy_std", the
    standard deviation of the energy over its members in eV, and "forces_std" [atoms], that of the force on each atom in
    eV/Angstrom (see `uncertainty.deviation`). They are computed only when asked for, and then stay in `results`.

    Args:
        model: a `ForceField`, a model file (also of mlip or nequix), or the name of a shipped or published model; the
            shipped base model by default.
        level: which level of the model predicts; the newest by default.
        dtype: "float32" for molecular dynamics, "float64" for tight relaxations and phonons.
        skin: Angstrom by which the neighbour list reaches beyond the cutoff; by default 0.3, and 0.6 on a GPU, where
            a list takes longer than the forces.
        max_atoms: how many atoms are computed at once, those around a part included; a larger structure is computed
            in parts, which takes longer and gives the same (see `parts.py`). By default what the memory holds.

    Raises:
        ValueError: a level or dtype that does not exist; the message lists those that do.

    Example:
        >>> from ase.build import molecule
        >>> atoms = molecule("H2O")
        >>> atoms.calc = MLIPCalculator()
        >>> atoms.get_forces().shape
        (3, 3)
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
    ignored_changes = {"initial_charges", "initial_magmoms"}

    def __init__(
        self,
        model: ForceField | str | os.PathLike[str] | None = None,
        *,
        level: str | None = None,
        dtype: str = "float32",
        skin: float | None = None,
        max_atoms: int | None = None,
    ):
        super().__init__()
        if max_atoms is not None and max_atoms < 1:
            raise ValueError(f"max_atoms={max_atoms}: give a positive number, or None for what the memory holds")
        self.max_atoms = max_atoms
        keep_compiled()
        self.force_field = model if isinstance(model, ForceField) else ForceField.load(model or "default")
        self.head_weights = self.force_field.predictor.head_weights(level)
        self.level = level if level is not None else list(self.force_field.levels)[-1]
        if has_committee(self.force_field.predictor, level):
            self.implemented_properties = [*self.implemented_properties, *DEVIATIONS]
        self.dtype = dtype
        with precision(dtype):
            pass
        skin = SKINS[on_gpu()] if skin is None else skin
        self.neighbors = NeighborCache(self.force_field.elements, self.force_field.cutoff, skin)
        self._active, self._seen = self.force_field, frozenset[int]()
        self._device: tuple[np.ndarray, Graph] | None = None  # a neighbour table, and the graph that has it
        self._parts: tuple[np.ndarray, list[Part]] | None = None  # the same, and the parts that it was cut into

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles put their own arrays on their own device."""
        return {**self.__dict__, "_device": None, "_parts": None}

    @property
    def name(self) -> str:
        """Name of the calculator and the level it predicts at."""
        return f"ase_mlip[{self.level}]"

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A property by name, from `results` where the structure has not changed.

        Raises:
            InvalidStructure: see `calculate`.
            PropertyNotImplementedError: the structure or the level has no such property.
        """
        self._require_committee([name])
        return super().get_property(name, atoms, allow_calculation)

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """What of `all_changes` differs, to the last bit, from the structure of `results`, but for charges and moments.

        ASE asks several times a step, and its own comparison takes longer than a GPU takes for the forces.
        """
        old = self.atoms
        if old is None:
            return list(all_changes)
        pairs = {
            "positions": (old.positions, atoms.positions),
            "numbers": (old.numbers, atoms.numbers),
            "cell": (old.cell.array, atoms.cell.array),
            "pbc": (old.pbc, atoms.pbc),
        }
        return [name for name, (before, now) in pairs.items() if not np.array_equal(before, now)]

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Fill `results`; called by ASE.

        Raises:
            InvalidStructure: unknown elements, non-finite positions, a periodic axis without a cell vector, atoms on
                top of each other.
            PropertyNotImplementedError: the stress of a structure that has none, the deviations of a level without a
                committee.
        """
        deviations = [name for name in properties if name in DEVIATIONS]
        self._require_committee(deviations)
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms
        if not {"numbers", "cell", "pbc"}.isdisjoint(system_changes):  # the neighbour list looks at the positions
            self.force_field.check(atoms, self.level)
        periodic = bool(atoms.pbc.any()) and atoms.cell.rank == 3
        if "stress" in properties and not periodic:
            raise PropertyNotImplementedError(
                f"stress needs a periodic structure with three cell vectors; this one has pbc={atoms.pbc.tolist()} "
                f"and a cell of rank {atoms.cell.rank}"
            )
        if len(atoms) == 0:
            self.results = {"energy": 0.0, "free_energy": 0.0, "energies": np.zeros(0), "forces": np.zeros((0, 3))}
            self.results |= {"energy_std": 0.0, "forces_std": np.zeros(0)} if deviations else {}
            return
        # the deviations of a structure that is predicted already are added to its results
        if system_changes or "energy" not in self.results or len(deviations) < len(properties):
            self.results = self._predict(atoms, periodic)
        if deviations:
            self.results |= self._deviate(atoms)

    def _use_elements(self, numbers: Iterable[int]) -> None:
        """Cut a model of many elements down to those seen so far. A new one makes the neighbour list new anyway."""
        if not self._seen.issuperset(numbers):
            self._seen = self._seen.union(numbers)
            self._active = self.force_field.for_elements(self._seen)
            self.neighbors.elements = self._active.elements

    def _predict(self, atoms: ase.Atoms, periodic: bool) -> dict[str, Any]:
        self._use_elements(atoms.numbers.tolist())
        force_field, count = self._active, len(atoms)
        graph = self.neighbors.update(atoms, self.head_weights)
        with precision(self.dtype):
            predictor, params = force_field.prepared(self.dtype)
            most = self.max_atoms or most_atoms(predictor, graph.neighbors.shape[1])
            if count > most:
                parts = self._cut(graph, predictor.network.config.num_layers, most)
                prediction = predict_in_parts(predictor, params, graph, parts)
            else:
                prediction = jax.device_get(compiled_interaction(*self.arguments(graph), False))
        total = force_field.predictor.add_reference(graph, prediction)
        forces = np.asarray(total.forces[:count], np.float64)
        if not (np.isfinite(total.energy).all() and np.isfinite(forces).all()):
            raise InvalidStructure(self._explain(atoms, graph, forces))
        energy = float(total.energy[0])
        results = {"energy": energy, "free_energy": energy, "energies": total.node_energies[:count], "forces": forces}
        if periodic:
            results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(total.stress[0], np.float64))
        return results

    def arguments(self, graph: Graph) -> tuple[Predictor, Params, Graph]:
        """What `compiled_interaction` takes; while a neighbour list stands, only positions and cell are new.

        Args:
            graph: of `neighbors`, for the elements in use.
        """
        if self._device is None or self._device[0] is not graph.neighbors:
            self._device = (graph.neighbors, jax.device_put(graph.astype(self.dtype)))
        return *self._active.prepared(self.dtype), self._device[1].moved(graph.positions, graph.cell)

    def _cut(self, graph: Graph, hops: int, most: int) -> list[Part]:
        """The parts of a graph, which stand as long as its neighbour list."""
        if self._parts is None or self._parts[0] is not graph.neighbors:
            self._parts = (graph.neighbors, on_device(cut(graph, hops, most), self.dtype))
        return self._parts[1]

    def _deviate(self, atoms: ase.Atoms) -> dict[str, Any]:
        """Standard deviations over the members, of a structure that was just predicted."""
        graph = self.neighbors.update(atoms, self.head_weights)
        found = deviation(member_predictions(self._active, graph, self.level, self.dtype))
        return {"energy_std": float(found.energy[0]), "forces_std": found.forces[: len(atoms)]}

    def _require_committee(self, names: Sequence[str]) -> None:
        """Raise if one of the properties is a deviation that this level does not have."""
        for name in names:
            if name in DEVIATIONS and name not in self.implemented_properties:
                raise PropertyNotImplementedError(
                    f"{name} needs a committee of heads and level {self.level!r} has none; fine-tune with n_heads=4 or "
                    "more to get a level that has one"
                )

    def _explain(self, atoms: ase.Atoms, graph: Graph, forces: np.ndarray) -> str:
        """Say which atoms make a prediction non-finite."""
        if pair := overlapping_pair(atoms):
            i, j, distance = pair
            return (
                f"atoms {i} ({symbol_of(atoms.numbers[i])}) and {j} ({symbol_of(atoms.numbers[j])}) are only "
                f"{distance:.2g} Angstrom apart; separate them"
            )
        atom = int(np.argmax(~np.isfinite(forces).all(axis=1)))
        return f"the prediction for atom {atom} ({symbol_of(atoms.numbers[atom])}) is not finite; check the structure"
