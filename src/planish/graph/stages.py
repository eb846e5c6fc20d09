"""Stages: which nodes can run before which dimensions are known.

    stage 0   scores ─▶ NonZero ─┬─▶ indices [limit, 1] ─▶ Slice [n, 1]
                                 └─▶ count ┈┈▶ n
    stage 1                                     Slice ─▶ Gather [n, 64] ─▶ MatMul [n, 10]

A dimension that depends on the data (`Graph.counts`) is a symbol as any other, but it is known only
when the stage that computes its count has run. A node belongs to the first stage in which its
inputs exist and every symbol that it mentions is known. Inside a stage nothing is special: all its
shapes follow from sizes that are known when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping

from planish.graph.graph import Graph, Node, mentions


def node_stages(graph: Graph) -> Mapping[Node, int]:
    """The stage of each node that is not in stage 0; the graph is in topological order."""
    waiting = {s: graph.counted(s).producer for s, c in graph.counts.items() if not c.padded}
    found: dict[Node, int] = {}
    if not waiting:
        return found
    for node in graph.nodes:
        stage = max((found.get(v.producer, 0) for v in node.inputs if v.producer), default=0)
        for name in mentions(node):
            if name in waiting:
                producer = waiting[name]
                stage = max(stage, 1 + (found.get(producer, 0) if producer else 0))
        if stage:
            found[node] = stage
    return found
