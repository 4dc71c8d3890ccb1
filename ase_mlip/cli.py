"""The command line: `ase-mlip demo | train | finetune | evaluate | select | relax | convert | info | bench`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ase_mlip.config import FineTuneConfig, TrainConfig
from ase_mlip.options import Options, alternatives, is_list

Config = TypeVar("Config", bound=Options)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

EnergyKey = Annotated[str | None, typer.Option(help="key of the energy in info; default: the attached calculator's")]
ForcesKey = Annotated[str | None, typer.Option(help="key of the forces in arrays")]
StressKey = Annotated[str | None, typer.Option(help="key of the stress in info")]


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="where to write")] = Path("ase-mlip-demo"),
    steps: Annotated[int, typer.Option(min=1, help="MD steps of 0.5 fs")] = 2000,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the training frames")] = 36,
) -> None:
    """Fine-tune the shipped model on a DFT trajectory of glycine, relax it, run MD."""
    from ase_mlip.demo import run_demo

    run_demo(folder, steps, epochs, log=typer.echo)


def _train(train_set: str | None, config: Path | None, **given: Any) -> None:
    """Train a MACE from scratch; every option is a field of `ase_mlip.TrainConfig`."""
    from ase_mlip.from_scratch import train_from_scratch

    whole = _changed(TrainConfig, config, train_set, given)
    if whole.output is None:
        raise ValueError("--output: give the model file to write")
    result = train_from_scratch(config=whole, log=typer.echo)
    typer.echo(f"kept epoch {result.best['epoch']}; wrote {whole.output}")


def _finetune(base: str | None, train_set: str | None, config: Path | None, **given: Any) -> None:
    """Fine-tune a model on labelled structures; every option is a field of `ase_mlip.FineTuneConfig`."""
    from ase_mlip.finetune import fine_tune

    whole = _changed(FineTuneConfig, config, train_set, {**given, "base": base})
    if whole.output is None and not whole.dry_run:
        raise ValueError("--output: give the model file to write (or --dry-run to write none)")
    fine_tune(config=whole, log=typer.echo)
    if not whole.dry_run:
        typer.echo(f"wrote {whole.output}")


def _changed(kind: type[Config], config: Path | None, train_set: str | None, given: Mapping[str, Any]) -> Config:
    """The options of a YAML file, or the defaults, and those given besides."""
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in ("train", "valid"):
        if name in chosen:
            chosen[name] = _sources(chosen[name])
    if train_set is not None:
        if "train" in chosen:
            raise ValueError("give the training frames as an argument or by --train, not both")
        chosen["train"] = train_set
    for name in chosen:
        if is_list(kind.types()[name]):
            chosen[name] = kind.parse(name, chosen[name])
    return (kind() if config is None else kind.load(config)).changed(chosen)


def _sources(given: list[str]) -> Any:
    """One file, one share, or a file for each level."""
    if len(given) == 1 and "=" not in given[0]:
        try:
            return float(given[0])
        except ValueError:
            return given[0]
    pairs = [item.split("=", 1) for item in given]
    wrong = [item[0] for item in pairs if len(item) != 2]
    if wrong:
        raise ValueError(f"{wrong[0]!r}: with several levels give each as LEVEL=FILE")
    return dict(pairs)


def _with_options(command: Callable[..., None], configuration: type[Options]) -> Callable[..., None]:
    """Give the command one option for each field of its configuration."""
    arguments = {
        "base": Annotated[str | None, typer.Argument(help="model file or the name of a model, such as default")],
        "train_set": Annotated[str | None, typer.Argument(help="training frames: any file that ASE reads, FILE@INDEX")],
        "config": Annotated[
            Path | None, typer.Option(help="YAML file of options; those given besides replace its own")
        ],
    }
    if "base" not in configuration.types():
        del arguments["base"]
    for name, kind, default, text in configuration.options():
        if name == "base":
            continue
        plain: Any = next((t for t in (bool, int, float) if t in alternatives(kind)), str)
        kind = list[str] | None if name in ("train", "valid") else plain | None
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        shown = "" if default is None or isinstance(default, bool) else f" [default: {default}]"
        flags = ("--output", "-o") if name == "output" else ()
        arguments[name] = Annotated[kind, typer.Option(*flags, help=text + shown, show_default=False)]  # type: ignore[valid-type]
    kinds = inspect.Parameter
    parameters = [kinds(n, kinds.KEYWORD_ONLY, default=None, annotation=a) for n, a in arguments.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = dict(arguments)
    return command


app.command("train")(_with_options(_train, TrainConfig))
app.command("finetune")(_with_options(_finetune, FineTuneConfig))


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="model file or the name of a shipped model")],
    data: Annotated[str, typer.Argument(help="labelled frames: any file that ASE reads")],
    level: Annotated[str | None, typer.Option(help="level to evaluate; default: the newest")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the errors here, eV units")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
    energy_key: EnergyKey = None,
    forces_key: ForcesKey = None,
    stress_key: StressKey = None,
) -> None:
    """Print a model's errors on labelled frames."""
    from ase_mlip.dataset import LabelKeys
    from ase_mlip.evaluate import evaluate_frames
    from ase_mlip.force_field import ForceField

    force_field = ForceField.load(model)
    keys = LabelKeys(energy_key, forces_key, stress_key)
    errors = evaluate_frames(force_field, data, level=level, keys=keys, dtype=dtype)
    shown = level or list(force_field.levels)[-1]
    typer.echo(f"level {shown!r}: {errors}")
    if json_file:
        record = {"model": model, "data": data, "level": shown, "frames": errors.frames, **errors.summary()}
        json_file.write_text(json.dumps(record, indent=1) + "\n")


@app.command()
def select(
    model: Annotated[str, typer.Argument(help="model file with a committee of heads, from finetune --n-heads 4")],
    frames: Annotated[str, typer.Argument(help="frames without labels: any file that ASE reads, FILE@INDEX")],
    count: Annotated[int, typer.Option(min=1, help="frames to select, at most")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".extxyz or .traj file to write; a picture beside it")],
    level: Annotated[str | None, typer.Option(help="level with the committee; default: the newest")] = None,
    pool_factor: Annotated[int, typer.Option(min=1, help="the most uncertain POOL_FACTOR x COUNT are chosen from")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="frames predicted at once")] = 16,
) -> None:
    """Pick the frames worth labelling next: where the committee differs most, and unlike each other."""
    from ase_mlip import select
    from ase_mlip.dataset import read_frames
    from ase_mlip.force_field import ForceField
    from ase_mlip.report.selection import plot_selection

    select.check_output(output)
    force_field, pool = ForceField.load(model), read_frames(frames)
    scan = select.scan_frames(force_field, pool, level=level, batch_size=batch_size)
    selected = select.choose_frames(scan, pool, count, force_field.cutoff, pool_factor)
    for line in (*select.describe_faults(scan), *select.describe_selected(scan, selected)):
        typer.echo(line)
    select.write_frames(output, pool, selected)
    plot_selection(output.with_suffix(".png"), scan, selected)
    typer.echo(f"wrote {output}")


@app.command()
def relax(
    structures: Annotated[str, typer.Argument(help="structures to relax: any file that ASE reads, FILE@INDEX")],
    output: Annotated[Path, typer.Option("--output", "-o", help=".extxyz, .xyz or .traj file to write, in order")],
    model: Annotated[str, typer.Option(help="model file or the name of a model")] = "default",
    level: Annotated[str | None, typer.Option(help="level of the model; default: the newest")] = None,
    fmax: Annotated[float, typer.Option(help="largest force when converged, eV/Angstrom")] = 0.05,
    steps: Annotated[int, typer.Option(min=0, help="of each structure, at most")] = 500,
    optimizer: Annotated[str, typer.Option(help="fire, or lbfgs: fewer steps from a good start")] = "fire",
    batch_size: Annotated[int | None, typer.Option(min=1, help="structures at once; default: by their atoms")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
) -> None:
    """Relax many structures side by side; after Ctrl-C or a kill, the same command goes on."""
    from ase_mlip.relaxation import relax_file

    options = {"level": level, "fmax": fmax, "steps": steps, "batch_size": batch_size, "dtype": dtype}
    relax_file(structures, output, model, typer.echo, optimizer=optimizer, **options)
    typer.echo(f"wrote {output}")


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="model of mace-torch (.model), mlip (.zip) or nequix (.nqx)")],
    output: Annotated[Path, typer.Argument(help="model file to write")],
    trust: Annotated[bool, typer.Option("--trust", help="let a pickled torch file run its code")] = False,
) -> None:
    """Turn another package's model into a file of ours, and compare energies where that package is installed."""
    from ase_mlip.convert import convert_model

    convert_model(source, output, trust, log=typer.echo)


@app.command()
def info(model: Annotated[str, typer.Argument(help="model file or the name of a shipped model")]) -> None:
    """Print what a model file holds."""
    from ase_mlip.describe import describe
    from ase_mlip.force_field import ForceField, model_path

    path = model_path(model)
    for key, value in describe(ForceField.load(path), path).items():
        typer.echo(f"{key:16s} {value}")


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="model file or name; default: the shipped model")] = None,
    shape: Annotated[
        str | None, typer.Option(help="instead of a model: channels,l_max,hidden_l_max,correlation; random weights")
    ] = None,
    systems: Annotated[str | None, typer.Option(help="water,copper; default: those the model has elements for")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="atoms, such as 24,192; default: 24 to 648 on a CPU, to 24000 elsewhere")
    ] = None,
    reps: Annotated[int, typer.Option(min=1, help="runs of which the median counts")] = 20,
    dtype: Annotated[str, typer.Option(help="float32 or float64")] = "float32",
    parts: Annotated[str, typer.Option(help="what to measure")] = "first,accuracy,model,md,train",
    timestep: Annotated[float, typer.Option(help="of the molecular dynamics, fs")] = 0.5,
    frames: Annotated[int, typer.Option(min=1, help="structures in a training batch")] = 4,
    json_file: Annotated[Path | None, typer.Option("--json", help="also write everything here")] = None,
    plot: Annotated[Path | None, typer.Option(help="picture of the time against the number of atoms to write")] = None,
) -> None:
    """Measure a model's speed on this machine, beside the floor that operations and bytes set.

    JAX chooses the device: JAX_PLATFORMS=cpu in the environment measures the CPU where there is a GPU.
    """
    from ase_mlip.bench.run import BenchSettings, read_sizes, run_bench
    from ase_mlip.bench.show import plot_scaling, print_report

    named = tuple(systems.split(",")) if systems else None
    settings = BenchSettings(
        named, read_sizes(sizes) if sizes else None, reps, dtype, tuple(parts.split(",")), timestep, frames
    )
    report = run_bench(model, shape, settings, log=typer.echo)
    print_report(report)
    if json_file:
        json_file.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    if plot:
        plot_scaling(report, plot)


def main() -> None:
    """Run the command line; an error of the user's is one line, not a traceback."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
