"""The benchmark as a whole: settings, the measurements in order, and one report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ase_mlip.bench import machine
from ase_mlip.bench.first_call import FirstCall, time_first_call
from ase_mlip.bench.floor import Floor, count_floor
from ase_mlip.bench.measure import (
    Accuracy,
    Speed,
    TrainingSpeed,
    measure_accuracy,
    measure_speed,
    measure_training,
)
from ase_mlip.bench.systems import ELEMENTS, SIZES
from ase_mlip.bench.timing import nothing_kept
from ase_mlip.dataset_info import DatasetInfo
from ase_mlip.force_field import ForceField, model_path, precision
from ase_mlip.kernels import describe
from ase_mlip.networks.mace import Mace

PARTS = ("first", "accuracy", "model", "md", "train")
CPU_SIZES = 3  # of the sizes, that many by default where there is no accelerator
SHAPE_ENERGIES = {"H": -13.6, "C": -1029.0, "N": -1484.0, "O": -2042.0, "Cu": -45000.0}  # eV, of a free atom or so


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        systems: kinds of structures; those that the model has the elements for if None.
        sizes: numbers of atoms, the nearest box counts; if None, those up to 648 on a CPU and up to 24,000 elsewhere.
        reps: runs of which the median counts.
        dtype: of the calculator.
        parts: what to measure: time to the first forces in new processes, error against float64, model alone, molecular
            dynamics, training.
        timestep: of the molecular dynamics, fs.
        frames: structures in a training batch.
    """

    systems: tuple[str, ...] | None = None
    sizes: tuple[int, ...] | None = None
    reps: int = 20
    dtype: str = "float32"
    parts: tuple[str, ...] = PARTS
    timestep: float = 0.5
    frames: int = 4

    def __post_init__(self) -> None:
        for name, values, allowed in (("parts", self.parts, PARTS), ("systems", self.systems or (), tuple(ELEMENTS))):
            unknown = [value for value in values if value not in allowed]
            if unknown:
                raise ValueError(f"{name}: {unknown[0]!r} is unknown; give some of {', '.join(allowed)}")
        if self.reps < 1 or self.frames < 1 or min(self.sizes or (1,)) < 1:
            raise ValueError(
                f"reps={self.reps}, frames={self.frames}, sizes={self.sizes}: give whole numbers of at least 1"
            )
        if not self.timestep > 0:
            raise ValueError(f"timestep={self.timestep}: give a positive time in fs")
        with precision(self.dtype):
            pass


@dataclass(frozen=True)
class Report:
    """Everything measured; `to_dict` is what is written as JSON.

    Attributes:
        model: what was measured, in words.
        path: which implementation ran.
        floors: of each of `speeds`; None where the architecture is not counted.
    """

    model: str
    path: str
    settings: BenchSettings
    hardware: dict[str, Any]
    versions: dict[str, str]
    peaks: machine.Peaks
    first_calls: tuple[FirstCall, ...]
    accuracies: tuple[Accuracy, ...]
    speeds: tuple[Speed, ...]
    floors: tuple[Floor | None, ...]
    training: tuple[TrainingSpeed, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; seconds, bytes, eV and Angstrom throughout."""
        data = asdict(self)
        for record, floor in zip(data["floors"], self.floors, strict=True):
            if floor is not None:
                record |= {
                    "seconds": floor.total.seconds(self.peaks),
                    "seconds_with_network": floor.total_with_network.seconds(self.peaks),
                    "total": asdict(floor.total),
                }
        return data


def run_bench(
    model: str | Path | None, shape: str | None, settings: BenchSettings, log: Callable[[str], None] = print
) -> Report:
    """Measure a model on this machine.

    Everything is compiled anew: what earlier processes have left on the disk is not used.

    Args:
        model: name or file; the shipped model if None.
        shape: "channels,l_max,hidden_l_max,correlation" of a MACE with random weights, instead of a model.
        settings: what to measure.
        log: called with a line for each measurement.

    Raises:
        ValueError: both a model and a shape, a shape that is none, or systems of elements that the model lacks.
        FileNotFoundError: no such model.
    """
    if model is not None and shape is not None:
        raise ValueError(f"give a model ({model}) or a shape ({shape}), not both")
    force_field = random_model(shape) if shape is not None else ForceField.load(model or "default")
    systems = choose_systems(force_field, settings.systems)
    smallest = min(settings.sizes or SIZES)
    title = f"MACE of shape {shape}, random weights" if shape is not None else str(model or "default")
    runs_on = describe(force_field.predictor.network)
    log(f"{title}: {force_field.num_params:,} parameters, {settings.dtype}, runs on {runs_on}")
    first_calls, hardware = [], machine.hardware()
    if "first" in settings.parts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors" if shape is not None else model_path(model or "default")
            if shape is not None:
                force_field.save(path)
            for system in systems:
                log(f"first forces of {system} in new processes")
                first_calls.append(time_first_call(str(path), system, smallest, settings.dtype))
    with nothing_kept():
        return _measure(force_field, title, systems, settings, first_calls, hardware, log)


def _measure(
    force_field: ForceField,
    title: str,
    systems: Sequence[str],
    settings: BenchSettings,
    first_calls: Sequence[FirstCall],
    hardware: dict[str, Any],
    log: Callable[[str], None],
) -> Report:
    """All that is measured in this process, small structures first."""
    parts = frozenset(settings.parts)
    sizes = sorted(settings.sizes or (SIZES[:CPU_SIZES] if hardware["platform"] == "cpu" else SIZES))
    peaks = machine.measure_peaks(settings.dtype)
    log(f"peaks: {peaks.operations_per_s / 1e9:.0f} GFLOP/s, {peaks.bytes_per_s / 1e9:.1f} GB/s")
    accuracies, speeds, floors, training = [], [], [], []
    itemsize = 8 if settings.dtype == "float64" else 4
    for system in systems:
        if parts & {"model", "md"}:
            for size in sizes:
                speed = measure_speed(
                    force_field,
                    system,
                    size,
                    reps=settings.reps,
                    dtype=settings.dtype,
                    timestep=settings.timestep,
                    parts=parts,
                )
                known = force_field.for_elements(ELEMENTS[system])
                speeds.append(speed)
                floors.append(count_floor(known, speed.atoms, speed.pairs, itemsize))
                times = (("model", speed.model), ("MD step", speed.md))
                done = ", ".join(f"{name} {1e3 * timing.median:.3f} ms" for name, timing in times if timing)
                log(f"{system}, {speed.atoms} atoms: {done}")
        if "accuracy" in parts:
            accuracies.append(measure_accuracy(force_field, system, sizes[0], settings.dtype))
        if "train" in parts:
            training.append(measure_training(force_field, system, sizes[0], settings.frames, settings.reps))
            log(f"{system}, training: {training[-1].frames_per_s:.2f} frames/s")
    return Report(
        model=title,
        path=describe(force_field.predictor.network),
        settings=settings,
        hardware=hardware,
        versions=machine.versions(),
        peaks=peaks,
        first_calls=tuple(first_calls),
        accuracies=tuple(accuracies),
        speeds=tuple(speeds),
        floors=tuple(floors),
        training=tuple(training),
    )


def choose_systems(force_field: ForceField, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The systems that were asked for, or all that the model has the elements for.

    Raises:
        ValueError: the model lacks elements.
    """
    possible = tuple(name for name, elements in ELEMENTS.items() if set(elements) <= set(force_field.elements))
    missing = [name for name in wanted or () if name not in possible]
    if missing or not possible:
        known = ", ".join(force_field.dataset_info.symbols)
        raise ValueError(
            f"the model knows {known}: it can be measured on {', '.join(possible) or 'none of the systems'}"
            + (f", not on {', '.join(missing)}" if missing else "")
        )
    return tuple(wanted or possible)


def read_sizes(text: str) -> tuple[int, ...]:
    """Numbers of atoms from text such as "24,192".

    Raises:
        ValueError: something else.
    """
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise ValueError(f"sizes {text!r}: give whole numbers of atoms, such as 24,192") from None


def random_model(shape: str) -> ForceField:
    """A MACE of two layers with random weights for H, C, N, O and Cu, cutoff 5 Angstrom.

    Args:
        shape: "channels,l_max,hidden_l_max,correlation", such as "128,3,1,3".

    Raises:
        ValueError: not four whole numbers, or not those of a MACE.
    """
    try:
        channels, l_max, hidden_l_max, correlation = (int(number) for number in shape.split(","))
    except ValueError:
        raise ValueError(f"shape {shape!r}: give channels,l_max,hidden_l_max,correlation, such as 128,3,1,3") from None
    info = DatasetInfo.create(SHAPE_ENERGIES, cutoff=5.0, avg_num_neighbors=40.0)
    config = Mace.Config(num_channels=channels, l_max=l_max, hidden_l_max=hidden_l_max, correlation=correlation)
    return ForceField.from_mlip_network(Mace(config, info))
