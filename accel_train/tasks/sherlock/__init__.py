"""The sherlock task; its classes by name, each imported when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accel_train.tasks.sherlock.losses import CombinedAutoEncoderLoss, FMRIMatchingLoss, ReconstructionLoss
    from accel_train.tasks.sherlock.model import Autoencoder
    from accel_train.tasks.sherlock.task import SherlockTask

__all__ = ["Autoencoder", "CombinedAutoEncoderLoss", "FMRIMatchingLoss", "ReconstructionLoss", "SherlockTask"]

_MODULES = {
    "Autoencoder": "model",
    "CombinedAutoEncoderLoss": "losses",
    "FMRIMatchingLoss": "losses",
    "ReconstructionLoss": "losses",
    "SherlockTask": "task",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
