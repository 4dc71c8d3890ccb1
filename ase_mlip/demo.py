"""The demo: from the shipped base model and a small DFT trajectory to a relaxed molecule and a picosecond of MD."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import numpy as np
from ase import units
from ase.io import Trajectory, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

from ase_mlip.batches import Batches
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.dataset import LabelKeys, make_examples, read_frames
from ase_mlip.evaluate import Errors, evaluate
from ase_mlip.finetune import FineTuneResult, fine_tune
from ase_mlip.force_field import ForceField
from ase_mlip.reference_energies import fit_energy_correction, with_energies
from ase_mlip.shipped import shipped_file

DATA = "glycine_r2scan.extxyz.xz"
LEVEL = "r2SCAN-D4"


def demo_data() -> Path:
    """The DFT trajectory.

    Raises:
        FileNotFoundError: it is missing from the installation.
    """
    return shipped_file(DATA)


def run_demo(folder: Path, steps: int = 2000, epochs: int = 36, log: Callable[[str], None] = print) -> FineTuneResult:
    """Fine-tune, compare, relax, run Langevin MD; everything is written into `folder`.

    Args:
        folder: made if needed.
        steps: MD steps of 0.5 fs.
        epochs: passes over the training frames.
    """
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    frames = read_frames(demo_data())
    held, kept_back = len(frames) // 4, len(frames) // 8
    held_out, valid, train_set = frames[:held], frames[held : held + kept_back], frames[held + kept_back :]
    log(f"glycine at {LEVEL}: {len(train_set)} frames to train on, {len(valid)} to validate, {len(held_out)} held out")
    base = ForceField.load("default")
    result = fine_tune(
        base,
        train_set,
        valid,
        method="lora",
        level=LEVEL,
        epochs=epochs,
        output=folder / "glycine.safetensors",
        log=log,
    )
    errors = {level: held_out_errors(result.force_field, held_out, level, train_set) for level in ("base", LEVEL)}
    errors["base"] = held_out_errors(base, held_out, "base", train_set)
    log(f"\n{len(held_out)} held-out frames     energy MAE, meV/atom    forces MAE, meV/Angstrom")
    for level, title in (("base", "base model, E0 fitted"), (LEVEL, "fine-tuned")):
        summary = errors[level].summary()
        log(f"{title:22s} {1e3 * summary['energy_mae']:18.2f} {1e3 * summary['forces_mae']:24.2f}")
    atoms = held_out[0].copy()
    atoms.calc = result.calculator(dtype="float64")
    relax = BFGS(atoms, trajectory=str(folder / "relaxation.traj"), logfile=str(folder / "relaxation.log"))
    converged = relax.run(fmax=0.01, steps=500)
    write(folder / "relaxed.xyz", atoms)
    log(f"\nrelaxed in {relax.nsteps} steps ({'converged' if converged else 'not converged'}): {_describe(atoms)}")
    atoms.calc = result.calculator()
    run_langevin(atoms, steps, folder / "md.traj", log)
    log(f"\nmodel, curves, relaxation and trajectory are in {folder.resolve()} ({time.monotonic() - started:.0f} s)")
    return result


def held_out_errors(
    force_field: ForceField, held_out: Sequence[ase.Atoms], level: str, train_set: Sequence[ase.Atoms]
) -> Errors:
    """Errors of a level; the base's energies after an E0 correction fitted to the training frames, to be fair to it."""
    weights = force_field.predictor.head_weights(level)

    def examples(frames: Sequence[ase.Atoms]) -> Batches:
        return Batches(make_examples(frames, force_field.elements, force_field.cutoff, weights, LabelKeys()), 8)

    if len(force_field.heads) == 1:
        correction, _ = fit_energy_correction(force_field, examples(train_set).examples)
        (head,) = force_field.predictor.heads
        shifted = {
            z: e + correction.get(z, 0.0) for z, e in zip(force_field.elements, head.atomic_energies, strict=True)
        }
        force_field = with_energies(force_field, [head.name], shifted)
    return evaluate(force_field, examples(held_out))


def run_langevin(atoms: ase.Atoms, steps: int, path: Path, log: Callable[[str], None]) -> None:
    """Langevin dynamics at 300 K with 0.5 fs, written every 5 fs."""
    rng = np.random.default_rng(0)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    dynamics = Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, fixcm=False, rng=rng)
    temperatures: list[float] = []
    dynamics.attach(lambda: temperatures.append(atoms.get_temperature()), interval=10)
    started = time.monotonic()
    with Trajectory(path, "w", atoms) as trajectory:
        dynamics.attach(trajectory.write, interval=10)
        dynamics.run(steps)
    speed = 1e3 * (time.monotonic() - started) / max(steps, 1)
    calculator = atoms.calc
    rebuilds = calculator.neighbors.rebuilds if isinstance(calculator, MLIPCalculator) else 0
    log(
        f"{steps * 5e-4:g} ps of Langevin MD at 300 K: mean {np.mean(temperatures):.0f} K, {speed:.1f} ms per step, "
        f"neighbour list built {rebuilds} times, {_describe(atoms)}"
    )


def _describe(atoms: ase.Atoms) -> str:
    """Energy and largest force."""
    largest = np.linalg.norm(atoms.get_forces(), axis=1).max()
    return f"energy {atoms.get_potential_energy():.4f} eV, largest force {largest:.3f} eV/Angstrom"
