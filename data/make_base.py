"""Make the base training set: molecules of H, C, N, O, F, P, S, Cl, Br with GFN2-xTB energies and forces.

The molecules are in base_molecules.py and base_neighbours.py, what is done with each in base_tasks.py and
base_frames.py, geometries and labels in base_geometry.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import lzma
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from base_geometry import DECIMALS, MAX_FORCE, MAX_PAIR_FORCE, single_point, spin_states
from base_molecules import ELEMENTS, FORBIDDEN, check_lists
from base_tasks import FILES, Task, all_tasks
from rdkit import RDLogger

DUPLICATE = 0.02  # Angstrom, root mean square difference of all distances below which a frame is dropped
PREFIX = "base_"  # start of the names of the files
WALLS = "walls"  # file of the frames above the force limit, diatomics all, for tests of the repulsion


def finish(task: Task, work: Path) -> str:
    """Compute one task and write its checkpoint; return a line of the log."""
    RDLogger.DisableLog("rdApp.*")
    begin = time.perf_counter()
    try:
        frames = task.frames()
    except (CalculationFailed, IndexError, ValueError, RuntimeError) as error:
        return f"{task.kind} {task.name}: FAILED, {type(error).__name__}: {error}"
    if not frames:
        return f"{task.kind} {task.name}: no usable frame"
    path = task.path(work)
    partial = path.with_suffix(".partial")
    ase.io.write(partial, frames, format="extxyz")
    partial.rename(path)
    return f"{task.kind} {task.name}: {len(frames)} frames, {time.perf_counter() - begin:.1f} s"


def run(tasks: list[Task], work: Path, jobs: int) -> None:
    """Compute every task that has no checkpoint yet, in several processes."""
    work.mkdir(parents=True, exist_ok=True)
    todo = [task for task in tasks if not task.path(work).exists()]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for number, line in enumerate(pool.map(finish, todo, [work] * len(todo)), 1):
            print(f"{number}/{len(todo)} {line}", flush=True)


def distances(frame: Atoms) -> np.ndarray:
    """Return the distances of all pairs of atoms [pairs] (the nearest images in a box)."""
    return frame.get_all_distances(mic=bool(frame.pbc.any()))[np.triu_indices(len(frame), 1)]


def distinct(frames: Iterable[Atoms]) -> list[Atoms]:
    """Return the frames without those that are nearly the same as an earlier one of the same atoms."""
    kept: list[Atoms] = []
    seen: dict[bytes, list[np.ndarray]] = {}
    for frame in frames:
        others = seen.setdefault(frame.numbers.tobytes(), [])
        vector = distances(frame)
        if len(frame) > 1 and others:
            nearest = np.sqrt(((np.array(others) - vector) ** 2).mean(axis=1)).min()
            if nearest < DUPLICATE:
                continue
        others.append(vector)
        kept.append(frame)
    return kept


def gather(tasks: list[Task], work: Path) -> dict[str, list[Atoms]]:
    """Read all checkpoints into the file that each frame goes to; the steepest go to, or also to, the walls."""
    splits: dict[str, list[Atoms]] = {name: [] for name in (*FILES, WALLS)}
    for task in tasks:
        if task.path(work).exists():
            for frame in ase.io.iread(task.path(work), index=":"):
                frame.info["smiles"] = task.smiles
                steepest = np.linalg.norm(frame.get_forces(), axis=1).max()
                limit = MAX_PAIR_FORCE if frame.info["config_type"] == "diatomic" else MAX_FORCE
                if steepest <= limit:
                    splits[task.split].append(frame)
                if steepest > MAX_FORCE:
                    splits[WALLS].append(frame)
    return splits


def extxyz(frame: Atoms, decimals: int = DECIMALS) -> str:
    """One frame as extended XYZ: positions with these decimals, forces with five, energy with eight, cell with nine."""
    results, info = frame.calc.results, frame.info
    fields = []
    if frame.pbc.any():
        fields.append('Lattice="' + " ".join(f"{x:.9f}" for x in frame.cell[:].ravel()) + '"')
    fields += ["Properties=species:S:1:pos:R:3:forces:R:3", f"config_type={info['config_type']}"]
    fields.append(f'smiles="{info["smiles"]}"')
    if "temperature" in info:
        fields.append(f"temperature={info['temperature']:g}")
    fields.append(f"energy={results['energy']:.8f}")
    if frame.pbc.any():
        stress = frame.get_stress(voigt=False).ravel()
        fields.append('stress="' + " ".join(f"{x:.8f}" for x in stress) + '"')
    fields.append('pbc="T T T"' if frame.pbc.any() else 'pbc="F F F"')
    columns = [(frame.positions, decimals), (results["forces"], 5)]
    rows = [frame.get_chemical_symbols()]
    for numbers, places in columns:
        rows += [[f"{x:.{places}f}" for x in column] for column in (numbers.round(places) + 0.0).T]
    return "\n".join([str(len(frame)), " ".join(fields), *map(" ".join, zip(*rows, strict=True))]) + "\n"


@dataclass(frozen=True)
class Source:
    """Where the labels of a file come from.

    Attributes:
        method: as the JSON summary says it.
        seeds: of the geometries.
        packages: whose versions it names.
        decimals: of the positions, those with which they were labelled.
    """

    method: str
    seeds: str
    packages: tuple[str, ...]
    decimals: int = DECIMALS


GFN2 = Source(
    method="GFN2-xTB, tblite accuracy 0.1; the positions in the files are those labelled",
    seeds="crc32 of the name of each task; order of the frames: 2; order of the tasks: 1; conformers: 7",
    packages=("ase", "tblite", "rdkit", "numpy"),
)


def write_files(
    splits: dict[str, list[Atoms]],
    out: Path,
    prefix: str,
    done: dict[str, str] | None = None,
    source: Source = GFN2,
) -> None:
    """Write each file without near-duplicates, shuffled in a fixed order, and what is in it into the JSON summary."""
    out.mkdir(parents=True, exist_ok=True)
    about = out / f"{prefix.rstrip('_')}.json"
    summary = json.loads(about.read_text()) if about.exists() else {}
    summary |= {
        "method": source.method,
        "units": {"energy": "eV", "forces": "eV/Angstrom", "positions": "Angstrom", "stress": "eV/Angstrom^3"},
        "forbidden": FORBIDDEN,
    }
    for name, found in splits.items():
        kept = distinct(found)
        order = np.random.default_rng(2).permutation(len(kept))
        frames = sorted((kept[i] for i in order), key=lambda f: f.info["config_type"] != "isolated_atom")
        if not frames:
            continue
        with lzma.open(out / f"{prefix}{name}.extxyz.xz", "wt", preset=9 | lzma.PRESET_EXTREME) as file:
            file.writelines(extxyz(frame, source.decimals) for frame in frames)
        summary[name] = {
            **({"tasks": done[name]} if done else {}),
            "date": datetime.date.today().isoformat(),
            "versions": {package: version(package) for package in source.packages} | {"python": sys.version.split()[0]},
            "seeds": source.seeds,
            "frames": len(frames),
            "mean_atoms": round(float(np.mean([len(frame) for frame in frames])), 2),
            "config_types": dict(sorted(Counter(frame.info["config_type"] for frame in frames).items())),
            "frames_with": {symbol: sum(symbol in frame.symbols for frame in frames) for symbol in ELEMENTS},
            "smiles": sorted({frame.info["smiles"] for frame in frames}),
        }
        print(name, len(frames), "frames,", summary[name]["mean_atoms"], "atoms on average")
    about.write_text(json.dumps(summary, indent=1) + "\n")


def collect(tasks: list[Task], work: Path, out: Path, prefix: str) -> None:
    """Write the files of these tasks from whatever is done."""
    done = {}
    for name in (*FILES, WALLS):
        theirs = [task.path(work).exists() for task in tasks if task.split == ("train" if name == WALLS else name)]
        done[name] = f"{sum(theirs)} done of {len(theirs)}"
    write_files(gather(tasks, work), out, prefix, done)


def anew(frame: Atoms) -> dict[str, Any] | None:
    """Return GFN2-xTB's results on the geometry of a frame, or None where it does not converge."""
    few = len(frame) < 3 and frame.info["config_type"] in ("diatomic", "isolated_atom")
    symbols = frame.get_chemical_symbols()
    return single_point(Atoms(frame), spin_states(symbols) if few else (None,))[0]


def deviation(compute: Callable[[Atoms], dict[str, Any] | None], frame: Atoms) -> tuple[float, float]:
    """Return the largest differences of energy and forces between a frame's labels and a new calculation."""
    results = compute(frame)
    if results is None:
        return np.inf, np.inf
    forces = results["forces"] if len(frame) > 1 else 0.0
    energy = abs(results["energy"] - frame.calc.results["energy"])
    return energy, float(np.abs(forces - frame.calc.results["forces"]).max())


def check(
    out: Path,
    prefix: str,
    share: float,
    jobs: int,
    compute: Callable[[Atoms], dict[str, Any] | None] = anew,
) -> float:
    """Compute the labels of a share of the frames anew and return the largest difference of the energies, in eV."""
    rng = np.random.default_rng(3)
    chosen = []
    for path in sorted(out.glob(f"{prefix}*.extxyz.xz")):
        with lzma.open(path, "rt") as file:
            frames = list(ase.io.iread(StringIO(file.read()), index=":", format="extxyz"))
        chosen += [frames[i] for i in rng.permutation(len(frames))[: max(1, round(share * len(frames)))]]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        energies, forces = np.array(list(pool.map(partial(deviation, compute), chosen))).T
    print(
        f"{len(chosen)} frames: energies within {energies.max():.1e} eV, forces within {forces.max():.1e} eV/Angstrom"
    )
    return float(energies.max())


def main() -> None:
    """Run the unfinished tasks, or only collect the finished ones, or check the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, help="folder of the checkpoint files")
    parser.add_argument(
        "--files", nargs="+", choices=FILES, default=FILES, help="only these; the others stay as they are"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--collect", action="store_true", help="only write the final files from what is done")
    parser.add_argument("--check", type=float, metavar="SHARE", help="only compute this share of the labels anew")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the final files")
    parser.add_argument("--prefix", default=PREFIX, help="start of the names of the final files")
    options = parser.parse_args()
    RDLogger.DisableLog("rdApp.*")
    if options.check:
        sys.exit(check(options.out, options.prefix, options.check, options.jobs) > 1e-6)
    if options.work is None:
        parser.error("--work is needed, the folder of the checkpoint files")
    check_lists()
    tasks = [task for task in all_tasks() if task.split in options.files]
    if not options.collect:
        run(tasks, options.work, options.jobs)
    collect(tasks, options.work, options.out, options.prefix)


if __name__ == "__main__":
    main()
