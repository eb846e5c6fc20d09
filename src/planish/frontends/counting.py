"""Results whose size depends on the data, for converters of any framework."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops.base import Op
from planish.ops.elementwise import Cast, Select, ew
from planish.ops.row_wise import is_filled_up
from planish.ops.shape import Dims, Pad, Reshape, Slice

_DEPTH = 4
"""How far back values are compared."""


def counted_node(
    graph: Graph, op: Op, inputs: Sequence[Value], name: str = "", origin: str = ""
) -> Node:
    """A node whose last output is a count: a new one, or an equal one that is there already.

    Equal nodes must be one, lest the sizes of what they give be two dimensions that nothing says
    to be equal.
    """
    for counted in graph.counts:
        known = graph.counted(counted).producer
        if known is not None and known.op == op and all(map(_same, known.inputs, inputs)):
            return known
    return graph.add_node(op, inputs, name=name, origin=origin)


def measured(graph: Graph, value: Value, limit: DimLike, name: str) -> DimLike:
    """The element of an integer tensor as a dimension; equal values give the same one."""
    for counted in graph.counts:
        known = graph.counted(counted)
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


def refilled(graph: Graph, value: Value) -> Value:
    """The output of a `Pad`, with the constants past a count put in once more.

    So tensors may hold anything past the count, and a fixed number of rows, say, is no reason to
    count them before (see `planish.ops.row_wise`). Any other value is given back as it is.
    """
    node = value.producer
    if node is None or not isinstance(node.op, Pad):
        return value
    (x,), filler = node.inputs, np.asarray(node.op.value)

    def add(op: Op, *inputs: Value) -> Value:
        return graph.add(op, *inputs, name=f"{node.name}/{op.name}", origin=node.origin)

    for axis, (length, (before, _)) in enumerate(zip(value.shape, node.op.padding, strict=True)):
        counted = [s for s in graph.counts if is_filled_up(node, axis, s)]
        if not counted or not isinstance(length, int):
            continue
        end = add(Reshape(()), add(Cast(DType.INT64), graph.counted(counted[0])))
        if before != 0:
            end = add(ew.Add(), end, add(Dims(before)))
        places = np.arange(length).reshape(-1, *(1 for _ in x.shape[axis + 1 :]))
        inside = add(ew.Less(), graph.constant(places, f"{node.name}/places"), end)
        constant = graph.constant(filler.astype(x.dtype.numpy), f"{node.name}/value")
        value = add(Select(), inside, value, constant)
    return value


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
