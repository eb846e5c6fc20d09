"""Quantized operators of the domain com.microsoft: ONNX Runtime's QOperator format.

Most of them are an operator of the default domain between DequantizeLinear and QuantizeLinear, and
that is what they become. Their definitions are in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import onnx

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.contrib import DOMAIN
from planish.frontends.onnx.converters.quantization import (
    as_scalar,
    quantized,
    requantized,
    zero_or,
)
from planish.frontends.onnx.registry import converter, find_converter
from planish.graph import DType, Value
from planish.ops import Dequantize, MatMulInteger, ew

_F32 = DType.FLOAT32

_INNER_OPSET = 17
"""The operator set in which the operators in between are meant."""


@converter("DequantizeLinear", "QuantizeLinear", domain=DOMAIN)
def _linear(c: Conversion) -> Value:
    return _of_default_domain(c, c.node.op_type, c.inputs)


@converter("QLinearAdd", "QLinearMul", domain=DOMAIN)
def _binary(c: Conversion) -> Value:
    return _between_levels(c, [0, 3], 6)


@converter(
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "QLinearLeakyRelu",
    "QLinearReduceMean",
    "QLinearSigmoid",
    "QLinearSoftmax",
    domain=DOMAIN,
)
def _unary(c: Conversion) -> Value:
    if c.attr("channels_last", 0):
        raise c.unsupported("its channels come last")
    return _between_levels(c, [0], 3)


@converter("QLinearConcat", domain=DOMAIN)
def _concat(c: Conversion) -> Value:
    return _between_levels(c, range(2, len(c.inputs), 3), 0)


@converter("QLinearWhere", domain=DOMAIN)
def _where(c: Conversion) -> Value:
    return _between_levels(c, [1, 4], 7, first=[c.input(0)])


def _between_levels(
    c: Conversion, operands: Sequence[int], result: int, first: Sequence[Value] = ()
) -> Value:
    """The operator whose name follows "QLinear", of floats.

    Parameters
    ----------
    operands : sequence of int
        Where operands stand among the inputs, each followed by its scale and its zero point.
    result : int
        Where the scale and zero point of the result stand.
    first : sequence of Value
        Inputs before the operands.
    """
    given = [_floats(c, at) for at in operands]
    y = _of_default_domain(c, c.node.op_type.removeprefix("QLinear"), [*first, *given])
    like = c.input(operands[0])
    zero = zero_or(c, c.optional(result + 1), like)
    code = onnx.helper.np_dtype_to_tensor_dtype(like.dtype.numpy)
    return quantized(c, y, as_scalar(c, c.input(result)), c.cast(as_scalar(c, zero), _F32), code)


def _floats(c: Conversion, at: int) -> Value:
    x, scale = c.input(at), c.input(at + 1)
    zero = c.cast(as_scalar(c, zero_or(c, c.optional(at + 2), x)), _F32)
    return c.aux(Dequantize(), x, as_scalar(c, scale), zero)


def _of_default_domain(c: Conversion, op_type: str, inputs: Sequence[object]) -> Value:
    """What the operator of the default domain gives, with this node's attributes."""
    inner = copy.copy(c)
    inner.node, inner.inputs = onnx.NodeProto(), tuple(inputs)  # type: ignore[arg-type]
    inner.node.CopyFrom(c.node)
    inner.node.op_type = op_type
    inner.opset = c.attr("opset", _INNER_OPSET)
    convert = find_converter(op_type, "", inner.opset)
    assert convert is not None
    result = convert(inner)
    assert isinstance(result, Value)
    return result


@converter("QGemm", domain=DOMAIN)
def _gemm(c: Conversion) -> Value:
    """``alpha * (A @ B) + C`` of levels, C in steps of the sums; as floats without a scale."""
    a, b, bias, scale = c.input(0), c.input(3), c.optional(6), c.optional(7)
    total = c.add(
        MatMulInteger(bool(c.attr("transA", 0)), bool(c.attr("transB", 0))),
        a,
        b,
        as_scalar(c, zero_or(c, c.optional(2), a)),
        as_scalar(c, zero_or(c, c.optional(5), b)),
    )
    if bias is not None:
        total = c.aux(ew.Add(), total, bias)
    left, right = as_scalar(c, c.input(1)), as_scalar(c, c.input(4))
    alpha = c.attr("alpha", 1.0)
    if alpha != 1.0:
        left = c.aux(ew.Mul(), left, c.constant(np.float32(alpha)))
    if scale is None:
        return c.aux(ew.Mul(), c.cast(total, _F32), c.aux(ew.Mul(), left, right))
    return requantized(c, total, (left, right, scale), zero_or(c, c.optional(8), a))
