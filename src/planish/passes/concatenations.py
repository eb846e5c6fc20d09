"""Concatenations that begin alike share their beginning.

    Concat(a, b)                  Concat(a, b) ─▶ ab
    Concat(a, b, c)        =>     Concat(ab, c) ─▶ abc
    Concat(a, b, c, d)            Concat(abc, d)

Dense blocks are exported so that every layer concatenates all features before it again. As a chain
each feature has one place, inside the largest of them, and nothing is copied. Into separate
concatenations every feature would be copied once more.
"""

from __future__ import annotations

from planish.graph.graph import Graph, Value
from planish.ops.base import normalize_axis
from planish.ops.shape import Concat


def share_beginnings(graph: Graph) -> bool:
    """Replaces the first inputs of concatenations by a concatenation of just these."""
    known: dict[tuple[int, tuple[Value, ...]], Value] = {}
    changed = False
    for node in graph.nodes:
        if not isinstance(node.op, Concat):
            continue
        axis = normalize_axis(node.op.axis, node.output.type.rank)
        inputs = node.inputs
        for length in range(len(inputs) - 1, 1, -1):
            beginning = known.get((axis, tuple(inputs[:length])))
            if beginning is not None:
                graph.set_inputs(node, [beginning, *inputs[length:]])
                changed = True
                break
        known.setdefault((axis, tuple(inputs)), node.output)
    return changed
