"""Measure what a base model is good for and write model_card.md, .png and .json.

Errors on held-out frames; torsion and dimer scans, geometries and frequencies against GFN2-xTB; the repulsive wall of
every pair of elements; random structures; dynamics at constant temperature and constant energy.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import card_motion as motion
import card_parts as parts
import card_reference as reference
import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from card_figure import draw
from card_text import card
from rdkit import RDLogger

from ase_mlip import relax
from ase_mlip.dataset import read_frames
from ase_mlip.force_field import ForceField
from ase_mlip.journal import run_identity

FOLDER = Path(__file__).parent
PARTS = ("errors", "scans", "walls", "geometry", "random", "nvt", "nve")
WATER = f"{reference.WATERS} water"


class Card:
    """The parts of one model's card and the folder that keeps their results."""

    def __init__(self, force_field: ForceField, name: str, options: argparse.Namespace):
        self.force_field, self.name, self.options = force_field, name, options
        self.folder = options.work / run_identity(force_field, [])[:12]
        self.references = options.work / "reference"
        self.folder.mkdir(parents=True, exist_ok=True)

    def choice(self, names: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
        """Names of molecules or dimers that the model has the elements of, and a record of the others."""
        fits, other = reference.possible(list(names), self.force_field.elements)
        return fits, {"left_out": other}

    def errors(self) -> dict[str, Any]:
        return parts.errors(self.force_field, read_frames(FOLDER / "base_test.extxyz.xz"))

    def scans(self) -> dict[str, Any]:
        found = {}
        for kind, make, names, measure in (
            ("torsions", reference.torsion, reference.TORSIONS, parts.torsions),
            ("dimers", reference.dimer, reference.DIMERS, parts.dimers),
        ):
            fits, other = self.choice(names)
            found[kind] = {"rows": measure(self.force_field, {n: make(self.references, n) for n in fits}), **other}
        return found

    def walls(self) -> dict[str, Any]:
        return {"rows": parts.walls(self.force_field)}

    def geometry(self) -> dict[str, Any]:
        fits, other = self.choice(reference.GEOMETRIES)
        minima = {name: reference.minimum(self.references, name) for name in fits}
        compute = partial(parts.frequencies, forces=reference_forces)
        known = {name: reference.frequencies(self.references, name, compute) for name in fits}
        return {"rows": parts.geometry(self.force_field, minima, known), **other}

    def random(self) -> dict[str, Any]:
        return motion.collapse(self.force_field, self.options.random, self.folder / f"random_{self.options.random}")

    def nvt(self) -> dict[str, Any]:
        molecules, water, other = self._starts()
        found: dict[str, Any] = {"asked_ps": self.options.ps, **other, "kelvin": {}}
        for kelvin in (300.0, 600.0):
            rows = {}
            for kind, starts in (("molecules", molecules), ("water", water)):
                folder = self.folder / f"nvt_{kind}_{kelvin:.0f}K_{self.options.ps:g}ps"
                rows |= starts and motion.constant_temperature(
                    self.force_field, starts, kelvin, self.options.ps, folder
                )
            found["kelvin"][f"{kelvin:.0f}"] = rows
        return found

    def nve(self) -> dict[str, Any]:
        molecules, water, other = self._starts()
        rows = motion.constant_energy(self.force_field, molecules | water, self.options.nve_ps)
        return {"asked_ps": self.options.nve_ps, "rows": rows, **other}

    def _starts(self) -> tuple[dict[str, Atoms], dict[str, Atoms], dict[str, list[str]]]:
        """Molecules at the reference's minimum, the box as far downhill as it does not matter, and what is left out."""
        fits, other = self.choice(reference.DYNAMICS)
        molecules = {name: reference.minimum(self.references, name) for name in fits}
        if not {1, 8} <= {*self.force_field.elements}:
            return molecules, {}, {"left_out": [*other["left_out"], WATER]}
        path = self.folder / "water.traj"  # kept, as dynamics go on only from the very same start
        if not path.exists():
            ase.io.write(path, relax(self.force_field, [reference.water_box()], fmax=0.3, steps=200).structures)
        return molecules, {WATER: ase.io.read(path)}, other

    def measure(self, part: str, again: bool) -> None:
        """Compute a part and keep its result, unless it is there already for the same options."""
        asked = {"nvt": {"ps": self.options.ps}, "nve": {"ps": self.options.nve_ps}}.get(part, {})
        asked |= {"random": self.options.random} if part == "random" else {}
        path = self.folder / f"{part}.json"
        if path.exists() and not again and json.loads(path.read_text())["options"] == asked:
            print(f"{part}: done before", flush=True)
            return
        begin = time.perf_counter()
        method: Callable[[], dict[str, Any]] = getattr(self, part)
        result = {"options": asked, **method(), "seconds": round(time.perf_counter() - begin, 1)}
        path.write_text(json.dumps(result) + "\n")
        print(f"{part}: {result['seconds']} s", flush=True)

    def gather(self) -> dict[str, Any]:
        """All results there are, and what they are of."""
        field = self.force_field
        found: dict[str, Any] = {
            "model": {
                "name": self.name,
                "parameters": field.num_params,
                "elements": [chemical_symbols[z] for z in field.elements],
                "cutoff": field.cutoff,
                "repulsion": field.dataset_info.repulsion is not None,
            },
            "date": datetime.date.today().isoformat(),
            "versions": {name: version(name) for name in ("ase-mlip", "ase", "tblite", "rdkit", "jax", "numpy")},
        }
        for part in PARTS:
            path = self.folder / f"{part}.json"
            if path.exists():
                found[part] = json.loads(path.read_text())
        return found


def reference_forces(frames: list[Atoms]) -> list[np.ndarray]:
    """GFN2-xTB forces of each frame, eV/Angstrom."""
    calculator = reference.xtb()
    found = []
    for frame in frames:
        frame.calc = calculator
        found.append(frame.get_forces())
    return found


def rounded(value: Any) -> Any:
    """The same with six significant digits, as text for a file: a line for each entry of the second level."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def as_text(found: dict[str, Any]) -> str:
    """JSON with a line for each entry of each part."""
    blocks = []
    for part, content in rounded(found).items():
        if isinstance(content, dict):
            lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in content.items())
            blocks.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
        else:
            blocks.append(f" {json.dumps(part)}: {json.dumps(content)}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main() -> None:
    """Measure the parts asked for and write the card from all that are done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps results, so that a run can go on")
    parser.add_argument("--model", default="default", help="a model file or the name of a model")
    parser.add_argument("--parts", default=",".join(PARTS), help="which to measure, by default all: %(default)s")
    parser.add_argument("--again", action="store_true", help="measure them even if they are done")
    parser.add_argument("--ps", type=float, default=100.0, help="length of constant-temperature dynamics")
    parser.add_argument("--nve-ps", type=float, default=5.0, help="length of constant-energy dynamics")
    parser.add_argument("--random", type=int, default=1000, help="number of random structures")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the final files")
    options = parser.parse_args()
    chosen = [part for part in options.parts.split(",") if part]
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; give some of {','.join(PARTS)}")
    RDLogger.DisableLog("rdApp.*")
    reference.check_lists()
    made = Card(ForceField.load(options.model), Path(options.model).stem, options)
    for part in chosen:
        made.measure(part, options.again)
    found = made.gather()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "model_card.json").write_text(as_text(found))
    (options.out / "model_card.md").write_text(card(found))
    draw(found, options.out / "model_card.png")


if __name__ == "__main__":
    sys.exit(main())
