"""Convolutions, also transposed, depthwise and fused."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.arithmetic import activation
from planish.frontends.tensorflow.context import Context, converter
from planish.frontends.tensorflow.layout import (
    from_channels_last,
    is_channels_first,
    main_part,
    spatial,
    to_channels_last,
    window_padding,
)
from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.ops.conv import Conv, ConvTranspose
from planish.ops.elementwise import ew
from planish.ops.normalization import BatchNorm


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


@converter("Conv2DBackpropInput", "Conv3DBackpropInputV2", "Conv3DBackpropInput")
def _transposed(ctx: Context, sizes: Value, filters: Value, x: Value) -> Value:
    """Transposed convolution; its filters are ``[*window, K / groups, C]``."""
    strides = spatial(ctx, ctx.attr("strides"), "strides")
    dilations = spatial(ctx, ctx.attr("dilations"), "dilations")
    x = to_channels_last(ctx, x)
    target, channels = _target_sizes(ctx, sizes, x, filters)
    window = _window(ctx, filters.shape[:-2])
    padding = window_padding(ctx, target, window, strides, dilations)
    per_group = filters.shape[-2]
    groups = 1
    if isinstance(channels, int) and isinstance(per_group, int) and per_group:
        groups = max(channels // per_group, 1)
    before = tuple(before for before, _ in padding)
    op = ConvTranspose(target, strides, before, dilations, groups)
    exchanged = _exchange(ctx, filters, groups)
    return from_channels_last(ctx, ctx.add(op, x, exchanged, part=main_part(ctx)))


def _target_sizes(
    ctx: Context, sizes: Value, x: Value, filters: Value
) -> tuple[tuple[DimLike, ...], DimLike]:
    """The spatial dimensions and the channels of a transposed convolution's result.

    Where its sizes come from another tensor's shape, of which only the spatial ones matter, they
    are the dimensions of that shape; else they must not depend on the data.
    """
    like = ctx.node.op == "Conv3DBackpropInput"  # the first version takes a tensor of that shape
    dims = sizes.shape if like else ctx.dims(sizes, "output size")
    if len(dims) == x.type.rank - 2:
        return dims, filters.shape[-2]
    return (dims[2:], dims[1]) if is_channels_first(ctx) else (dims[1:-1], dims[-1])


def _exchange(ctx: Context, filters: Value, groups: int) -> Value:
    """``[*window, K / groups, C]`` as ``[*window, C / groups, K]``."""
    window = filters.type.rank - 2
    *extents, per_group, channels = filters.shape
    if groups == 1:
        return ctx.transpose(filters, (*range(window), window + 1, window), part="filters")
    apart = (*extents, per_group, groups, channels // groups)
    grouped = ctx.reshape(filters, apart, part="groups")
    order = (*range(window), window + 2, window + 1, window)
    turned = ctx.transpose(grouped, order, part="exchanged")
    return ctx.reshape(turned, (*extents, channels // groups, groups * per_group), part="filters")


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
