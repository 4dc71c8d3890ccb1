"""The measurements: the model alone, a step of molecular dynamics, a training step, and the error of the precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_mlip.batches import Batches
from ase_mlip.bench import machine
from ase_mlip.bench.systems import build_system
from ase_mlip.bench.timing import Compilations, Timing, time_runs
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.dataset import LabelKeys, make_examples
from ase_mlip.force_field import ForceField, precision
from ase_mlip.loss import without_reference
from ase_mlip.predictor import Prediction, Predictor, compiled_interaction
from ase_mlip.structure import find_neighbors
from ase_mlip.training import TrainSettings, make_train_step

TEMPERATURE = 300.0  # K
MD_WARMUP = 3


@dataclass(frozen=True)
class Speed:
    """What was measured on one structure.

    Attributes:
        system: name of the kind.
        atoms: number of atoms.
        pairs: ordered pairs within the cutoff.
        slots: neighbours that the padded graph has room for, per atom.
        first_s: the first energies and forces, compilation included.
        compile_s: the compiler's share of it.
        compilations: programs compiled for it.
        model: energies, forces and stress with the graph on the device.
        md: one step of molecular dynamics through ASE.
        later_compilations: programs compiled after it: zero, for model and MD run the same program.
        rebuilds: neighbour lists built during these steps.
        host_peak: most memory of the process, bytes.
        device_peak: most memory of the device so far, bytes; None on a CPU.
    """

    system: str
    atoms: int
    pairs: int
    slots: int
    first_s: float
    compile_s: float
    compilations: int
    model: Timing | None
    md: Timing | None
    later_compilations: int
    rebuilds: int | None
    host_peak: int
    device_peak: int | None


def measure_speed(
    force_field: ForceField, system: str, atoms: int, *, reps: int, dtype: str, timestep: float, parts: frozenset[str]
) -> Speed:
    """Time one structure.

    Args:
        force_field: the model.
        system: see `build_system`.
        atoms: number of atoms that is wanted.
        reps: runs that are timed.
        dtype: of the calculator.
        timestep: of the molecular dynamics, fs.
        parts: "model" and "md" are measured if they are in it.
    """
    structure = build_system(system, atoms)
    machine.reset_host_peak()
    structure.calc = calculator = MLIPCalculator(force_field, dtype=dtype)
    with Compilations() as first:
        started = time.perf_counter()
        structure.get_forces()
        first_s = time.perf_counter() - started
    md, rebuilds = None, 0
    with Compilations() as later:
        model = time_runs(device_call(calculator, structure), reps) if "model" in parts else None
        if "md" in parts:
            md, rebuilds = time_dynamics(structure, reps, timestep)
    centers, *_ = find_neighbors(structure.positions, structure.cell.array, structure.pbc, force_field.cutoff)
    shape = calculator.neighbors.shape
    return Speed(
        system=system,
        atoms=len(structure),
        pairs=len(centers),
        slots=shape.slots if shape else 0,
        first_s=first_s,
        compile_s=first.seconds,
        compilations=first.count,
        model=model,
        md=md,
        later_compilations=later.count,
        rebuilds=rebuilds if md else None,
        host_peak=machine.host_peak(),
        device_peak=machine.device_peak(),
    )


def device_call(calculator: MLIPCalculator, atoms: ase.Atoms) -> Callable[[], Prediction]:
    """The compiled function that the calculator uses, with its arguments on the device.

    Args:
        calculator: that has predicted these atoms.
        atoms: as they are now.
    """
    with precision(calculator.dtype):
        graph = calculator.neighbors.update(atoms, calculator.head_weights)
        predictor, params, graph = calculator.arguments(graph)
        graph = jax.device_put(graph)

    def call() -> Prediction:
        with precision(calculator.dtype):
            return compiled_interaction(predictor, params, graph, False)

    return call


def time_dynamics(atoms: ase.Atoms, reps: int, timestep: float) -> tuple[Timing, int]:
    """Steps of VelocityVerlet at 300 K, and how many neighbour lists were built during them.

    Args:
        atoms: with an `MLIPCalculator`.
        reps: steps that are timed.
        timestep: fs.
    """
    thermalize_momenta(atoms, temperature_K=TEMPERATURE, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    dynamics.run(MD_WARMUP)
    neighbors = atoms.calc.neighbors
    before, marks = neighbors.rebuilds, [time.perf_counter()]
    dynamics.attach(lambda: marks.append(time.perf_counter()))  # after each step: the first one was long ago
    dynamics.run(reps)
    return Timing.of(np.diff(marks).tolist()), neighbors.rebuilds - before


@dataclass(frozen=True)
class TrainingSpeed:
    """Steps that train all parameters on energies and forces, batches of equal structures.

    Attributes:
        atoms: of one structure.
        frames: structures in a batch.
        step: one step.
        frames_per_s: from the median.
        compile_s: of the step.
    """

    system: str
    atoms: int
    frames: int
    step: Timing
    frames_per_s: float
    compile_s: float
    host_peak: int


def measure_training(force_field: ForceField, system: str, atoms: int, frames: int, reps: int) -> TrainingSpeed:
    """Time training steps in float32, on labels drawn at random.

    Args:
        force_field: the model; of one with many elements, those in the structure are trained.
        system: see `build_system`.
        atoms: number of atoms that is wanted in each structure.
        frames: structures in a batch.
        reps: steps that are timed.
    """
    structures = [_labelled(build_system(system, atoms, seed), seed) for seed in range(frames)]
    force_field = force_field.for_elements(structures[0].numbers.tolist())
    predictor, settings = force_field.predictor, TrainSettings(batch_size=frames)
    examples = make_examples(
        structures, force_field.elements, force_field.cutoff, predictor.head_weights(), LabelKeys()
    )
    (batch,) = Batches(examples, frames).epoch((0,))
    graph, targets = jax.device_put(without_reference(predictor, batch))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), dict(force_field.params))
    optimizer = optax.adam(1e-6)  # the labels mean nothing: stay where the numbers are ordinary
    step = make_train_step(predictor, optimizer, settings)
    variables, average = jax.tree.map(jnp.copy, (params, params))
    state: Any = (variables, average, optimizer.init(variables))

    def run() -> Any:
        nonlocal state
        *state, loss = step(*state, params, graph, targets)
        return loss

    machine.reset_host_peak()
    with Compilations() as compilations:
        jax.block_until_ready(run())
    timing = time_runs(run, reps)
    size, peak = len(structures[0]), machine.host_peak()
    return TrainingSpeed(system, size, frames, timing, frames / timing.median, compilations.seconds, peak)


def _labelled(atoms: ase.Atoms, seed: int) -> ase.Atoms:
    """The structure with an energy and forces drawn at random."""
    rng = np.random.default_rng(seed)
    atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(size=(len(atoms), 3)))
    return atoms


@dataclass(frozen=True)
class Accuracy:
    """The largest difference of the calculator from the plain formulas in float64.

    Attributes:
        energy_per_atom: eV.
        forces: of a component, eV/Angstrom.
        largest_force: component of a force, eV/Angstrom.
    """

    system: str
    atoms: int
    energy_per_atom: float
    forces: float
    largest_force: float


def measure_accuracy(force_field: ForceField, system: str, atoms: int, dtype: str) -> Accuracy:
    """Compare the calculator with `Predictor.interaction`, which takes no shortcut, on one structure."""
    structure = build_system(system, atoms)
    known = force_field.for_elements(structure.numbers.tolist())
    graph = known.graph(structure)
    with precision("float64"):
        plain = jax.jit(Predictor.interaction, static_argnums=0)
        exact = jax.device_get(plain(known.predictor, known.cast_params("float64"), graph.astype("float64")))
    exact = known.predictor.add_reference(graph, exact)
    structure.calc = MLIPCalculator(force_field, dtype=dtype)
    energy, forces = structure.get_potential_energy(), structure.get_forces()
    return Accuracy(
        system,
        len(structure),
        float(abs(energy - exact.energy[0]) / len(structure)),
        float(np.abs(forces - exact.forces).max()),
        float(np.abs(exact.forces).max()),
    )
