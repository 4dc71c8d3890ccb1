"""Every choice of a fine-tuning in one frozen dataclass: what Python, the command line and a YAML file share."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

import yaml

from ase_mlip.presets import METHODS, Method

if TYPE_CHECKING:  # the command line lists the options without loading JAX
    from ase_mlip.dataset import LabelKeys
    from ase_mlip.evaluate import LossWeights

E0_CHOICES = ("estimated", "isolated", "keep")
REPLAY_LABELS = ("model", "file")


@dataclass(frozen=True)
class FineTuneConfig:
    """How to fine-tune. None means the method's usual value, or none at all where the text says so.

    Sources of data (`train`, `valid`, `replay`) are files in any format that ASE reads, `FILE@INDEX`, or, from Python,
    lists of Atoms; then the configuration cannot be written to a file.
    """

    base: Annotated[Any, "pretrained model: a file, or the name of a shipped or published one"] = "default"
    train: Annotated[Any, "training frames; several levels as LEVEL=FILE each"] = None
    valid: Annotated[Any, "validation frames (as for train), or the share of the training frames drawn for it"] = 0.1
    output: Annotated[str | None, "model file to write; plots and the report go beside it"] = None
    folder: Annotated[str | None, "folder of checkpoints; the same call again goes on from there"] = None
    method: Annotated[str, "heads: new head alone; freeze: all but frozen parts; lora: low rank; full: all"] = "heads"
    level: Annotated[str, "name of the new level, where there is one"] = "fine-tuned"
    base_level: Annotated[str | None, "level to build on; None: the newest"] = None
    stacked: Annotated[bool, "of several levels, each corrects the one before it"] = False
    n_heads: Annotated[int, "heads per new level; more than 1: a committee on bootstrapped frames"] = 1
    freeze: Annotated[tuple[str, ...] | None, "parts (embedding, ...) or patterns of parameters that stay"] = None
    rank: Annotated[int | None, "rank of the change of every matrix"] = None
    e0: Annotated[Any, "energies of atoms: estimated (least squares), isolated, keep, or H=-13.6,O=-430.1"] = (
        "estimated"
    )
    replay: Annotated[Any, "structures that keep the old level: frames, or auto to generate them; None: none"] = None
    replay_ratio: Annotated[float, "replay frames for each training frame, at most"] = 1.0
    replay_weight: Annotated[float, "weight of a replay frame in the loss"] = 1.0
    replay_labels: Annotated[str, "model: labelled by the base; file: by themselves"] = "model"
    energy_key: Annotated[str | None, "key of the energy in info; None: the attached calculator's"] = None
    forces_key: Annotated[str | None, "key of the forces in arrays; None: the attached calculator's"] = None
    stress_key: Annotated[str | None, "key of the stress in info; None: the attached calculator's"] = None
    skip_bad_frames: Annotated[bool, "leave out frames with labels that cannot be true, instead of stopping"] = False
    accept_units: Annotated[bool, "train although other units or signs fit the labels much better"] = False
    energy_weight: Annotated[float, "loss weight of energies per atom; 0 trains without them"] = 100.0
    forces_weight: Annotated[float, "loss weight of forces; 0 trains without them"] = 1.0
    stress_weight: Annotated[float, "loss weight of stresses; 0 trains without them"] = 0.0
    huber_delta: Annotated[float, "errors beyond it count linearly, eV units"] = 1.0
    epochs: Annotated[int | None, "passes over the data; None: about 3,000 batches"] = None
    batch_size: Annotated[int, "structures in a batch"] = 8
    accumulate: Annotated[int, "batches whose gradients make one update"] = 1
    learning_rate: Annotated[float | None, "peak, relative to the size of each parameter"] = None
    schedule: Annotated[str, "cosine, plateau or constant"] = "cosine"
    ema: Annotated[float | None, "decay of the moving average that is kept"] = None
    clip: Annotated[float | None, "largest norm of the gradient"] = None
    weight_decay: Annotated[float, "pull towards the pretrained parameters"] = 0.0
    patience: Annotated[int | None, "evaluations without a better one that end the training; None: all epochs"] = None
    max_minutes: Annotated[float | None, "wall time that ends the training; None: no limit"] = None
    seed: Annotated[int, "of everything random"] = 0
    check_ps: Annotated[float, "picoseconds of dynamics that the report checks, with walls of pairs; 0: neither"] = 0.5
    dry_run: Annotated[bool, "print what would be done, its cost and what is wrong with the data, and stop"] = False

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("replay_labels", REPLAY_LABELS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(map(repr, allowed))}")
        if isinstance(self.e0, str):
            object.__setattr__(self, "e0", parse_energies(self.e0))
        if isinstance(self.freeze, str):
            raise ValueError(f"freeze={self.freeze!r}: give a list of names")
        if self.freeze is not None:
            object.__setattr__(self, "freeze", tuple(self.freeze))
        for name in ("n_heads", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        if self.check_ps < 0:
            raise ValueError(f"check_ps={self.check_ps}: give zero or a positive number")
        for name in ("replay_ratio", "replay_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number; without replay leave it out")
        if self.replay is not None and not self.preset.changes_old_levels:
            raise ValueError(
                f"replay has no effect with method={self.method!r}: the old levels cannot change; leave it out"
            )
        if self.rank is not None and METHODS[self.method].rank is None:
            raise ValueError(f"rank has no effect with method={self.method!r}; it belongs to 'lora'")
        if self.freeze is not None and self.method not in ("freeze", "lora"):
            raise ValueError(f"freeze has no effect with method={self.method!r}; it belongs to 'freeze' and 'lora'")

    @property
    def preset(self) -> Method:
        """The method with what was changed of it."""
        names = [f.name for f in fields(Method)]
        return replace(METHODS[self.method], **{n: v for n in names if (v := getattr(self, n)) is not None})

    @property
    def keys(self) -> LabelKeys:
        """Where the labels are."""
        from ase_mlip.dataset import LabelKeys

        return LabelKeys(self.energy_key, self.forces_key, self.stress_key)

    @property
    def loss(self) -> LossWeights:
        """The loss."""
        from ase_mlip.evaluate import LossWeights

        return LossWeights(self.energy_weight, self.forces_weight, self.stress_weight, self.huber_delta)

    def to_dict(self) -> dict[str, Any]:
        """Plain data that says what was asked for; frames that came from no file are described by their number."""
        sources = {name: _describe_source(getattr(self, name)) for name in ("base", "train", "valid", "replay")}
        plain = {f.name: getattr(self, f.name) for f in fields(self)} | sources
        plain["freeze"] = None if self.freeze is None else list(self.freeze)
        return plain

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a YAML file that `load` reads and `ase-mlip finetune --config` runs.

        Raises:
            ValueError: frames that came from no file.
        """
        plain = self.to_dict()
        for name in ("base", "train", "valid", "replay"):
            if "in memory" in str(plain[name]):
                raise ValueError(
                    f"{name} is {plain[name]}: only a run on files can be written down; write the frames first"
                )
        Path(path).write_text(yaml.safe_dump(plain, sort_keys=False))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FineTuneConfig:
        """Read a YAML file.

        Raises:
            ValueError: not YAML, a key that does not exist, or a value that cannot be.
        """
        try:
            data = yaml.safe_load(Path(path).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path} holds no mapping of options to values")
        return cls().changed(data)

    def changed(self, options: Mapping[str, Any]) -> FineTuneConfig:
        """A copy with other values.

        Raises:
            ValueError: an option that does not exist, or a value of the wrong kind.
        """
        types = option_types()
        for name, value in options.items():
            if name not in types:
                raise ValueError(f"there is no option {name!r}; the options are {', '.join(types)}")
            if not _fits(value, types[name]):
                raise ValueError(f"{name}={value!r}: expected {_describe_type(types[name])}")
        plain = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in options.items()}
        return replace(self, **plain)


def option_types() -> dict[str, Any]:
    """Name and type of every option."""
    return {name: kind for name, kind, _, _ in options()}


def options() -> Iterator[tuple[str, Any, Any, str]]:
    """Name, type, default and help of every option, in order."""
    hints = get_type_hints(FineTuneConfig, include_extras=True)
    for f in fields(FineTuneConfig):
        kind, text = get_args(hints[f.name])
        yield f.name, kind, f.default, text


def parse_energies(text: str) -> str | dict[str, float]:
    """One of the words, or "H=-13.6,O=-430.1" as a mapping from symbol to eV.

    Raises:
        ValueError: neither.
    """
    if text in E0_CHOICES:
        return text
    try:
        pairs = [item.split("=") for item in text.split(",")]
        return {symbol.strip(): float(energy) for symbol, energy in pairs}
    except ValueError:
        raise ValueError(
            f"e0={text!r}: give one of {', '.join(map(repr, E0_CHOICES))}, or energies in eV such as H=-13.6,O=-430.1"
        ) from None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value may stand for an annotated type; whole numbers are numbers, paths are text, lists are tuples."""
    if kind is Any:
        return True
    allowed = {get_origin(option) or option for option in get_args(kind) or (kind,)}
    if isinstance(value, bool):
        return bool in allowed
    also = {float: (int,), str: (os.PathLike,), tuple: (list,)}
    return any(isinstance(value, (option, *also.get(option, ()))) for option in allowed)


def _describe_type(kind: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list of text"}
    options = [get_origin(option) or option for option in get_args(kind) or (kind,)]
    return " or ".join(names.get(option, "nothing") for option in options)


def _describe_source(source: Any) -> Any:
    """The source itself if it can be written down, else what it is."""
    if source is None or isinstance(source, str | int | float):
        return source
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    if isinstance(source, Mapping):
        return {str(level): _describe_source(part) for level, part in source.items()}
    what = f"{len(source)} frames" if hasattr(source, "__len__") else type(source).__name__
    return f"<{what} in memory>"
