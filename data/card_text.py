"""The text of the model card, from its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Found = dict[str, Any]
WARM = "300-1000 K"
HIDDEN = "all", WARM  # groups that are no category


def card(found: Found) -> str:
    """The whole card as Markdown."""
    model = found["model"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"# What the base model `{model['name']}` is good for",
        "",
        f"{' '.join(model['elements'])}; {model['parameters']:,} parameters; cutoff {model['cutoff']:g} Angstrom; "
        f"{'with' if model['repulsion'] else 'without'} a ZBL pair repulsion. It reproduces GFN2-xTB, a semi-empirical "
        "method, and all errors here are against GFN2-xTB (tblite): they say nothing about experiment.",
        "",
        f"Written by `data/model_card.py` on {found['date']} ({versions}); the numbers are in `model_card.json`.",
        "",
        "![The measurements](model_card.png)",
    ]
    sections = {
        "At a glance": glance(found),
        "Errors on held-out frames": errors(found.get("errors")),
        "Torsion and dimer scans": scans(found.get("scans")),
        "Repulsive walls": walls(found.get("walls")),
        "Geometries and frequencies": geometry(found.get("geometry")),
        "Random structures": random(found.get("random")),
        "Dynamics at constant temperature": nvt(found.get("nvt")),
        "Dynamics at constant energy": nve(found.get("nve")),
        "Where it fails": failures(found),
    }
    for title, text in sections.items():
        lines += ["", f"## {title}", "", *(text or ["Not measured."])]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def left_out(part: Found) -> list[str]:
    """What could not be done for want of elements."""
    names = part.get("left_out") or []
    return (
        ["", f"Left out, with elements that the model does not know: {len(names)} ({quoted(names)})."] if names else []
    )


def quoted(names: Iterable[str]) -> str:
    """SMILES as code."""
    return ", ".join(f"`{name}`" for name in names)


def glance(found: Found) -> list[str]:
    """One line for each part."""
    rows: list[tuple[str, str]] = []
    if part := found.get("errors"):
        warm = part["groups"][WARM]
        numbers = f"{warm['energy_mae']:.2f} meV/atom, {warm['force_mae']:.1f} meV/Angstrom"
        rows.append((f"energy and force MAE, held-out molecules at {WARM} ({warm['frames']} frames)", numbers))
    if part := found.get("scans"):
        rows.append(("torsion scans, mean MAE", f"{1e3 * mean(part['torsions']['rows'], 'mae'):.0f} meV"))
        rows.append(("dimer scans, mean MAE", f"{1e3 * mean(part['dimers']['rows'], 'mae'):.0f} meV"))
    if part := found.get("walls"):
        rises = sum(row["rises"] for row in part["rows"].values())
        rows.append(("pairs of elements with a wall that rises all the way in", f"{rises} of {len(part['rows'])}"))
    if part := found.get("geometry"):
        rows.append(("RMSD of minima, mean", f"{mean(part['rows'], 'rmsd'):.3f} Angstrom"))
        rows.append(("harmonic frequencies, MAE", f"{frequency_mae(part):.0f} 1/cm"))
    if part := found.get("random"):
        good = part["count"] - len(part["failed"])
        rows.append(("random structures relaxed without a collapse", f"{good} of {part['count']}"))
    if part := found.get("nvt"):
        for kelvin, runs in part["kelvin"].items():
            good = sum(held(run) for run in runs.values())
            what = f"{part['asked_ps']:g} ps at {kelvin} K without a broken bond or NaN"
            rows.append((what, f"{good} of {len(runs)} systems"))
    if part := found.get("nve"):
        drifts = [abs(row["drift"]) for row in part["rows"].values() if np.isfinite(float(row["drift"]))]
        rows.append(("drift of the total energy, largest", f"{max(drifts):.3f} meV/atom/ps" if drifts else "none"))
    return table(("what", "result"), rows)


def mean(rows: Found, key: str) -> float:
    """Mean of one number over the rows."""
    return float(np.mean([row[key] for row in rows.values()])) if rows else float("nan")


def frequency_mae(part: Found) -> float:
    """MAE over all modes of all molecules, 1/cm."""
    differences = [np.subtract(row["model"], row["reference"]) for row in part["rows"].values()]
    return float(np.abs(np.concatenate(differences)).mean())


def held(run: Found) -> bool:
    """Whether a run came to its end with all its bonds."""
    return run["broken"] is None and run["problem"] is None


def errors(part: Found | None) -> list[str]:
    """By category and by element."""
    if not part:
        return []
    head = ("category", "frames", "energy MAE", "RMSE", "force MAE", "RMSE", "mean size of a force component")

    def rows(groups: Found) -> list[list[str]]:
        keys = "energy_mae energy_rmse force_mae force_rmse force_size".split()
        return [[name, str(r["frames"]), *(f"{r[key]:.1f}" for key in keys)] for name, r in groups.items()]

    groups = part["groups"]
    names = [*HIDDEN, *sorted((n for n in groups if n not in HIDDEN), key=lambda n: groups[n]["force_mae"])]
    missing = f" {part['left_out']} frames have elements that the model does not know." if part["left_out"] else ""
    return [
        f"`base_test.extxyz.xz`, {part['frames']} frames.{missing} Energies in meV/atom, force components in "
        f"meV/Angstrom. `{WARM}` are the frames of dynamics and harmonic samples (`md`, `mode`) up to 1000 K; the "
        "categories are described in the README of this folder.",
        "",
        *table(head, rows({name: groups[name] for name in names if name in groups})),
        "",
        "By element: energies of all frames that hold it, forces on its atoms.",
        "",
        *table(("element", *head[1:]), rows(part["elements"])),
    ]


def scans(part: Found | None) -> list[str]:
    """Both tables."""
    if not part:
        return []
    angles, pairs = part["torsions"], part["dimers"]
    return [
        "Held-out molecules, one dihedral angle turned in steps of 15 degrees and all else rigid; energies above the "
        "reference's lowest point, in meV.",
        "",
        *table(
            ("molecule", "MAE", "highest point, GFN2-xTB", "model"),
            [(f"`{n}`", *(f"{1e3 * v:.0f}" for v in (r["mae"], *r["barrier"]))) for n, r in angles["rows"].items()],
        ),
        *left_out(angles),
        "",
        "Dimers, relaxed with GFN2-xTB and pulled apart along the line of their closest atoms, both molecules rigid; "
        "interaction energies in meV, MAE where the reference is below 500, distances of the lowest point in Angstrom.",
        "",
        *table(
            ("dimer", "held out", "MAE", "depth, GFN2-xTB", "model", "distance, GFN2-xTB", "model"),
            [
                (
                    f"`{n}`",
                    "yes" if r["held_out"] else "no",
                    *(f"{1e3 * v:.0f}" for v in (r["mae"], *r["depth"])),
                    *(f"{v:.2f}" for v in r["distance"]),
                )
                for n, r in pairs["rows"].items()
            ],
        ),
        *left_out(pairs),
    ]


def walls(part: Found | None) -> list[str]:
    """How many pairs rise, and which do not."""
    if not part:
        return []
    rows = part["rows"]
    bad = {name: row for name, row in rows.items() if not row["rises"]}
    bare = [name for name, row in rows.items() if not row["minimum"]]
    text = [
        "The energy of two atoms alone, followed inwards from 0.9 to 0.4 times the equilibrium distance: the lowest "
        "minimum of the model's own curve between 0.7 and 1.5 sums of the covalent radii, or that sum where there is "
        f"none ({', '.join(bare) or 'no pair'}). {len(rows) - len(bad)} of {len(rows)} pairs rise all the way."
    ]
    head = ("pair", "equilibrium, Angstrom", "turns at, Angstrom", "height of the wall there, eV")
    lines = [(n, f"{r['equilibrium']:.2f}", f"{r['turn']:.2f}", f"{r['barrier']:.1f}") for n, r in bad.items()]
    return [*text, "", *table(head, lines)] if bad else text


def geometry(part: Found | None) -> list[str]:
    """One line for each molecule."""
    if not part:
        return []
    head = ("molecule", "RMSD, Angstrom", "bond lengths, MAE, Angstrom", "frequencies, MAE, 1/cm", "imaginary")
    rows = [
        (f"`{n}`", f"{r['rmsd']:.3f}", f"{r['bond_mae']:.4f}", f"{r['frequency_mae']:.1f}", r["imaginary"])
        for n, r in part["rows"].items()
    ]
    stuck = [name for name, row in part["rows"].items() if not row["converged"]]
    return [
        "Held-out molecules relaxed by the model from GFN2-xTB's minimum (both to 0.002 eV/Angstrom): all atoms "
        "superposed; harmonic frequencies by central differences, each at its own minimum, paired in ascending order. "
        f"MAE over all modes: {frequency_mae(part):.1f} 1/cm.",
        "",
        *table(head, rows),
        *(["", f"Not converged: {quoted(stuck)}."] if stuck else []),
        *left_out(part),
    ]


def random(part: Found | None) -> list[str]:
    """How many collapse."""
    if not part:
        return []
    text = [
        f"{part['count']} structures of 4-16 random atoms (40 % hydrogen, the other elements alike; every other one "
        "periodic; spheres of the covalent radii fill 4-20 % of the volume; no atoms closer than 0.4 times the sum of "
        f"their covalent radii), relaxed to 0.1 eV/Angstrom or 500 steps. {part['converged']} converged. Atoms closer "
        f"than half the sum of their covalent radii, or no prediction: {len(part['failed'])}. The closest two atoms of "
        f"all are at {part['closest']:.2f} times that sum."
    ]
    lines = [(row["number"], row["formula"], row["why"]) for row in part["failed"][:20]]
    return [*text, "", *table(("number", "atoms", "what is wrong"), lines)] if lines else text


def nvt(part: Found | None) -> list[str]:
    """One line for each system and temperature."""
    if not part:
        return []
    rows = [
        (
            f"`{name}`",
            kelvin,
            f"{run['ps']:.1f}",
            "-" if run["kelvin"] is None else f"{run['kelvin']:.0f}",
            "none" if run["broken"] is None else f"{run['broken']} after {run['broken_ps']:.2f} ps",
            run["problem"] or "",
        )
        for kelvin, runs in part["kelvin"].items()
        for name, run in runs.items()
    ]
    return [
        f"Langevin dynamics (BAOAB, 1 fs, 0.01/fs) of {part['asked_ps']:g} ps, in a batch, of held-out molecules and a "
        "periodic box of water at 1 g/cm^3. A bond is a pair within 1.25 times the sum of the covalent radii at the "
        "start, broken beyond 1.5 times; looked at every 50 fs. The temperature is that of the momenta, which this "
        "splitting leaves colder than the positions, by a share of (step times angular frequency)^2 / 4 in each mode: "
        "an eighth for O-H stretching.",
        "",
        *table(("system", "K", "ps", "mean temperature, K", "broken bond", "stopped because"), rows),
        *left_out(part),
    ]


def nve(part: Found | None) -> list[str]:
    """One line for each system."""
    if not part:
        return []
    rows = [
        (f"`{n}`", f"{float(r['drift']):.4f}", f"{r['scatter']:.3f}", f"{r['kelvin']:.0f}", r["broke"] or "")
        for n, r in part["rows"].items()
    ]
    return [
        f"Velocity Verlet, 0.5 fs, {part['asked_ps']:g} ps, float32, from a minimum with velocities drawn at 300 K, so "
        "that about 150 K remain. The drift is the slope of a straight line through the total energy, the scatter the "
        "standard deviation around it.",
        "",
        *table(("system", "drift, meV/atom/ps", "scatter, meV/atom", "mean K", "stopped because"), rows),
        *left_out(part),
    ]


def failures(found: Found) -> list[str]:
    """The worst of each part, from the numbers."""
    lines: list[str] = []
    if part := found.get("errors"):
        groups = {name: row for name, row in part["groups"].items() if name not in HIDDEN}
        lines.append(f"* Worst categories by forces: {worst(groups, 'force_mae', 4)} meV/Angstrom; by energies: ")
        lines[-1] += f"{worst(groups, 'energy_mae', 4)} meV/atom."
        lines.append(f"* Worst elements by forces: {worst(part['elements'], 'force_mae', 3)} meV/Angstrom.")
        lines.append(f"* Worst molecules at {WARM} by forces: {worst(part['molecules'], 'force_mae', 5)} meV/Angstrom.")
    if part := found.get("scans"):
        for kind in ("torsions", "dimers"):
            rows = {name: {"mae": 1e3 * row["mae"]} for name, row in part[kind]["rows"].items()}
            lines.append(f"* Worst {kind}, MAE: {worst(rows, 'mae', 2)} meV.")
    if part := found.get("walls"):
        bad = [f"{n} ({r['turn']:.2f} Angstrom)" for n, r in part["rows"].items() if not r["rises"]]
        lines.append(f"* Walls that turn: {', '.join(bad) or 'none'}.")
    if part := found.get("geometry"):
        lines.append(f"* Worst frequencies, MAE: {worst(part['rows'], 'frequency_mae', 3)} 1/cm.")
        lines.append(
            f"* Worst geometries, RMSD: {worst(part['rows'], 'rmsd', 3, 2)} Angstrom (soft torsions count most)."
        )
        bad = [name for name, row in part["rows"].items() if row["imaginary"] or not row["converged"]]
        lines.append(f"* Minima with imaginary frequencies or not converged: {quoted(bad) or 'none'}.")
    if part := found.get("random"):
        lines.append(f"* Random structures that collapse: {len(part['failed'])} of {part['count']}.")
    if part := found.get("nvt"):
        runs = [(n, k, run) for k, rows in part["kelvin"].items() for n, run in rows.items() if not held(run)]
        text = "; ".join(f"`{n}` at {k} K ({run['problem'] or run['broken']})" for n, k, run in runs)
        lines.append(f"* Dynamics that broke within {part['asked_ps']:g} ps: {text or 'none'}.")
    if part := found.get("nve"):
        bad = [f"`{name}` ({row['broke']})" for name, row in part["rows"].items() if row["broke"]]
        lines.append(f"* Constant-energy runs that broke: {', '.join(bad) or 'none'}.")
    return lines


def worst(rows: Found, key: str, count: int, digits: int = 0) -> str:
    """The rows with the largest numbers, and the numbers."""
    names = sorted(rows, key=lambda name: -rows[name][key])[:count]
    return ", ".join(f"`{name}` {rows[name][key]:.{digits}f}" for name in names)
