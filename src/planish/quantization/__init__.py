"""From data to ranges, and from ranges to integers.

>>> from planish.quantization import MseCalibrator
>>> calibrator = MseCalibrator(images, cache="model.ranges")
>>> engine = planish.build("model.onnx", precision="int8", calibration=calibrator)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish.quantization.calibration import calibrate
    from planish.quantization.calibrator import Calibrator
    from planish.quantization.collect import collect_ranges
    from planish.quantization.compare import compare_layers
    from planish.quantization.comparison import Comparison, LayerError, OutputError
    from planish.quantization.entropy import EntropyCalibrator, EntropyCalibrator2
    from planish.quantization.evaluators import top1
    from planish.quantization.images import ImageFolder, Preprocess
    from planish.quantization.mean_square import MseCalibrator
    from planish.quantization.min_max import MinMaxCalibrator
    from planish.quantization.model import calibrate_model
    from planish.quantization.percentile import PercentileCalibrator
    from planish.quantization.ranges import Ranges
    from planish.quantization.scores import Scores

_LAZY = {
    "calibrate": "calibration",
    "calibrate_model": "model",
    "collect_ranges": "collect",
    "compare_layers": "compare",
    "Comparison": "comparison",
    "LayerError": "comparison",
    "OutputError": "comparison",
    "Calibrator": "calibrator",
    "EntropyCalibrator": "entropy",
    "EntropyCalibrator2": "entropy",
    "ImageFolder": "images",
    "MinMaxCalibrator": "min_max",
    "MseCalibrator": "mean_square",
    "PercentileCalibrator": "percentile",
    "Preprocess": "images",
    "Ranges": "ranges",
    "Scores": "scores",
    "top1": "evaluators",
}

__all__ = [
    "Calibrator",
    "Comparison",
    "EntropyCalibrator",
    "EntropyCalibrator2",
    "ImageFolder",
    "LayerError",
    "MinMaxCalibrator",
    "MseCalibrator",
    "OutputError",
    "PercentileCalibrator",
    "Preprocess",
    "Ranges",
    "Scores",
    "calibrate",
    "calibrate_model",
    "collect_ranges",
    "compare_layers",
    "top1",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f"planish.quantization.{_LAZY[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'planish.quantization' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
