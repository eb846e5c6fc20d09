"""Common subexpressions: the same op on the same inputs is computed once.

      x                    x
     / \\                   |
    op  op      =>         op
    |    |                / \\
    a    b               a   b

    op(x), op(x) => one op(x)

Equal constants are shared first, so that nodes that read copies of one constant are equal too.
"""

from __future__ import annotations

from collections.abc import Hashable

from planish.graph.graph import Graph, Value
from planish.passes.rewrite import COMMUTATIVE, substitute


def share_common_subexpressions(graph: Graph) -> bool:
    """Merges equal constants, then equal nodes in topological order."""
    changed = _share_constants(graph)
    known: dict[Hashable, tuple[Value, ...]] = {}
    merged = False
    for node in list(graph.nodes):
        inputs = [id(v) for v in node.inputs]
        if isinstance(node.op, COMMUTATIVE):
            inputs.sort()
        key = (node.op, *inputs)
        first = known.setdefault(key, node.outputs)
        if first is not node.outputs:
            for old, new in zip(node.outputs, first, strict=True):
                substitute(graph, old, new)
            merged = True
    if merged:
        graph.tidy()
    return changed or merged


def _share_constants(graph: Graph) -> bool:
    known: dict[Hashable, Value] = {}
    changed = False
    for value in list(graph.constants()):
        data = value.data
        assert data is not None
        key = (value.dtype, value.shape, data.tobytes() if data.nbytes < 4096 else id(data))
        first = known.setdefault(key, value)
        if first is not value:
            graph.replace(value, first)
            changed = True
    return changed
