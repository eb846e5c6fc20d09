"""Slices and concatenations of each other.

 a   b   c                 a   b   c              a     b
  \\ /   /                   \\  |  /                \\   /
 Concat /                   Concat               Concat
    |  /           =>                              |           =>      a
 Concat                                          Slice (just a)

concat(concat(a, b), c)       => concat(a, b, c)
slice(slice(x))               => slice(x)
slice(concat(a, b))           => slice(a)        where it lies within a
concat(x[:k], x[k:])          => x               adjacent slices of one tensor join
gather(x, constant range)     => slice(x)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Value
from planish.ops.base import normalize_axis
from planish.ops.indexing import Gather
from planish.ops.shape import Concat, Reshape, Slice
from planish.passes.rewrite import Apply, Const, Match, Rest, Rule, Var, has_one_user, rewrite


def simplify_slices(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _flatten_concat(m: Match) -> Value | None:
    op = m.root.op
    assert isinstance(op, Concat)
    parts: list[Value] = []
    for value in m.root.inputs:
        inner = value.op
        if (
            isinstance(inner, Concat)
            and inner.axis % value.type.rank == op.axis % value.type.rank
            and has_one_user(m.graph, value)
        ):
            assert value.producer is not None
            parts += value.producer.inputs
            m.nodes = (*m.nodes, value.producer)
        else:
            parts.append(value)
    return m.add(op, *parts) if len(parts) > len(m.root.inputs) else None


def _slice_of_slice(m: Match) -> Value | None:
    inner, outer = m.ops["inner"], m.ops["outer"]
    assert isinstance(inner, Slice)
    assert isinstance(outer, Slice)
    begin = tuple(
        a + b * s for a, b, s in zip(inner.begin, outer.begin, inner.strides, strict=True)
    )
    strides = tuple(a * b for a, b in zip(inner.strides, outer.strides, strict=True))
    return m.add(Slice(begin, outer.size, strides), m["x"])


def _slice_of_concat(m: Match) -> Value | None:
    (joined,) = m.root.inputs
    op, slicing, concat = m.ops["op"], joined.op, joined.producer
    assert isinstance(op, Slice)
    assert isinstance(slicing, Concat)
    assert concat is not None
    axis = normalize_axis(slicing.axis, joined.type.rank)
    begin, stride = op.begin[axis], op.strides[axis]
    last = begin + (op.size[axis] - 1) * stride
    if not isinstance(begin, int) or not isinstance(last, int) or op.size[axis] == 0:
        return None
    low, high, start = min(begin, last), max(begin, last), 0
    for value in concat.inputs:
        size = value.shape[axis]
        if not isinstance(size, int):
            return None
        if start <= low and high < start + size:
            moved = (*op.begin[:axis], begin - start, *op.begin[axis + 1 :])
            return m.add(Slice(moved, op.size, op.strides), value)
        start += size
    return None


def _join_slices(m: Match) -> Value | None:
    op, inputs = m.root.op, m.root.inputs
    assert isinstance(op, Concat)
    axis = normalize_axis(op.axis, m.output.type.rank)
    parts: list[Value] = []
    for value in inputs:
        joined = _joined(m, parts[-1], value, axis) if parts else None
        if joined is None:
            parts.append(value)
        else:
            parts[-1] = joined
    if len(parts) == len(inputs):
        return None
    return parts[0] if len(parts) == 1 else m.add(op, *parts)


def _joined(m: Match, a: Value, b: Value, axis: int) -> Value | None:
    """One slice for two adjacent ones of the same tensor."""
    first, second = a.op, b.op
    if not (isinstance(first, Slice) and isinstance(second, Slice)):
        return None
    assert a.producer is not None
    assert b.producer is not None
    if a.producer.inputs != b.producer.inputs:
        return None
    adjacent = first.begin[axis] + first.size[axis] == second.begin[axis]
    if not adjacent or first.strides[axis] != 1 or first.strides != second.strides:
        return None
    elsewhere = [i for i in range(len(first.begin)) if i != axis]
    if any((first.begin[i], first.size[i]) != (second.begin[i], second.size[i]) for i in elsewhere):
        return None
    size = (*first.size[:axis], first.size[axis] + second.size[axis], *first.size[axis + 1 :])
    return m.add(Slice(first.begin, size, first.strides), *a.producer.inputs)


def _gather_of_range(m: Match) -> Value | None:
    op, x, indices = m.ops["op"], m["x"], m["i"]
    assert isinstance(op, Gather)
    assert indices.data is not None
    axis = normalize_axis(op.axis, x.type.rank)
    size = x.shape[axis]
    if indices.type.rank > 1 or op.batch_dims or not indices.data.size:
        return None
    places = indices.data.reshape(-1).astype(np.int64)
    if isinstance(size, int):
        places = np.where(places < 0, places + size, places)
        if places.min() < 0 or places.max() >= size:
            return None  # the op says so when it runs
    else:
        return None
    steps = np.unique(np.diff(places))
    if len(steps) > 1 or 0 in steps:
        return None
    step = int(steps[0]) if len(steps) else 1
    begin: Sequence[DimLike] = _at([0] * x.type.rank, axis, int(places[0]))
    sizes = _at(x.shape, axis, len(places))
    strides = _at([1] * x.type.rank, axis, step)
    cut = m.add(Slice(tuple(begin), tuple(sizes), tuple(strides)), x)  # type: ignore[arg-type]
    return cut if indices.type.rank else m.add(Reshape(m.output.shape), cut)


def _at(values: Sequence[DimLike], axis: int, new: DimLike) -> list[DimLike]:
    return [new if i == axis else v for i, v in enumerate(values)]


RULES = (
    Rule("concat(concat(a, b), c) => concat(a, b, c)", Apply(Concat, Rest()), _flatten_concat),
    Rule(
        "slice(slice(x)) => slice(x)",
        Apply(Slice, Apply(Slice, Var("x"), called="inner"), called="outer"),
        _slice_of_slice,
        shared=True,
    ),
    Rule(
        "slice(concat(a, b)) => slice(a)",
        Apply(Slice, Apply(Concat, Rest()), called="op"),
        _slice_of_concat,
        shared=True,
    ),
    Rule("concat(x[:k], x[k:]) => x", Apply(Concat, Rest()), _join_slices),
    Rule(
        "gather(x, range) => slice(x)",
        Apply(Gather, Var("x"), Const("i"), called="op"),
        _gather_of_range,
    ),
)
