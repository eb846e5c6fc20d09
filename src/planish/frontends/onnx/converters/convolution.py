"""Convolutions, and the padding rules that they share with pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import (
    channels_first,
    channels_last,
    require_image,
    reshaped,
    transposed,
)
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, Value
from planish.graph.dims import dim_max, floordiv
from planish.ops import Conv, ConvTranspose, Fold, ew, window_output
from planish.ops.conv import Padding, same_padding


@converter("Conv")
def _conv(c: Conversion) -> Value:
    x, (op, filters) = c.input(0), convolution(c, c.input(0), c.input(1))
    y = c.add(op, channels_last(c, x), filters)
    if (bias := _bias(c)) is not None:
        y = c.aux(ew.Add(), y, bias)
    return channels_first(c, y)


def _bias(c: Conversion) -> Value | None:
    """The bias of a convolution, a vector.

    PyTorch's exporter gives one to 3-D convolutions that have none: zeros, in two columns.
    """
    bias = c.optional(2)
    if bias is None or bias.type.rank == 1:
        return bias
    known = c.known(bias)
    if known is None or known.any():
        raise c.shape_error(f"{c.node.op_type} has a bias {bias.type}", "it must be a vector")
    return None


def convolution(c: Conversion, x: Value, w: Value) -> tuple[Conv, Value]:
    """The node's convolution of ``[N, C, *spatial]`` as our op, and its filters as that wants them.

    Raises
    ------
    ShapeError
        The filters, or an attribute, do not fit.
    UnsupportedOpError
        The padding cannot be expressed.
    """
    spatial = require_image(c, x)
    if w.type.rank != x.type.rank:
        raise c.shape_error(f"{c.node.op_type} of {x.type} has filters {w.type}")
    window = w.shape[2:]
    declared = c.attr("kernel_shape")
    if not all(isinstance(d, int) for d in window) or declared not in (None, window):
        raise c.shape_error(f"{c.node.op_type} has filters {w.type} and kernel_shape {declared}")
    strides, dilations = (per_axis(c, name, spatial) for name in ("strides", "dilations"))
    extents = [int(d) for d in window]  # type: ignore[arg-type]
    padding = explicit_padding(c, x.shape[2:], extents, strides, dilations)
    # [K, C / groups, *window] to [*window, C / groups, K]
    filters = transposed(c, w, (*range(2, w.type.rank), 1, 0))
    return Conv(strides, padding, dilations, c.attr("group", 1)), filters


@converter("ConvTranspose")
def _conv_transpose(c: Conversion) -> Value:
    x, w = c.input(0), c.input(1)
    spatial = require_image(c, x)
    if w.type.rank != x.type.rank:
        raise c.shape_error(f"ConvTranspose of {x.type} has filters {w.type}")
    window, groups = w.shape[2:], c.attr("group", 1)
    declared = c.attr("kernel_shape")
    if not all(isinstance(d, int) for d in window) or declared not in (None, window):
        raise c.shape_error(f"ConvTranspose has filters {w.type} and kernel_shape {declared}")
    strides, dilations = (per_axis(c, name, spatial) for name in ("strides", "dilations"))
    spans = [(int(n) - 1) * d + 1 for n, d in zip(window, dilations, strict=True)]  # type: ignore[arg-type]
    size, before = _transposed_sizes(c, x.shape[2:], spans, strides)
    op = ConvTranspose(size, strides, before, dilations, groups)
    y = c.add(op, channels_last(c, x), _grouped_filters(c, w, groups))
    if (bias := c.optional(2)) is not None:
        y = c.aux(ew.Add(), y, bias)
    return channels_first(c, y)


def _transposed_sizes(
    c: Conversion, extents: Sequence[DimLike], spans: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[DimLike, ...], tuple[DimLike, ...]]:
    """The spatial dimensions of the result, and what is cut off before each of them."""
    spatial, mode = len(spans), c.attr("auto_pad", "NOTSET")
    more = tuple(c.attr("output_padding", ())) or (0,) * spatial
    if len(more) != spatial or min(more, default=0) < 0:
        raise c.shape_error(f"ConvTranspose over {spatial} dimensions has output_padding {more}")
    full = [
        (extent - 1) * stride + span + extra
        for extent, stride, span, extra in zip(extents, strides, spans, more, strict=True)
    ]
    wanted: tuple[DimLike, ...] = tuple(c.attr("output_shape", ()))[-spatial:]
    if mode in ("SAME_UPPER", "SAME_LOWER") and not wanted:
        wanted = tuple(extent * stride for extent, stride in zip(extents, strides, strict=True))
    if wanted:
        total = [dim_max(have - want, 0) for have, want in zip(full, wanted, strict=True)]
        upper = mode == "SAME_UPPER"
        return wanted, tuple(floordiv(t if upper else t + 1, 2) for t in total)
    if mode not in ("NOTSET", "", "VALID"):
        raise c.unsupported(f"auto_pad {mode!r}")
    pads = (0,) * (2 * spatial) if mode == "VALID" else tuple(c.attr("pads", (0,) * (2 * spatial)))
    if len(pads) != 2 * spatial:
        raise c.shape_error(f"ConvTranspose over {spatial} dimensions has pads {pads}")
    before, after = pads[:spatial], pads[spatial:]
    return tuple(f - b - a for f, b, a in zip(full, before, after, strict=True)), before


def _grouped_filters(c: Conversion, w: Value, groups: int) -> Value:
    """``[C, K / groups, *window]`` as ``[*window, C / groups, K]``."""
    channels, per_group, *window = w.shape
    spatial = range(2, w.type.rank)
    if groups == 1:
        return transposed(c, w, (*spatial, 0, 1))
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        raise c.shape_error(f"ConvTranspose of {groups} groups has filters {w.type}")
    apart = reshaped(c, w, (groups, channels // groups, per_group, *window))
    turned = transposed(c, apart, (*(a + 1 for a in spatial), 1, 0, 2))
    return reshaped(c, turned, (*window, channels // groups, per_group * groups))


def per_axis(c: Conversion, name: str, spatial: int) -> tuple[int, ...]:
    """An attribute with a number for each spatial dimension, 1 by default.

    Raises
    ------
    ShapeError
        There are more or fewer, or one is not positive.
    """
    values = tuple(c.attr(name, (1,) * spatial))
    if len(values) != spatial or min(values, default=1) < 1:
        raise c.shape_error(f"{c.node.op_type} over {spatial} dimensions has {name} {values}")
    return values


def explicit_padding(
    c: Conversion,
    extents: Sequence[DimLike],
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Padding:
    """The attributes `pads` and `auto_pad` as amounts before and after each spatial dimension.

    Raises
    ------
    UnsupportedOpError
        The amounts are negative.
    ShapeError
        `pads` does not fit.
    """
    spatial, mode = len(window), c.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        return ((0, 0),) * spatial
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(
            same_padding(extent, w, stride, d, lower=mode == "SAME_LOWER")
            for extent, w, stride, d in zip(extents, window, strides, dilations, strict=True)
        )
    if mode not in ("NOTSET", ""):
        raise c.unsupported(f"auto_pad {mode!r}")
    pads = tuple(c.attr("pads", (0,) * (2 * spatial)))
    if len(pads) != 2 * spatial:
        raise c.shape_error(f"{c.node.op_type} over {spatial} dimensions has pads {pads}")
    if min(pads, default=0) < 0:
        raise c.unsupported(f"its pads {pads} are negative")
    return tuple(zip(pads[:spatial], pads[spatial:], strict=True))


@converter("Col2Im")
def _col2im(c: Conversion) -> Value:
    """``[N, C * taps, positions]``: windows put back into ``[N, C, *size]``."""
    x = c.input(0)
    size, window = c.dims(1, "the image's shape"), c.integers(2, "the block's shape")
    spatial = len(size)
    if x.type.rank != 3 or len(window) != spatial or min(window, default=1) < 1:
        raise c.shape_error(f"Col2Im to {size} by windows {window} has the input {x.type}")
    strides, dilations = (per_axis(c, name, spatial) for name in ("strides", "dilations"))
    pads = tuple(c.attr("pads", (0,) * (2 * spatial)))
    if len(pads) != 2 * spatial or min(pads, default=0) < 0:
        raise c.shape_error(f"Col2Im over {spatial} dimensions has pads {pads}")
    positions = [
        window_output(n, w, s, d, before, after)
        for n, w, s, d, before, after in zip(
            size, window, strides, dilations, pads[:spatial], pads[spatial:], strict=True
        )
    ]
    taps = math.prod(window)
    batch, channels = x.shape[0], floordiv(x.shape[1], taps)
    apart = reshaped(c, x, (batch, channels, taps, *positions))
    last = transposed(c, apart, (0, *range(3, spatial + 3), 2, 1))
    return channels_first(c, c.add(Fold(size, window, strides, pads[:spatial], dilations), last))
