"""Quantized models: QuantizeLinear and its kin as arithmetic, integer products as ops of their own.

Rounding and saturation are those of ONNX: a quotient is rounded to the nearest integer, halves to
even, before the zero point is added. Sums of products are exact int32 and are scaled in float32.
"""

from __future__ import annotations

import numpy as np
import onnx

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.casting import rounded_to
from planish.frontends.onnx.converters.convolution import convolution
from planish.frontends.onnx.converters.layout import channels_first, channels_last, reshaped
from planish.frontends.onnx.converters.linear import matrix_product
from planish.frontends.onnx.narrow import dtype_of, is_narrow, limits
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.graph.dims import ceildiv
from planish.ops import (
    BroadcastTo,
    Clip,
    ConvInteger,
    Dequantize,
    ExactDiv,
    MatMulInteger,
    Quantize,
    ReduceMax,
    ReduceMin,
    Reshape,
    Select,
    Slice,
    ew,
    normalize_axis,
)

_F32 = DType.FLOAT32

# ---- between floats and integers ---------------------------------------------------------------


@converter("DequantizeLinear")
def _dequantize(c: Conversion) -> Value:
    x, scale, zero = c.input(0), _along_axis(c, c.input(1)), c.optional(2)
    code = c.attr("output_dtype", 0)
    target = _dtype_of(c, code) if code else scale.dtype
    scale = c.cast(scale, _F32)
    if x.dtype.is_float:  # the zero point of narrow floats is 0
        return c.cast(c.aux(ew.Mul(), c.cast(x, _F32), scale), target)
    shift = c.constant(0, _F32) if zero is None else c.cast(_along_axis(c, zero), _F32)
    return c.cast(c.aux(Dequantize(), x, scale, shift), target)


@converter("QuantizeLinear")
def _quantize(c: Conversion) -> Value:
    x, scale, zero = c.input(0), c.input(1), c.optional(2)
    code = c.attr("output_dtype", 0)
    if zero is not None:
        code = c.narrow.of(zero) or onnx.helper.np_dtype_to_tensor_dtype(zero.dtype.numpy)
    code = code or onnx.TensorProto.UINT8
    target = _dtype_of(c, code)
    if target.is_float and not is_narrow(code):
        raise c.unsupported(f"it turns {x.dtype.value} into {target.value}")
    precision = scale.dtype if x.dtype.is_integer else x.dtype
    if stated := c.attr("precision", 0):
        precision = _dtype_of(c, stated)
    x, scale = c.cast(x, precision), c.cast(_along_axis(c, scale), precision)
    shift = c.constant(0, _F32) if zero is None else c.cast(_along_axis(c, zero), _F32)
    if target.is_integer and precision is _F32:
        return c.narrow.mark(quantized(c, x, scale, shift, code), code)
    quotient = c.cast(c.aux(ExactDiv(), x, scale), _F32)
    if target.is_integer:
        return c.narrow.mark(quantized(c, quotient, c.constant(1, _F32), shift, code), code)
    saturate = bool(c.attr("saturate", 1))
    return c.narrow.mark(rounded_to(c, quotient, code, saturate=saturate), code)


def quantized(c: Conversion, x: Value, scale: Value, zero: Value, code: int) -> Value:
    """A float32 in levels of an integer type; scale and zero point are float32 as well."""
    target = _dtype_of(c, code)
    if is_narrow(code):
        low, high = limits(code)
    else:
        low, high = int(np.iinfo(target.numpy).min), int(np.iinfo(target.numpy).max)
    return c.aux(Quantize(target, low, high), x, scale, zero)


def _dtype_of(c: Conversion, code: int) -> DType:
    """Our element type for a number of ``TensorProto.DataType``."""
    try:
        return dtype_of(code)
    except TypeError as error:
        raise c.unsupported(str(error)) from error


def _along_axis(c: Conversion, value: Value) -> Value:
    """A parameter per tensor, per channel or per block, shaped to broadcast to input 0."""
    x, block = c.input(0), int(c.attr("block_size", 0))
    if block and value.type.rank == x.type.rank:
        return _per_block(c, value, normalize_axis(c.attr("axis", 1), x.type.rank), block)
    if value.type.rank == 0 or value.shape == (1,):
        return reshaped(c, value, ())
    if value.type.rank != 1:
        raise c.shape_error(f"{c.node.op_type} of {x.type} has parameters {value.type}")
    axis = normalize_axis(c.attr("axis", 1), x.type.rank)
    return reshaped(c, value, (*value.shape, *(1,) * (x.type.rank - axis - 1)))


def _per_block(c: Conversion, value: Value, axis: int, block: int) -> Value:
    """Each parameter repeated for the elements of its block; the last block may be partial."""
    x, shape = c.input(0), value.shape
    if shape[axis] != ceildiv(x.shape[axis], block):
        raise c.shape_error(
            f"{c.node.op_type} of {x.type} in blocks of {block} has parameters {value.type}"
        )
    outer, inner = shape[: axis + 1], shape[axis + 1 :]
    y = c.aux(BroadcastTo((*outer, block, *inner)), reshaped(c, value, (*outer, 1, *inner)))
    y = c.aux(Reshape((*shape[:axis], shape[axis] * block, *inner)), y)
    if y.shape == x.shape:
        return y
    return c.aux(Slice((0,) * x.type.rank, x.shape, (1,) * x.type.rank), y)


@converter("DynamicQuantizeLinear")
def _dynamic_quantize(c: Conversion) -> tuple[Value, Value, Value]:
    """To uint8 by the range of the input, 0 included; the zero point is rounded before use."""
    x = c.input(0)
    axes, zero = tuple(range(x.type.rank)), c.constant(0, _F32)
    high = c.aux(ew.Maximum(), c.aux(ReduceMax(axes), x), zero)
    low = c.aux(ew.Minimum(), c.aux(ReduceMin(axes), x), zero)
    extent, levels = c.aux(ew.Sub(), high, low), c.constant(255, _F32)
    flat = c.aux(ew.Equal(), extent, zero)
    scale = c.aux(Select(), flat, c.constant(1, _F32), c.aux(ExactDiv(), extent, levels))
    place = c.aux(ew.Sub(), zero, c.aux(ExactDiv(), low, scale))
    place = c.aux(ew.Round(), c.aux(Clip(0.0, 255.0), place))
    y = quantized(c, x, scale, place, onnx.TensorProto.UINT8)
    return y, scale, c.cast(place, DType.UINT8)


# ---- sums of products --------------------------------------------------------------------------


@converter("MatMulInteger")
def _matmul_integer(c: Conversion) -> Value:
    a, b = c.input(0), c.input(1)
    return _integer_product(c, a, b, c.optional(2), c.optional(3))


@converter("QLinearMatMul")
def _qlinear_matmul(c: Conversion) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, scale, zero = (c.input(i) for i in range(8))
    total = _integer_product(c, a, b, a_zero, b_zero)
    rows = _rows(c, a, a_scale)
    return requantized(c, total, (rows, as_scalar(c, b_scale), scale), zero)


def _integer_product(
    c: Conversion, a: Value, b: Value, a_zero: Value | None, b_zero: Value | None
) -> Value:
    shifts = (
        _rows(c, a, zero_or(c, a_zero, a)),
        as_scalar(c, zero_or(c, b_zero, b)),
    )
    return matrix_product(c, a, b, lambda x, y: c.add(MatMulInteger(), x, y, *shifts))


def _rows(c: Conversion, a: Value, parameter: Value) -> Value:
    """A parameter of the left matrix: a scalar, or one per row, as a column."""
    if parameter.shape in ((), (1,)):
        return reshaped(c, parameter, ())
    if parameter.type.rank == 1 and a.type.rank > 1:
        return reshaped(c, parameter, (*parameter.shape, 1))
    return parameter


def zero_or(c: Conversion, zero: Value | None, x: Value) -> Value:
    """A zero point, which is 0 of the dtype of `x` where it is left out."""
    return c.constant(0, x.dtype) if zero is None else zero


@converter("ConvInteger")
def _conv_integer(c: Conversion) -> Value:
    return channels_first(c, _convolved(c, c.input(0), c.input(1), c.optional(2), c.optional(3)))


@converter("QLinearConv")
def _qlinear_conv(c: Conversion) -> Value:
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero = (c.input(i) for i in range(8))
    total = _convolved(c, x, w, x_zero, w_zero)
    if (bias := c.optional(8)) is not None:
        total = c.aux(ew.Add(), total, bias)
    scales = (_scalar(c, x_scale), as_scalar(c, w_scale), _scalar(c, scale))
    return channels_first(c, requantized(c, total, scales, zero))


def _convolved(
    c: Conversion, x: Value, w: Value, x_zero: Value | None, w_zero: Value | None
) -> Value:
    """The int32 sums of a convolution, channels last."""
    conv, filters = convolution(c, x, w)
    shifts = _scalar(c, zero_or(c, x_zero, x)), as_scalar(c, zero_or(c, w_zero, w))
    op = ConvInteger(conv.strides, conv.padding, conv.dilations, conv.groups)
    return c.add(op, channels_last(c, x), filters, *shifts)


def _scalar(c: Conversion, parameter: Value) -> Value:
    if parameter.type.rank > 1 or parameter.shape not in ((), (1,)):
        raise c.unsupported(f"a parameter that must be one number is {parameter.type}")
    return reshaped(c, parameter, ())


def requantized(
    c: Conversion, total: Value, scales: tuple[Value, Value, Value], zero: Value
) -> Value:
    """Sums times the factors' scales over the result's, as the dtype of its zero point."""
    left, right, result = (c.cast(s, _F32) for s in scales)
    factor = c.aux(ExactDiv(), c.aux(ew.Mul(), left, right), as_scalar(c, result))
    shift = c.cast(as_scalar(c, zero), _F32)
    code = onnx.helper.np_dtype_to_tensor_dtype(zero.dtype.numpy)
    # dividing by 1 is exact: what is rounded is the product
    scaled = c.aux(ew.Mul(), c.cast(total, _F32), factor)
    return quantized(c, scaled, c.constant(1, _F32), shift, code)


def as_scalar(c: Conversion, value: Value) -> Value:
    """A vector of one element as a scalar; anything else as it is."""
    return reshaped(c, value, ()) if value.shape == (1,) else value
