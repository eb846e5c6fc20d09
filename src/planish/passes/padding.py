"""Padding moves into the convolution or pooling behind it.

  x                       x
  |                       |
 Pad(1, 1)      =>       Conv(padding + (1, 1))
  |                       |
 Conv

conv(pad(x, 0))     => conv(x)       more padding
avg_pool(pad(x, 0)) => avg_pool(x)   counting the padding
max_pool(pad(x, v)) => max_pool(x)   where v is never the maximum: every window holds an
                                     element of x, and none of them is less than v
pad(pad(x))         => pad(x)
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from planish.graph.graph import Graph, Value
from planish.ops.conv import Conv, Padding
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.shape import Pad
from planish.passes.ranges import least
from planish.passes.rewrite import Apply, Match, Rule, Var, rewrite

X, W = Var("x"), Var("w")


def fold_padding(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _spatial(pad: Pad) -> Padding | None:
    """What a constant pad adds around the spatial dimensions, if it adds nothing elsewhere."""
    known = []
    for before, after in pad.padding:
        if not (isinstance(before, int) and isinstance(after, int)):
            return None
        known.append((before, after))
    if pad.mode != "constant" or known[0] != (0, 0) or known[-1] != (0, 0):
        return None
    return tuple(known[1:-1])


def _sum(a: Padding, b: Padding) -> Padding:
    return tuple((p[0] + q[0], p[1] + q[1]) for p, q in zip(a, b, strict=True))


def _into_conv(m: Match) -> Value | None:
    pad, conv = m.ops["pad"], m.ops["op"]
    assert isinstance(pad, Pad)
    assert isinstance(conv, Conv)
    added = _spatial(pad)
    if added is None or pad.value != 0:
        return None
    return m.add(replace(conv, padding=_sum(conv.padding, added)), m["x"], m["w"])


def _into_avg_pool(m: Match) -> Value | None:
    pad, pool = m.ops["pad"], m.ops["op"]
    assert isinstance(pad, Pad)
    assert isinstance(pool, AvgPool)
    added = _spatial(pad)
    own = any(p for pair in pool.padding for p in pair)
    if added is None or pad.value != 0 or (own and not pool.count_include_pad):
        return None
    padding = _sum(pool.padding, added)
    return m.add(replace(pool, padding=padding, count_include_pad=True), m["x"])


def _into_max_pool(m: Match) -> Value | None:
    pad, pool = m.ops["pad"], m.ops["op"]
    assert isinstance(pad, Pad)
    assert isinstance(pool, MaxPool)
    added = _spatial(pad)
    x = m["x"]
    if added is None or not (_is_lowest(pad.value, x) or pad.value <= least(x)):
        return None
    padding = _sum(pool.padding, added)
    for (before, after), window, dilation in zip(padding, pool.window, pool.dilations, strict=True):
        if not isinstance(before, int) or not isinstance(after, int):
            return None
        if dilation != 1 or before >= window or after >= window:
            return None  # a window could hold nothing but padding
    return m.add(replace(pool, padding=padding), m["x"])


def _is_lowest(number: float, x: Value) -> bool:
    if x.dtype.is_float:
        return number <= float(ml_dtypes.finfo(x.dtype.numpy).min)
    return number <= np.iinfo(x.dtype.numpy).min


def _pad_of_pad(m: Match) -> Value | None:
    inner, outer = m.ops["inner"], m.ops["outer"]
    assert isinstance(inner, Pad)
    assert isinstance(outer, Pad)
    if not inner.mode == outer.mode == "constant" or inner.value != outer.value:
        return None
    both = tuple(
        (a + c, b + d) for (a, b), (c, d) in zip(inner.padding, outer.padding, strict=True)
    )
    return m.add(replace(outer, padding=both), m["x"])


_PAD = Apply(Pad, X, called="pad")

RULES = (
    Rule(
        "pad(pad(x)) => pad(x)",
        Apply(Pad, Apply(Pad, X, called="inner"), called="outer"),
        _pad_of_pad,
    ),
    Rule("conv(pad(x)) => conv(x)", Apply(Conv, _PAD, W, called="op"), _into_conv, shared=True),
    Rule(
        "avg_pool(pad(x)) => avg_pool(x)",
        Apply(AvgPool, _PAD, called="op"),
        _into_avg_pool,
        shared=True,
    ),
    Rule(
        "max_pool(pad(x)) => max_pool(x)",
        Apply(MaxPool, _PAD, called="op"),
        _into_max_pool,
        shared=True,
    ),
)
