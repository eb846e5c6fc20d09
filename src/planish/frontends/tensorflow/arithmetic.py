"""Elementwise ops: arithmetic, comparison, logic, activations, Cast, Select."""

from __future__ import annotations

from typing import Any

from planish.frontends.tensorflow.context import CONVERTERS, Context, Converter, converter
from planish.graph.graph import Value
from planish.ops.base import Op
from planish.ops.elementwise import Clip, Elu, Gelu, LeakyRelu, Select, ew
from planish.ops.reduce import ReduceSum

# fmt: off
_SAME_NAME = (
    "Abs", "Acos", "Acosh", "Add", "Asin", "Asinh", "Atan", "Atanh", "Atan2", "BitwiseAnd",
    "BitwiseOr", "BitwiseXor", "Ceil", "Cos", "Cosh", "Div", "Equal", "Erf", "Exp", "Expm1",
    "Floor", "FloorDiv", "FloorMod", "Greater", "GreaterEqual", "IsFinite", "LeftShift", "Less",
    "LessEqual", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "Maximum", "Minimum",
    "Mul", "Neg", "NotEqual", "Pow", "Reciprocal", "Relu", "Rsqrt", "Selu", "Sigmoid",
    "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Square", "SquaredDifference", "Sub",
    "Tan", "Tanh",
)
# fmt: on

_OTHER_NAME = {
    "AddV2": ew.Add,
    "Inv": ew.Reciprocal,
    "Invert": ew.BitwiseNot,
    "IsInf": ew.IsInf,
    "IsNan": ew.IsNan,
    "Mod": ew.TruncMod,
    "RealDiv": ew.Div,
    "RightShift": ew.RightShift,
    "Rint": ew.Round,
    "TruncateMod": ew.TruncMod,
}


def _direct(op: Op) -> Converter:
    def convert(ctx: Context, *inputs: Value) -> Value:
        return ctx.add(op, *inputs)

    return convert


for _name in _SAME_NAME:
    CONVERTERS[_name] = _direct(getattr(ew, _name)())
for _name, _kind in _OTHER_NAME.items():
    CONVERTERS[_name] = _direct(_kind())


@converter("Round")
def _round(ctx: Context, x: Value) -> Value:
    return ctx.add(ew.Round(), x) if x.dtype.is_float else x


@converter("TruncateDiv")
def _truncate_div(ctx: Context, x: Value, y: Value) -> Value:
    if not x.dtype.is_float:
        return ctx.add(ew.Div(), x, y)
    return ctx.add(ew.Trunc(), ctx.add(ew.Div(), x, y, part="quotient"))


def activation(name: str, attributes: dict[str, Any]) -> Op | None:
    """The op of an activation by its TensorFlow name; None if there is none of that name.

    `attributes` may hold ``alpha`` for LeakyRelu.
    """
    match name:
        case "Relu" | "Sigmoid" | "Tanh" | "Selu" | "Softplus":
            return getattr(ew, name)()
        case "Relu6":
            return Clip(0.0, 6.0)
        case "Elu":
            return Elu(1.0)
        case "LeakyRelu":
            return LeakyRelu(attributes.get("alpha", 0.2))
        case "GeluExact":
            return Gelu(approximate=False)
        case "GeluApproximate":
            return Gelu(approximate=True)
    return None


@converter("Relu6", "Elu")
def _activation(ctx: Context, x: Value) -> Value:
    op = activation(ctx.node.op, {})
    assert op is not None
    return ctx.add(op, x)


@converter("LeakyRelu")
def _leaky_relu(ctx: Context, x: Value) -> Value:
    return ctx.add(LeakyRelu(ctx.attr("alpha")), x)


@converter("Erfc")
def _erfc(ctx: Context, x: Value) -> Value:
    one = ctx.constant(1, x.dtype)
    return ctx.add(ew.Sub(), one, ctx.add(ew.Erf(), x, part="erf"))


@converter("AddN", "AccumulateNV2")
def _add_n(ctx: Context, *inputs: Value) -> Value:
    total, *rest = inputs
    for i, x in enumerate(rest):
        total = ctx.add(ew.Add(), total, x, part="" if i == len(rest) - 1 else f"add_{i}")
    return total


@converter("BiasAdd", "BiasAddV1")
def _bias_add(ctx: Context, x: Value, bias: Value) -> Value:
    if ctx.node.op == "BiasAdd" and ctx.attr("data_format") == "NCHW":
        bias = ctx.reshape(bias, (*bias.shape, *[1] * (x.type.rank - 2)))
    return ctx.add(ew.Add(), x, bias)


@converter("DivNoNan")
def _div_no_nan(ctx: Context, a: Value, b: Value) -> Value:
    return _unless_zero(ctx, b, ctx.add(ew.Div(), a, b, part="quotient"))


@converter("MulNoNan")
def _mul_no_nan(ctx: Context, a: Value, b: Value) -> Value:
    return _unless_zero(ctx, b, ctx.add(ew.Mul(), a, b, part="product"))


@converter("Xdivy")
def _xdivy(ctx: Context, a: Value, b: Value) -> Value:
    return _unless_zero(ctx, a, ctx.add(ew.Div(), a, b, part="quotient"))


@converter("Xlogy", "Xlog1py")
def _xlogy(ctx: Context, a: Value, b: Value) -> Value:
    function = ew.Log() if ctx.node.op == "Xlogy" else ew.Log1p()
    logarithm = ctx.add(function, b, part="log")
    return _unless_zero(ctx, a, ctx.add(ew.Mul(), a, logarithm, part="product"))


def _unless_zero(ctx: Context, x: Value, value: Value) -> Value:
    """`value`, but 0 where `x` is 0."""
    zero = ctx.constant(0, x.dtype)
    return ctx.add(Select(), ctx.add(ew.Equal(), x, zero, part="is_zero"), zero, value)


@converter("ClipByValue")
def _clip_by_value(ctx: Context, x: Value, low: Value, high: Value) -> Value:
    if x.dtype.is_float and all(v.data is not None and v.data.size == 1 for v in (low, high)):
        limits = (float(v.data.reshape(())[()]) for v in (low, high) if v.data is not None)
        if low.type.rank <= x.type.rank and high.type.rank <= x.type.rank:
            return ctx.add(Clip(*limits), x)
    return ctx.add(ew.Maximum(), ctx.add(ew.Minimum(), x, high, part="minimum"), low)


@converter("Cast")
def _cast(ctx: Context, x: Value) -> Value:
    to = ctx.dtype("DstT")
    if ctx.attr("Truncate") and to.is_float and to.size < x.dtype.size:
        raise ctx.unsupported("its attribute Truncate asks for rounding towards zero")
    return ctx.cast(x, to, part="")


@converter("Select")
def _select(ctx: Context, condition: Value, a: Value, b: Value) -> Value:
    if condition.type.rank == 1 and a.type.rank > 1:  # one decision per row
        condition = ctx.reshape(condition, (*condition.shape, *[1] * (a.type.rank - 1)))
    return ctx.add(Select(), condition, a, b)


@converter("SelectV2")
def _select_v2(ctx: Context, condition: Value, a: Value, b: Value) -> Value:
    return ctx.add(Select(), condition, a, b)


@converter("L2Loss")
def _l2_loss(ctx: Context, x: Value) -> Value:
    square = ctx.add(ew.Square(), x, part="square")
    total = ctx.add(ReduceSum(tuple(range(x.type.rank)), False), square, part="sum")
    return ctx.add(ew.Mul(), total, ctx.constant(0.5, x.dtype))
