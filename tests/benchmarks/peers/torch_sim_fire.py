"""Relax molecules with torch-sim and mace-torch: `python torch_sim_fire.py NETWORK.model MOLECULES.xyz --count 1000`.

The counterpart of `tests/benchmarks/relax.py --runners ours-fire --fmax 1e-9 --steps 20` on the same molecules (its
`--write`) and the same network, converted: a fixed number of FIRE steps for every structure, so that both do the same
work. Structures are batched up to a number of atoms. A line of JSON for each of two runs; the second counts. Needs
torch-sim-atomistic and mace-torch alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from importlib.metadata import version

os.environ.setdefault("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # e3nn's constants are pickled
import ase
import ase.io
import torch
import torch_sim
from torch_sim.models.mace import MaceModel

BOX = 60.0  # Angstrom: torch-sim wants a cell


def batches(structures: list[ase.Atoms], most_atoms: int) -> list[list[ase.Atoms]]:
    """The structures in order, as many together as have no more than `most_atoms`."""
    found: list[list[ase.Atoms]] = [[]]
    for atoms in structures:
        if found[-1] and sum(map(len, found[-1])) + len(atoms) > most_atoms:
            found.append([])
        found[-1].append(atoms)
    return found


def main() -> None:
    """Relax twice and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a pickled model of mace-torch")
    parser.add_argument("molecules")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--atoms", type=int, default=512, help="in a batch, at most")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    structures = ase.io.read(args.molecules, f":{args.count}")
    for atoms in structures:
        atoms.pbc, atoms.cell = False, [BOX] * 3
    network = torch.load(args.model, weights_only=False, map_location="cpu")
    model = MaceModel(network, device=torch.device("cpu"), dtype=torch.float32, compute_stress=False)
    start, step = torch_sim.optimizers.fire(model=model)
    for run in ("first", "second"):
        wall, processor = time.perf_counter(), time.process_time()
        energies: list[float] = []
        for batch in batches(structures, args.atoms):
            state = start(torch_sim.initialize_state(batch, model.device, model.dtype))
            for _ in range(args.steps):
                state = step(state)
            energies += (state.energy.detach() / torch.tensor([len(atoms) for atoms in batch])).tolist()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        record = {
            "runner": f"torch-sim {version('torch-sim-atomistic')} fire",
            "run": run,
            "structures": len(structures),
            "steps": args.steps,
            "atoms_at_once": args.atoms,
            "wall_s": round(wall, 2),
            "cpu_s": round(processor, 2),
            "structures_per_s": round(len(structures) / wall, 3),
            "structures_per_cpu_s": round(len(structures) / processor, 3),
            "eV_per_atom": round(sum(energies) / len(energies), 5),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
