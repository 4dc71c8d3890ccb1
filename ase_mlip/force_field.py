"""`ForceField`: a predictor with its parameters; what is saved, loaded, trained and put into a calculator."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.graph import Graph, PadShape, batch
from ase_mlip.model_file import ModelFile, is_model_file, load_model, save_model
from ase_mlip.predictor import Network, Params, Prediction, Predictor, compiled_interaction
from ase_mlip.structure import InvalidStructure, check_structure, symbol_of

SHIPPED_MODELS = {name: f"{name}.safetensors" for name in ("default", "accurate", "r2scan")}
MANY_ELEMENTS = 10  # a model that knows more is cut down to the elements in use


@dataclass(frozen=True, eq=False)
class ForceField:
    """A multi-head machine-learned potential: the energy is the weighted sum of its heads.

    Attributes:
        predictor: network, heads and levels.
        params: the network's parameters, a nested dictionary of arrays.
        provenance: where the model comes from; plain data, kept in its file.

    Example:
        >>> from ase.build import molecule
        >>> force_field = ForceField.load("default")
        >>> prediction = force_field(force_field.graph(molecule("H2O")))
        >>> prediction.forces.shape
        (3, 3)
    """

    predictor: Predictor
    params: Params
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_mlip_network(cls, network: Network, seed: int = 0, known: Params | None = None) -> ForceField:
        """A force field with random parameters.

        Args:
            network: the architecture.
            seed: of the random numbers.
            known: parameters to keep; only those that are missing are drawn, which saves compiling the rest.
        """
        info = network.dataset_info
        atoms = ase.Atoms([info.elements[0]] * 2, positions=[[0, 0, 0], [0, 0, info.cutoff / 2]])
        graph = Graph.from_atoms(atoms, info.elements, info.cutoff, np.ones(len(network.head_names))).astype("float32")

        def draw(params: Params) -> Params:
            variables = {"params": params} if params else {}
            options = {"rngs": {"params": jax.random.key(seed)}, "mutable": ["params"]}
            return network.apply(variables, graph.vectors(info.cutoff), graph, **options)[1]["params"]

        kept = dict(known or {})
        params = flatten_dict(jax.tree.map(np.asarray, jax.jit(draw)(kept)))
        return cls(Predictor.from_network(network), unflatten_dict({**params, **flatten_dict(kept)}))

    def __call__(self, graph: Graph, *, per_head: bool = False, dtype: str = "float32") -> Prediction:
        """Total energy, forces and stress of a graph, padded or not.

        The positions' part is computed in `dtype`, compiled once for each shape of graph; reference energies are added
        in float64. Of a model of many elements, take those in use first (`with_elements`): it costs what it knows.
        Inside your own `jax.jit` or `jax.grad`, use `force_field.predictor.interaction(params, graph)`.

        Args:
            graph: see `ForceField.graph` and `Graph.from_atoms`.
            per_head: also give the energy of each head.
            dtype: "float32" or "float64".
        """
        with precision(dtype):
            prediction = compiled_interaction(self.predictor, self.cast_params(dtype), graph.astype(dtype), per_head)
            prediction = jax.tree.map(np.asarray, prediction)
        return self.predictor.add_reference(graph, prediction)

    def graph(self, atoms: ase.Atoms, level: str | None = None, shape: PadShape | None = None) -> Graph:
        """The graph of one structure for this model, at the given level (default: the newest), optionally padded.

        Raises:
            InvalidStructure: see `check`.
        """
        self._check_level(atoms, level)  # `Graph` checks all else
        graph = Graph.from_atoms(atoms, self.elements, self.cutoff, self.predictor.head_weights(level))
        if shape is None:
            return graph
        return batch([graph.with_pairs() if shape.pairs else graph], shape)

    def cast_params(self, dtype: str) -> Params:
        """The parameters as device arrays in `dtype`; made once."""
        cache = self.__dict__.setdefault("_cast", {})
        if dtype not in cache:
            cache[dtype] = _on_device(self.params, dtype)
        return cache[dtype]

    def prepared(self, dtype: str) -> tuple[Predictor, Params]:
        """Predictor and device arrays that predict fastest in this precision, for `compiled_interaction`; made once.

        In float32 the radial networks become tables where that is possible: equal within the rounding, and only once
        differentiable. In float64 they are as they are.
        """
        if dtype != "float32":
            return self.predictor, self.cast_params(dtype)
        if "_tabulated" not in self.__dict__:
            predictor, params = self.predictor.tabulated(self.params)
            same = params is self.params
            self.__dict__["_tabulated"] = predictor, self.cast_params(dtype) if same else _on_device(params, dtype)
        return self.__dict__["_tabulated"]

    def with_elements(self, elements: Iterable[int], like: Mapping[int, int] | None = None) -> ForceField:
        """The same force field for some of its elements, of which its cost then depends alone, and for new ones.

        Parameters with one row per element have a name that begins with `element_` and the elements first.

        Args:
            elements: atomic numbers to keep or add.
            like: for each new one the known element whose parameters and E0 it starts from. No level knows it before it
                has been fine-tuned on it.

        Raises:
            ValueError: an element that the force field neither knows nor finds in `like`.
        """
        old = self.predictor.network.dataset_info
        info = old.with_elements(elements, like)
        if info.elements == self.elements:
            return self
        rows = old.places(info.elements, like)
        params = {
            path: value[rows] if is_per_element(path) else value
            for path, value in flatten_dict(dict(self.params)).items()
        }
        network = self.predictor.network.rebuild(self.predictor.network.config, info)
        return ForceField(replace(self.predictor, network=network), unflatten_dict(params), self.provenance)

    def for_elements(self, elements: Iterable[int]) -> ForceField:
        """Cut down to the elements in use where the model knows many; itself where it does not.

        Raises:
            ValueError: an element that the force field does not know.
        """
        return self if len(self.elements) <= MANY_ELEMENTS else self.with_elements(elements)

    def with_levels(self, levels: Iterable[str]) -> ForceField:
        """The same force field with these levels alone, in this order: the last is the default.

        Fine-tuned by `full` without replay, the older levels are no longer what they were: better left out of a file
        that others use. Heads and parameters stay.

        Raises:
            ValueError: there is no such level, or none is given.
        """
        kept = tuple((name, self.levels[name]) for name in map(self.predictor.find_level, levels))
        if not kept:
            raise ValueError(f"levels: give at least one of {', '.join(map(repr, self.levels))}")
        return ForceField(replace(self.predictor, levels=kept), self.params, self.provenance)

    def check(self, atoms: ase.Atoms, level: str | None = None) -> None:
        """Raise for a structure that a level (default: the newest) cannot predict.

        Raises:
            InvalidStructure: see `check_structure`; or an element that the level has never been trained on.
        """
        check_structure(atoms, self.elements)
        self._check_level(atoms, level)

    def _check_level(self, atoms: ase.Atoms, level: str | None) -> None:
        unknown = set(self.predictor.unknown_elements(level))
        if unknown and (unknown := unknown.intersection(atoms.numbers.tolist())):
            names = ", ".join(map(symbol_of, sorted(unknown)))
            taught = [name for name in self.levels if unknown.isdisjoint(self.predictor.unknown_elements(name))]
            raise InvalidStructure(
                f"the level {self.predictor.find_level(level)!r} has never been trained on {names}; "
                + (f"the level {taught[-1]!r} has" if taught else "fine-tune a level on it")
            )

    @property
    def dataset_info(self) -> DatasetInfo:
        """The constants the network is built around, each head's included."""
        info = self.predictor.network.dataset_info
        return info.with_heads(self.predictor.heads)

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """Name of each level and the heads it sums; the last one is the default."""
        return dict(self.predictor.levels)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the readout heads."""
        return self.predictor.network.head_names

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that the model knows."""
        return self.predictor.network.dataset_info.elements

    @property
    def cutoff(self) -> float:
        """Largest neighbour distance, Angstrom."""
        return self.predictor.network.dataset_info.cutoff

    @property
    def num_params(self) -> int:
        """Number of parameters."""
        return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(self.params))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained file, atomically; parameters keep their bits."""
        save_model(path, ModelFile(self.predictor, jax.tree.map(np.asarray, dict(self.params)), self.provenance))

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> ForceField:
        """Load a shipped or published model by name, or a file by path: ours, or a foreign one that `importers` reads.

        Raises:
            FileNotFoundError: neither a file nor the name of a model; the message lists the names.
            ModelFileError: not a whole model file, or a pickled one, which has to be converted first.
            DownloadError: a published model that cannot be downloaded.
        """
        path = model_path(name_or_path)
        if not is_model_file(path):
            from ase_mlip.importers import read_foreign

            return read_foreign(path)
        model = load_model(path)
        return cls(model.predictor, model.params, model.provenance)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle and copy the model itself, not its device arrays."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("_cast", "_tabulated")}
        return {**state, "params": jax.tree.map(np.asarray, dict(self.params))}


def _on_device(params: Params, dtype: str) -> Params:
    """Device arrays in `dtype`; the host casts them, so that nothing is compiled for it."""
    with precision(dtype):
        return jax.device_put(jax.tree.map(lambda x: np.asarray(x, dtype), dict(params)))


def is_per_element(path: tuple[str, ...]) -> bool:
    """Whether a parameter has one row per element, by its name."""
    return path[-1].startswith("element_")


def model_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped or published model's name, downloaded if needed, or of a path.

    Raises:
        FileNotFoundError: neither a file nor the name of a model; the message lists the names.
        DownloadError: a published model that cannot be downloaded.
    """
    name = str(name_or_path)
    if name in SHIPPED_MODELS:
        return Path(str(resources.files("ase_mlip") / "models" / SHIPPED_MODELS[name]))
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    from ase_mlip.registry import PUBLISHED, unknown_name

    if name not in PUBLISHED:
        raise FileNotFoundError(unknown_name(name, SHIPPED_MODELS))
    from ase_mlip.importers import fetch_converted

    return fetch_converted(name)


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Allow float64 inside the context when `dtype` asks for it; the user's own JAX settings stay as they are."""
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype={dtype!r}: give 'float32' or 'float64'")
    with jax.enable_x64(dtype == "float64"):
        yield
