"""The constants that a network is built around, kept outside its parameters so that no optimiser can move them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ase.data import atomic_numbers, chemical_symbols

from ase_mlip.bounds import Bounds, centred
from ase_mlip.repulsion import Repulsion


@dataclass(frozen=True)
class Head:
    """Fitted constants of one readout head: E_i = E0[Z_i] + scale * readout_i + shift.

    Attributes:
        name: names the head's subtree of the parameters.
        atomic_energies: E0 per element in the order of `DatasetInfo.elements`, eV. The first head's are the reference
            energies of the data; an added head's are a correction to them. They are added on the host and take no part
            in comparisons: force fields that differ only in them share their compiled functions.
        scale: eV per unit of the network's output.
        shift: eV per atom.
        repulsion: how often the dataset's pair repulsion counts in this head.
        unknown: atomic numbers that the head has never been trained on, among those of `DatasetInfo.elements`.
        bounds: per element, lowest and highest energy, eV, between which the network's share of an atom
            (`scale * readout_i + shift`) is taken as it is, see `bounded_energies`; None for an element without bounds,
            or for a head without any.
    """

    name: str
    atomic_energies: tuple[float, ...] = field(compare=False)
    scale: float = 1.0
    shift: float = 0.0
    repulsion: float = 0.0
    unknown: tuple[int, ...] = field(default=(), compare=False)
    bounds: Bounds | None = None


def unknown_to_all(heads: Iterable[Head]) -> tuple[int, ...]:
    """Atomic numbers that none of the heads has been trained on."""
    first, *others = (head.unknown for head in heads)
    return tuple(z for z in first if all(z in unknown for unknown in others))


@dataclass(frozen=True)
class DatasetInfo:
    """What a network must know of the data it describes.

    Attributes:
        elements: atomic numbers, ascending.
        cutoff: largest neighbour distance, Angstrom.
        avg_num_neighbors: mean number of neighbours within the cutoff; normalises the sum over neighbours.
        heads: constants of each readout head; a network with more heads gives the others zero E0 and shift.
        repulsion: constants of the pair repulsion; None if no head has one.

    Example:
        >>> info = DatasetInfo.create({1: -10.7, 8: -102.6}, cutoff=4.5, avg_num_neighbors=9.0)
        >>> info.elements, info.heads[0].name
        ((1, 8), 'base')
    """

    elements: tuple[int, ...]
    cutoff: float
    avg_num_neighbors: float
    heads: tuple[Head, ...]
    repulsion: Repulsion | None = None

    def __post_init__(self) -> None:
        if not self.elements or list(self.elements) != sorted(set(self.elements)):
            raise ValueError(f"elements={self.elements}: give at least one atomic number, ascending, each once")
        if not 0 < self.cutoff < float("inf"):
            raise ValueError(f"cutoff={self.cutoff}: give a positive length in Angstrom")
        if not 0 < self.avg_num_neighbors < float("inf"):
            raise ValueError(f"avg_num_neighbors={self.avg_num_neighbors}: give a positive number")
        names = [head.name for head in self.heads]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"head names {names}: give at least one, each once")
        for head in self.heads:
            if head.repulsion and self.repulsion is None:
                raise ValueError(f"head {head.name!r} counts a pair repulsion; give its constants in `repulsion`")
            if len(head.atomic_energies) != len(self.elements):
                raise ValueError(
                    f"head {head.name!r} has {len(head.atomic_energies)} atomic energies for "
                    f"{len(self.elements)} elements: give one for each"
                )
            if head.bounds is not None and (
                len(head.bounds) != len(self.elements) or any(pair and not pair[0] < pair[1] for pair in head.bounds)
            ):
                raise ValueError(
                    f"head {head.name!r} has the bounds {head.bounds}: give for each of the {len(self.elements)} "
                    "elements a lower and a higher energy, or None"
                )

    @classmethod
    def create(
        cls,
        atomic_energies: Mapping[int, float] | Mapping[str, float],
        cutoff: float,
        avg_num_neighbors: float,
        scale: float = 1.0,
        shift: float = 0.0,
        name: str = "base",
    ) -> DatasetInfo:
        """Constants of a one-head network from a mapping of atomic number or symbol to E0 in eV."""
        energies = {atomic_numbers[z] if isinstance(z, str) else int(z): float(e) for z, e in atomic_energies.items()}
        elements = tuple(sorted(energies))
        head = Head(name, tuple(energies[z] for z in elements), float(scale), float(shift))
        return cls(elements, float(cutoff), float(avg_num_neighbors), (head,))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Chemical symbols of the elements."""
        return tuple(chemical_symbols[z] for z in self.elements)

    def head(self, name: str) -> Head:
        """The head's constants; zero E0 and shift, and the first head's scale, for a head that has none yet.

        If the first head has bounds, a new one differs from zero no more than the first one's atoms among each other.
        """
        for head in self.heads:
            if head.name == name:
                return head
        return Head(name, (0.0,) * len(self.elements), self.heads[0].scale, bounds=centred(self.heads[0].bounds))

    def with_heads(self, heads: Iterable[Head]) -> DatasetInfo:
        """The same constants with other heads."""
        return replace(self, heads=tuple(heads))

    def with_elements(self, elements: Iterable[int], like: Mapping[int, int] | None = None) -> DatasetInfo:
        """The same constants for some of the elements, and for new ones.

        Args:
            elements: those to keep or add.
            like: for each new one the element whose constants it starts from; no head knows it yet.

        Raises:
            ValueError: an element that is neither among these nor in `like`.
        """
        kept = tuple(sorted(set(elements)))
        heads = []
        places = self.places(kept, like)
        for head in self.heads:
            unknown = tuple(z for z in kept if z in head.unknown or z not in self.elements)
            energies = tuple(head.atomic_energies[i] for i in places)
            bounds = None if head.bounds is None else tuple(head.bounds[i] for i in places)
            heads.append(replace(head, atomic_energies=energies, unknown=unknown, bounds=bounds))
        return replace(self, elements=kept, heads=tuple(heads))

    def places(self, elements: Iterable[int], like: Mapping[int, int] | None = None) -> list[int]:
        """Where each element, or the one that it is `like`, stands among these.

        Raises:
            ValueError: an element that is neither among these nor in `like`.
        """
        sources = [z if z in self.elements else (like or {}).get(z, z) for z in elements]
        unknown = [chemical_symbols[z] for z in sources if z not in self.elements]
        if unknown:
            raise ValueError(f"no constants for the elements {unknown}; there are {', '.join(self.symbols)}")
        return [self.elements.index(z) for z in sources]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file's header."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DatasetInfo:
        """The inverse of `to_dict`."""
        plain: list[dict[str, Any]] = [{k: _tuples(v) for k, v in head.items()} for head in data["heads"]]
        heads = tuple(Head(**values) for values in plain)
        repulsion = data.get("repulsion")
        return cls(
            tuple(data["elements"]),
            data["cutoff"],
            data["avg_num_neighbors"],
            heads,
            None if repulsion is None else Repulsion(**repulsion),
        )


def _tuples(value: Any) -> Any:
    """Lists, those inside of others too, as tuples; anything else as it is."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
