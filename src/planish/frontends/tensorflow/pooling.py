"""Max and average pooling. TensorFlow's average leaves out the padding."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.array import count_up
from planish.frontends.tensorflow.context import Context, converter
from planish.frontends.tensorflow.layout import (
    from_channels_last,
    main_part,
    spatial,
    to_channels_last,
    window_padding,
)
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.elementwise import ew
from planish.ops.pool import AvgPool, MaxPool, MaxPoolIndices
from planish.ops.shape import Dims


@converter("AvgPool", "AvgPool3D")
def _avg_pool(ctx: Context, x: Value) -> Value:
    return _pool(ctx, AvgPool, x, ctx.attr("ksize"), ctx.attr("strides"))


@converter("MaxPool", "MaxPool3D")
def _max_pool(ctx: Context, x: Value) -> Value:
    return _pool(ctx, MaxPool, x, ctx.attr("ksize"), ctx.attr("strides"))


@converter("MaxPoolV2")
def _max_pool_v2(ctx: Context, x: Value, window: Value, strides: Value) -> Value:
    return _pool(ctx, MaxPool, x, ctx.ints(window, "window"), ctx.ints(strides, "strides"))


@converter("MaxPoolWithArgmax")
def _max_pool_with_argmax(ctx: Context, x: Value) -> Sequence[Value]:
    """Indices count the elements ``[H, W, C]`` of an image, or with the batch those of all."""
    window, strides = (tuple(ctx.attr(name)[1:-1]) for name in ("ksize", "strides"))
    if {*ctx.attr("ksize")[::3], *ctx.attr("strides")[::3]} != {1}:
        raise ctx.unsupported("its windows reach over batch or channels")
    ones = (1,) * len(window)
    padding = window_padding(ctx, x.shape[1:-1], window, strides, ones)
    op = MaxPoolIndices(window, strides, padding, ones)
    values, places = ctx.add_node(op, x, part="max_pool")
    batch, height, width, channels = x.shape
    numbers = ctx.add(ew.Mul(), places, ctx.add(Dims(channels), part="channels"), part="pixels")
    numbers = ctx.add(ew.Add(), numbers, count_up(ctx, channels, DType.INT64), part="elements")
    if ctx.attr("include_batch_in_index"):
        size = ctx.add(Dims(height * width * channels), part="size")
        images = ctx.add(ew.Mul(), count_up(ctx, batch, DType.INT64, "images"), size, part="starts")
        column = ctx.reshape(images, (batch, 1, 1, 1), part="image_starts")
        numbers = ctx.add(ew.Add(), numbers, column, part="all_elements")
    return values, ctx.cast(numbers, ctx.dtype("Targmax"))


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
