"""The names of TF-TRT's module: ``from planish.tensorflow import trt_convert as trt``."""

from __future__ import annotations

from planish.errors import DeviceError
from planish.tensorflow.converter import TrtGraphConverterV2
from planish.tensorflow.converter_v1 import (
    TrtGraphConverter,
    calib_graph_to_infer_graph,
    create_inference_graph,
)
from planish.tensorflow.parameters import (
    DEFAULT_TRT_CONVERSION_PARAMS,
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    PROFILE_STRATEGY_OPTIMAL,
    PROFILE_STRATEGY_RANGE,
    PROFILE_STRATEGY_RANGE_OPTIMAL,
    TrtConversionParams,
    TrtPrecisionMode,
    supported_profile_strategies,
)

__all__ = [
    "DEFAULT_TRT_CONVERSION_PARAMS",
    "DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES",
    "PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE",
    "PROFILE_STRATEGY_OPTIMAL",
    "PROFILE_STRATEGY_RANGE",
    "PROFILE_STRATEGY_RANGE_OPTIMAL",
    "TrtConversionParams",
    "TrtGraphConverter",
    "TrtGraphConverterV2",
    "TrtPrecisionMode",
    "calib_graph_to_infer_graph",
    "create_inference_graph",
    "get_linked_tensorrt_version",
    "get_loaded_tensorrt_version",
    "is_tensorrt_enabled",
    "supported_profile_strategies",
]


def is_tensorrt_enabled() -> bool:
    """Whether models can be converted: always, with Planish in TensorRT's place."""
    return True


def get_linked_tensorrt_version() -> tuple[int, int, int]:
    """``(0, 0, 0)``: no TensorRT is linked."""
    return (0, 0, 0)


def get_loaded_tensorrt_version() -> tuple[int, int, int]:
    """Raises `DeviceError`: no TensorRT is loaded."""
    raise DeviceError(
        "No TensorRT is loaded",
        why="engines are Planish's own",
        cure="see planish.__version__ for their version",
    )
