"""Averages over neighbouring pixels and products of single pixels change places.

    x [N, H, W, C]              x
    |                           |
    AvgPool, stride 1           Conv 1x1, C > K
    |                    =>     |
    Conv 1x1                    AvgPool, stride 1
    |                           |
    [N, H, W, K]                [N, H, W, K]

    conv(avgpool(x), w) => avgpool(conv(x, w))      where a pixel then has fewer channels

Both are linear, one over space and the other over channels, so that either may come first; and the
average costs what it reads and writes. Inception's pooling branches are the usual case: 768
channels before the product, 192 after it.
"""

from __future__ import annotations

from planish.graph.graph import Graph, Value
from planish.ops.conv import Conv
from planish.ops.pool import AvgPool
from planish.passes.rewrite import Apply, Const, Match, Rule, Var, rewrite


def narrow_averages(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _product_first(m: Match) -> Value | None:
    conv, pool, x, w = m.ops["conv"], m.ops["pool"], m["x"], m["w"]
    assert isinstance(conv, Conv)
    assert isinstance(pool, AvgPool)
    *taps, channels, filters = w.type.bind({})
    if set(taps) != {1} or filters >= channels or conv.groups != 1:
        return None
    if {*conv.strides, *pool.strides} != {1} or any(pad != (0, 0) for pad in conv.padding):
        return None
    return m.add(pool, m.add(conv, x, w))


RULES = (
    Rule(
        "conv(avgpool(x), w) => avgpool(conv(x, w))",
        Apply(Conv, Apply(AvgPool, Var("x"), called="pool"), Const("w"), called="conv"),
        _product_first,
    ),
)
