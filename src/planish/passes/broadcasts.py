"""Broadcasts move behind elementwise ops, which broadcast by themselves, and mostly disappear.

    x        y                      x   y
    |        |                      |   |
    BroadcastTo       =>             Mul           where y alone has the shape of the result;
       \\    /                                     else broadcast(mul(x, y))
        Mul

Masks are the usual case: PyTorch and Keras write them out for all heads and queries, and what reads
them needs no more than a row.
"""

from __future__ import annotations

from planish.graph.graph import Graph, Node
from planish.ops.base import broadcast_shapes
from planish.ops.elementwise import Elementwise
from planish.ops.shape import BroadcastTo
from planish.passes.rewrite import substitute


def move_broadcasts(graph: Graph) -> bool:
    """Takes broadcasts away from before elementwise ops."""
    changed = False
    for node in list(graph.nodes):
        if isinstance(node.op, Elementwise) and _without_broadcasts(graph, node):
            changed = True
    if changed:
        graph.tidy()
    return changed


def _without_broadcasts(graph: Graph, node: Node) -> bool:
    inputs = [
        v.producer.inputs[0] if v.producer and isinstance(v.producer.op, BroadcastTo) else v
        for v in node.inputs
    ]
    if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
        return False
    if broadcast_shapes(*(v.shape for v in inputs)) == node.output.shape:
        graph.set_inputs(node, inputs)
        return True
    small = graph.add(node.op, *inputs, name=node.name, origin=node.origin)
    op = BroadcastTo(node.output.shape)
    substitute(graph, node.output, graph.add(op, small, name=node.name, origin=node.origin))
    return True
