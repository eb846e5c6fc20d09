"""Shape arithmetic disappears: a value whose content is known needs no computation.

    x ─ ShapeOf ─ Gather ─ Mul ─ … ─ y      =>      y = constant    (all elements known)
                                                    y = Dims(…)     (some are symbolic)

Mostly nobody reads such a y any more, because shapes are attributes; what is left is data, such as
a shape that the model returns or casts to a float.
"""

from __future__ import annotations

import numpy as np

from planish.graph.dims import Dim, symbols
from planish.graph.graph import Graph, Value
from planish.ops.shape import Dims, Reshape, ShapeOf
from planish.passes.rewrite import substitute


def resolve_shape_arithmetic(graph: Graph) -> bool:
    """Replaces computed values of known content by constants and `Dims`."""
    changed = False
    for node in list(graph.nodes):
        if isinstance(node.op, Dims) and not _is_known(node.output):
            continue
        for value in node.outputs:
            if value.content is None or not (value.users or value in graph.outputs):
                continue
            if _is_counted(graph, value) and not isinstance(node.op, ShapeOf):
                continue  # dimensions that a value of the graph holds: it is made from that value
            new = _resolved(graph, value)
            if new is not None and new.type == value.type:
                substitute(graph, value, new)
                changed = True
    if changed:
        graph.tidy()
    return changed


def _is_counted(graph: Graph, value: Value) -> bool:
    """Whether an element depends on the data."""
    assert value.content is not None
    return any(not symbols(d).isdisjoint(graph.counts) for d in value.content.flat)


def _is_known(value: Value) -> bool:
    return value.content is not None and not any(isinstance(d, Dim) for d in value.content.flat)


def _resolved(graph: Graph, value: Value) -> Value | None:
    assert value.content is not None
    assert value.producer is not None
    if _is_known(value):
        data = np.array(value.content.tolist()).astype(value.dtype.numpy)
        return graph.constant(data.reshape(value.content.shape), f"{value.name}/known")
    node, rank = value.producer, value.content.ndim
    if rank > 1 and isinstance(node.op, Reshape) and isinstance(node.inputs[0].op, Dims):
        return None
    elements = tuple(value.content.reshape(-1).tolist())
    op = Dims(elements if rank else elements[0], dtype=value.dtype)
    new = graph.add(op, name=node.name, origin=node.origin)
    if rank > 1:
        new = graph.add(Reshape(value.shape), new, name=node.name, origin=node.origin)
    return new
