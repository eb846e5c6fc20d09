"""Scales and offsets by constants move into the weights next to them, and into each other.

      x    w                  x   w * c
       \\  /                    \\  /
       Conv   c      =>        Conv
          \\  /                   |
          Mul

    conv(x, w) * c       => conv(x, w * c)
    conv(x * c, w)       => conv(x, c * w)
    matmul(x + c, w)     => matmul(x, w) + matmul(c, w)
    (conv(x, w) + b) * c => conv(x, w) * c + b * c
    (x + a) + b          => x + (a + b)

A constant counts as per channel if it varies along the last axis only. New weights are computed in
float64 and rounded once.
"""

from __future__ import annotations

import numpy as np

from planish.graph.graph import Graph, Value
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.passes.rewrite import Apply, Const, Match, Rule, Var, rewrite

X, W, A, B, C = Var("x"), Const("w"), Const("a"), Const("b"), Const("c")


def fold_scales(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def per_channel(value: Value, channels: object) -> np.ndarray | None:
    """A constant of one element, or one for each of `channels`, as a float64 vector; else None."""
    data = value.data
    if data is None or not value.dtype.is_float or not isinstance(channels, int):
        return None
    if data.size == 1:
        return np.full(channels, float(data.reshape(())[()]))
    if data.shape[-1] != channels or data.size != channels:
        return None
    return data.astype(np.float64).reshape(channels)


def _weights(m: Match, data: np.ndarray) -> Value | None:
    """New weights, or None where rounding them to their dtype overflows."""
    w = m["w"]
    assert w.data is not None
    with np.errstate(over="ignore"):
        rounded = data.astype(w.dtype.numpy)
    if not np.all(np.isfinite(rounded)) and np.all(np.isfinite(w.data)):
        return None
    return m.constant(rounded, w, w.name)


def _wide(value: Value) -> np.ndarray:
    assert value.data is not None
    return value.data.astype(np.float64)


def _scale_after_conv(m: Match) -> Value | None:
    w = m["w"]
    factor = per_channel(m["c"], w.shape[-1])
    if factor is None or m.root.inputs[0].type != m.output.type:
        return None
    scaled = _weights(m, _wide(w) * factor)
    return scaled and m.add(m.ops["op"], m["x"], scaled)


def _input_channels(vector: np.ndarray, op: Conv, w: Value) -> np.ndarray:
    """A vector over input channels as it meets filters: ``[C / groups, K]``."""
    per_group, filters = int(w.shape[-2]), int(w.shape[-1])  # type: ignore[arg-type]
    by_group = vector.reshape(op.groups, per_group)
    return np.repeat(by_group, filters // op.groups, axis=0).T


def _scale_before_conv(m: Match) -> Value | None:
    op, x, w = m.ops["op"], m["x"], m["w"]
    assert isinstance(op, Conv)
    factor = per_channel(m["c"], x.shape[-1])
    if factor is None or m.root.inputs[0].type != x.type:
        return None
    scaled = _weights(m, _wide(w) * _input_channels(factor, op, w))
    return scaled and m.add(op, x, scaled)


def _offset_before_conv(m: Match) -> Value | None:
    """Exact without padding only: zeros of the padding would get the offset as well."""
    op, x, w = m.ops["op"], m["x"], m["w"]
    assert isinstance(op, Conv)
    offset = per_channel(m["c"], x.shape[-1])
    if (
        offset is None
        or m.root.inputs[0].type != x.type
        or any(p for pair in op.padding for p in pair)
    ):
        return None
    taps = tuple(range(w.type.rank - 2))
    bias = (_wide(w).sum(taps) * _input_channels(offset, op, w)).sum(0)
    return m.add(ew.Add(), m.add(op, x, w), m.constant(bias, w, f"{m.root.name}/bias"))


def _output_axis(op: MatMul) -> int:
    return -2 if op.transpose_b else -1


def _scale_after_matmul(m: Match) -> Value | None:
    op, w = m.ops["op"], m["w"]
    assert isinstance(op, MatMul)
    axis = _output_axis(op)
    if w.type.rank < 2 or m.root.inputs[0].type != m.output.type:
        return None
    factor = per_channel(m["c"], w.shape[axis])
    if factor is None:
        return None
    scaled = _weights(m, _wide(w) * (factor if axis == -1 else factor[:, None]))
    return scaled and m.add(op, m["x"], scaled)


def _along_input(m: Match) -> np.ndarray | None:
    """The constant before a matrix product as a vector along the summed axis, if it is one."""
    op, x, w = m.ops["op"], m["x"], m["w"]
    assert isinstance(op, MatMul)
    if op.transpose_a or w.type.rank != 2 or m.root.inputs[0].type != x.type:
        return None
    return per_channel(m["c"], x.shape[-1])


def _scale_before_matmul(m: Match) -> Value | None:
    op, factor = m.ops["op"], _along_input(m)
    assert isinstance(op, MatMul)
    if factor is None:
        return None
    scaled = _weights(m, _wide(m["w"]) * (factor if op.transpose_b else factor[:, None]))
    return scaled and m.add(op, m["x"], scaled)


def _offset_before_matmul(m: Match) -> Value | None:
    op, offset, w = m.ops["op"], _along_input(m), m["w"]
    assert isinstance(op, MatMul)
    if offset is None:
        return None
    bias = _wide(w) @ offset if op.transpose_b else offset @ _wide(w)
    return m.add(ew.Add(), m.add(op, m["x"], w), m.constant(bias, w, f"{m.root.name}/bias"))


def _merged(kind, combine):
    def build(m: Match) -> Value | None:
        a, b = m["a"], m["b"]
        assert a.data is not None
        assert b.data is not None
        with np.errstate(all="ignore"):
            if a.dtype.is_float:
                both = combine(_wide(a), _wide(b)).astype(a.dtype.numpy)
            else:
                both = combine(a.data, b.data)
        if both.size > max(a.data.size, b.data.size):
            return None  # [H, 1] with [1, W]: one large constant for two small ones
        if a.dtype.is_float and not np.all(np.isfinite(both)):
            return None
        return m.add(kind(), m["x"], m.constant(both, a, b.name))

    return build


def _negated_constant(m: Match) -> Value | None:
    a = m["a"]
    assert a.data is not None
    return m.add(ew.Mul(), m["x"], m.constant(-a.data, a, a.name)) if a.dtype.is_float else None


def _distribute(m: Match) -> Value | None:
    """Brings a scale next to the weights that can take it in."""
    x, b, c = m["x"], m["b"], m["c"]
    if not _takes_scale(x, c) or m.root.inputs[0].type != x.type:
        return None
    both = _wide(b) * _wide(c)
    if both.size > max(b.type.elements, c.type.elements):  # type: ignore[type-var]
        return None
    return m.add(ew.Add(), m.add(ew.Mul(), x, c), m.constant(both, b, b.name))


def _takes_scale(x: Value, c: Value) -> bool:
    node = x.producer
    if node is None or not node.inputs[-1].is_constant or len(x.users) > 1:
        return False
    if isinstance(node.op, Conv | MatMul):
        return per_channel(c, x.shape[-1]) is not None
    return isinstance(node.op, ew.Mul) and x.dtype.is_float


_CONV = Apply(Conv, X, W, called="op")
_MATMUL = Apply(MatMul, X, W, called="op")

RULES = (
    Rule(
        "(x + a) + b => x + (a + b)", Apply(ew.Add, Apply(ew.Add, X, A), B), _merged(ew.Add, np.add)
    ),
    Rule(
        "(x * a) * b => x * (a * b)",
        Apply(ew.Mul, Apply(ew.Mul, X, A), B),
        _merged(ew.Mul, np.multiply),
    ),
    Rule("-(x * a) => x * (-a)", Apply(ew.Neg, Apply(ew.Mul, X, A)), _negated_constant),
    Rule("conv(x, w) * c => conv(x, w * c)", Apply(ew.Mul, _CONV, C), _scale_after_conv),
    Rule("matmul(x, w) * c => matmul(x, w * c)", Apply(ew.Mul, _MATMUL, C), _scale_after_matmul),
    Rule(
        "(conv(x) + b) * c => conv(x) * c + b * c",
        Apply(ew.Mul, Apply(ew.Add, X, B), C),
        _distribute,
    ),
    Rule(
        "conv(x * c, w) => conv(x, c * w)",
        Apply(Conv, Apply(ew.Mul, X, C), W, called="op"),
        _scale_before_conv,
    ),
    Rule(
        "conv(x + c, w) => conv(x, w) + c'",
        Apply(Conv, Apply(ew.Add, X, C), W, called="op"),
        _offset_before_conv,
    ),
    Rule(
        "matmul(x * c, w) => matmul(x, c * w)",
        Apply(MatMul, Apply(ew.Mul, X, C), W, called="op"),
        _scale_before_matmul,
    ),
    Rule(
        "matmul(x + c, w) => matmul(x, w) + c @ w",
        Apply(MatMul, Apply(ew.Add, X, C), W, called="op"),
        _offset_before_matmul,
    ),
)
