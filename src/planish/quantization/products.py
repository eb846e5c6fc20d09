"""One product of floats becomes one of levels, or of codes of FP8."""

from __future__ import annotations

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType, TensorType
from planish.ops import (
    ConvInteger,
    DecodeFloat8,
    Dequantize,
    MatMul,
    MatMulFloat8,
    MatMulInteger,
)
from planish.quantization.scheme import Codes, Levels

SUFFIX, FLOAT8_SUFFIX = "int8", "fp8"
"""What the names of levels end in, and those of codes."""


def suffix_of(levels: Levels | Codes) -> str:
    """What the names of a tensor's levels end in."""
    return FLOAT8_SUFFIX if isinstance(levels, Codes) else SUFFIX


def multiply_levels(
    graph: Graph,
    node: Node,
    levels: Value,
    zero: int,
    weights: tuple[np.ndarray, np.ndarray | np.generic],
    factor: np.ndarray,
) -> Value:
    """Makes a product of floats one of levels, whose readers read what the sums stand for.

    Parameters
    ----------
    graph : Graph
    node : Node
        Of `Conv`, or of `MatMul` by a matrix; its name stays.
    levels, zero
        What it reads: int8 or uint8, and the zero point of these.
    weights : tuple of array
        Levels in the order of `Conv`'s filters or of a matrix that is not transposed, and their
        zero point or points, of the same dtype.
    factor : array of float32
        What a sum is multiplied by; one number, or one for each output channel.

    Returns
    -------
    Value
        The product as floats.
    """
    op = node.op
    data, data_zero = weights
    label = f"{node.inputs[1].name}/{SUFFIX}"
    inputs = (
        levels,
        graph.constant(data, label),
        graph.constant(np.asarray(zero, levels.dtype.numpy), "zero"),
        graph.constant(np.asarray(data_zero), "zero"),
    )
    node.op = (
        MatMulInteger()
        if isinstance(op, MatMul)
        else ConvInteger(op.strides, op.padding, op.dilations, op.groups)  # type: ignore[attr-defined]
    )
    sums = node.output
    graph.set_inputs(node, inputs)
    sums.type = TensorType(sums.shape, DType.INT32)
    result = graph.add(
        Dequantize(),
        sums,
        graph.constant(factor, "scale"),
        graph.constant(np.float32(0), "zero"),
        name=f"{node.name}/fp32",
        origin=node.origin,
    )
    graph.replace(sums, result)
    return result


def multiply_codes(
    graph: Graph, node: Node, levels: Value, codes: np.ndarray, factor: np.ndarray
) -> Value:
    """Makes a product of matrices one of codes of FP8: see `multiply_levels`."""
    weights = graph.constant(np.ascontiguousarray(codes), f"{node.inputs[1].name}/{FLOAT8_SUFFIX}")
    node.op = MatMulFloat8()
    graph.set_inputs(node, (levels, weights))
    sums = node.output
    result = graph.add(
        DecodeFloat8(),
        sums,
        graph.constant(factor, "scale"),
        name=f"{node.name}/fp32",
        origin=node.origin,
    )
    graph.replace(sums, result)
    return result
