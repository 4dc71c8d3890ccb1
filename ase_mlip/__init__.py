"""Machine-learned interatomic potentials for ASE that you can own: load, fine-tune on your trajectory, run.

Names are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_mlip.calculator import MLIPCalculator
    from ase_mlip.config import FineTuneConfig, TrainConfig
    from ase_mlip.contract import check_contract
    from ase_mlip.convert import convert_model
    from ase_mlip.dataset import LabelKeys
    from ase_mlip.dataset_info import DatasetInfo, Head
    from ase_mlip.dynamics import DynamicsResult, run_dynamics
    from ase_mlip.evaluate import Errors, LossWeights, evaluate_frames
    from ase_mlip.finetune import FineTuneResult, fine_tune, mask_optimizer_for_finetuning, transfer_params
    from ase_mlip.force_field import ForceField
    from ase_mlip.from_scratch import train_from_scratch
    from ase_mlip.graph import Graph
    from ase_mlip.model_file import ModelFileError
    from ase_mlip.networks.mace import Mace, MaceConfig
    from ase_mlip.networks.nequip import Nequip, NequipConfig
    from ase_mlip.predictor import Prediction, Predictor
    from ase_mlip.relaxation import RelaxResult, relax
    from ase_mlip.select import select_frames
    from ase_mlip.training import TrainSettings

_HOMES = {
    "calculator": ("MLIPCalculator",),
    "config": ("FineTuneConfig", "TrainConfig"),
    "contract": ("check_contract",),
    "convert": ("convert_model",),
    "dataset": ("LabelKeys",),
    "dataset_info": ("DatasetInfo", "Head"),
    "dynamics": ("DynamicsResult", "run_dynamics"),
    "evaluate": ("Errors", "LossWeights", "evaluate_frames"),
    "finetune": ("FineTuneResult", "fine_tune", "mask_optimizer_for_finetuning", "transfer_params"),
    "force_field": ("ForceField",),
    "from_scratch": ("train_from_scratch",),
    "graph": ("Graph",),
    "networks.mace": ("Mace", "MaceConfig"),
    "networks.nequip": ("Nequip", "NequipConfig"),
    "model_file": ("ModelFileError",),
    "predictor": ("Prediction", "Predictor"),
    "relaxation": ("RelaxResult", "relax"),
    "select": ("select_frames",),
    "training": ("TrainSettings",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DatasetInfo",
    "DynamicsResult",
    "Errors",
    "FineTuneConfig",
    "FineTuneResult",
    "ForceField",
    "Graph",
    "Head",
    "LabelKeys",
    "LossWeights",
    "MLIPCalculator",
    "Mace",
    "MaceConfig",
    "ModelFileError",
    "Nequip",
    "NequipConfig",
    "Prediction",
    "Predictor",
    "RelaxResult",
    "TrainConfig",
    "TrainSettings",
    "check_contract",
    "convert_model",
    "evaluate_frames",
    "fine_tune",
    "mask_optimizer_for_finetuning",
    "relax",
    "run_dynamics",
    "select_frames",
    "train_from_scratch",
    "transfer_params",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ase_mlip' has no attribute {name!r}")
    return getattr(import_module(f"ase_mlip.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
