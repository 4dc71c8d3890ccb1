"""Label the geometries of `dft_systems.py` with density-fitted r2SCAN-D4/def2-SVP energies and forces."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from dft_systems import INTERVAL, SEED, SYSTEMS, TIME_STEP, snapshots
from pyscf import dft, gto, lib

FUNCTIONAL, DISPERSION, BASIS = "r2scan", "d4", "def2-svp"
GRID_LEVEL, CONV_TOL = 3, 1e-9
METHOD = (
    f"RKS {FUNCTIONAL}-{DISPERSION}/{BASIS}, density fitting, grid level {GRID_LEVEL} with grid response, "
    f"conv_tol {CONV_TOL:g}"
)


def solve(atoms: Atoms) -> dft.rks.RKS:
    """Converge the density on a coarse grid first and then on the final one."""
    coordinates = list(zip(atoms.get_chemical_symbols(), atoms.get_positions(), strict=True))
    field = dft.RKS(gto.M(atom=coordinates, basis=BASIS, verbose=0)).density_fit()
    field.xc, field.disp = FUNCTIONAL, DISPERSION
    field.conv_check = False
    field.with_df.build()
    field.grids.level, field.conv_tol = 0, 1e-6
    field.kernel()
    field.grids.level, field.conv_tol = GRID_LEVEL, CONV_TOL
    field.grids.build()
    field.kernel(field.make_rdm1())
    if not field.converged:
        raise RuntimeError("SCF not converged")
    return field


def label(atoms: Atoms) -> Atoms:
    """Return a copy with the DFT energy and the forces, which include the response of the grid, attached."""
    field = solve(atoms)
    gradient = field.nuc_grad_method()
    gradient.grid_response = True
    forces = -gradient.kernel() * units.Hartree / units.Bohr
    frame = atoms.copy()
    frame.calc = SinglePointCalculator(frame, energy=float(field.e_tot) * units.Hartree, forces=forces)
    return frame


def check(atoms: Atoms, step: float = 0.002) -> float:
    """Return the largest difference (eV/Angstrom) of analytic and central-difference forces on three coordinates."""
    forces = label(atoms).get_forces()
    worst = 0.0
    for atom, axis in ((0, 0), (2, 1), (3, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(solve(moved).e_tot * units.Hartree)
        numeric = -(energies[0] - energies[1]) / (2 * step)
        analytic = float(forces[atom, axis])
        print(f"atom {atom} axis {axis}: analytic {analytic:.5f}, numeric {numeric:.5f} eV/Angstrom", flush=True)
        worst = max(worst, abs(numeric - analytic))
    return worst


def run(system: str, work: Path) -> None:
    """Label every snapshot of a system that has no checkpoint yet."""
    work.mkdir(parents=True, exist_ok=True)
    geometries = work / "geometries.extxyz"
    if not geometries.exists():
        ase.io.write(geometries, snapshots(system), format="extxyz")
    frames = ase.io.read(geometries, index=":")
    for number, atoms in enumerate(frames):
        path = work / f"frame_{number:04d}.extxyz"
        if path.exists():
            continue
        begin = time.perf_counter()
        try:
            frame = label(atoms)
        except RuntimeError as error:
            print(f"{number}/{len(frames)}: skipped, {error}", flush=True)
            continue
        frame.info["seconds"] = round(time.perf_counter() - begin, 2)
        partial = path.with_suffix(".partial")
        ase.io.write(partial, frame, format="extxyz")
        partial.rename(path)
        print(f"{number}/{len(frames)}: {frame.get_potential_energy():.6f} eV, {frame.info['seconds']} s", flush=True)
    if not (work / "check.json").exists():
        (work / "check.json").write_text(json.dumps(check(frames[0])))


def collect(system: str, work: Path, out: Path) -> None:
    """Write the labelled frames and the JSON summary from whatever is done."""
    frames = [ase.io.read(path) for path in sorted(work.glob("frame_*.extxyz"))]
    seconds = [frame.info.pop("seconds") for frame in frames]
    frames[0].info["method"] = METHOD
    ase.io.write(out / f"{system}_r2scan.extxyz.xz", frames, format="extxyz")
    checked = work / "check.json"
    summary = {
        "method": METHOD,
        "units": {"energy": "eV", "forces": "eV/Angstrom", "positions": "Angstrom"},
        "frames": len(frames),
        "frames_per_temperature": {
            t: sum(float(frame.info["temperature"]) == t for frame in frames) for t in SYSTEMS[system].temperatures
        },
        "starts": len({int(frame.info["start"]) for frame in frames}),
        "fs_between_frames": INTERVAL * TIME_STEP,
        "seed": SEED,
        "seconds_per_frame_mean": round(float(np.mean(seconds)), 1),
        "seconds_total": round(float(np.sum(seconds))),
        "force_check_max_difference": round(json.loads(checked.read_text()), 6) if checked.exists() else None,
        "versions": {name: version(name) for name in ("pyscf", "pyscf-dispersion", "ase", "tblite", "rdkit", "numpy")}
        | {"python": sys.version.split()[0]},
        "date": datetime.date.today().isoformat(),
    }
    (out / f"{system}_r2scan.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(len(frames), "frames,", summary["seconds_per_frame_mean"], "s each")


def main() -> None:
    """Label the unfinished snapshots, or only collect the finished ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint files")
    parser.add_argument("--collect", action="store_true", help="only write the final files from what is done")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the final files")
    parser.add_argument("--threads", type=int, default=1, help="threads for PySCF")
    options = parser.parse_args()
    lib.num_threads(options.threads)
    if not options.collect:
        run(options.system, options.work)
    options.out.mkdir(parents=True, exist_ok=True)
    collect(options.system, options.work, options.out)


if __name__ == "__main__":
    main()
