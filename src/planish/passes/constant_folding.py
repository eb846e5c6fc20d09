"""Constant folding: nodes that read only constants are computed now.

    c1   c2
     \\   /            c
      op       =>     |
      |

    op(c1, c2) => c

The ops' NumPy references do the work. A tensor without elements is as good as a constant: no
kernel ever reads or writes one whose size is known to be 0. A result that is much larger than
what it is made from stays a node, so that a plan does not grow by a tile or broadcast of something
small.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planish.errors import PlanishError
from planish.graph.graph import Graph, Node, Value
from planish.passes.rewrite import release, substitute

FREE_BYTES = 1 << 20
"""Results up to this size are always folded."""

LIMIT_BYTES = 64 << 20
"""Results above this size are folded only if they are not larger than their inputs."""

GROWTH = 4
"""Results between the two sizes may be this many times larger than their inputs."""


def fold_constants(graph: Graph, keep: Callable[[Node], bool] | None = None) -> bool:
    """Replaces every node by its result if its inputs are constant or its results are empty.

    Nodes that `keep` is true of stay.
    """
    changed = False
    for node in list(graph.nodes):
        results = _results(node) if keep is None or not keep(node) else None
        if results is None:
            continue
        for value, array in zip(node.outputs, results, strict=True):
            substitute(graph, value, graph.constant(array, f"{value.name}/folded"))
        release(graph, node)
        changed = True
    if changed:
        graph.tidy()
    return changed


def _results(node: Node) -> list[np.ndarray] | None:
    """What a node gives, if that is known now."""
    empty = [_empty(v) for v in node.outputs]
    if all(e is not None for e in empty):
        return [e for e in empty if e is not None]
    arrays = [v.data if v.data is not None else _empty(v) for v in node.inputs]
    known = [a for a in arrays if a is not None]
    if not node.inputs or len(known) < len(arrays) or not _worth(node):
        return None
    try:
        return node.op.reference(*known)
    except PlanishError:
        return None  # such as an index out of range: the op says so when it runs


def _empty(value: Value) -> np.ndarray | None:
    """The array of a value whose type says that it has no elements."""
    if value.type.elements != 0 or not value.type.is_static:
        return None
    return np.empty(value.type.bind({}), value.dtype.numpy)


def _worth(node: Node) -> bool:
    outputs = [v.type for v in node.outputs]
    before = sum(v.data.nbytes for v in node.inputs if v.data is not None)
    after = 0
    for output in outputs:
        if not isinstance(output.elements, int):
            return False
        after += output.elements * output.dtype.size
    return after <= max(FREE_BYTES, before) or after <= min(LIMIT_BYTES, GROWTH * before)
