"""Normalizations that a model spells out in primitives become the ops they are.

x ───────────────┬──────────── Sub ─┬──────────────── Mul ─ Mul ─ Add        x ─ LayerNorm
└─ ReduceMean ───┴─────────────┘    │                  │     │     │    =>         │  │
                                    └ Square ─ ReduceMean ─ Add ─ Rsqrt      scale ┘  │
                                                             scale, offset     offset ┘

(x - mean(x)) * rsqrt(var(x) + epsilon)   => layer_norm(x) over the last axes,
                                             instance_norm(x) over the spatial ones
layer_norm(x) * scale, … + offset         => the same with scale and offset
exp(x - max(x)) / sum(exp(x - max(x)))    => softmax(x)
log(softmax(x))                           => log_softmax(x)
"""

from __future__ import annotations

import numpy as np

from planish.graph.graph import Graph, Value
from planish.ops.base import Op, broadcast_shapes
from planish.ops.elementwise import ew
from planish.ops.normalization import InstanceNorm, LayerNorm, LogSoftmax, Softmax
from planish.ops.operands import normalize_axes
from planish.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from planish.passes.rewrite import (
    Apply,
    Const,
    Match,
    Number,
    Rule,
    Scalar,
    Var,
    all_equal,
    rewrite,
    rules,
    scalar,
)

X = Var("x")


def recognize_normalizations(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


# ---- mean and variance -----------------------------------------------------------------------


def _axes(m: Match, *names: str, keepdims: bool = True) -> tuple[int, ...] | None:
    """The axes that all these reductions share; None where they differ."""
    ops = [m.ops[name] for name in names]
    rank = m["x"].type.rank
    found = {normalize_axes(op.axes, rank) for op in ops}  # type: ignore[attr-defined]
    if len(found) > 1 or any(op.keepdims is not keepdims for op in ops):  # type: ignore[attr-defined]
        return None
    return found.pop()


def _normalize(m: Match) -> Value | None:
    axes = _axes(m, "mean", "variance")
    x, rank = m["x"], m["x"].type.rank
    if not axes or not x.dtype.is_float:
        return None
    epsilon = scalar(m["epsilon"]) if "epsilon" in m.values else 0.0
    if epsilon < 0:
        return None
    if axes == tuple(range(axes[0], rank)):
        shape = x.shape[axes[0] :]
        if not all(isinstance(d, int) for d in shape):
            shape = ()
        return _standardized(m, LayerNorm(axes[0] - rank, epsilon), shape)
    if rank >= 3 and axes == tuple(range(1, rank - 1)) and isinstance(x.shape[-1], int):
        return _standardized(m, InstanceNorm(epsilon), x.shape[-1:])
    return None


def _standardized(m: Match, op: Op, shape: tuple) -> Value:
    x, name = m["x"], m.root.name
    one = m.constant(np.ones(shape), x, f"{name}/scale")
    zero = m.constant(np.zeros(shape), x, f"{name}/offset")
    return m.add(op, x, one, zero)


def _normalize_scaled(m: Match) -> Value | None:
    """``x * inv + (offset - mean * inv)`` with ``inv = rsqrt(var + epsilon) * scale``."""
    standardized = _normalize(m)
    if standardized is None:
        return None
    scaled = m.add(ew.Mul(), standardized, m["scale"]) if "scale" in m.values else standardized
    return m.add(ew.Add(), scaled, m["offset"])


def _is_parameter(norm: Value, parameter: Value) -> bool:
    """Whether a value can be the scale or offset of a normalization."""
    assert norm.producer is not None
    if parameter.dtype is not norm.dtype:
        return False
    if isinstance(norm.op, InstanceNorm):
        return parameter.is_constant and parameter.shape in ((), (1,), norm.shape[-1:])
    return (
        parameter.type.rank <= norm.type.rank
        and all(d == 1 for d in parameter.shape[: _leading(norm, parameter)])
        and broadcast_shapes(norm.shape, parameter.shape) == norm.shape
    )


def _leading(norm: Value, parameter: Value) -> int:
    """How many axes of a parameter lie before the normalized ones."""
    op = norm.op
    assert isinstance(op, LayerNorm)
    normalized = norm.type.rank - op.axis % norm.type.rank
    return max(parameter.type.rank - normalized, 0)


def _parameter(m: Match, norm: Value, name: str) -> Value:
    parameter = m[name]
    if isinstance(norm.op, InstanceNorm) and parameter.data is not None:
        return m.constant(np.broadcast_to(parameter.data, norm.shape[-1:]), norm, parameter.name)  # type: ignore[arg-type]
    return parameter


def _absorb_scale(m: Match) -> Value | None:
    norm = _norm_of(m)
    x, scale, offset = norm.producer.inputs  # type: ignore[union-attr]
    if not (all_equal(scale, 1) and all_equal(offset, 0)) or not _is_parameter(norm, m["c"]):
        return None
    return m.add(norm.op, x, _parameter(m, norm, "c"), offset)  # type: ignore[arg-type]


def _absorb_offset(m: Match) -> Value | None:
    norm = _norm_of(m)
    x, scale, offset = norm.producer.inputs  # type: ignore[union-attr]
    if not all_equal(offset, 0) or not _is_parameter(norm, m["c"]):
        return None
    return m.add(norm.op, x, scale, _parameter(m, norm, "c"))  # type: ignore[arg-type]


def _norm_of(m: Match) -> Value:
    (node,) = (n for n in m.nodes if isinstance(n.op, LayerNorm | InstanceNorm))
    return node.output


# ---- softmax ---------------------------------------------------------------------------------


def _softmax(kind: type[Op]):
    def build(m: Match) -> Value | None:
        axes = _axes(m, *(name for name in ("max", "sum") if name in m.ops))
        if axes is None or len(axes) != 1:
            return None
        return m.add(kind(axes[0]), m["x"])  # type: ignore[call-arg]

    return build


def _log_of_softmax(m: Match) -> Value | None:
    op = m.ops["op"]
    assert isinstance(op, Softmax)
    return m.add(LogSoftmax(op.axis), m["x"])


# ---- the rules -------------------------------------------------------------------------------


_MEAN = Apply(ReduceMean, X, called="mean")
_CENTERED = Apply(ew.Sub, X, _MEAN)
_SQUARES = (
    Apply(ew.Square, _CENTERED)
    | Apply(ew.SquaredDifference, X, _MEAN)
    | Apply(ew.Pow, _CENTERED, Number(2))
)
_VARIANCE = Apply(ReduceMean, _SQUARES, called="variance")
_SAFE_VARIANCE = Apply(ew.Add, _VARIANCE, Scalar("epsilon")) | _VARIANCE
_INVERSE = Apply(ew.Rsqrt, _SAFE_VARIANCE)
_SCALED_INVERSE = Apply(ew.Mul, _INVERSE, Var("scale")) | _INVERSE
_NORMALIZED = Apply(ew.Mul, _CENTERED, _INVERSE) | Apply(
    ew.Div, _CENTERED, Apply(ew.Sqrt, _SAFE_VARIANCE)
)
_TENSORFLOW = Apply(
    ew.Add,
    Apply(ew.Mul, X, _SCALED_INVERSE),
    Apply(ew.Sub, Var("offset"), Apply(ew.Mul, _MEAN, _SCALED_INVERSE)),
)
_ANY_NORM = Apply((LayerNorm, InstanceNorm), X, Var("s"), Const("o"))

_SHIFTED = Apply(ew.Sub, X, Apply(ReduceMax, X, called="max"))
_EXP = Apply(ew.Exp, _SHIFTED) | Apply(ew.Exp, X)

RULES = (
    *rules("(x - mean) * rsqrt(var + epsilon) => layer_norm(x)", _NORMALIZED, _normalize),
    *rules(
        "x * inv + (offset - mean * inv) => layer_norm(x) * scale + offset",
        _TENSORFLOW,
        _normalize_scaled,
    ),
    Rule("norm(x) * scale => norm(x, scale)", Apply(ew.Mul, _ANY_NORM, Var("c")), _absorb_scale),
    Rule("norm(x) + offset => norm(x, offset)", Apply(ew.Add, _ANY_NORM, Var("c")), _absorb_offset),
    *rules(
        "exp(x - max) / sum(exp(x - max)) => softmax(x)",
        Apply(ew.Div, _EXP, Apply(ReduceSum, _EXP, called="sum")),
        _softmax(Softmax),
    ),
    *rules(
        "x - max - log(sum(exp(x - max))) => log_softmax(x)",
        Apply(
            ew.Sub, _SHIFTED, Apply(ew.Log, Apply(ReduceSum, Apply(ew.Exp, _SHIFTED), called="sum"))
        ),
        _softmax(LogSoftmax),
    ),
    Rule(
        "log(softmax(x)) => log_softmax(x)",
        Apply(ew.Log, Apply(Softmax, X, called="op")),
        _log_of_softmax,
    ),
)
