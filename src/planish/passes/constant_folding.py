"""Constant folding: nodes that read only constants are computed now.

    c1   c2
     \\   /            c
      op       =>     |
      |

    op(c1, c2) => c

The ops' NumPy references do the work. A result that is much larger than what it is made from stays
a node, so that a plan does not grow by a tile or broadcast of something small.
"""

from __future__ import annotations

from planish.errors import PlanishError
from planish.graph.graph import Graph, Node
from planish.passes.rewrite import release, substitute

FREE_BYTES = 1 << 20
"""Results up to this size are always folded."""

LIMIT_BYTES = 64 << 20
"""Results above this size are folded only if they are not larger than their inputs."""

GROWTH = 4
"""Results between the two sizes may be this many times larger than their inputs."""


def fold_constants(graph: Graph) -> bool:
    """Replaces every node whose inputs are all constant by its result."""
    changed = False
    for node in list(graph.nodes):
        if not node.inputs or not all(v.is_constant for v in node.inputs) or not _worth(node):
            continue
        arrays = [v.data for v in node.inputs if v.data is not None]
        try:
            results = node.op.reference(*arrays)
        except PlanishError:
            continue  # such as an index out of range: the op says so when it runs
        for value, array in zip(node.outputs, results, strict=True):
            substitute(graph, value, graph.constant(array, f"{value.name}/folded"))
        release(graph, node)
        changed = True
    if changed:
        graph.tidy()
    return changed


def _worth(node: Node) -> bool:
    outputs = [v.type for v in node.outputs]
    before = sum(v.data.nbytes for v in node.inputs if v.data is not None)
    after = 0
    for output in outputs:
        if not isinstance(output.elements, int):
            return False
        after += output.elements * output.dtype.size
    return after <= max(FREE_BYTES, before) or after <= min(LIMIT_BYTES, GROWTH * before)
