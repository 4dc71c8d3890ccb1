"""Molecules one or two changes away from those listed: another element, one atom more or less, another bond, a ring."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from base_molecules import FORBIDDEN, MOLECULES, enumerated, split_of, tautomer
from rdkit import Chem
from rdkit.Chem import Descriptors

NEIGHBOURS, LARGEST = 3000, 8  # molecules, and heavy atoms of what is changed and of what comes of it
RELATIVES, LARGEST_RELATIVE = 12000, 9  # the same of those that are further away
RINGS = (3, 4, 5, 6)  # sizes that a new bond may close
VALENCE = {"C": 4, "N": 3, "O": 2, "F": 1, "P": 3, "S": 2, "Cl": 1, "Br": 1}
SHARES = {"C": 6.0, "N": 5.0, "O": 5.0, "F": 2.0, "P": 1.0, "S": 2.5, "Cl": 1.5, "Br": 1.0}  # of new atoms
STRAINED = Chem.MolFromSmarts("[$([r3,r4,r5,r6]#*),$([r3,r4,r5,r6;D2](=*)=*)]")  # triple bonds and allenes in rings
HYPERVALENT = Chem.MolFromSmarts("[$([#16;v4,v6]);!$([#16]=O)]")  # sulphur with more than two bonds, none to oxygen
CROWDED = Chem.MolFromSmarts("[!#6;!#1]~[!#6;!#1]~[!#6;!#1]~[!#6;!#1]")  # four heteroatoms in a row


def element(rng: np.random.Generator, bonds: float) -> str | None:
    """Draw an element that can have so many bonds."""
    able = [symbol for symbol in SHARES if VALENCE[symbol] >= bonds]
    weights = np.array([SHARES[symbol] for symbol in able])
    return str(rng.choice(able, p=weights / weights.sum())) if able else None


def place(rng: np.random.Generator, mol: Chem.RWMol, hydrogens: int = 0) -> Chem.Atom | None:
    """Draw an uncharged atom with at least so many hydrogens."""
    able = [a for a in mol.GetAtoms() if a.GetTotalNumHs() >= hydrogens and not a.GetFormalCharge()]
    return able[rng.integers(len(able))] if able else None


def exchanged(mol: Chem.RWMol, rng: np.random.Generator) -> None:
    """Make one atom another element with room for the same bonds."""
    atom = place(rng, mol)
    new = atom and element(rng, sum(bond.GetBondTypeAsDouble() for bond in atom.GetBonds()))
    if new:
        atom.SetAtomicNum(Chem.GetPeriodicTable().GetAtomicNumber(new))


def extended(mol: Chem.RWMol, rng: np.random.Generator) -> None:
    """Put an atom in the place of a hydrogen."""
    atom, new = place(rng, mol, hydrogens=1), element(rng, 1)
    if atom and new:
        mol.AddBond(atom.GetIdx(), mol.AddAtom(Chem.Atom(new)), Chem.BondType.SINGLE)


def inserted(mol: Chem.RWMol, rng: np.random.Generator) -> None:
    """Put an atom into a single bond: a longer chain, a larger ring."""
    bonds = [bond for bond in mol.GetBonds() if bond.GetBondType() == Chem.BondType.SINGLE]
    new = element(rng, 2)
    if bonds and new:
        bond = bonds[rng.integers(len(bonds))]
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        mol.RemoveBond(*ends)
        middle = mol.AddAtom(Chem.Atom(new))
        for end in ends:
            mol.AddBond(end, middle, Chem.BondType.SINGLE)


def removed(mol: Chem.RWMol, rng: np.random.Generator) -> None:
    """Take out an atom with one or two neighbours and join these: a shorter chain, a smaller ring."""
    atom = place(rng, mol)
    if atom is None or atom.GetDegree() > 2:
        return
    ends = [other.GetIdx() for other in atom.GetNeighbors()]
    if len(ends) == 2 and mol.GetBondBetweenAtoms(*ends) is None:
        mol.AddBond(*ends, Chem.BondType.SINGLE)
    mol.RemoveAtom(atom.GetIdx())


def rebound(mol: Chem.RWMol, rng: np.random.Generator) -> None:
    """Make a bond one order higher or lower."""
    bonds = list(mol.GetBonds())
    if not bonds:
        return
    bond = bonds[rng.integers(len(bonds))]
    orders = [Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE]
    if bond.GetBondType() in orders:
        order = orders.index(bond.GetBondType()) + (1 if rng.random() < 0.6 else -1)
        if 0 <= order < len(orders):
            bond.SetBondType(orders[order])


def closed(mol: Chem.RWMol, rng: np.random.Generator) -> None:
    """Join two atoms to a ring of three to six."""
    apart = Chem.GetDistanceMatrix(mol)
    pairs = [(int(a), int(b)) for a, b in np.argwhere(np.isin(apart + 1, RINGS)) if a < b]
    if pairs:
        mol.AddBond(*pairs[rng.integers(len(pairs))], Chem.BondType.SINGLE)


CHANGES: tuple[Callable[[Chem.RWMol, np.random.Generator], None], ...] = (
    *(exchanged, exchanged, extended, extended, inserted, removed, rebound, closed),
)


def changed(smiles: str, most: int, largest: int, rng: np.random.Generator) -> Chem.Mol | None:
    """One to `most` random changes of a molecule; None where what comes of them is no molecule or too strained."""
    mol = Chem.RWMol(Chem.MolFromSmiles(smiles))
    Chem.RemoveStereochemistry(mol)
    Chem.Kekulize(mol, clearAromaticFlags=True)
    for _ in range(rng.integers(1, most + 1)):
        CHANGES[rng.integers(len(CHANGES))](mol, rng)
        if Chem.SanitizeMol(mol, catchErrors=True) != Chem.SanitizeFlags.SANITIZE_NONE:
            return None
        Chem.Kekulize(mol, clearAromaticFlags=True)
    result = Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    if result is None or "." in Chem.MolToSmiles(result) or not 2 <= result.GetNumHeavyAtoms() <= largest:
        return None
    if any(result.HasSubstructMatch(pattern) for pattern in (STRAINED, HYPERVALENT, CROWDED)):
        return None
    rings = [ring for ring in result.GetRingInfo().AtomRings() if len(ring) < 5]
    fused = len(rings) > 1 and len(set().union(*rings)) < sum(map(len, rings))
    if fused or Descriptors.NumRadicalElectrons(result) or Chem.GetFormalCharge(result):
        return None
    return result


def unknown(
    starts: Iterable[str], known: Iterable[str], count: int, most: int, largest: int, seed: int
) -> tuple[str, ...]:
    """So many new molecules changed from the starts, none a tautomer of a known one or of another."""
    rng = np.random.default_rng(seed)
    starts = [smiles for smiles in starts if 2 <= Chem.MolFromSmiles(smiles).GetNumHeavyAtoms() <= largest]
    forms = {tautomer(Chem.MolFromSmiles(smiles)) for smiles in known}
    seen: set[str] = set()
    found: list[str] = []
    while len(found) < count:
        mol = changed(starts[rng.integers(len(starts))], most, largest, rng)
        name = mol and Chem.MolToSmiles(mol)
        if name is None or name in seen:
            continue
        seen.add(name)
        form = tautomer(mol)
        if form not in forms:
            forms.add(form)
            found.append(name)
    return tuple(found)


def listed() -> list[str]:
    """The listed molecules of the training file."""
    return [smiles for smiles in MOLECULES if split_of(smiles) == "train"]


@cache
def neighbours() -> tuple[str, ...]:
    """Return molecules one or two changes away from the listed ones, none held out, forbidden or known."""
    known = (*MOLECULES, *FORBIDDEN, *enumerated())
    return unknown(listed(), known, NEIGHBOURS, most=2, largest=LARGEST, seed=23)


@cache
def relatives() -> tuple[str, ...]:
    """Return molecules up to three changes away from the listed and enumerated ones and from the neighbours."""
    known = (*MOLECULES, *FORBIDDEN, *enumerated(), *neighbours())
    starts = (*listed(), *enumerated(), *neighbours())
    return unknown(starts, known, RELATIVES, most=3, largest=LARGEST_RELATIVE, seed=29)
