"""A copy of a graph, to be changed while the original stays as it is."""

from __future__ import annotations

from planish.graph.graph import Graph, Node, Value


def duplicate(graph: Graph) -> tuple[Graph, dict[Value, Value]]:
    """A copy of a graph, with the same names; weights are shared, not copied.

    Returns
    -------
    Graph
    dict of Value to Value
        The copy of every value.
    """
    copy = Graph(graph.name)
    made: dict[Value, Value] = {}

    def of(value: Value, producer: Node | None = None) -> Value:
        if value not in made:
            made[value] = Value(value.name, value.type, producer, value.data, value.content)
        return made[value]

    copy.inputs = [of(value) for value in graph.inputs]
    for node in graph.nodes:
        inputs = tuple(of(value) for value in node.inputs)
        new = Node(node.op, inputs, (), node.name, node.origin)
        new.outputs = tuple(of(value, new) for value in node.outputs)
        for value in inputs:
            value.users[new] = None
        copy.nodes.append(new)
    copy.outputs = [of(value) for value in graph.outputs]
    copy.output_names = list(graph.output_names)
    copy.ranges, copy.counts = dict(graph.ranges), dict(graph.counts)
    copy.trims, copy.scales = dict(graph.trims), dict(graph.scales)
    copy._names = dict(graph._names)
    return copy, made
