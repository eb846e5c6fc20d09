"""Planish: a trained model goes in, the fastest measured plan for this machine comes out.

>>> import planish
>>> engine = planish.build("saved_model_dir")
>>> y = engine(x)
>>> engine.save("m.plan")
>>> engine = planish.load("m.plan")
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from planish.errors import (
    CalibrationError,
    DeviceError,
    InputError,
    ModelError,
    PlanError,
    PlanishError,
    PrecisionError,
    ShapeError,
    TuningError,
    UnsupportedOpError,
)
from planish.version import __version__

if TYPE_CHECKING:
    from planish.builder import build
    from planish.plan.load import load
    from planish.profile import Profile, TensorSpec
    from planish.progress import ProgressEvent
    from planish.quantization.images import Preprocess
    from planish.runtime.arrays import TensorInfo
    from planish.runtime.context import ExecutionContext
    from planish.runtime.engine import Engine

_LAZY = {
    "build": "planish.builder",
    "ProgressEvent": "planish.progress",
    "load": "planish.plan.load",
    "Preprocess": "planish.quantization.images",
    "Profile": "planish.profile",
    "TensorSpec": "planish.profile",
    "Engine": "planish.runtime.engine",
    "ExecutionContext": "planish.runtime.context",
    "TensorInfo": "planish.runtime.arrays",
}

__all__ = [
    "CalibrationError",
    "DeviceError",
    "Engine",
    "ExecutionContext",
    "InputError",
    "ModelError",
    "PlanError",
    "PlanishError",
    "PrecisionError",
    "Preprocess",
    "Profile",
    "ProgressEvent",
    "ShapeError",
    "TensorInfo",
    "TensorSpec",
    "TuningError",
    "UnsupportedOpError",
    "__version__",
    "build",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'planish' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if os.environ.get("PLANISH_LOG"):
    from planish import logs

    logs.configure()
