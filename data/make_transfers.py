"""Frames with a proton on its way from one atom to another, labelled with the density functional of `make_dft.py`.

Within a molecule and between two; none of a molecule that the base set leaves out or holds back for its tests.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from zlib import crc32

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from base_molecules import check_names, check_trained
from dft_systems import FARTHEST, SEED, Transfer, conformers, dynamics, passage, relaxed
from make_base import Source, write_files
from make_dft import METHOD
from make_r2scan import PREFIX, converged
from rdkit import Chem, RDLogger
from walked import Walk, label_walks, labelled

FOLDER = Path(__file__).parent
# The donor is atom 1, the proton 2 and the acceptor 3.
TRANSFERS = r"""
[H:2][NH:1]/C=C\C=[O:3] [H:2][S:1]/C=C\C=[O:3] [H:2][NH:1]/C=C\C=[NH:3] [H:2][O:1]/C=N\C=[O:3] [H:2][O:1]/C=C\N=[O:3]
[H:2][O:1]CC=[O:3] [H:2][O:1]NC=[O:3] [H:2][O:1]C(=O)C=[O:3]
[H:2][O:1]C=O.[O:3]=CO [H:2][O:1]C=O.[O:3]=CN [H:2][O:1]C=O.[NH:3]=CN [H:2][NH:1]C=N.[NH:3]=CN [H:2][NH:1]C=O.[OH2:3]
[H:2][O:1]C=O.[NH3:3] [H:2][S:1]C=O.[NH3:3] [H:2][O:1][PH2]=O.[NH3:3] [H:2][O:1][N+](=O)[O-].[NH3:3]
[H:2][O:1]N=O.[OH2:3] [H:2][Cl:1].[NH3:3] [H:2][Br:1].[NH3:3] [H:2][F:1].[NH3:3] [H:2][Cl:1].[OH2:3]
[H:2][OH:1].[NH3:3] [H:2][OH:1].[OH2:3]
""".split()
PLACES, TEMPERATURES = 9, (300.0, 500.0)  # along each path, and K of one place and the next
CONTACT = 2.0  # Angstrom from the proton to the acceptor of another molecule, at first
SOURCE = Source(
    method=METHOD,
    seeds=f"{SEED}, crc32 of the SMILES in the script, and the place on the path; order of the frames: 2",
    packages=("pyscf", "pyscf-dispersion", "tblite", "rdkit", "ase", "numpy"),
    decimals=8,  # as ASE writes the geometries that are labelled
)


def parsed(mapped: str) -> tuple[Chem.Mol, str]:
    """The molecules with all their hydrogen atoms, and their SMILES without the numbers."""
    options = Chem.SmilesParserParams()
    options.removeHs = False
    mol = Chem.AddHs(Chem.MolFromSmiles(mapped, options))
    plain = Chem.Mol(mol)
    for atom in plain.GetAtoms():
        atom.SetAtomMapNum(0)
    return mol, Chem.MolToSmiles(Chem.RemoveHs(plain), isomericSmiles=False)


def geometries(mapped: str) -> list[Atoms]:
    """A frame of dynamics at each place of the proton, from the lowest of the minima in which the donor has it."""
    mol, smiles = parsed(mapped)
    numbers = [atom.GetAtomMapNum() for atom in mol.GetAtoms()]
    donor, proton, acceptor = (numbers.index(number) for number in (1, 2, 3))
    spring = Transfer(donor, proton, acceptor, -FARTHEST)
    starts = []
    other = next(list(part) for part in Chem.GetMolFrags(mol) if acceptor in part)
    for atoms in conformers(mol, 12):
        if donor not in other:  # RDKit puts two molecules into each other: the acceptor goes to the proton's far side
            bond = atoms.positions[proton] - atoms.positions[donor]
            place = atoms.positions[proton] + CONTACT * bond / np.linalg.norm(bond)
            atoms.positions[other] += place - atoms.positions[acceptor]
        with suppress(CalculationFailed):  # other atoms may still be too close
            starts.append(relaxed(atoms, spring))
    lowest, frames = min(starts, key=lambda atoms: atoms.info["energy"]), []
    for place, start in enumerate(passage(lowest, (donor, proton, acceptor), PLACES)):
        kelvin = TEMPERATURES[place % 2]
        rng = np.random.default_rng((SEED, crc32(mapped.encode()), place))
        frame = next(dynamics(start, kelvin, 1, rng))
        frame.info.update(config_type="transfer", smiles=smiles, temperature=kelvin)
        frames.append(frame)
    return frames


def prepared(work: Path, mapped: str) -> list[Walk]:
    """Those of one path, its geometries made if they are not there yet."""
    key = f"{crc32(mapped.encode()):08x}"
    path = work / f"path_{key}.extxyz"
    if not path.exists():
        frames, unfinished = geometries(mapped), path.with_suffix(".partial")
        ase.io.write(unfinished, frames, format="extxyz")
        unfinished.rename(path)
        print(f"{mapped}: {len(frames)} geometries", flush=True)
    frames = ase.io.read(path, index=":")
    names = [work / f"{key}_{place}.extxyz" for place in range(len(frames))]
    return [Walk(name, frame.info.pop("smiles"), [frame], converged) for name, frame in zip(names, frames, strict=True)]


def walks(work: Path, jobs: int) -> list[Walk]:
    """One for each frame, in a fixed order in which all paths are mixed: a cut-off run stays balanced."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        found = [walk for path in pool.map(partial(prepared, work), TRANSFERS) for walk in path]
    return [found[index] for index in np.random.default_rng(SEED).permutation(len(found))]


def main() -> None:
    """Label what has no checkpoint yet, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint files")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--collect", action="store_true", help="only write the final file from what is done")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the final file")
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    names = [parsed(mapped)[1] for mapped in TRANSFERS]
    check_names(names)
    check_trained(names)
    options.work.mkdir(parents=True, exist_ok=True)
    found = walks(options.work, options.jobs)
    if not options.collect:
        label_walks(found, options.jobs)
    write_files({"transfers": labelled(walk.path for walk in found)}, options.out, PREFIX, source=SOURCE)


if __name__ == "__main__":
    main()
