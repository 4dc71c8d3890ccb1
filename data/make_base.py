"""Make the base training set: small H/C/N/O molecules labelled with GFN2-xTB energies and forces."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import combinations_with_replacement
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from rdkit import Chem, RDLogger
from rdkit.Chem import AllChem, Descriptors
from rdkit.Chem.MolStandardize import rdMolStandardize
from tblite.ase import TBLite

MAX_FORCE = 30.0  # eV/Angstrom, frames above are dropped
DISSOCIATED_FORCE = 0.003  # eV/Angstrom, limit where the SCF of another multiplicity failed: the curve may jump there
LARGE_ATOMS, LARGE_FRAMES = 13, 4  # smallest molecule that gets further dynamics, and its frames per temperature
MIN_CONTACT = 0.45  # Angstrom, geometries with closer atoms are not computed
ELEMENTS = ("H", "C", "N", "O")

# Kept out in any tautomer: aspirin, acetylacetone, 3-(benzyloxy)pyridin-2-amine, ethanol, methanol, glycine.
FORBIDDEN = (
    "CC(=O)Oc1ccccc1C(=O)O",
    "CC(=O)CC(C)=O",
    "CC(=O)C=C(C)O",
    "Nc1ncccc1OCc1ccccc1",
    "CCO",
    "CO",
    "NCC(=O)O",
    "[NH3+]CC(=O)[O-]",
)

MOLECULES = """
[H][H] N#N O N C [C-]#[O+] O=C=O C#N OO NN NO [O-][O+]=O N=C=O N=N C=N N=O
CC CCC CCCC CC(C)C CCCCC CC(C)(C)C CCCCCC
C=C CC=C C=CC=C CC=CC C=C(C)C C=C=C CC=C(C)C C=CC=CC=C
C#C CC#C CC#CC C#CC#C C=CC#C CCC#C
C1CC1 C1CCC1 C1CCCC1 C1CCCCC1 C1=CCCC1 C1=CCCCC1 C1=CC1 CC1CC1 C1CC2CC1C=C2
CCCO CC(C)O CCC(C)O CC(C)(C)O OCCO C=CCO OCC(O)CO C#CCO NCCO OC1CCCC1
COC CCOC CCOCC C1CO1 C1CCOC1 COCOC C1COCCO1 C=COC COCCO
C=O CC=O CCC=O C=CC=O O=CC=O O=Cc1ccccc1 O=Cc1ccccc1O
CC(C)=O CCC(C)=O CC(=O)C(C)=O C=CC(C)=O O=C1CCCC1 O=C1CCCCC1 CC(=O)c1ccccc1 C=C=O
OC=O CC(=O)O CCC(=O)O C=CC(=O)O OC(=O)C(=O)O CC(=O)C(=O)O OCC(=O)O OC(=O)CC(=O)O
COC=O CC(=O)OC CC(=O)OCC CCC(=O)OC CC(=O)OC=C C=CC(=O)OC CC(=O)Oc1ccccc1 COC(=O)c1ccccc1 O=COc1ccccc1 CCOC=O
Oc1ccccc1 Cc1ccccc1O Oc1ccccc1O Oc1ccc(O)cc1 COc1ccccc1O Nc1ccccc1O
OC(=O)c1ccccc1 OC(=O)c1ccccc1O COC(=O)c1ccccc1O NC(=O)c1ccccc1O OC(=O)c1ccc(O)cc1 OC(=O)c1ccccc1C COc1ccccc1C(=O)O
c1ccccc1 Cc1ccccc1 C=Cc1ccccc1 C#Cc1ccccc1 Cc1ccccc1C
c1ccc2ccccc2c1 c1ccc(-c2ccccc2)cc1 COc1ccccc1 COCc1ccccc1 OCc1ccccc1
NCc1ccccc1 Nc1ccccc1 CNc1ccccc1 [O-][N+](=O)c1ccccc1 N#Cc1ccccc1 CCc1ccccc1 C(Oc1ccccc1)=C c1ccc(Oc2ccccn2)cc1
c1ccncc1 Cc1cccnc1 Nc1ccccn1 Oc1cccnc1 COc1cccnc1 Nc1ncccc1O Nc1ncccc1OC O=c1cccc[nH]1 c1ccc2[nH]ccc2c1
c1cc[nH]c1 c1ccoc1 c1c[nH]cn1 c1cocn1 c1cnoc1 c1cn[nH]c1 c1cncnc1 c1cnccn1 Cn1ccnc1 Cc1ccco1 O=Cc1ccco1 c1nc[nH]n1
CN CCN CNC CN(C)C CCCN C1CCNC1 C1CN1 C=CCN NCCN C1CCNCC1 C1COCCN1
NC=O CC(N)=O CNC=O CNC(C)=O CN(C)C=O CCC(N)=O NC(=O)c1ccccc1 CC(=O)Nc1ccccc1 O=C1CCCN1 CN(C)C(C)=O
NCC(N)=O C[C@H](N)C(=O)O CC#N CCC#N C=CC#N N#CC#N N#CCO CC=N CC=NC NC=N CC(N)=N NC(N)=N
C[N+](=O)[O-] CC[N+](=O)[O-] O=[N+]([O-])O CON=O CC=NO CC(C)=NO CNO CON
NC(N)=O CNC(N)=O COC(=O)OC O=C1OCCO1 NC(=O)OC CC(=O)OC(C)=O O=C1OC(=O)C=C1 O=C1CCCO1 O=C1CCO1 O=C1C=CC(=O)N1
COO COOC CC(=O)OO CNN CN=NC CN(C)N=O [N-]=[N+]=C CN=[N+]=[N-] NC(=O)C=O
""".split()

VALID_MOLECULES = """
CCCO CCC(C)=O CC(=O)OCC O=Cc1ccccc1O Cc1ccccc1 NCc1ccccc1 c1cn[nH]c1 CCC(N)=O C1=CCCC1 CC=NO
""".split()

TEST_MOLECULES = """
CCC(C)O CCOC C=CC=C CCC=O O=C1CCCC1 CCC(=O)O COC(=O)c1ccccc1O COc1cccnc1 CN(C)C=O CC[N+](=O)[O-] c1cnoc1 CNC(N)=O
""".split()

DIMERS = """
O.O O.N N.N O.C=O O.NC=O O.OC=O O.C O.c1ccccc1 O.O=C=O O.C#N O.CC(N)=O O.c1ccncc1 O.COC O.CN O.CC=O O.OO
O.Oc1ccccc1 N.C=O N.OC=O N.c1ccccc1 N.NC=O C=O.C=O NC=O.NC=O OC=O.OC=O OC=O.NC=O OC=O.C=O C.C C.N C.c1ccccc1 C.C=C
O=C=O.O=C=O O=C=O.N C=C.C=C C#C.O CC(=O)O.O CC(=O)O.CC(=O)O [H][H].O N#N.O c1cc[nH]c1.O [C-]#[O+].C CNC=O.O CC#N.O
""".split()

VALID_DIMERS = ("NC=O.NC=O",)
TEST_DIMERS = ("O.OC=O",)

CLUSTERS = ("O.O.O", "O.O.O.O", "N.N.N", "N.N.N.N", "O.O.N", "O.N.N", "O.O.O.N", "O.O.NC=O")


@dataclass(frozen=True)
class Task:
    """A unit of work with its own checkpoint file."""

    kind: str
    name: str
    split: str
    make: Callable[[str, np.random.Generator], Iterator[Atoms]]

    def path(self, work: Path) -> Path:
        """Return the checkpoint file of this task."""
        return work / f"{self.kind}_{zlib.crc32(self.name.encode()):08x}.extxyz"


def too_close(atoms: Atoms) -> bool:
    """Tell whether two atoms are closer than any geometry worth computing."""
    if len(atoms) < 2:
        return False
    distances = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
    return bool(distances.min() < MIN_CONTACT)


def label(
    atoms: Atoms, config_type: str, multiplicities: tuple[int | None, ...] = (None,), **info: float
) -> Atoms | None:
    """Return a copy with the tightly converged energy and forces of the lowest multiplicity, or None if unusable."""
    if too_close(atoms):
        return None
    found = []
    for multiplicity in multiplicities:
        bare = Atoms(atoms.get_chemical_symbols(), atoms.get_positions())
        bare.calc = TBLite(method="GFN2-xTB", verbosity=0, accuracy=0.1, multiplicity=multiplicity)
        try:
            found.append((bare.get_potential_energy(), bare.get_forces()))
        except CalculationFailed:
            continue
    if not found:
        return None
    energy, forces = min(found, key=lambda result: result[0])
    largest = np.linalg.norm(forces, axis=1).max()
    limit = MAX_FORCE if len(found) == len(multiplicities) else DISSOCIATED_FORCE
    if not np.isfinite(largest) or largest > limit:
        return None
    frame = Atoms(atoms.get_chemical_symbols(), atoms.get_positions() - atoms.get_center_of_mass())
    frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces)
    frame.info.update(config_type=config_type, **info)
    return frame


def conformers(smiles: str, count: int) -> tuple[list[Atoms], Chem.Mol]:
    """Embed up to `count` conformers and relax each a little with GFN2-xTB."""
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    options = AllChem.ETKDGv3()
    options.randomSeed = 7
    options.pruneRmsThresh = 0.3
    AllChem.EmbedMultipleConfs(mol, count, options)
    symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
    relaxed = []
    for conformer in mol.GetConformers():
        atoms = Atoms(symbols, conformer.GetPositions())
        relax(atoms, fmax=0.05, steps=40)
        relaxed.append(atoms)
    return relaxed, mol


def relax(atoms: Atoms, fmax: float, steps: int) -> None:
    """Relax in place with GFN2-xTB, keeping the last geometry if the SCF fails."""
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    try:
        BFGS(atoms, logfile=None).run(fmax=fmax, steps=steps)
    except CalculationFailed:
        pass
    atoms.calc = None


def dynamics(
    start: Atoms, temperature: float, frames: int, rng: np.random.Generator, equilibrate: int = 40, interval: int = 25
) -> Iterator[Atoms]:
    """Yield labelled snapshots of Langevin dynamics started from a relaxed geometry at twice the temperature."""
    atoms = start.copy()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=2 * temperature, rng=rng)
    motion = Langevin(atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, fixcm=False, rng=rng)
    for index in range(frames):
        try:
            motion.run(interval + (equilibrate if index == 0 else 0))
        except CalculationFailed:
            return
        frame = label(atoms, "md", temperature=temperature)
        if frame is not None:
            yield frame


def stretched(atoms: Atoms, mol: Chem.Mol, factor: float, rng: np.random.Generator) -> Atoms | None:
    """Change the length of one random acyclic (if possible single) bond, moving the smaller side rigidly."""
    acyclic = [bond for bond in mol.GetBonds() if not bond.IsInRing()]
    bonds = [bond for bond in acyclic if bond.GetBondType() == Chem.BondType.SINGLE] or acyclic
    if not bonds:
        return None
    bond = bonds[rng.integers(len(bonds))]
    first, second = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
    cut = Chem.RWMol(mol)
    cut.RemoveBond(first, second)
    side = next(list(part) for part in Chem.GetMolFrags(cut) if second in part)
    moved = atoms.copy()
    moved.positions[side] += (factor - 1.0) * (atoms.positions[second] - atoms.positions[first])
    return moved


def molecule_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield dynamics, displaced, stretched and scaled frames of one molecule."""
    relaxed, mol = conformers(smiles, 3)
    for index, temperature in enumerate((300.0, 600.0, 1000.0)):
        frames = 5 if len(relaxed[0]) > 7 else 3
        yield from dynamics(relaxed[index % len(relaxed)], temperature, frames, rng)

    def pick(sigma: float) -> Atoms:
        atoms = relaxed[rng.integers(len(relaxed))].copy()
        atoms.positions += rng.normal(0.0, sigma, atoms.positions.shape)
        return atoms

    geometries = [(pick(sigma), "displaced") for sigma in (0.04, 0.08)]
    for low, high in ((0.75, 0.9), (0.9, 1.2), (1.2, 1.4), (1.4, 1.6)):
        geometries.append((stretched(pick(0.02), mol, rng.uniform(low, high), rng), "stretched"))
    for low, high in ((0.93, 1.0), (1.0, 1.12)):
        atoms = pick(0.02)
        atoms.positions *= rng.uniform(low, high)
        geometries.append((atoms, "scaled"))
    for atoms, config_type in geometries:
        frame = None if atoms is None else label(atoms, config_type)
        if frame is not None:
            yield frame


def large_frames(smiles: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield further dynamics of a larger molecule at two more temperatures."""
    relaxed, _ = conformers(smiles, 3)
    for index, temperature in enumerate((450.0, 800.0)):
        yield from dynamics(relaxed[-1 - index % len(relaxed)], temperature, LARGE_FRAMES, rng)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a uniformly distributed rotation matrix."""
    matrix, upper = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(upper))
    return matrix if np.linalg.det(matrix) > 0 else -matrix


def attach(cluster: Atoms, guest: Atoms, contact: float, rng: np.random.Generator) -> Atoms:
    """Add a randomly oriented molecule so that its closest atom pair to the cluster is `contact` apart."""
    fixed = cluster.positions - cluster.positions.mean(axis=0)
    turned = (guest.positions - guest.positions.mean(axis=0)) @ random_rotation(rng).T
    direction = random_rotation(rng)[0]
    outside, inside = 25.0, 0.0
    for shift in np.arange(25.0, 0.0, -0.1):
        if closest(fixed, turned + shift * direction) < contact:
            inside = shift
            break
        outside = shift
    for _ in range(30):
        middle = 0.5 * (outside + inside)
        if closest(fixed, turned + middle * direction) < contact:
            inside = middle
        else:
            outside = middle
    symbols = cluster.get_chemical_symbols() + guest.get_chemical_symbols()
    return Atoms(symbols, np.vstack([fixed, turned + outside * direction]))


def closest(first: np.ndarray, second: np.ndarray) -> float:
    """Return the smallest distance between two groups of points."""
    return float(np.linalg.norm(first[:, None] - second[None], axis=-1).min())


@cache
def monomer(smiles: str) -> Atoms:
    """Return one relaxed conformer."""
    return conformers(smiles, 1)[0][0]


def assemble(names: str, contacts: list[float], rng: np.random.Generator, sigma: float) -> Atoms:
    """Build a cluster of the named molecules, each attached at the next closest-contact distance."""
    parts = []
    for smiles in names.split("."):
        part = monomer(smiles).copy()
        part.positions += rng.normal(0.0, sigma, part.positions.shape)
        parts.append(part)
    cluster = parts[0]
    for part, contact in zip(parts[1:], contacts, strict=True):
        cluster = attach(cluster, part, contact, rng)
    return cluster


def dimer_frames(names: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield a dimer at random orientations from the repulsive wall to 5 Angstrom, and dynamics near its minimum."""
    contacts = [1.0, 1.15, 1.3, 1.5, 1.6, 1.7, 1.85, 2.0, 2.2, 2.4, 2.7, 3.2, 4.0, 5.0]
    for contact in contacts:
        atoms = assemble(names, [contact * rng.uniform(0.97, 1.03)], rng, sigma=0.03)
        frame = label(atoms, "dimer")
        if frame is not None:
            yield frame
    bound = assemble(names, [2.2], rng, sigma=0.0)
    relax(bound, fmax=0.1, steps=40)
    for frame in dynamics(bound, 150.0, 4, rng, equilibrate=25, interval=25):
        frame.info["config_type"] = "dimer_md"
        yield frame


def cluster_frames(names: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield dynamics of a small cluster at 200, 300 and 400 K, each from its own random start."""
    for temperature in (200.0, 300.0, 400.0):
        start = assemble(names, [2.0] * names.count("."), rng, sigma=0.0)
        relax(start, fmax=0.1, steps=60)
        for frame in dynamics(start, temperature, 7, rng, equilibrate=40, interval=25):
            frame.info["config_type"] = "cluster_md"
            yield frame


def spin_states(symbols: list[str]) -> tuple[int, ...]:
    """Return the multiplicities tried for an atom or diatomic."""
    electrons = int(Atoms(symbols).numbers.sum())
    return (1, 3, 5) if electrons % 2 == 0 else (2, 4)


def diatomic_frames(name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the curve of two atoms from the repulsive wall to 5 Angstrom, lowest multiplicity at each point."""
    symbols = name.split("-")
    radii = sum(covalent_radii[Atoms(symbols).numbers])
    for distance in np.concatenate([np.linspace(0.55, 1.6, 18) * radii, np.linspace(1.7 * radii, 5.0, 8)]):
        frame = label(Atoms(symbols, [[0, 0, 0], [0, 0, distance]]), "diatomic", spin_states(symbols))
        if frame is not None:
            yield frame


def atom_frames(name: str, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield the isolated atom."""
    frame = label(Atoms(name), "isolated_atom", spin_states([name]))
    if frame is None:
        raise RuntimeError(f"SCF of the isolated {name} atom failed")
    frame.calc.results["forces"] = np.zeros((1, 3))
    yield frame


def check_names(names: list[str]) -> None:
    """Assert that every molecule is neutral, closed-shell H/C/N/O and no tautomer of a forbidden one."""
    tautomers = rdMolStandardize.TautomerEnumerator()
    forbidden = set()
    for smiles in FORBIDDEN:
        mol = Chem.MolFromSmiles(smiles)
        forbidden |= {Chem.MolToSmiles(mol), Chem.MolToSmiles(tautomers.Canonicalize(mol))}
    for smiles in names:
        mol = Chem.MolFromSmiles(smiles)
        bare = Chem.MolFromSmiles(smiles)
        Chem.RemoveStereochemistry(bare)
        assert Chem.GetFormalCharge(mol) == 0, smiles
        assert {atom.GetSymbol() for atom in mol.GetAtoms()} <= set(ELEMENTS), smiles
        assert Descriptors.NumRadicalElectrons(mol) == 0, smiles
        assert Chem.MolToSmiles(bare) not in forbidden, smiles
        assert Chem.MolToSmiles(tautomers.Canonicalize(bare)) not in forbidden, smiles


def all_tasks() -> list[Task]:
    """List every task: atoms and diatomics first, then the rest shuffled so that a cut-off run stays balanced."""
    parts = {part for names in (*DIMERS, *CLUSTERS) for part in names.split(".")}
    check_names([*MOLECULES, *sorted(parts)])
    canonical = [Chem.CanonSmiles(smiles) for smiles in MOLECULES]
    assert len(set(canonical)) == len(canonical), [name for name, n in Counter(canonical).items() if n > 1]
    held_out = {*VALID_MOLECULES, *TEST_MOLECULES}
    assert held_out <= set(MOLECULES)
    assert not held_out & parts

    def split_of(name: str) -> str:
        if name in VALID_MOLECULES or name in VALID_DIMERS:
            return "valid"
        return "test" if name in TEST_MOLECULES or name in TEST_DIMERS else "train"

    first = [Task("atom", symbol, "train", atom_frames) for symbol in ELEMENTS]
    pairs = combinations_with_replacement(ELEMENTS, 2)
    first += [Task("diatomic", f"{a}-{b}", "train", diatomic_frames) for a, b in pairs]
    rest = [Task("molecule", name, split_of(name), molecule_frames) for name in MOLECULES]
    rest += [Task("dimer", name, split_of(name), dimer_frames) for name in DIMERS]
    rest += [Task("cluster", name, "train", cluster_frames) for name in CLUSTERS]
    order = np.random.default_rng(1).permutation(len(rest))
    large = [name for name in MOLECULES if Chem.AddHs(Chem.MolFromSmiles(name)).GetNumAtoms() >= LARGE_ATOMS]
    last = [Task("large", name, split_of(name), large_frames) for name in large]
    return first + [rest[index] for index in order] + last


def run(work: Path) -> None:
    """Compute every task that has no checkpoint yet."""
    work.mkdir(parents=True, exist_ok=True)
    tasks = all_tasks()
    for number, task in enumerate(tasks, 1):
        path = task.path(work)
        if path.exists():
            continue
        begin = time.perf_counter()
        frames = list(task.make(task.name, np.random.default_rng(zlib.crc32(task.name.encode()))))
        for frame in frames:
            frame.info["smiles"] = task.name
        if not frames:
            print(f"{number}/{len(tasks)} {task.kind} {task.name}: no usable frame", flush=True)
            continue
        partial = path.with_suffix(".partial")
        ase.io.write(partial, frames, format="extxyz")
        partial.rename(path)
        seconds = time.perf_counter() - begin
        print(f"{number}/{len(tasks)} {task.kind} {task.name}: {len(frames)} frames, {seconds:.1f} s", flush=True)


def gather(work: Path) -> dict[str, list[Atoms]]:
    """Read all checkpoints, drop duplicates, and shuffle each split in a fixed order with isolated atoms first."""
    splits: dict[str, list[Atoms]] = {"train": [], "valid": [], "test": []}
    seen: set[bytes] = set()
    for task in all_tasks():
        if not task.path(work).exists():
            continue
        for frame in ase.io.iread(task.path(work), index=":"):
            key = frame.numbers.tobytes() + frame.get_all_distances().round(3).tobytes()
            if key not in seen:
                seen.add(key)
                splits[task.split].append(frame)
    for name, frames in splits.items():
        order = np.random.default_rng(2).permutation(len(frames))
        splits[name] = sorted((frames[i] for i in order), key=lambda f: f.info["config_type"] != "isolated_atom")
    return splits


def collect(work: Path, out: Path, prefix: str) -> None:
    """Write the three splits and the JSON summary from whatever is done."""
    out.mkdir(parents=True, exist_ok=True)
    summary: dict[str, object] = {
        "method": "GFN2-xTB, tblite accuracy 0.1",
        "units": {"energy": "eV", "forces": "eV/Angstrom", "positions": "Angstrom"},
        "date": datetime.date.today().isoformat(),
        "versions": {name: version(name) for name in ("ase", "tblite", "rdkit", "numpy")}
        | {"python": sys.version.split()[0]},
        "forbidden": FORBIDDEN,
    }
    for name, frames in gather(work).items():
        if not frames:
            continue
        ase.io.write(out / f"{prefix}{name}.extxyz.xz", frames, format="extxyz")
        summary[name] = {
            "frames": len(frames),
            "mean_atoms": round(float(np.mean([len(frame) for frame in frames])), 2),
            "config_types": dict(sorted(Counter(frame.info["config_type"] for frame in frames).items())),
            "smiles": sorted({frame.info["smiles"] for frame in frames}),
        }
        print(name, summary[name]["frames"], "frames,", summary[name]["mean_atoms"], "atoms on average")
    (out / f"{prefix.rstrip('_')}.json").write_text(json.dumps(summary, indent=1) + "\n")


def main() -> None:
    """Run the unfinished tasks, or only collect the finished ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint files")
    parser.add_argument("--collect", action="store_true", help="only write the final files from what is done")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the final files")
    parser.add_argument("--prefix", default="base_", help="start of the names of the final files")
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    if not options.collect:
        run(options.work)
    collect(options.work, options.out, options.prefix)


if __name__ == "__main__":
    main()
