"""Horizontal merging: products of one input with several weights become one wider product.

          x                                x
        / | \\                              |
    Conv Conv Conv                       Conv  w = [w1 | w2 | w3]
      |   |    |            =>             |
     Add Add  Add                         Add  b = [b1 | b2 | b3]
      |   |    |                           |
     Relu Relu Relu                       Relu
      |   |    |                         / | \\
                                    Slice Slice Slice

The input is read once, and narrow products become one that is wide enough to run well. Query, key
and value projections, and the 1x1 convolutions that open the branches of an Inception block, are
the usual cases. Elementwise steps that all siblings share move before the slices.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.ops.base import Op
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise
from planish.ops.matmul import MatMul
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.shape import Concat, Reshape, Slice, Transpose
from planish.passes.rewrite import has_one_user, join_origins, substitute

NARROW = 128
"""Convolutions are merged if one of them has at most this many filters: wide ones run well alone,
and the slices would cost more than the merging brings."""

READS_SLICES = (Conv, MatMul, MaxPool, AvgPool, Concat, Reshape, Transpose)
"""What may read the slices. Anything else would rather have been fused with its own product."""


def merge_siblings(graph: Graph) -> bool:
    """Merges products with constant weights that read the same value."""
    families: dict[Hashable, list[Node]] = {}
    for node in graph.nodes:
        if (key := _family(node)) is not None:
            families.setdefault(key, []).append(node)
    changed = False
    for nodes in families.values():
        steps = _common_steps(graph, nodes)
        tips = [n.output for n in (steps[-1] if steps else nodes)]
        if len(nodes) > 1 and _pays(graph, nodes, tips):
            _merge(graph, nodes, steps)
            changed = True
    if changed:
        graph.tidy()
    return changed


def _family(node: Node) -> Hashable | None:
    """What siblings have in common; None for nodes that are never merged."""
    op = node.op
    if not isinstance(op, Conv | MatMul):
        return None
    x, w = node.inputs
    if w.data is None or x.is_constant:
        return None
    if isinstance(op, Conv):
        pointwise = all(n == 1 for n in w.shape[:-2])
        return (op, id(x), w.shape[:-1]) if op.groups == 1 and pointwise else None
    return (op, id(x)) if w.type.rank == 2 else None


def _filters(node: Node) -> int:
    return int(node.output.shape[-1])  # type: ignore[arg-type]


def _pays(graph: Graph, nodes: list[Node], tips: list[Value]) -> bool:
    outputs = set(graph.outputs)
    users = [user.op for tip in tips for user in tip.users]
    if not outputs.isdisjoint(tips) or not all(isinstance(u, READS_SLICES) for u in users):
        return False
    if isinstance(nodes[0].op, MatMul):
        return True
    # a slice that is only copied on costs more than a convolution that writes in place
    fed = [tip for tip in tips if any(isinstance(u.op, Conv) for u in tip.users)]
    return len(fed) > 1 and min(map(_filters, nodes)) <= NARROW


def _merge(graph: Graph, nodes: list[Node], steps: list[list[Node]]) -> None:
    op, x = nodes[0].op, nodes[0].inputs[0]
    axis = 0 if isinstance(op, MatMul) and op.transpose_b else -1
    weights = np.concatenate([_data(n.inputs[1]) for n in nodes], axis)
    sizes = [_filters(n) for n in nodes]
    merged = _add(graph, op, nodes, x, graph.constant(weights, nodes[0].inputs[1].name))
    for step in steps:
        constants = []
        if len(step[0].inputs) == 2:
            parts = [
                np.broadcast_to(_data(n.inputs[1]).reshape(-1), (size,))
                for n, size in zip(step, sizes, strict=True)
            ]
            constants = [graph.constant(np.concatenate(parts), step[0].inputs[1].name)]
        merged = _add(graph, step[0].op, step, merged, *constants)
    start = 0
    for tip, size in zip(steps[-1] if steps else nodes, sizes, strict=True):
        begin = (*(0 for _ in merged.shape[:-1]), start)
        part = Slice(begin, tip.output.shape, (1,) * len(begin))
        new = graph.add(part, merged, name=tip.name, origin=tip.origin)
        substitute(graph, tip.output, new)
        start += size


def _add(graph: Graph, op: Op, nodes: list[Node], *inputs: Value) -> Value:
    origin = join_origins(reversed(nodes))
    return graph.add(op, *inputs, name=f"{nodes[0].name}/merged", origin=origin)


def _common_steps(graph: Graph, nodes: list[Node]) -> list[list[Node]]:
    """The elementwise ops that follow every sibling alike, each as the nodes that apply it."""
    steps: list[list[Node]] = []
    tips = [n.output for n in nodes]
    while all(has_one_user(graph, tip) for tip in tips):
        users = [next(iter(tip.users)) for tip in tips]
        first = users[0]
        if not isinstance(first.op, Elementwise) or len(first.inputs) > 2:
            break
        if not all(
            user.op == first.op and len(user.inputs) == len(first.inputs) and _fits(user, tip)
            for user, tip in zip(users, tips, strict=True)
        ):
            break
        steps.append(users)
        tips = [user.output for user in users]
    return steps


def _fits(user: Node, tip: Value) -> bool:
    """Whether a node works on its first input with at most a constant per channel."""
    if user.inputs[0] is not tip or user.output.shape != tip.shape:
        return False
    channels = tip.shape[-1]
    return all(
        v.data is not None
        and (v.data.size == 1 or (v.data.size == channels and v.data.shape[-1] == channels))
        for v in user.inputs[1:]
    )


def _data(value: Value) -> np.ndarray:
    assert value.data is not None
    return value.data
