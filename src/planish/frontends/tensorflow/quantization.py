"""Simulated quantization, written out in elementary ops with TensorFlow's roundings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planish.frontends.tensorflow.context import Context, converter
from planish.graph.graph import Value
from planish.ops.base import normalize_axis
from planish.ops.elementwise import ew

# ---- FakeQuant ---------------------------------------------------------------------------------


@converter("FakeQuantWithMinMaxArgs")
def _fake_quant_args(ctx: Context, x: Value) -> Value:
    return _fake_quant(ctx, x, np.array(ctx.attr("min")), np.array(ctx.attr("max")))


@converter("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel")
def _fake_quant_vars(ctx: Context, x: Value, low: Value, high: Value) -> Value:
    return _fake_quant(ctx, x, ctx.array(low, "minimum"), ctx.array(high, "maximum"))


def _fake_quant(ctx: Context, x: Value, low: np.ndarray, high: np.ndarray) -> Value:
    """Rounds to one of ``2 ** num_bits`` levels, of which one is exactly 0.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", arXiv:1712.05877, section 3.1.
    """
    lowest = 1 if ctx.attr("narrow_range") else 0
    highest = 2 ** ctx.attr("num_bits") - 1
    nudged = [
        _nudge(np.float32(a), np.float32(b), lowest, highest)
        for a, b in zip(low.reshape(-1), high.reshape(-1), strict=True)
    ]
    least, greatest, scale = (
        ctx.constant(np.array(column, np.float32).reshape(low.shape), part=name)
        for column, name in zip(zip(*nudged, strict=True), ("min", "max", "scale"), strict=True)
    )
    half = ctx.constant(np.float32(0.5), part="half")
    x = ctx.add(ew.Maximum(), ctx.add(ew.Minimum(), x, greatest, part="min"), least, part="max")
    shifted = ctx.add(ew.Sub(), x, least, part="shift")
    level = ctx.add(ew.Div(), shifted, scale, part="level")
    level = ctx.add(ew.Floor(), ctx.add(ew.Add(), level, half, part="half_up"), part="floor")
    return ctx.add(ew.Add(), ctx.add(ew.Mul(), level, scale, part="scaled"), least)


def _nudge(
    low: np.float32, high: np.float32, lowest: int, highest: int
) -> tuple[np.float32, np.float32, np.float32]:
    """The range moved so that 0 is a level, and the distance of levels; all in float32."""
    first, last = np.float32(lowest), np.float32(highest)
    scale = np.float32((high - low) / (last - first))
    if scale == 0:  # an empty range: everything becomes 0
        return np.float32(0), np.float32(0), np.float32(1)
    zero = np.float32(first - low / scale)
    place = min(max(np.float32(math.floor(zero + np.float32(0.5))), first), last)
    return np.float32((first - place) * scale), np.float32((last - place) * scale), scale


# ---- QuantizeAndDequantize ---------------------------------------------------------------------


@converter("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV4")
def _quantize_v2(ctx: Context, x: Value, low: Value, high: Value) -> Value:
    return _quantize(ctx, x, low, high, ctx.attr("num_bits"))


@converter("QuantizeAndDequantizeV3")
def _quantize_v3(ctx: Context, x: Value, low: Value, high: Value, bits: Value) -> Value:
    return _quantize(ctx, x, low, high, ctx.integer(bits, "num_bits"))


def _quantize(ctx: Context, x: Value, low: Value, high: Value, bits: int) -> Value:
    if not ctx.attr("range_given"):
        raise ctx.unsupported(
            "it takes its range from the values of its input", "set range_given and a range"
        )
    mode = ctx.attr("round_mode") if ctx.node.op != "QuantizeAndDequantizeV3" else "HALF_TO_EVEN"
    if mode not in ("HALF_TO_EVEN", "HALF_UP"):
        raise ctx.unsupported(f"its round_mode is {mode}")
    arrays = ctx.array(low, "minimum"), ctx.array(high, "maximum")
    kind = x.dtype.numpy.type
    ranges = [
        _scale(kind, a, b, bits, ctx.attr("signed_input"), ctx.attr("narrow_range"))
        for a, b in zip(*(a.reshape(-1) for a in arrays), strict=True)
    ]
    shape = _parameter_shape(ctx, x, arrays[0])
    scale, inverse, least, greatest = (
        ctx.constant(np.array(column, kind).reshape(shape), part=name)
        for column, name in zip(
            zip(*ranges, strict=True), ("scale", "inverse", "min", "max"), strict=True
        )
    )
    x = ctx.add(ew.Maximum(), ctx.add(ew.Minimum(), x, greatest, part="min"), least, part="max")
    x = ctx.add(ew.Mul(), x, scale, part="level")
    if mode == "HALF_UP":
        half = ctx.constant(0.5, x.dtype, part="half")
        x = ctx.add(ew.Floor(), ctx.add(ew.Add(), x, half, part="half_up"), part="round")
    else:
        x = ctx.add(ew.Round(), x, part="round")
    return ctx.add(ew.Mul(), x, inverse)


def _scale(
    kind: type, low: float, high: float, bits: int, signed: bool, narrow: bool
) -> Sequence[float]:
    """Scale, its inverse, and the range of values that the levels reach."""
    first = -(2 ** (bits - 1)) + narrow if signed else 0
    last = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low, high = kind(low), kind(high)
    from_low = kind(first) / low if first * low > 0 else kind(np.finfo(kind).max)
    from_high = kind(last) / high if last * high > 0 else kind(np.finfo(kind).max)
    if from_low < from_high:
        inverse = low / kind(first)
        return from_low, inverse, low, kind(last) * inverse
    inverse = high / kind(last)
    return from_high, inverse, kind(first) * inverse, high


def _parameter_shape(ctx: Context, x: Value, parameter: np.ndarray) -> tuple[int, ...]:
    """Parameters of one channel each lie along the node's `axis`."""
    axis = ctx.attr("axis")
    if axis < 0 or parameter.ndim == 0:
        return parameter.shape
    place = normalize_axis(axis, x.type.rank)
    return tuple(parameter.size if i == place else 1 for i in range(x.type.rank))
