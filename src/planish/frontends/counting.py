"""Results whose size depends on the data, for converters of any framework."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Node, Value
from planish.ops.base import Op
from planish.ops.shape import Slice

_DEPTH = 4
"""How far back values are compared."""


def counted_node(
    graph: Graph, op: Op, inputs: Sequence[Value], name: str = "", origin: str = ""
) -> Node:
    """A node whose last output is a count: a new one, or an equal one that is there already.

    Equal nodes must be one, lest the sizes of what they give be two dimensions that nothing says
    to be equal.
    """
    for symbol in graph.counts:
        known = graph.counted(symbol).producer
        if known is not None and known.op == op and all(map(_same, known.inputs, inputs)):
            return known
    return graph.add_node(op, inputs, name=name, origin=origin)


def measured(graph: Graph, value: Value, limit: DimLike, name: str) -> DimLike:
    """The element of an integer tensor as a dimension; equal values give the same one."""
    for symbol in graph.counts:
        known = graph.counted(symbol)
        if known.content is not None and _same(known, value):
            return known.content.reshape(-1)[0]
    return graph.measure(value, limit, name)


def leading(graph: Graph, value: Value, size: DimLike, name: str = "", origin: str = "") -> Value:
    """The first `size` elements of a tensor along its first axis."""
    shape = (size, *value.shape[1:])
    if shape == value.shape:
        return value
    op = Slice((0,) * len(shape), shape, (1,) * len(shape))
    return graph.add(op, value, name=name, origin=origin)


def _same(a: Value, b: Value, depth: int = _DEPTH) -> bool:
    """Whether two values are computed the same way from the same values."""
    if a is b:
        return True
    if a.data is not None and b.data is not None:
        return a.type == b.type and np.array_equal(a.data, b.data)
    if not depth or a.producer is None or b.producer is None or a.type != b.type:
        return False
    p, q = a.producer, b.producer
    return (
        p.op == q.op
        and p.outputs.index(a) == q.outputs.index(b)
        and len(p.inputs) == len(q.inputs)
        and all(_same(x, y, depth - 1) for x, y in zip(p.inputs, q.inputs, strict=True))
    )
