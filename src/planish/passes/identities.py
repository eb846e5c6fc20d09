"""Identities: ops that change nothing, or whose change the next op makes anyway.

  x                     x
  |                     |
 Relu                  Relu
  |          =>         |
 Clip(-1, 6)           Clip(…, 6)
  |                     |

x + 0 => x;   clip(relu(x), low, high) => clip(x, max(low, 0), high);   and so on
"""

from __future__ import annotations

import math

import numpy as np

from planish.graph.graph import Graph, Value
from planish.graph.types import DType
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.indexing import ScatterNd
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.reduce import (
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
)
from planish.ops.shape import (
    BroadcastTo,
    Concat,
    Identity,
    Pad,
    Reshape,
    Slice,
    Tile,
    Transpose,
)
from planish.ops.spatial import Resize
from planish.passes.ranges import least
from planish.passes.rewrite import Apply, Const, Match, Number, Rest, Rule, Var, rewrite

X, Y = Var("x"), Var("y")


def remove_identities(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _x(m: Match) -> Value | None:
    """The input itself. `rewrite` declines where its type is another one."""
    return m["x"]


def _same_type(m: Match) -> Value | None:
    return m["x"] if m["x"].type == m.output.type else None


def _and_true(m: Match) -> Value | None:
    data = m["c"].data
    assert data is not None
    return _same_type(m) if data.all() else None


def _transpose(m: Match) -> Value | None:
    perm = m.ops["op"].attributes()["perm"]
    return m["x"] if tuple(perm) == tuple(range(len(perm))) else None


def _slice(m: Match) -> Value | None:
    op = m.ops["op"]
    assert isinstance(op, Slice)
    whole = all(b == 0 for b in op.begin) and all(s == 1 for s in op.strides)
    return _same_type(m) if whole else None


def _pad(m: Match) -> Value | None:
    op = m.ops["op"]
    assert isinstance(op, Pad)
    return m["x"] if all(a == 0 and b == 0 for a, b in op.padding) else None


def _pool(m: Match) -> Value | None:
    op = m.ops["op"]
    assert isinstance(op, MaxPool | AvgPool)
    flat = (*op.window, *op.strides)
    alone = all(n == 1 for n in flat) and all(a == b == 0 for a, b in op.padding)
    return m["x"] if alone else None


def _resize(m: Match) -> Value | None:
    op = m.ops["op"]
    assert isinstance(op, Resize)
    unscaled = op.scales is None or all(s == 1 for s in op.scales)
    return _same_type(m) if unscaled else None


def _reduce_of_one(m: Match) -> Value | None:
    axes = m.ops["op"].attributes()["axes"]
    x = m["x"]
    if any(x.shape[a] != 1 for a in axes):
        return None
    return x if x.type == m.output.type else m.add(Reshape(m.output.shape), x)


def _is_lossless(a: DType, b: DType) -> bool:
    """Whether every value of dtype `a` is one of `b`."""
    if a is b or a is DType.BOOL:
        return True
    if a.is_float:
        order = [DType.FLOAT16, DType.FLOAT32, DType.FLOAT64]
        if a is DType.BFLOAT16:
            return b in order[1:]
        return b in order and order.index(b) > order.index(a)
    bits = np.iinfo(a.numpy).bits
    if b.is_float:
        return bits < {8: 53, 4: 24}.get(b.size, 8)
    return bool(b.is_integer and np.can_cast(a.numpy, b.numpy, "safe"))


def _cast_of_cast(m: Match) -> Value | None:
    """Integers that do not fit an integer dtype wrap around, but as floats they saturate."""
    first, second = m.ops["first"], m.ops["second"]
    assert isinstance(first, Cast)
    assert isinstance(second, Cast)
    x = m["x"]
    if not _is_lossless(x.dtype, first.to):
        return None
    between = x.dtype.is_integer and first.to.is_float and second.to.is_integer
    if between and not _is_lossless(x.dtype, second.to):
        return None
    return x if second.to is x.dtype else m.add(Cast(second.to), x)


def _range(m: Match, name: str) -> tuple[float, float]:
    op = m.ops[name]
    return (op.low, op.high) if isinstance(op, Clip) else (0.0, math.inf)


def _clip_of_clip(m: Match) -> Value | None:
    (a, b), (c, d) = _range(m, "inner"), _range(m, "outer")
    if a > b or c > d:
        return None
    low, high = min(max(a, c), d), min(max(b, c), d)
    return m.add(ew.Relu() if (low, high) == (0, math.inf) else Clip(low, high), m["x"])


def _clip(m: Match) -> Value | None:
    op, x = m.ops["op"], m["x"]
    assert isinstance(op, Clip)
    if op.low == -math.inf and op.high == math.inf:
        return x
    return m.add(ew.Relu(), x) if (op.low, op.high) == (0, math.inf) else None


def _relu_of_positive(m: Match) -> Value | None:
    return m["x"] if least(m["x"]) >= 0 else None


def _concat(m: Match) -> Value | None:
    op, inputs = m.root.op, m.root.inputs
    assert isinstance(op, Concat)
    kept = [v for v in inputs if v.shape[op.axis] != 0]
    if not kept or len(kept) == len(inputs) > 1:
        return None
    return kept[0] if len(kept) == 1 else m.add(op, *kept)


def _reduce_of_nothing(m: Match) -> Value | None:
    """Over a dimension of size 0 every result is the same: the sum of nothing, and so on."""
    x, op = m["x"], m.ops["op"]
    if x.type.elements != 0 or m.output.type.elements == 0:
        return None
    nothing = np.empty([d if isinstance(d, int) else 1 for d in x.shape], x.dtype.numpy)
    (result,) = op.reference(nothing)
    number = m.constant(result.reshape(-1)[:1].reshape(()), x, f"{x.name}/reduced")
    return m.add(BroadcastTo(m.output.shape), number)


def _scatter(m: Match) -> Value | None:
    return m["x"] if m["updates"].type.elements == 0 else None


_CLAMP = (ew.Relu, Clip)
_REDUCE = (ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceProd)
_ANY_REDUCE = (*_REDUCE, ReduceAny, ReduceAll)

RULES = (
    Rule("identity(x) => x", Apply(Identity, X), _x),
    Rule("cast to the same dtype => x", Apply(Cast, X), _same_type),
    Rule("reshape to the same shape => x", Apply(Reshape, X), _same_type),
    Rule("broadcast to the same shape => x", Apply(BroadcastTo, X), _same_type),
    Rule("tile by 1 => x", Apply(Tile, X), _same_type),
    Rule("transpose by the identity => x", Apply(Transpose, X, called="op"), _transpose),
    Rule("slice of everything => x", Apply(Slice, X, called="op"), _slice),
    Rule("pad by nothing => x", Apply(Pad, X, called="op"), _pad),
    Rule("pool over 1 => x", Apply((MaxPool, AvgPool), X, called="op"), _pool),
    Rule("resize to the same size => x", Apply(Resize, X, called="op"), _resize),
    Rule("reduce one element => reshape", Apply(_REDUCE, X, called="op"), _reduce_of_one),
    Rule("reduce nothing => constant", Apply(_ANY_REDUCE, X, called="op"), _reduce_of_nothing),
    Rule("x + 0 => x", Apply(ew.Add, X, Number(0)), _x),
    Rule("x - 0 => x", Apply(ew.Sub, X, Number(0)), _x),
    Rule("x * 1 => x", Apply(ew.Mul, X, Number(1)), _x),
    Rule("x / 1 => x", Apply(ew.Div, X, Number(1)), _x),
    Rule("x ** 1 => x", Apply(ew.Pow, X, Number(1)), _x),
    Rule("x and true => x", Apply(ew.LogicalAnd, X, Const("c")), _and_true),
    Rule("-(-x) => x", Apply(ew.Neg, Apply(ew.Neg, X)), _x, shared=True),
    Rule("not not x => x", Apply(ew.LogicalNot, Apply(ew.LogicalNot, X)), _x, shared=True),
    Rule("abs(x) => x where x >= 0", Apply(ew.Abs, X), _relu_of_positive),
    Rule("relu(x) => x where x >= 0", Apply(ew.Relu, X), _relu_of_positive),
    Rule(
        "clip(clip(x)) => clip(x)",
        Apply(_CLAMP, Apply(_CLAMP, X, called="inner"), called="outer"),
        _clip_of_clip,
    ),
    Rule("clip(x, -inf, inf) => x", Apply(Clip, X, called="op"), _clip),
    Rule(
        "cast(cast(x)) => cast(x)",
        Apply(Cast, Apply(Cast, X, called="first"), called="second"),
        _cast_of_cast,
        shared=True,
    ),
    Rule("concat(x, empty) => x", Apply(Concat, Rest()), _concat),
    Rule("scatter of nothing => x", Apply(ScatterNd, X, Y, Var("updates")), _scatter),
)
