"""Every choice of a training, and of a fine-tuning, in one frozen dataclass each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

from ase_mlip.element_options import parse_elements, parse_energies
from ase_mlip.options import Options
from ase_mlip.presets import METHODS, WITH_REPLAY, MatmulPrecision, Method, Optimizer, Schedule

if TYPE_CHECKING:  # the command line lists the options without loading JAX
    from ase_mlip.dataset import LabelKeys
    from ase_mlip.evaluate import LossWeights
    from ase_mlip.networks.mace import MaceConfig
    from ase_mlip.repulsion import Repulsion
    from ase_mlip.training import TrainSettings

REPLAY_LABELS = ("model", "file")
CHOICES = {
    "method": tuple(METHODS),
    "replay_labels": REPLAY_LABELS,
    "optimizer": (*get_args(Optimizer), None),
    "schedule": get_args(Schedule),
    "matmul_precision": get_args(MatmulPrecision),
}


class Labelled(Options):
    """Options with the names of the labels and their weights in the loss."""

    if TYPE_CHECKING:
        energy_key: str | None
        forces_key: str | None
        stress_key: str | None
        energy_weight: float
        forces_weight: float
        stress_weight: float
        huber_delta: float

    def check_choices(self) -> None:
        """Whether every option that is one of a few words is one of them.

        Raises:
            ValueError: another word; the message lists those that there are.
        """
        for name, allowed in CHOICES.items():
            value = getattr(self, name, allowed[0])
            if value not in allowed:
                words = ", ".join(repr(word) for word in allowed if word is not None)
                raise ValueError(f"{name}={value!r}: give one of {words}")

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


@dataclass(frozen=True)
class FineTuneConfig(Labelled):
    """How to fine-tune. None means the method's usual value, or none at all where the text says so.

    Sources of data (`train`, `valid`, `replay`) are files in any format that ASE reads, `FILE@INDEX`, or, from Python,
    lists of Atoms; then the configuration cannot be written to a file.
    """

    SOURCES: ClassVar[tuple[str, ...]] = ("base", "train", "valid", "replay")

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
    new_elements: Annotated[Any, "elements that the base lacks, each with one it starts from: Na=F,K=F"] = None
    replay: Annotated[Any, "structures that keep the old level: frames, or auto to generate them; None: none"] = None
    replay_ratio: Annotated[
        float | None, "replay frames per training frame, at most; None: one, 100 in all at least"
    ] = None
    replay_weight: Annotated[float, "weight of a replay frame in the loss"] = 1.0
    replay_labels: Annotated[str, "model: labelled by the base; file: by themselves"] = "model"
    energy_key: Annotated[str | None, "key of the energy in info; None: the attached calculator's"] = None
    forces_key: Annotated[str | None, "key of the forces in arrays; None: the attached calculator's"] = None
    stress_key: Annotated[str | None, "key of the stress in info; None: the attached calculator's"] = None
    skip_bad_frames: Annotated[bool, "leave out frames with labels that cannot be true, instead of stopping"] = False
    accept_units: Annotated[bool, "train although other units or signs fit the labels much better"] = False
    energy_weight: Annotated[float, "loss weight of energies per atom; 0 trains without them"] = 10.0
    forces_weight: Annotated[float, "loss weight of forces; 0 trains without them"] = 1.0
    stress_weight: Annotated[float, "loss weight of stresses; 0 trains without them"] = 0.0
    huber_delta: Annotated[float, "errors beyond it count linearly, eV units"] = 1.0
    epochs: Annotated[int | None, "passes over the data; None: about 3,000 batches"] = None
    batch_size: Annotated[int, "structures in a batch"] = 8
    accumulate: Annotated[int, "batches whose gradients make one update"] = 1
    optimizer: Annotated[str | None, "muon: orthogonal updates of matrices; or amsgrad"] = None
    learning_rate: Annotated[float | None, "peak, relative to the size of each parameter"] = None
    schedule: Annotated[str, "cosine, plateau or constant"] = "cosine"
    ema: Annotated[float | None, "decay of the moving average that is kept"] = None
    clip: Annotated[float | None, "largest norm of the gradient"] = None
    weight_decay: Annotated[float, "pull towards the pretrained parameters"] = 0.0
    patience: Annotated[int | None, "evaluations without a better one that end the training; None: all epochs"] = None
    max_minutes: Annotated[float | None, "wall time that ends the training; None: no limit"] = None
    matmul_precision: Annotated[str, "of a training step's matrix products: float32, or on a GPU tensorfloat32"] = (
        "float32"
    )
    seed: Annotated[int, "of everything random"] = 0
    check_ps: Annotated[float, "picoseconds of dynamics that the report checks, with walls of pairs; 0: neither"] = 0.5
    dry_run: Annotated[bool, "print what would be done, its cost and what is wrong with the data, and stop"] = False

    def __post_init__(self) -> None:
        self.check_choices()
        if isinstance(self.e0, str):
            object.__setattr__(self, "e0", parse_energies(self.e0))
        if isinstance(self.new_elements, str):
            object.__setattr__(self, "new_elements", parse_elements(self.new_elements))
        if self.new_elements is not None and not self.preset.changes_old_levels:
            raise ValueError(
                f"new_elements with method={self.method!r}: a new head alone cannot tell them from the elements they "
                "start from; use 'lora' or 'full'"
            )
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
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value}: give a positive number; without replay leave it out")
        if self.replay is None and self.replay_ratio is not None:
            raise ValueError(f"replay_ratio={self.replay_ratio} has no effect without replay; give frames, or 'auto'")
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
        method = (METHODS if self.replay is None else METHODS | WITH_REPLAY)[self.method]
        return replace(method, **{f.name: v for f in fields(Method) if (v := getattr(self, f.name)) is not None})


@dataclass(frozen=True)
class TrainConfig(Labelled):
    """How to train a MACE from random parameters, or from a model's (`start`), which then has the shape.

    `train` and `valid` are files in any format that ASE reads, `FILE@INDEX`, or, from Python, lists of Atoms; then the
    configuration cannot be written to a file.
    """

    SOURCES: ClassVar[tuple[str, ...]] = ("train", "valid", "start")
    SHAPE: ClassVar[tuple[str, ...]] = (
        "channels", "layers", "l_max", "hidden_l_max", "correlation", "radial_mlp", "cutoff", "repulsion",
    )  # fmt: skip
    CONSTANTS: ClassVar[tuple[str, ...]] = (
        "repulsion_prefactor", "repulsion_exponent", "repulsion_order", "repulsion_floor",
    )  # fmt: skip

    train: Annotated[Any, "training frames"] = None
    valid: Annotated[Any, "validation frames, or the share of the training frames drawn for it"] = 0.1
    output: Annotated[str | None, "model file to write; plots and the report go beside it"] = None
    folder: Annotated[str | None, "folder of checkpoints; the same call again goes on from there"] = None
    start: Annotated[Any, "model to go on from, with its shape and constants; None: random parameters"] = None
    channels: Annotated[int, "feature channels"] = 64
    layers: Annotated[int, "message-passing layers"] = 2
    l_max: Annotated[int, "degree of the spherical harmonics"] = 3
    hidden_l_max: Annotated[int, "degree of the features between layers"] = 1
    correlation: Annotated[int, "correlation order, 1 to 4"] = 3
    radial_mlp: Annotated[tuple[int, ...], "hidden widths of the radial network"] = (64, 64, 64)
    cutoff: Annotated[float, "largest neighbour distance, Angstrom"] = 5.0
    repulsion: Annotated[bool, "add the screened repulsion of the nuclei (ZBL)"] = False
    repulsion_prefactor: Annotated[float | None, "of its screening length; None: as published"] = None
    repulsion_exponent: Annotated[float | None, "of the charges in its screening length; None: as published"] = None
    repulsion_order: Annotated[int | None, "p of the polynomial that ends it; None: 6"] = None
    repulsion_floor: Annotated[float | None, "closest that the network sees a pair, covalent radii; None: 0 (off)"] = (
        None
    )
    energy_key: Annotated[str | None, "key of the energy in info; None: the attached calculator's"] = None
    forces_key: Annotated[str | None, "key of the forces in arrays; None: the attached calculator's"] = None
    stress_key: Annotated[str | None, "key of the stress in info; None: the attached calculator's"] = None
    skip_bad_frames: Annotated[bool, "leave out frames with labels that cannot be true, instead of stopping"] = False
    energy_weight: Annotated[float, "loss weight of energies per atom; 0 trains without them"] = 10.0
    forces_weight: Annotated[float, "loss weight of forces; 0 trains without them"] = 1.0
    stress_weight: Annotated[float, "loss weight of stresses; 0 trains without them"] = 0.0
    huber_delta: Annotated[float, "errors beyond it count linearly, eV units"] = 1.0
    epochs: Annotated[int, "passes over the data"] = 100
    batch_size: Annotated[int, "structures in a batch"] = 8
    max_shapes: Annotated[int, "pad shapes, at most; more waste less and compile longer"] = 4
    optimizer: Annotated[str, "muon: orthogonal updates of matrices; or amsgrad"] = "muon"
    learning_rate: Annotated[float, "peak of the schedule"] = 1e-2
    schedule: Annotated[str, "cosine, plateau or constant"] = "cosine"
    clip: Annotated[float, "largest norm of the gradient"] = 10.0
    ema: Annotated[float, "decay of the moving average that is kept"] = 0.99
    eval_every: Annotated[int, "epochs between evaluations, which are also checkpoints"] = 1
    patience: Annotated[int | None, "evaluations without a better one that end the training; None: all epochs"] = None
    max_minutes: Annotated[float | None, "wall time that ends the training; None: no limit"] = None
    matmul_precision: Annotated[str, "of a training step's matrix products: float32, or on a GPU tensorfloat32"] = (
        "float32"
    )
    seed: Annotated[int, "of everything random"] = 0
    name: Annotated[str | None, "a name and level of theory to keep in the file"] = None
    licence: Annotated[str | None, "licence of the weights to keep in the file"] = None

    def __post_init__(self) -> None:
        self.check_choices()
        object.__setattr__(self, "radial_mlp", tuple(self.radial_mlp))
        if isinstance(self.train, Mapping) or isinstance(self.valid, Mapping):
            raise ValueError("a training has one level: give one file; several levels (LEVEL=FILE) belong to finetune")
        given = [name for name in self.CONSTANTS if getattr(self, name) is not None]
        if given and not self.repulsion:
            raise ValueError(f"{given[0]} has no effect without repulsion=True (--repulsion)")
        if self.start is not None:
            defaults = {name: default for name, _, default, _ in self.options()}
            shape = [name for name in self.SHAPE if getattr(self, name) != defaults[name]]
            if shape:
                raise ValueError(f"{shape[0]} has no effect with start: the model that it names has its own")

    @property
    def network(self) -> MaceConfig:
        """The shape of the network."""
        from ase_mlip.networks.mace import MaceConfig

        return MaceConfig(
            self.channels, self.layers, self.l_max, self.hidden_l_max, self.correlation, radial_mlp=self.radial_mlp
        )

    @property
    def pair_repulsion(self) -> Repulsion | None:
        """The repulsion, the published constants where no others are given."""
        from ase_mlip.repulsion import Repulsion

        if not self.repulsion:
            return None
        given = {name.removeprefix("repulsion_"): getattr(self, name) for name in self.CONSTANTS}
        return Repulsion(**{name: value for name, value in given.items() if value is not None})

    @property
    def settings(self) -> TrainSettings:
        """Of the training loop."""
        from ase_mlip.training import TrainSettings

        return TrainSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            ema=self.ema,
            loss=self.loss,
            eval_every=self.eval_every,
            max_shapes=self.max_shapes,
            seed=self.seed,
            patience=self.patience,
            max_minutes=self.max_minutes,
            matmul_precision=self.matmul_precision,
        )
