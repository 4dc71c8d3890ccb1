"""Draw what the base data set holds, by category of frames: elements, sizes, forces and distances, to base.png."""

from __future__ import annotations

import lzma
from collections import Counter
from io import StringIO
from pathlib import Path

import ase.io
import matplotlib
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from matplotlib.axes import Axes

matplotlib.use("Agg")
from matplotlib import pyplot

FOLDER = Path(__file__).parent
ELEMENTS = ("H", "C", "N", "O", "F", "P", "S", "Cl", "Br")
CATEGORIES = {
    "near equilibrium": ("conformer", "displaced", "mode"),
    "dynamics": ("md",),
    "strained": ("stretched", "compressed", "torsion", "scaled", "shaken"),
    "radicals": ("radical",),
    "dimers, clusters, ions": ("dimer", "dimer_wall", "dimer_md", "cluster", "cluster_wall", "cluster_md", "ionic"),
    "boxes, ice": ("box", "ice"),
    "diatomics": ("diatomic", "isolated_atom"),
}


def ratios(frame: Atoms) -> np.ndarray:
    """Return all distances below 5 Angstrom in units of the sum of the covalent radii."""
    upper = np.triu_indices(len(frame), 1)
    lengths = frame.get_all_distances(mic=bool(frame.pbc.any()))[upper]
    radii = covalent_radii[frame.numbers]
    return (lengths / (radii[:, None] + radii)[upper])[lengths < 5.0]


def outlines(axes: Axes, groups: dict[str, list[np.ndarray]], bins: np.ndarray, xlabel: str) -> None:
    """Draw one outlined histogram per category."""
    for name, values in groups.items():
        axes.hist(np.concatenate(values), bins=bins, histtype="step", linewidth=1.4, label=name)
    axes.set(xlabel=xlabel, yscale="log")


def main() -> None:
    """Read the training file and write the figure."""
    with lzma.open(FOLDER / "base_train.extxyz.xz", "rt") as file:
        frames = list(ase.io.iread(StringIO(file.read()), index=":", format="extxyz"))
    groups = {name: [f for f in frames if f.info["config_type"] in types] for name, types in CATEGORIES.items()}
    figure, ((elements, sizes), (forces, lengths)) = pyplot.subplots(2, 2, figsize=(11, 8), layout="constrained")
    base = np.zeros(len(ELEMENTS))
    for name, members in groups.items():
        counts = Counter(symbol for frame in members for symbol in set(frame.get_chemical_symbols()))
        heights = np.array([counts[symbol] for symbol in ELEMENTS], float)
        elements.bar(ELEMENTS, heights, bottom=base, label=name)
        base += heights
    elements.set(ylabel="frames with the element")
    elements.legend(fontsize=8)
    outlines(sizes, {k: [np.array([len(f) for f in v])] for k, v in groups.items()}, np.arange(0.5, 76.5, 3), "atoms")
    sizes.set(ylabel="frames")
    norms = {k: [np.linalg.norm(f.get_forces(), axis=1) for f in v] for k, v in groups.items()}
    outlines(forces, norms, np.linspace(0.0, 60.0, 61), "force on an atom, eV/Angstrom")
    forces.set(ylabel="atoms")
    scaled = {k: [ratios(f) for f in v] for k, v in groups.items()}
    outlines(lengths, scaled, np.linspace(0.2, 5.0, 97), "distance / sum of covalent radii (below 5 Angstrom)")
    lengths.set(ylabel="pairs of atoms")
    figure.suptitle(f"base_train.extxyz.xz: {len(frames)} frames, {sum(map(len, frames))} atoms")
    figure.savefig(FOLDER / "base.png", dpi=110)


if __name__ == "__main__":
    main()
