"""Max and average pooling. TensorFlow's average leaves out the padding."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.context import Context, converter
from planish.frontends.tensorflow.layout import (
    from_channels_last,
    main_part,
    spatial,
    to_channels_last,
    window_padding,
)
from planish.graph.graph import Value
from planish.ops.pool import AvgPool, MaxPool


@converter("AvgPool", "AvgPool3D")
def _avg_pool(ctx: Context, x: Value) -> Value:
    return _pool(ctx, AvgPool, x, ctx.attr("ksize"), ctx.attr("strides"))


@converter("MaxPool", "MaxPool3D")
def _max_pool(ctx: Context, x: Value) -> Value:
    return _pool(ctx, MaxPool, x, ctx.attr("ksize"), ctx.attr("strides"))


@converter("MaxPoolV2")
def _max_pool_v2(ctx: Context, x: Value, window: Value, strides: Value) -> Value:
    return _pool(ctx, MaxPool, x, ctx.ints(window, "window"), ctx.ints(strides, "strides"))


def _pool(
    ctx: Context,
    kind: type[AvgPool] | type[MaxPool],
    x: Value,
    window: Sequence[int],
    strides: Sequence[int],
) -> Value:
    x = to_channels_last(ctx, x)
    window = spatial(ctx, window, "window")
    strides = spatial(ctx, strides, "strides")
    ones = (1,) * len(window)
    padding = window_padding(ctx, x.shape[1:-1], window, strides, ones)
    op = (
        MaxPool(window, strides, padding, ones)
        if kind is MaxPool
        else AvgPool(window, strides, padding, False)
    )
    return from_channels_last(ctx, ctx.add(op, x, part=main_part(ctx)))
