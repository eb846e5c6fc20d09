"""Element types of ONNX that are narrower than any of ours, and the wider ones in their place.

Integers of 2 and 4 bits become 8-bit ones, floats of 4 to 8 bits become float32. Every narrow
number is exact in the wider type, so nothing is lost; a cast *to* a narrow type rounds to the
numbers that it has (`converters.casting`). Inputs and outputs of such a type have the wider one.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx

from planish.graph import DType, Value

_WIDER = {
    "int2": DType.INT8,
    "int4": DType.INT8,
    "uint2": DType.UINT8,
    "uint4": DType.UINT8,
    "float4_e2m1fn": DType.FLOAT32,
    "float6_e2m3fn": DType.FLOAT32,
    "float6_e3m2fn": DType.FLOAT32,
    "float8_e4m3fn": DType.FLOAT32,
    "float8_e4m3fnuz": DType.FLOAT32,
    "float8_e5m2": DType.FLOAT32,
    "float8_e5m2fnuz": DType.FLOAT32,
    "float8_e8m0fnu": DType.FLOAT32,
}
"""By the name of the NumPy dtype."""

MOVING = {
    "Concat",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
}
"""Operators that move elements of any type: what they give has the type of their first input."""


def is_narrow(code: int) -> bool:
    """Whether a number of ``TensorProto.DataType`` is a type that a wider one stands for."""
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(code).name in _WIDER
    except (KeyError, TypeError, ValueError):
        return False


def dtype_of(code: int) -> DType:
    """Our element type for a number of ``TensorProto.DataType``, the wider one of a narrow type.

    Raises
    ------
    TypeError
        There is none: strings, complex numbers, or a number that the onnx package does not know.
    """
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    except (KeyError, ValueError) as error:
        raise TypeError(f"element type {code} of ONNX is not supported") from error
    try:
        return _WIDER.get(dtype.name) or DType.of(dtype)
    except TypeError as error:
        name = onnx.TensorProto.DataType.Name(code)
        raise TypeError(f"the element type {name} is not supported") from error


def widened(array: np.ndarray) -> np.ndarray:
    """An array of a narrow type in the wider one; any other array as it is."""
    wide = _WIDER.get(array.dtype.name)
    return array if wide is None else array.astype(wide.numpy)


def limits(code: int) -> tuple[int, int]:
    """The least and greatest number of a narrow integer type."""
    info = ml_dtypes.iinfo(onnx.helper.tensor_dtype_to_np_dtype(code))
    return int(info.min), int(info.max)


class NarrowTypes:
    """Which values stand for values of a narrow type."""

    def __init__(self) -> None:
        self._codes: dict[Value, int] = {}

    def of(self, value: Value) -> int | None:
        """The narrow type that a value has in the model, or None."""
        return self._codes.get(value)

    def mark(self, value: Value, code: int) -> Value:
        """Remembers a value's type in the model, if that is narrow; gives back the value."""
        if is_narrow(code):
            self._codes[value] = code
        return value
