"""Convolutions, also transposed, depthwise and fused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.tensorflow.arithmetic import activation
from planish.frontends.tensorflow.context import Context, converter
from planish.frontends.tensorflow.layout import (
    Padding,
    from_channels_last,
    is_channels_first,
    main_part,
    spatial,
    to_channels_last,
    window_padding,
)
from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.normalization import BatchNorm
from planish.ops.shape import Pad, Reshape, Slice


@converter("Conv2D", "Conv3D")
def _conv(ctx: Context, x: Value, filters: Value) -> Value:
    return from_channels_last(ctx, _convolve(ctx, to_channels_last(ctx, x), filters))


def _convolve(ctx: Context, x: Value, filters: Value, part: str | None = None) -> Value:
    """Convolution of a channels-last `x` by the node's attributes."""
    strides = spatial(ctx, ctx.attr("strides"), "strides")
    dilations = spatial(ctx, ctx.attr("dilations"), "dilations")
    channels, per_group = x.shape[-1], filters.shape[-2]
    if not isinstance(channels, int) or not isinstance(per_group, int):
        raise ctx.unsupported("the number of its input channels is unknown")
    window = _window(ctx, filters.shape[:-2])
    padding = window_padding(ctx, x.shape[1:-1], window, strides, dilations)
    groups = channels // per_group if per_group else 1
    op = Conv(strides, padding, dilations, max(groups, 1))
    return ctx.add(op, x, filters, part=main_part(ctx) if part is None else part)


def _window(ctx: Context, dims: Sequence[DimLike]) -> tuple[int, ...]:
    window = tuple(d for d in dims if isinstance(d, int))
    if len(window) != len(dims):
        raise ctx.unsupported("the size of its filters is unknown")
    return window


@converter("DepthwiseConv2dNative")
def _depthwise(ctx: Context, x: Value, filters: Value) -> Value:
    return from_channels_last(ctx, _depthwise_convolve(ctx, to_channels_last(ctx, x), filters))


def _depthwise_convolve(ctx: Context, x: Value, filters: Value, part: str | None = None) -> Value:
    """Filters ``[height, width, C, multiplier]`` become C groups of `multiplier` filters."""
    *window, channels, multiplier = filters.shape
    grouped = ctx.reshape(filters, (*window, 1, channels * multiplier), part="filters")
    return _convolve(ctx, x, grouped, part)


@converter("Conv2DBackpropInput")
def _conv_2d_backprop(ctx: Context, sizes: Value, filters: Value, x: Value) -> Value:
    return _transposed(ctx, sizes, filters, x)


@converter("Conv3DBackpropInputV2")
def _conv_3d_backprop(ctx: Context, sizes: Value, filters: Value, x: Value) -> Value:
    return _transposed(ctx, sizes, filters, x)


def _transposed(ctx: Context, sizes: Value, filters: Value, x: Value) -> Value:
    """Transposed convolution: a convolution of `x` with zeros put between its elements.

    Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285,
    section 4: the filters are flipped and their channels exchanged.
    """
    strides = spatial(ctx, ctx.attr("strides"), "strides")
    dilations = spatial(ctx, ctx.attr("dilations"), "dilations")
    x = to_channels_last(ctx, x)
    target = _target_sizes(ctx, sizes, x)
    window = _window(ctx, filters.shape[:-2])
    padding = window_padding(ctx, target, window, strides, dilations)
    spread = _spread(ctx, x, strides)
    spans = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
    around: list[tuple[int, int]] = []
    for have, want, span, (before, _) in zip(
        spread.shape[1:-1], target, spans, padding, strict=True
    ):
        after = want - have - (span - 1 - before) + span - 1
        if not isinstance(after, int):
            raise ctx.unsupported(f"its output size {want} does not follow from its input's {have}")
        around.append((span - 1 - before, after))
    spread, around_now = _crop(ctx, spread, around)
    flipped = _exchange(ctx, filters)
    op = Conv((1,) * len(window), around_now, dilations)
    return from_channels_last(ctx, ctx.add(op, spread, flipped, part=main_part(ctx)))


def _target_sizes(ctx: Context, sizes: Value, x: Value) -> tuple[DimLike, ...]:
    dims = ctx.dims(sizes, "output size")
    if len(dims) == x.type.rank - 2:
        return dims
    return dims[2:] if is_channels_first(ctx) else dims[1:-1]


def _spread(ctx: Context, x: Value, strides: Sequence[int]) -> Value:
    """Puts ``stride - 1`` zeros after each element of the spatial dimensions."""
    if all(s == 1 for s in strides):
        return x
    batch, *sizes, channels = x.shape
    apart: list[DimLike] = [batch]
    padding = [(0, 0)]
    for size, stride in zip(sizes, strides, strict=True):
        apart += [size, 1]
        padding += [(0, 0), (0, stride - 1)]
    padding.append((0, 0))
    column = ctx.add(Reshape((*apart, channels)), x, part="apart")
    padded = ctx.add(Pad(tuple(padding)), column, part="zeros")
    spread = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    return ctx.add(Reshape((batch, *spread, channels)), padded, part="spread")


def _crop(ctx: Context, x: Value, padding: Sequence[tuple[int, int]]) -> tuple[Value, Padding]:
    """Cuts `x` where the padding is negative; what is left of the padding."""
    begin: list[DimLike] = [0] * x.type.rank
    size = list(x.shape)
    for axis, (before, after) in enumerate(padding, start=1):
        begin[axis] = max(-before, 0)
        size[axis] = size[axis] - max(-before, 0) - max(-after, 0)
    if tuple(size) != x.shape:
        x = ctx.add(Slice(tuple(begin), tuple(size), (1,) * len(size)), x, part="crop")
    return x, tuple((max(before, 0), max(after, 0)) for before, after in padding)


def _exchange(ctx: Context, filters: Value) -> Value:
    """Filters flipped in space, with input and output channels exchanged."""
    window = filters.type.rank - 2
    order = (*range(window), window + 1, window)
    if filters.data is not None:
        flipped = np.flip(filters.data, tuple(range(window))).transpose(order)
        return ctx.constant(np.ascontiguousarray(flipped), part="filters")
    begin = (*(d - 1 for d in filters.shape[:window]), 0, 0)
    steps = (-1,) * window + (1, 1)
    reverse = ctx.add(Slice(begin, filters.shape, steps), filters, part="flip")
    return ctx.transpose(reverse, order, part="filters")


# ---- ops that TensorFlow's own optimizer has fused ---------------------------------------------


@converter("_FusedConv2D", "_FusedDepthwiseConv2dNative")
def _fused_conv(ctx: Context, x: Value, filters: Value, *rest: Value) -> Value:
    x = to_channels_last(ctx, x)
    depthwise = ctx.node.op != "_FusedConv2D"
    result = (_depthwise_convolve if depthwise else _convolve)(ctx, x, filters, "conv")
    return from_channels_last(ctx, apply_fused(ctx, result, rest))


def apply_fused(ctx: Context, x: Value, arguments: Sequence[Value]) -> Value:
    """Applies the node's `fused_ops`, in order, to a channels-last `x`.

    Raises
    ------
    UnsupportedOpError
        One of them is unknown.
    """
    pending = list(arguments)
    fused: list[str] = ctx.attr("fused_ops")
    alpha = {"alpha": ctx.attr("leakyrelu_alpha")} if "LeakyRelu" in fused else {}
    for i, name in enumerate(fused):
        part = "" if i == len(fused) - 1 else name.lower()
        op = activation(name, alpha)
        if op is not None:
            x = ctx.add(op, x, part=part)
        elif name in ("BiasAdd", "Add"):
            x = ctx.add(ew.Add(), x, pending.pop(0), part=part)
        elif name == "FusedBatchNorm":
            parameters, pending = pending[:4], pending[4:]
            x = ctx.add(BatchNorm(ctx.attr("epsilon")), x, *parameters, part=part)
        else:
            raise ctx.unsupported(f"it has {name} fused into it")
    return x


@converter("FusedConv2DBiasActivation")
def _fused_conv_bias_activation(
    ctx: Context, x: Value, filters: Value, bias: Value, side: Value, *scales: Value
) -> Value:
    if ctx.attr("filter_format") == "OIHW":
        filters = ctx.transpose(filters, (2, 3, 1, 0), part="filters")
    elif ctx.attr("filter_format") != "HWIO":
        raise ctx.unsupported(f"its filter_format is {ctx.attr('filter_format')}")
    result = _convolve(ctx, to_channels_last(ctx, x), filters, "conv")
    conv_scale, side_scale = (ctx.number(s, "scale") for s in scales[:2])
    if conv_scale != 1:
        scale = ctx.constant(conv_scale, result.dtype)
        result = ctx.add(ew.Mul(), result, scale, part="conv_scale")
    if side.type.elements != 0 and side_scale != 0:
        side = to_channels_last(ctx, side)
        if side_scale != 1:
            side = ctx.add(ew.Mul(), side, ctx.constant(side_scale, side.dtype), part="side_scale")
        result = ctx.add(ew.Add(), result, side, part="side")
    mode = ctx.attr("activation_mode")
    op = None if mode == "None" else activation(mode, {})
    if op is None and mode != "None":
        raise ctx.unsupported(f"its activation_mode is {mode}")
    last = "" if op is None and not is_channels_first(ctx) else "bias"
    result = ctx.add(ew.Add(), result, bias, part=last)
    if op is not None:
        result = ctx.add(op, result, part=main_part(ctx))
    return from_channels_last(ctx, result)
