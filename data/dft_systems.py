"""Geometries of the sets labelled with density functional theory: snapshots of GFN2-xTB dynamics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.mixing import SumCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from base_geometry import assemble
from rdkit import Chem
from rdkit.Chem import AllChem
from tblite.ase import TBLite

HEXAMER = "O.O.O.O.O.O"
SEED = 11
FARTHEST = 0.9  # Angstrom, d(donor, H) - d(acceptor, H) at the ends of a path
TIME_STEP, EQUILIBRATE, INTERVAL = 1.0, 400, 60  # fs, steps, steps


@dataclass(frozen=True)
class System:
    """A set of frames.

    Attributes:
        smiles: of the molecule; a cluster's are joined by dots.
        temperatures: K.
        starts: geometries where dynamics begin; what their calculators give is added to GFN2-xTB.
        number: of starts.
        frames: of each start and temperature.
    """

    smiles: str
    temperatures: tuple[float, ...]
    starts: Callable[[], Iterator[Atoms]]
    number: int
    frames: int


def attach(atoms: Atoms, bias: Calculator | None) -> None:
    """Let GFN2-xTB and a bias, if there is one, act on the atoms."""
    tight_binding = TBLite(method="GFN2-xTB", verbosity=0)
    atoms.calc = SumCalculator([tight_binding, bias]) if bias else tight_binding


def relaxed(atoms: Atoms, bias: Calculator | None = None) -> Atoms:
    """The same atoms in a minimum of GFN2-xTB and the bias, with its energy in `info`."""
    atoms = atoms.copy()
    attach(atoms, bias)
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=300)
    found = Atoms(atoms.get_chemical_symbols(), atoms.get_positions())
    found.info["energy"] = atoms.get_potential_energy()
    return found


def conformers(mol: Chem.Mol, count: int) -> list[Atoms]:
    """Conformers made by RDKit of a molecule, or several, with all hydrogen atoms."""
    options = AllChem.ETKDGv3()
    options.randomSeed = SEED
    AllChem.EmbedMultipleConfs(mol, count, options)
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    return [Atoms(symbols, conformer.GetPositions()) for conformer in mol.GetConformers()]


def embedded(smiles: str, count: int) -> list[Atoms]:
    """The same of a SMILES."""
    return conformers(Chem.AddHs(Chem.MolFromSmiles(smiles)), count)


def distinct(candidates: list[Atoms]) -> Iterator[Atoms]:
    """The candidates' minima, lowest energy first, one for each hundredth of an eV."""
    found: dict[float, Atoms] = {}
    for atoms in map(relaxed, candidates):
        found.setdefault(round(atoms.info.pop("energy"), 2), atoms)
    yield from (found[energy] for energy in sorted(found))


def glycine() -> Iterator[Atoms]:
    """Conformers of the neutral molecule."""
    return distinct(embedded("NCC(=O)O", 60))


class Transfer(Calculator):
    """A spring that holds how far a proton is on its way, d(donor, H) - d(acceptor, H)."""

    implemented_properties: ClassVar = ["energy", "forces"]
    stiffness = 8.0  # eV/Angstrom^2

    def __init__(self, donor: int, hydrogen: int, acceptor: int, wanted: float):
        super().__init__()
        self.donor, self.hydrogen, self.acceptor, self.wanted = donor, hydrogen, acceptor, wanted

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """Energy in eV, forces in eV/Angstrom."""
        super().calculate(atoms, properties, system_changes)
        positions = self.atoms.positions
        ends = [positions[self.hydrogen] - positions[end] for end in (self.donor, self.acceptor)]
        lengths = [np.linalg.norm(end) for end in ends]
        stretch, forces = lengths[0] - lengths[1] - self.wanted, np.zeros_like(positions)
        for sign, index, end, length in zip((1, -1), (self.donor, self.acceptor), ends, lengths, strict=True):
            forces[index] += sign * self.stiffness * stretch * end / length
            forces[self.hydrogen] -= sign * self.stiffness * stretch * end / length
        self.results = {"energy": self.stiffness / 2 * stretch**2, "forces": forces}


def passage(start: Atoms, ends: tuple[int, int, int], places: int) -> Iterator[Atoms]:
    """Minima with the proton at places between donor and acceptor, each held there by the spring that is attached.

    Args:
        start: where the path begins.
        ends: indices of the donor, the proton and the acceptor.
        places: how many, from bound to the donor to bound to the acceptor.
    """
    for wanted in np.linspace(-FARTHEST, FARTHEST, places):
        spring = Transfer(*ends, float(wanted))
        start = relaxed(start, spring)
        start.calc = spring
        yield start


def malonaldehyde() -> Iterator[Atoms]:
    """The enol with its proton at thirteen places between the two oxygen atoms."""
    ring = min(map(relaxed, embedded("O=C/C=C\\O", 20)), key=lambda atoms: atoms.info["energy"])
    oxygen = [atom.index for atom in ring if atom.symbol == "O"]
    hydrogen = min(
        (atom.index for atom in ring if atom.symbol == "H"),
        key=lambda index: sum(ring.get_distance(index, end) for end in oxygen),
    )
    donor, acceptor = sorted(oxygen, key=lambda end: ring.get_distance(hydrogen, end))
    yield from passage(ring, (donor, hydrogen, acceptor), 13)


def water_hexamer() -> Iterator[Atoms]:
    """Minima of six water molecules, from random heaps."""
    rng = np.random.default_rng(SEED)
    return distinct([assemble(HEXAMER, [2.0] * 5, rng, sigma=0.0) for _ in range(30)])


SYSTEMS = {
    "glycine": System("NCC(=O)O", (300.0, 500.0), glycine, 4, 28),
    "malonaldehyde": System("O=CC=CO", (300.0, 500.0), malonaldehyde, 13, 8),
    "water_hexamer": System(HEXAMER, (150.0, 300.0), water_hexamer, 5, 20),
}


def dynamics(start: Atoms, temperature: float, count: int, rng: np.random.Generator) -> Iterator[Atoms]:
    """Bare frames of GFN2-xTB dynamics at a temperature in K; what the start's calculator gives is added."""
    atoms = start.copy()
    attach(atoms, start.calc)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    friction = 0.02 / units.fs
    motion = Langevin(atoms, TIME_STEP * units.fs, temperature_K=temperature, friction=friction, fixcm=False, rng=rng)
    motion.run(EQUILIBRATE)
    for _ in range(count):
        motion.run(INTERVAL)
        yield Atoms(atoms.get_chemical_symbols(), atoms.get_positions() - atoms.get_center_of_mass())


def snapshots(name: str) -> list[Atoms]:
    """All geometries of a system in a shuffled but fixed order."""
    system, frames = SYSTEMS[name], []
    for number, start in zip(range(system.number), system.starts(), strict=False):
        for temperature in system.temperatures:
            rng = np.random.default_rng((SEED, number, int(temperature)))
            for frame in dynamics(start, temperature, system.frames, rng):
                frame.info.update(config_type=f"{name}_md", smiles=system.smiles, temperature=temperature, start=number)
                frames.append(frame)
    return [frames[index] for index in np.random.default_rng(SEED).permutation(len(frames))]
