"""Simulated quantization, written out in elementary ops with TensorFlow's roundings, bit by bit.

Ranges may be constants, computed while the model runs, or the range of the input itself: they are
made scales by the same ops, which are computed at once where they depend on nothing.
"""

from __future__ import annotations

import numpy as np

from planish.frontends.tensorflow.context import Context, converter
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.base import normalize_axis
from planish.ops.elementwise import Select, ew
from planish.ops.quantization import ExactDiv, FakeQuant, SnapToLevels
from planish.ops.reduce import ReduceMax, ReduceMin

# ---- FakeQuant ---------------------------------------------------------------------------------


@converter("FakeQuantWithMinMaxArgs")
def _fake_quant_args(ctx: Context, x: Value) -> Value:
    low, high = (ctx.constant(ctx.attr(n), DType.FLOAT32, part=n) for n in ("min", "max"))
    return _fake_quant(ctx, x, low, high)


@converter("FakeQuantWithMinMaxVars")
def _fake_quant_vars(ctx: Context, x: Value, low: Value, high: Value) -> Value:
    return _fake_quant(ctx, x, low, high, zero_at_zero=True, divide=True)


@converter("FakeQuantWithMinMaxVarsPerChannel")
def _fake_quant_channels(ctx: Context, x: Value, low: Value, high: Value) -> Value:
    return _fake_quant(ctx, x, low, high, zero_at_zero=True)


def _fake_quant(
    ctx: Context,
    x: Value,
    low: Value,
    high: Value,
    *,
    zero_at_zero: bool = False,
    divide: bool = False,
) -> Value:
    """Rounds to one of ``2 ** num_bits`` levels, of which one is exactly 0.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", arXiv:1712.05877, section 3.1.

    Parameters
    ----------
    zero_at_zero : bool
        Whether an empty range makes everything 0.
    divide : bool
        Whether values are divided by the distance of levels; else they are multiplied by the
        inverse.
    """
    c = _Arithmetic(ctx, DType.FLOAT32)
    bits = _bits(ctx, ctx.attr("num_bits"), 2, 16)
    first, last = (1 if ctx.attr("narrow_range") else 0), 2**bits - 1
    extent = c.sub(high, low)
    scale = c.div(extent, last - first)
    inverse = c.div(c.number(last - first), extent)
    # the level of 0, at an end if it lies outside
    exact = c.sub(c.number(first), c.div(low, scale))
    whole = c.floor(exact)
    up = c.add(whole, 1)
    near = c.select(c.less(c.sub(exact, whole), 0.5), whole, up)
    zero = c.select(c.less(exact, first), c.number(first), near)
    zero = c.select(c.less(c.number(last), exact), c.number(last), zero)
    least = c.mul(c.sub(c.number(first), zero), scale)
    greatest = c.mul(c.sub(c.number(last), zero), scale)
    shift = c.floor(c.add(c.mul(c.neg(least), inverse), 0.5))

    values = (x, least, greatest, scale, inverse, shift)
    result = ctx.add(FakeQuant(divide), *values)
    if zero_at_zero:
        empty = c.both(c.equal(low, 0), c.equal(high, 0))
        if empty.data is None or empty.data.any():
            result = c.select(empty, c.number(0), result)
    return result


# ---- QuantizeAndDequantize ---------------------------------------------------------------------


@converter("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV4")
def _quantize_v2(ctx: Context, x: Value, low: Value, high: Value) -> Value:
    return _quantize(ctx, x, low, high, ctx.attr("num_bits"), ctx.attr("round_mode"))


@converter("QuantizeAndDequantizeV3")
def _quantize_v3(ctx: Context, x: Value, low: Value, high: Value, bits: Value) -> Value:
    return _quantize(ctx, x, low, high, ctx.integer(bits, "num_bits"), "HALF_TO_EVEN")


def _quantize(ctx: Context, x: Value, low: Value, high: Value, bits: int, round_mode: str) -> Value:
    if round_mode not in ("HALF_TO_EVEN", "HALF_UP"):
        raise ctx.unsupported(f"its round_mode is {round_mode}")
    given, c = ctx.attr("range_given"), _Arithmetic(ctx, x.dtype)
    low, high = _range(ctx, x, low, high)
    signed, narrow = ctx.attr("signed_input"), ctx.attr("narrow_range")
    bits = _bits(ctx, bits, 1, 61 if signed else 62)
    first = -(2 ** (bits - 1)) + bool(narrow) if signed else 0
    last = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    from_low, from_high = _largest_scale(c, first, low), _largest_scale(c, last, high)
    by_low = c.less(from_low, from_high)
    scale = c.select(by_low, from_low, from_high)
    # where the low end does not decide, its quotient (by 0 for unsigned numbers) is not used
    inverse = c.select(by_low, c.div(low, first or 1), c.div(high, last))
    if given:
        least = c.select(by_low, low, c.mul(c.number(first), inverse))
        greatest = c.select(by_low, c.mul(c.number(last), inverse), high)
        x = c.maximum(c.minimum(x, greatest), least)
    return ctx.add(SnapToLevels(round_mode == "HALF_UP"), x, scale, inverse)


def _bits(ctx: Context, bits: int, least: int, most: int) -> int:
    """A number of bits that TensorFlow's kernels take; the levels of others would fill memory."""
    if not least <= bits <= most:
        raise ctx.unsupported(f"its num_bits is {bits}, not between {least} and {most}")
    return bits


def _largest_scale(c: _Arithmetic, level: int, end: Value) -> Value:
    """The scale that takes an end of the range to its outermost level, if it limits at all."""
    limits = c.less(c.number(0), c.mul(c.number(level), end))
    most = c.number(float(np.finfo(end.dtype.numpy).max))
    return c.select(limits, c.div(c.number(level), end), most)


def _range(ctx: Context, x: Value, low: Value, high: Value) -> tuple[Value, Value]:
    """The range, shaped to broadcast to the input: given, or that of the input's values."""
    rank, axis = x.type.rank, ctx.attr("axis")
    place = None if axis == -1 else normalize_axis(axis, rank)
    if not ctx.attr("range_given"):
        axes = tuple(a for a in range(rank) if a != place)
        keep = place is not None
        return (
            ctx.add(ReduceMin(axes, keep), x, part="least"),
            ctx.add(ReduceMax(axes, keep), x, part="greatest"),
        )
    if place is None:
        return ctx.reshape(low, (), part="low"), ctx.reshape(high, (), part="high")
    shape = tuple(x.shape[a] if a == place else 1 for a in range(rank))
    return ctx.reshape(low, shape, part="low"), ctx.reshape(high, shape, part="high")


# ------------------------------------------------------------------------------------------------


class _Arithmetic:
    """Elementwise ops of one node on values and numbers of one dtype, each rounded by itself."""

    def __init__(self, ctx: Context, dtype: DType) -> None:
        self._ctx, self._dtype = ctx, dtype

    def number(self, value: float) -> Value:
        return self._ctx.constant(value, self._dtype, part="number")

    def add(self, a: Value, b: Value | float) -> Value:
        return self._apply(ew.Add(), a, b)

    def sub(self, a: Value, b: Value | float) -> Value:
        return self._apply(ew.Sub(), a, b)

    def mul(self, a: Value, b: Value | float) -> Value:
        return self._apply(ew.Mul(), a, b)

    def div(self, a: Value, b: Value | float) -> Value:
        return self._apply(ExactDiv(), a, b)

    def neg(self, a: Value) -> Value:
        return self._apply(ew.Neg(), a)

    def floor(self, a: Value) -> Value:
        return self._apply(ew.Floor(), a)

    def minimum(self, a: Value, b: Value | float) -> Value:
        return self._apply(ew.Minimum(), a, b)

    def maximum(self, a: Value, b: Value | float) -> Value:
        return self._apply(ew.Maximum(), a, b)

    def less(self, a: Value, b: Value | float) -> Value:
        return self._apply(ew.Less(), a, b)

    def equal(self, a: Value, b: Value | float) -> Value:
        return self._apply(ew.Equal(), a, b)

    def both(self, a: Value, b: Value) -> Value:
        return self._apply(ew.LogicalAnd(), a, b)

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        return self._apply(Select(), condition, a, b)

    def _apply(self, op, *arguments: Value | float) -> Value:
        values = [a if isinstance(a, Value) else self.number(a) for a in arguments]
        return self._ctx.add(op, *values, part=op.name)
