"""Segments whose results' sizes depend on the data.

An engine in TensorFlow runs in one go: inside it such a dimension is padded, and results are cut to
size in the end. What cannot work on padded tensors belongs to another segment, which is given the
result, cut: the edge between the two is treated as if a native node stood there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.analysis import Analysis
from planish.graph.dims import symbols
from planish.graph.graph import Graph, Node, Value
from planish.ops.row_wise import COSTLY, is_row_wise
from planish.ops.shape import Dims, ShapeOf
from planish.passes.counted import greatest_size, settle_counts

COSTLY_ROWS = 128
"""Up to how many rows costly ops work on padding too: another engine, with a program for every
number of rows, costs more than they do."""


Edge = tuple[str, str]
"""Two nodes, the second of which reads what the first one gives."""


def cuts(nodes: Mapping[str, Any], analysis: Analysis) -> set[Edge]:
    """The edges to cut. What comes after a cut is given the size, and need not be cut again."""
    graph = analysis.graph
    if not graph.counts:
        return set()
    readers = {graphdef.origin_of(node): node for node in nodes.values()}
    found: set[Edge] = set()
    given: dict[Value, set[str]] = {}
    for node in graph.nodes:
        strict = {s for s in graph.counts if not _can_be_padded(graph, node, s)}
        known = strict.union(*(given.get(value, ()) for value in node.inputs))
        given.update((value, known) for value in node.outputs)
        reader = readers.get(node.origin)
        if not strict or reader is None:
            continue
        for tensor in graphdef.data_inputs(reader):
            value = analysis.tensors.get(tensor)
            if value is not None and _mentioned(value) & strict - given.get(value, set()):
                found.add((tensor[0], reader.name))
    return found


def with_cuts(producers: Mapping[str, list[str]], cut: Iterable[Edge]) -> dict[str, list[str]]:
    """The producers of each node, with a node of no model on each edge that is cut."""
    linked = {name: list(sources) for name, sources in producers.items()}
    for source, reader in cut:
        if source in producers and reader in producers:
            between = f"cut after {source}"
            linked[between] = [source]
            linked[reader].append(between)
    return linked


def unsettled(graph: Graph, nodes: Mapping[str, Any]) -> dict[str, str]:
    """The nodes of a segment that give sizes which cannot be padded there, with the reason."""
    settle_counts(graph, COSTLY_ROWS)
    names = {graphdef.origin_of(node): name for name, node in nodes.items()}
    refused = {}
    for name, count in graph.counts.items():
        producer = graph.counted(name).producer
        if not count.padded and producer is not None:
            refused[names.get(producer.origin, producer.name)] = (
                "the size of its result depends on the data, and what reads it needs to know it"
            )
    return refused


def _can_be_padded(graph: Graph, node: Node, name: str) -> bool:
    if isinstance(node.op, Dims | ShapeOf):
        return True  # computed from the count
    limit = graph.counts[name].limit
    few = greatest_size(graph, limit) <= COSTLY_ROWS
    if isinstance(node.op, COSTLY) and not few:
        return not any(name in symbols(d) for v in (*node.inputs, *node.outputs) for d in v.shape)
    return is_row_wise(node, name, limit)


def _mentioned(value: Value) -> set[str]:
    dims = [*value.shape, *(value.content.flat if value.content is not None else ())]
    return {s for d in dims for s in symbols(d)}
