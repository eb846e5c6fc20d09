"""Quantized models: QuantizeLinear and DequantizeLinear, written out as arithmetic."""

from __future__ import annotations

import numpy as np
import onnx

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.ops import Cast, Clip, ew, normalize_axis


@converter("DequantizeLinear")
def _dequantize(c: Conversion) -> Value:
    x, scale = c.input(0), _along_axis(c, c.input(1))
    if (zero := c.optional(2)) is not None:
        # the difference of two 8-bit integers needs more than 8 bits
        wide = DType.INT32
        x = c.aux(ew.Sub(), c.cast(x, wide), c.cast(_along_axis(c, zero), wide))
    return c.add(ew.Mul(), c.cast(x, scale.dtype), scale)


@converter("QuantizeLinear")
def _quantize(c: Conversion) -> Value:
    x, scale = c.input(0), c.cast(_along_axis(c, c.input(1)), c.input(0).dtype)
    zero = c.optional(2)
    target = zero.dtype if zero is not None else _output_dtype(c)
    if not target.is_integer or not x.dtype.is_float:
        raise c.unsupported(f"it turns {x.dtype.value} into {target.value}")
    y = c.aux(ew.Round(), c.aux(ew.Div(), x, scale))
    if zero is not None:
        y = c.aux(ew.Add(), y, c.cast(_along_axis(c, zero), x.dtype))
    limits = np.iinfo(target.numpy)
    return c.add(Cast(target), c.aux(Clip(float(limits.min), float(limits.max)), y))


def _output_dtype(c: Conversion) -> DType:
    code = c.attr("output_dtype", 0)
    if not code:
        return DType.UINT8
    try:
        return DType.of(onnx.helper.tensor_dtype_to_np_dtype(code))
    except (KeyError, TypeError, ValueError) as error:
        raise c.unsupported(f"element type {code} of ONNX is not supported") from error


def _along_axis(c: Conversion, value: Value) -> Value:
    """A parameter per tensor as it is, one per channel shaped to lie along the node's axis."""
    x = c.input(0)
    if c.attr("block_size", 0):
        raise c.unsupported("it is quantized in blocks")
    if value.type.rank == 0 or value.shape == (1,):
        return reshaped(c, value, ())
    axis = normalize_axis(c.attr("axis", 1), x.type.rank)
    return reshaped(c, value, (*value.shape, *(1,) * (x.type.rank - axis - 1)))
