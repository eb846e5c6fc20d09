"""Casts, also to the narrow types that a wider one stands for (see `narrow`)."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.narrow import dtype_of, is_narrow
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.ops import Cast, Clip, Gather, Select, ew


@converter("Cast")
def _cast(c: Conversion) -> Value:
    return _cast_to(c, int(c.attr("to", 0)))


@converter("CastLike")
def _cast_like(c: Conversion) -> Value:
    like = c.input(1)
    code = c.narrow.of(like)
    if code is None:
        code = onnx.helper.np_dtype_to_tensor_dtype(like.dtype.numpy)
    return _cast_to(c, code)


def _cast_to(c: Conversion, code: int) -> Value:
    x = c.input(0)
    try:
        dtype = dtype_of(code)
    except TypeError as error:
        raise c.unsupported(str(error)) from error
    if not is_narrow(code):
        return x if x.dtype is dtype else c.add(Cast(dtype), x)
    if c.narrow.of(x) == code:
        return x
    if dtype.is_integer:
        result = _low_bits(c, x, code)
    else:
        saturate, mode = bool(c.attr("saturate", 1)), c.attr("round_mode", "up")
        result = rounded_to(c, x, code, saturate=saturate, round_mode=mode)
    return c.narrow.mark(result, code)


def _low_bits(c: Conversion, x: Value, code: int) -> Value:
    """Truncated to an integer, of which the lowest bits stay, as in a cast between integers."""
    info = ml_dtypes.iinfo(onnx.helper.tensor_dtype_to_np_dtype(code))
    whole = c.cast(x, DType.INT32)
    lowest, count = int(info.min), int(info.max) - int(info.min) + 1
    shifted = c.aux(ew.Sub(), whole, c.scalar_like(lowest, whole))
    kept = c.aux(ew.BitwiseAnd(), shifted, c.scalar_like(count - 1, whole))
    return c.add(Cast(dtype_of(code)), c.aux(ew.Add(), kept, c.scalar_like(lowest, whole)))


def rounded_to(
    c: Conversion, x: Value, code: int, *, saturate: bool = True, round_mode: str = "up"
) -> Value:
    """`x` rounded to the numbers of a narrow float, as float32; halves go to even.

    Parameters
    ----------
    code : int
        A number of ``TensorProto.DataType``.
    saturate : bool
        Whether what is too large becomes the largest number, rather than infinity or NaN.
    round_mode : str
        "up", "down" or "nearest"; only for FLOAT8E8M0, which has nothing but powers of two.
    """
    dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    info = ml_dtypes.finfo(dtype)
    # float64 is rounded from float64: rounding twice would not always be the same
    wide = x if x.dtype is DType.FLOAT64 else c.cast(x, DType.FLOAT32)
    if dtype.name == "float8_e8m0fnu":
        return c.cast(_power_of_two(c, wide, round_mode), DType.FLOAT32)
    largest = float(info.max)
    if not _has_nan(dtype):
        wide = c.aux(Select(), c.aux(ew.IsNan(), wide), c.scalar_like(0, wide), wide)
    if saturate or not _has_nan(dtype):
        wide = c.aux(Clip(-largest, largest), wide)
    size = c.aux(ew.Abs(), wide)
    power = _largest_power(c, size, int(info.minexp), math.floor(math.log2(largest)))
    step = c.aux(ew.Mul(), power, c.scalar_like(2.0**-info.nmant, size))
    steps = c.aux(ew.Round(), c.aux(ew.Div(), size, step))
    y = c.aux(ew.Mul(), steps, step)
    if not saturate and _has_nan(dtype):
        infinity = c.scalar_like(math.inf, y)
        beyond = infinity if dtype.name == "float8_e5m2" else _not_a_number(c, infinity)
        y = c.aux(Select(), c.aux(ew.Greater(), y, c.scalar_like(largest, y)), beyond, y)
    negative = c.aux(ew.Less(), wide, c.scalar_like(0, wide))
    return c.cast(c.add(Select(), negative, c.aux(ew.Neg(), y), y), DType.FLOAT32)


def _has_nan(dtype: np.dtype) -> bool:
    """Whether a narrow float has one; in the others NaN becomes 0."""
    return dtype.itemsize == 1 and dtype.name.startswith("float8")


def _power_of_two(c: Conversion, x: Value, round_mode: str) -> Value:
    size = c.aux(ew.Abs(), x)
    power = _largest_power(c, size, -126, 127)
    if round_mode != "down":
        part = 1.0 if round_mode == "up" else 1.5
        bound = c.aux(ew.Mul(), power, c.scalar_like(part, power))
        kind = ew.Greater() if round_mode == "up" else ew.GreaterEqual()
        double = c.aux(ew.Mul(), power, c.scalar_like(2.0, power))
        top = c.aux(ew.Equal(), power, c.scalar_like(2.0**127, power))
        rounded = c.aux(Select(), top, power, double)
        power = c.aux(Select(), c.aux(kind, size, bound), rounded, power)
    finite = c.aux(ew.IsFinite(), size)
    return c.add(Select(), finite, power, _not_a_number(c, c.scalar_like(math.inf, power)))


def _not_a_number(c: Conversion, infinity: Value) -> Value:
    """NaN by arithmetic: a constant NaN would look like a broken weight."""
    return c.aux(ew.Sub(), infinity, infinity)


def _largest_power(c: Conversion, size: Value, least: int, greatest: int) -> Value:
    """The largest power of two that is not above `size`, with an exponent within limits.

    The logarithm says which one up to its rounding error; comparisons settle the rest exactly.
    """
    log = c.aux(ew.Mul(), c.aux(ew.Log(), size), c.scalar_like(1 / math.log(2), size))
    exponent = c.aux(Clip(float(least), float(greatest)), c.aux(ew.Floor(), log))
    place = c.aux(ew.Sub(), exponent, c.scalar_like(least, exponent))
    table = c.constant(2.0 ** np.arange(least, greatest + 1), size.dtype)
    power = c.aux(Gather(0), table, c.aux(Cast(DType.INT32), place))
    double = c.aux(ew.Mul(), power, c.scalar_like(2.0, power))
    power = c.aux(Select(), c.aux(ew.GreaterEqual(), size, double), double, power)
    half = c.aux(ew.Mul(), power, c.scalar_like(0.5, power))
    power = c.aux(Select(), c.aux(ew.Less(), size, power), half, power)
    return c.aux(Clip(2.0**least, 2.0**greatest), power)
