"""Operators that give as many elements as the data say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.counting import counted_node, leading
from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped, transposed
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.graph.dims import product
from planish.graph.graph import Node
from planish.ops import Concat, Gather, NonZero, SelectBoxes, Slice, Unique, ew
from planish.ops.base import Op, normalize_axis


@converter("NonZero")
def _non_zero(c: Conversion) -> Value:
    x = c.input(0)
    known = c.known(x)
    if known is not None:
        return c.constant(np.array(np.nonzero(np.atleast_1d(known)), np.int64))
    return transposed(c, _places(c, x if x.type.rank else reshaped(c, x, (1,))), (1, 0))


@converter("Compress")
def _compress(c: Conversion) -> Value:
    x, condition = c.input(0), c.input(1)
    if not c.has("axis"):
        x = reshaped(c, x, (product(x.shape),))
    axis = normalize_axis(c.attr("axis", 0), x.type.rank)
    known = c.known(condition)
    if known is not None:
        places = c.constant(np.flatnonzero(known), DType.INT64)
    else:
        rows = _places(c, condition)
        places = reshaped(c, rows, rows.shape[:1])
    return c.add(Gather(axis), x, places)


@converter("NonMaxSuppression")
def _suppress(c: Conversion) -> Value:
    boxes, scores = c.input(0), c.input(1)
    most = int(_number(c, 2, "the number of boxes of a class", 0))
    overlap = _number(c, 3, "the overlap threshold", 0.0)
    least = _number(c, 4, "the score threshold", float("-inf"))
    if most <= 0 or 0 in boxes.shape or 0 in scores.shape:
        return c.constant(np.zeros((0, 3)), DType.INT64)
    if c.attr("center_point_box", 0):
        boxes = _corners(c, boxes)
    boxes = reshaped(c, boxes, (*boxes.shape[:2], 1, boxes.shape[2]))
    scores = transposed(c, scores, (0, 2, 1))
    node = _node(c, SelectBoxes(most, overlap, least), boxes, scores)
    rows = node.outputs[0]
    return _cut(c, rows, _size(c, node, rows.shape[0]))


@converter("Unique")
def _unique(c: Conversion) -> Sequence[Value]:
    x = c.input(0)
    if c.has("axis") and x.type.rank != 1:
        raise c.unsupported("it looks for equal slices, not elements")
    x = reshaped(c, x, (product(x.shape),))
    node = _node(c, Unique(bool(c.attr("sorted", 1))), x)
    n = _size(c, node, x.shape[0])
    values, first, inverse, counts, _ = node.outputs
    return [_cut(c, values, n), _cut(c, first, n), inverse, _cut(c, counts, n)]


def _corners(c: Conversion, boxes: Value) -> Value:
    """Boxes by two corners, from their centers and sizes."""
    shape = (*boxes.shape[:2], 2)
    center = c.aux(Slice((0, 0, 0), shape, (1, 1, 1)), boxes)
    extent = c.aux(Slice((0, 0, 2), shape, (1, 1, 1)), boxes)
    half = c.aux(ew.Mul(), extent, c.scalar_like(0.5, extent))
    return c.aux(Concat(2), c.aux(ew.Sub(), center, half), c.aux(ew.Add(), center, half))


def _number(c: Conversion, index: int, what: str, default: float) -> float:
    if c.optional(index) is None:
        return default
    array = c.constant_input(index, what)
    return array.reshape(-1)[0].item() if array.size else default


def _places(c: Conversion, x: Value) -> Value:
    """Indices of what is not zero, [n, rank]."""
    node = _node(c, NonZero(), x)
    return _cut(c, node.outputs[0], _size(c, node, product(x.shape)))


def _node(c: Conversion, op: Op, *inputs: Value) -> Node:
    return counted_node(c.graph, op, inputs, c.name, c.origin)


def _size(c: Conversion, node: Node, limit: DimLike) -> DimLike:
    return c.graph.measure(node.outputs[-1], limit, f"{c.name}_count")


def _cut(c: Conversion, value: Value, n: DimLike) -> Value:
    return leading(c.graph, value, n, f"{c.name}/cut", c.origin)
