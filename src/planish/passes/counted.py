"""Decides for each dimension that depends on the data whether tensors are padded there.

    NonZero ─┬─▶ [8, 1] ─▶ Slice [n, 1] ─▶ Gather [n, 64] ─▶ out        two stages, or, padded:
             └─▶ count ┈┈▶ n

    NonZero ─┬─▶ [8, 1] ─▶ Gather [8, 64] ─▶ out, given as [n, 64]      one
             └─▶ count ┈┈▶ n

Padding needs everything that mentions the dimension to work row by row, and little work for rows
that nobody wants. What is left are dimensions that are known one stage later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from planish.graph.dims import Dim, DimLike, bounds, evaluate, substitute, symbol, symbols, terms
from planish.graph.graph import Count, DimRange, Graph, Node, Value, mentions
from planish.ops.elementwise import Cast, ew
from planish.ops.row_wise import COSTLY, is_row_wise
from planish.ops.shape import Concat, Dims, Reshape, ShapeOf, Slice
from planish.profile import UNBOUNDED

COSTLY_ROWS = 32
"""Up to so many rows all are computed, also by costly ops, rather than start another stage."""

FREE_BYTES = 4 << 20
"""Padded tensors up to this size are always allowed."""

GROWTH = 2
"""Above it they may be so many times as large as the largest tensor that is not padded."""


def settle_counts(graph: Graph, costly_rows: int = COSTLY_ROWS) -> None:
    """Pads tensors where that is right and cheap; changes the graph, and ranges of what is left.

    Parameters
    ----------
    graph : Graph
        As imported; unbounded dimensions of inputs have their usual size.
    costly_rows : int
        Up to how many rows costly ops compute the padding too.
    """
    if not graph.counts:
        return
    graph.tidy()
    _compute_sizes(graph)
    for name, count in list(graph.counts.items()):
        usual = usual_sizes(graph)
        if not count.padded and _may_be_padded(graph, name, count, usual, costly_rows):
            _pad(graph, name, count)
    usual = usual_sizes(graph)
    for name, count in graph.counts.items():
        if not count.padded:
            most = max(min(greatest_size(graph, count.limit), UNBOUNDED), 0)
            graph.ranges[name] = DimRange(0, min(usual[name], most), most)
    graph.tidy()


def usual_sizes(graph: Graph) -> dict[str, int]:
    """The usual size of every dimension; of one that depends on the data half of the most."""
    usual = {s: r.opt for s, r in graph.ranges.items() if s not in graph.counts}
    for name in {s for v in graph.inputs for d in v.shape for s in symbols(d)}:
        usual.setdefault(name, 1)
    for name, count in graph.counts.items():
        usual[name] = max(1, min(evaluate(count.limit, usual), 256) // 2)
    return usual


def greatest_size(graph: Graph, limit: DimLike) -> int:
    """The greatest value of a limit, whatever the sizes of the inputs."""
    ranges = {s: graph.ranges.get(s, DimRange(0, 1, UNBOUNDED)) for s in symbols(limit)}
    return bounds(limit, {s: (r.min, r.max) for s, r in ranges.items()})[1]


# ---- sizes as data ---------------------------------------------------------------------------


def _compute_sizes(graph: Graph) -> None:
    """Sizes that are read as data are computed from the counts, not from shapes."""
    for node in list(graph.nodes):
        if isinstance(node.op, Dims | ShapeOf):
            value = node.output
            assert value.content is not None
            if any(not symbols(d).isdisjoint(graph.counts) for d in value.content.flat):
                graph.replace(value, _computed(graph, node))
    graph.tidy()


def _computed(graph: Graph, node: Node) -> Value:
    """The output of a node that gives dimensions, by arithmetic."""
    dtype, content = node.output.dtype, node.output.content
    assert content is not None

    def add(op: Any, *inputs: Value) -> Value:
        return graph.add(op, *inputs, name=node.name, origin=node.origin)

    def known(dim: DimLike) -> Value:
        if isinstance(dim, int):
            return graph.constant(dtype.numpy.type(dim), node.name)
        return add(Dims(dim, dtype))

    def factor(name: str, arguments: tuple[DimLike, ...]) -> Value:
        if not arguments:
            count = add(Cast(dtype), graph.counted(name)) if name in graph.counts else None
            return known(symbol(name)) if count is None else add(Reshape(()), count)
        op = {"floordiv": ew.FloorDiv, "max": ew.Maximum, "min": ew.Minimum}[name]
        return add(op(), *map(scalar, arguments))

    def scalar(dim: DimLike) -> Value:
        if symbols(dim).isdisjoint(graph.counts):
            return known(dim)
        total: Value | None = None
        for coefficient, factors in terms(dim):
            term = known(coefficient)
            for name, arguments in factors:
                one = factor(name, arguments)
                term = one if term.data is not None and term.data == 1 else add(ew.Mul(), term, one)
            total = term if total is None else add(ew.Add(), total, term)
        assert total is not None
        return total

    items = [scalar(d) for d in content.reshape(-1)]
    if not content.shape:
        return items[0]
    parts = [add(Reshape((1,)), item) for item in items]
    return parts[0] if len(parts) == 1 else add(Concat(0), *parts)


# ---- padding ---------------------------------------------------------------------------------


def _may_be_padded(
    graph: Graph, name: str, count: Count, usual: Mapping[str, int], costly_rows: int
) -> bool:
    limit = count.limit
    if isinstance(limit, int) and limit >= UNBOUNDED:
        return False
    few = greatest_size(graph, limit) <= costly_rows
    others = [c.limit for s, c in graph.counts.items() if s != name and not c.padded]
    if any(name in symbols(other) for other in others):
        return False  # a limit must not be larger than what it is the limit of
    sizes = {**usual, name: evaluate(limit, usual)}
    largest = padded = 0
    for node in graph.nodes:
        inside = False
        for value in (*node.inputs, *node.outputs):
            size = evaluate(value.type.elements, sizes) * value.dtype.size
            if any(name in symbols(d) for d in value.shape):
                padded, inside = max(padded, size), True
            else:
                largest = max(largest, size)
        if not is_row_wise(node, name, limit):
            return False
        if inside and isinstance(node.op, COSTLY) and not few:
            return False
    return padded <= max(FREE_BYTES, GROWTH * largest)


def _pad(graph: Graph, name: str, count: Count) -> None:
    """Gives the dimension its greatest size everywhere but in what users see."""
    for output, _, shape in graph.results():
        if any(name in symbols(d) for d in shape):
            graph.trims[output] = shape
    greatest: dict[str, DimLike] = {name: count.limit}
    for node in list(graph.nodes):
        if name not in mentions(node):
            continue
        node.op = _replaced(node.op, greatest)
        for value, kind in zip(node.outputs, node.op.infer(*node.inputs), strict=True):
            value.type = kind
        if isinstance(node.op, Slice) and node.output.type == node.inputs[0].type:
            graph.replace(node.output, node.inputs[0])
    for value in graph.values():
        if value.content is not None and any(name in symbols(d) for d in value.content.flat):
            value.content = None
    graph.counts[name] = dataclasses.replace(count, padded=True)
    graph.ranges.pop(name, None)


def _replaced(op: Any, greatest: Mapping[str, DimLike]) -> Any:
    """An op with a symbol replaced in all its attributes."""

    def replaced(item: Any) -> Any:
        if isinstance(item, Dim):
            return substitute(item, greatest)
        return tuple(map(replaced, item)) if isinstance(item, tuple) else item

    return dataclasses.replace(op, **{k: replaced(v) for k, v in op.attributes().items()})
