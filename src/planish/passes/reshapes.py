"""Chains of reshapes become one, and reshapes get out of the way of other ops.

    x                        x                x                   x
    |                        |                |                   |
    Reshape                 Reshape          Reshape             Relu
    |             =>         |                |          =>       |
    Reshape                                  Relu               Reshape
    |                                         |                   |

An op of one element at a time does not care for the shape: done first, it can fuse with what made
x, and the reshape can meet another one.
"""

from __future__ import annotations

from dataclasses import replace

from planish.graph.graph import Graph, Value
from planish.ops.elementwise import Elementwise
from planish.ops.reduce import Reduction
from planish.ops.shape import Reshape
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
    """A constant keeps its meaning if it varies along a last axis that stays."""
    x, c = m["x"], m["c"]
    assert c.data is not None
    if m.root.inputs[0].type.shape != m.output.shape or x.producer is None or x.type.rank == 0:
        return None
    if c.data.size != 1 and (x.shape[-1] != m.output.shape[-1] or c.data.size != c.shape[-1]):
        return None
    flat = c.data.reshape(()) if c.data.size == 1 else c.data.reshape(-1)
    done = m.add(m.root.op, x, m.graph.constant(flat, c.name))
    return m.add(Reshape(m.output.shape), done)


def _both(m: Match) -> Value | None:
    a, b = (v.producer for v in m.root.inputs)
    assert a is not None
    assert b is not None
    if m["x"].type.shape != m["y"].type.shape or m.root.inputs[0].shape != m.root.inputs[1].shape:
        return None
    return m.add(Reshape(m.output.shape), m.add(m.root.op, m["x"], m["y"]))


def _without_ones(m: Match) -> Value | None:
    """The ones that a reduction keeps are those that the reshape takes away."""
    op, x = m.ops["op"], m["x"]
    assert isinstance(op, Reduction)
    if not op.keepdims:
        return None
    short = replace(op, keepdims=False)
    left = short.infer(x)[0].shape
    return m.add(short, x) if left == m.output.shape else None


_RESHAPED = Apply(Reshape, X)

RULES = (
    Rule("reshape(reshape(x)) => reshape(x)", Apply(Reshape, _RESHAPED), _once, shared=True),
    Rule(
        "reshape(reduce(x, keepdims)) => reduce(x)",
        Apply(Reshape, Apply(Reduction, X, called="op")),
        _without_ones,
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
