"""Chains of reshapes become one, and reshapes get out of the way of other ops.

    x                        x                x                   x
    |                        |                |                   |
    Reshape                 Reshape          Reshape             Relu
    |             =>         |                |          =>       |
    Reshape                                  Relu               Reshape
    |                                         |                   |

An op of one element at a time does not care for the shape: done first, it can fuse with what made
x, and the reshape can meet another one. A reshape that only splits axes goes before a transpose for
the same reason: what splits heads may undo what merged them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Value
from planish.ops.elementwise import Elementwise
from planish.ops.reduce import Reduction
from planish.ops.shape import Reshape, Transpose
from planish.passes.layouts import reshape_groups
from planish.passes.rewrite import Apply, Const, Match, Rule, Var, rewrite

X, Y, C = Var("x"), Var("y"), Const("c")


def simplify_reshapes(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _once(m: Match) -> Value | None:
    return m.add(Reshape(m.output.shape), m["x"])


def _below(m: Match) -> Value | None:
    if m["x"].is_constant or m["x"].producer is None:
        return None
    return m.add(Reshape(m.output.shape), m.add(m.ops["op"], m["x"]))


def _below_with_constant(m: Match) -> Value | None:
    """A constant can move if it varies only along a last axis that is kept, split or merged."""
    x, flat = m["x"], m.root.inputs[0]
    if flat.shape != m.output.shape or x.producer is None:
        return None
    moved = _before_reshape(m["c"], x.shape, flat.shape)
    if moved is None:
        return None
    done = m.add(m.root.op, x, m.graph.constant(moved, m["c"].name))
    return m.add(Reshape(m.output.shape), done)


def _before_reshape(
    constant: Value, before: Sequence[DimLike], after: Sequence[DimLike]
) -> np.ndarray | None:
    """A constant that broadcasts to `after` as one that does the same to `before`."""
    data = constant.data
    assert data is not None
    if data.size == 1:
        return data.reshape(())
    groups = reshape_groups(before, after)
    if not groups or min(len(axes) for axes in groups[-1]) != 1:
        return None
    old = [before[a] for a in groups[-1][0]]
    new = [after[a] for a in groups[-1][1]]
    outer = max(data.ndim - len(new), 0)
    if not all(isinstance(d, int) for d in (*old, *new)) or any(d != 1 for d in data.shape[:outer]):
        return None
    inner = data.reshape(data.shape[outer:])
    return np.broadcast_to(inner, new).reshape(old)  # type: ignore[arg-type]


def _both(m: Match) -> Value | None:
    a, b = (v.producer for v in m.root.inputs)
    assert a is not None
    assert b is not None
    if m["x"].type.shape != m["y"].type.shape or m.root.inputs[0].shape != m.root.inputs[1].shape:
        return None
    return m.add(Reshape(m.output.shape), m.add(m.root.op, m["x"], m["y"]))


def _reduction(m: Match) -> Value | None:
    """A reduction can keep or drop its axes itself."""
    op, x = m.ops["op"], m["x"]
    assert isinstance(op, Reduction)
    other = replace(op, keepdims=not op.keepdims)
    return m.add(other, x) if other.infer(x)[0].shape == m.output.shape else None


def _split_first(m: Match) -> Value | None:
    """Each axis of the transpose becomes one or more; they move together."""
    transpose, x = m.ops["transpose"], m["x"]
    assert isinstance(transpose, Transpose)
    groups = reshape_groups([x.shape[a] for a in transpose.perm], m.output.shape)
    if groups is None or any(len(old) != 1 or not new for old, new in groups):
        return None
    if len(groups) == m.output.type.rank:
        return None
    parts = {transpose.perm[old[0]]: new for old, new in groups}
    order = [axis for own in range(x.type.rank) for axis in parts[own]]
    split = m.add(Reshape(tuple(m.output.shape[axis] for axis in order)), x)
    return m.add(Transpose(tuple(order.index(axis) for axis in range(len(order)))), split)


_RESHAPED = Apply(Reshape, X)

RULES = (
    Rule("reshape(reshape(x)) => reshape(x)", Apply(Reshape, _RESHAPED), _once, shared=True),
    Rule(
        "reshape(transpose(x)) => transpose(reshape(x)) where axes are only split",
        Apply(Reshape, Apply(Transpose, X, called="transpose")),
        _split_first,
    ),
    Rule(
        "reshape(reduce(x)) => reduce(x) with or without keepdims",
        Apply(Reshape, Apply(Reduction, X, called="op")),
        _reduction,
    ),
    Rule("f(reshape(x)) => reshape(f(x))", Apply(Elementwise, _RESHAPED, called="op"), _below),
    Rule(
        "f(reshape(x), c) => reshape(f(x, c))",
        Apply(Elementwise, _RESHAPED, C),
        _below_with_constant,
    ),
    Rule(
        "f(reshape(x), reshape(y)) => reshape(f(x, y))",
        Apply(Elementwise, _RESHAPED, Apply(Reshape, Y)),
        _both,
    ),
)
