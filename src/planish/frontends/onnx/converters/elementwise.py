"""Operators that work element by element: arithmetic, comparisons, activations."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped
from planish.frontends.onnx.registry import converter
from planish.graph import Value
from planish.ops import Cast, Clip, Elu, Gelu, HardSigmoid, LeakyRelu, Select, ew

# fmt: off
_SAME_NAME = (
    "Abs", "Neg", "Sign", "Reciprocal", "Sqrt", "Exp", "Log", "Sin", "Cos", "Tan", "Asin",
    "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh", "Erf", "Relu", "Sigmoid",
    "HardSwish", "Mish", "Softplus", "Softsign", "Floor", "Ceil", "Round", "Add", "Sub", "Mul",
    "Div", "Equal", "Less", "Greater", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot",
)
# fmt: on
_SAME = {  # ONNX's name: ours, for operators without attributes that mean the same
    **{name: name for name in _SAME_NAME},
    "IsNaN": "IsNan",
    "Not": "LogicalNot",
    "And": "LogicalAnd",
    "Or": "LogicalOr",
    "Xor": "LogicalXor",
    "LessOrEqual": "LessEqual",
    "GreaterOrEqual": "GreaterEqual",
}


_ALIGNED = ("Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "Equal", "Less", "Greater")
"""Before opset 7 their second input lies along an axis of the first."""


@converter(*(set(_SAME) - set(_ALIGNED)))
@converter(*_ALIGNED, since=7)
def _same(c: Conversion) -> Value:
    return c.add(getattr(ew, _SAME[c.node.op_type])(), *c.present())


@converter(*_ALIGNED)
def _same_along_axis(c: Conversion) -> Value:
    return c.add(getattr(ew, _SAME[c.node.op_type])(), c.input(0), _aligned(c))


def _aligned(c: Conversion) -> Value:
    """The second input with its first dimension at `axis` of the first one."""
    a, b = c.input(0), c.input(1)
    if not c.attr("broadcast", 0) or not c.has("axis"):
        return b
    axis = c.axis(a.type.rank)
    behind = a.type.rank - axis - b.type.rank
    if behind < 0:
        raise c.shape_error(f"{c.node.op_type} of {a.type} and {b.type} along axis {axis}")
    return reshaped(c, b, (*b.shape, *(1,) * behind))


@converter("Sum")
def _sum(c: Conversion) -> Value:
    return reduce(lambda a, b: c.add(ew.Add(), a, b), c.present())


@converter("Max")
def _max(c: Conversion) -> Value:
    return reduce(lambda a, b: c.add(ew.Maximum(), a, b), c.present())


@converter("Min")
def _min(c: Conversion) -> Value:
    return reduce(lambda a, b: c.add(ew.Minimum(), a, b), c.present())


@converter("Mean")
def _mean(c: Conversion) -> Value:
    values = c.present()
    total = reduce(lambda a, b: c.aux(ew.Add(), a, b), values)
    return c.add(ew.Div(), total, c.scalar_like(len(values), total))


@converter("Mod")
def _mod(c: Conversion) -> Value:
    # fmod=1 takes the sign of the dividend, as C does; otherwise that of the divisor
    return c.add(ew.TruncMod() if c.attr("fmod", 0) else ew.FloorMod(), *c.present())


@converter("Pow")
def _pow_along_axis(c: Conversion) -> Value:
    return c.add(ew.Pow(), c.input(0), _aligned(c))


@converter("Pow", since=7)
def _pow(c: Conversion) -> Value:
    base, exponent = c.input(0), c.input(1)
    if base.dtype.is_integer and exponent.dtype.is_float:
        power = c.aux(ew.Pow(), c.cast(base, exponent.dtype), exponent)
        return c.add(Cast(base.dtype), power)
    known = c.known(exponent)
    if base.dtype.is_float and known is not None and known.size == 1 and exponent.type.rank == 0:
        if (number := float(known.reshape(-1)[0])) == 2.0:
            return c.add(ew.Square(), base)
        if number == 0.5:
            return c.add(ew.Sqrt(), base)
    return c.add(ew.Pow(), base, c.cast(exponent, base.dtype))


@converter("BitShift")
def _bit_shift(c: Conversion) -> Value:
    left = c.attr("direction", "LEFT") == "LEFT"
    return c.add(ew.LeftShift() if left else ew.RightShift(), *c.present())


@converter("Where")
def _where(c: Conversion) -> Value:
    return c.add(Select(), *c.present())


@converter("Clip")
def _clip_by_attributes(c: Conversion) -> Value:
    return c.add(Clip(c.attr("min", -math.inf), c.attr("max", math.inf)), c.input(0))


@converter("Clip", since=11)
def _clip(c: Conversion) -> Value:
    x, low, high = c.input(0), c.optional(1), c.optional(2)
    bounds = [math.inf * sign for sign in (-1, 1)]
    for i, bound in enumerate((low, high)):
        if bound is None:
            continue
        known = c.known(bound)
        if known is None or known.size != 1:
            return _clip_by_tensors(c, x, low, high)
        bounds[i] = known.reshape(()).item()
    return c.add(Clip(*bounds), x)


def _clip_by_tensors(c: Conversion, x: Value, low: Value | None, high: Value | None) -> Value:
    if low is not None:
        x = c.add(ew.Maximum(), x, low)
    return x if high is None else c.add(ew.Minimum(), x, high)


@converter("LeakyRelu")
def _leaky_relu(c: Conversion) -> Value:
    return c.add(LeakyRelu(c.attr("alpha", 0.01)), c.input(0))


@converter("PRelu")
def _prelu_of_channels(c: Conversion) -> Value:
    x, slope = c.input(0), c.input(1)
    if slope.type.rank == 1 and slope.shape != (1,):
        slope = reshaped(c, slope, (*slope.shape, *(1,) * (x.type.rank - 2)))
    return c.add(ew.Prelu(), x, slope)


@converter("PRelu", since=7)
def _prelu(c: Conversion) -> Value:
    x, slope = c.input(0), c.input(1)
    if x.dtype.is_float:
        return c.add(ew.Prelu(), x, slope)
    negative = c.aux(ew.Less(), x, c.scalar_like(0, x))
    return c.add(Select(), negative, c.aux(ew.Mul(), x, slope), x)


@converter("Elu")
def _elu(c: Conversion) -> Value:
    return c.add(Elu(c.attr("alpha", 1.0)), c.input(0))


@converter("Celu")
def _celu(c: Conversion) -> Value:
    x, alpha = c.input(0), c.attr("alpha", 1.0)
    if alpha == 1.0:
        return c.add(Elu(1.0), x)
    scale = c.scalar_like(alpha, x)
    return c.add(ew.Mul(), c.aux(Elu(1.0), c.aux(ew.Div(), x, scale)), scale)


@converter("Selu")
def _selu(c: Conversion) -> Value:
    x = c.input(0)
    alpha = np.float32(c.attr("alpha", 1.67326319217681884765625))
    gamma = np.float32(c.attr("gamma", 1.05070102214813232421875))
    if (alpha, gamma) == (np.float32(1.6732632423543772), np.float32(1.0507009873554805)):
        return c.add(ew.Selu(), x)
    return c.add(ew.Mul(), c.aux(Elu(float(alpha)), x), c.scalar_like(float(gamma), x))


@converter("HardSigmoid")
def _hard_sigmoid(c: Conversion) -> Value:
    return c.add(HardSigmoid(c.attr("alpha", 0.2), c.attr("beta", 0.5)), c.input(0))


@converter("Gelu")
def _gelu(c: Conversion) -> Value:
    return c.add(Gelu(c.attr("approximate", "none") == "tanh"), c.input(0))


@converter("Swish")
def _swish(c: Conversion) -> Value:
    x, alpha = c.input(0), c.attr("alpha", 1.0)
    if alpha == 1.0:
        return c.add(ew.Silu(), x)
    gate = c.aux(ew.Sigmoid(), c.aux(ew.Mul(), x, c.scalar_like(alpha, x)))
    return c.add(ew.Mul(), x, gate)


@converter("ThresholdedRelu")
def _thresholded_relu(c: Conversion) -> Value:
    x = c.input(0)
    above = c.aux(ew.Greater(), x, c.scalar_like(c.attr("alpha", 1.0), x))
    return c.add(Select(), above, x, c.scalar_like(0, x))


@converter("Shrink")
def _shrink(c: Conversion) -> Value:
    x, lambd = c.input(0), c.attr("lambd", 0.5)
    bias = c.scalar_like(c.attr("bias", 0.0), x)
    below = c.aux(ew.Less(), x, c.scalar_like(-lambd, x))
    above = c.aux(ew.Greater(), x, c.scalar_like(lambd, x))
    upper = c.aux(Select(), above, c.aux(ew.Sub(), x, bias), c.scalar_like(0, x))
    return c.add(Select(), below, c.aux(ew.Add(), x, bias), upper)


@converter("IsInf")
def _is_inf(c: Conversion) -> Value:
    x = c.input(0)
    negative, positive = c.attr("detect_negative", 1), c.attr("detect_positive", 1)
    if negative and positive:
        return c.add(ew.IsInf(), x)
    if not (negative or positive):
        return c.add(ew.LogicalAnd(), c.aux(ew.IsInf(), x), c.constant(False))
    side = ew.Greater() if positive else ew.Less()
    return c.add(ew.LogicalAnd(), c.aux(ew.IsInf(), x), c.aux(side, x, c.scalar_like(0, x)))
