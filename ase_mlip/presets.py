"""The ways to fine-tune: each says which parameters stay, which move freely or at low rank, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Schedule = Literal["cosine", "plateau", "constant"]
Optimizer = Literal["amsgrad", "muon"]
# Factors rounded to bfloat16 spoil energies: fine-tuned on 50 frames of aspirin 101 meV off, with TF32 15, float32 14
# (forces 42.5, 40.2 and 40.3 meV/Angstrom; tests/benchmarks/precision.py).
MatmulPrecision = Literal["float32", "tensorfloat32"]


@dataclass(frozen=True)
class Method:
    """What trains besides the new heads, and the usual settings; all of it can be changed.

    Attributes:
        freeze: parts of the network, or patterns of parameter names, that stay as they are.
        rank: of the change of every matrix that is not frozen; None lets all of it change freely.
        learning_rate: peak of the schedule, relative to the size of each parameter.
        ema: decay of the moving average.
        clip: largest norm of the gradient.
        optimizer: "amsgrad" or "muon".
    """

    freeze: tuple[str, ...]
    rank: int | None
    learning_rate: float
    ema: float
    clip: float
    optimizer: Optimizer = "muon"

    @property
    def changes_old_levels(self) -> bool:
        """Whether the levels that the base has can change."""
        return "*" not in self.freeze


METHODS: dict[str, Method] = {
    "heads": Method(freeze=("*",), rank=None, learning_rate=1e-2, ema=0.99, clip=10.0),
    "freeze": Method(freeze=("embedding", "interactions"), rank=None, learning_rate=5e-3, ema=0.99, clip=10.0),
    "lora": Method(freeze=(), rank=8, learning_rate=1e-2, ema=0.99, clip=10.0),
    "full": Method(freeze=(), rank=None, learning_rate=3e-3, ema=0.99, clip=10.0),
}
# With replay. All weights, moving freely at their own rate, lose the old level; and Muon, better without replay, left
# `full` worse at the new level (aspirin, 50 frames: 59.6 meV/Angstrom at 1e-3, 100 at 3e-3; AMSGrad 56.5).
WITH_REPLAY: dict[str, Method] = {
    "freeze": replace(METHODS["freeze"], optimizer="amsgrad"),
    "lora": replace(METHODS["lora"], optimizer="amsgrad"),
    "full": replace(METHODS["full"], optimizer="amsgrad", learning_rate=1e-3),
}
