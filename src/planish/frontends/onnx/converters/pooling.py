"""Pooling over windows, with ONNX's rounding up (`ceil_mode`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.convolution import explicit_padding, per_axis
from planish.frontends.onnx.converters.layout import (
    channels_first,
    channels_last,
    iota,
    require_image,
    reshaped,
)
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, Value
from planish.graph.dims import ceildiv, product
from planish.ops import (
    AvgPool,
    BroadcastTo,
    Dims,
    MaxPool,
    MaxPoolIndices,
    Pad,
    ReduceMean,
    ScatterNd,
    ew,
)
from planish.ops.conv import Padding


@dataclass(frozen=True)
class _Windows:
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: Padding
    """As the node states it."""
    extension: tuple[DimLike, ...]
    """More padding after each dimension, so that rounding down counts a last, partial window."""

    @property
    def extended(self) -> Padding:
        return tuple(
            (before, after + more)
            for (before, after), more in zip(self.padding, self.extension, strict=True)
        )


def _windows(c: Conversion, x: Value) -> _Windows:
    spatial = require_image(c, x)
    window = per_axis(c, "kernel_shape", spatial)
    strides, dilations = (per_axis(c, name, spatial) for name in ("strides", "dilations"))
    extents = x.shape[2:]
    padding = explicit_padding(c, extents, window, strides, dilations)
    extension: tuple[DimLike, ...] = (0,) * spatial
    # with auto_pad the number of windows is given, and there is nothing to round
    if c.attr("ceil_mode", 0) and c.attr("auto_pad", "NOTSET") in ("NOTSET", ""):
        extension = tuple(
            _extension(extents[i], (window[i] - 1) * dilations[i] + 1, strides[i], padding[i])
            for i in range(spatial)
        )
    return _Windows(window, strides, dilations, padding, extension)


def _extension(
    extent: DimLike, span: int, stride: int, padding: tuple[DimLike, DimLike]
) -> DimLike:
    """Extra padding for rounding up; a window that would start beyond the data is left out."""
    before, after = padding
    padded = extent + before + after
    assert isinstance(after, int)  # as stated: rounding up excludes padding by a rule
    if after + stride <= span:  # then no window can start beyond the data
        if not isinstance(extent, int):
            return stride - 1
        count = ceildiv(padded - span, stride) + 1
    else:
        count = ceildiv(extent + before, stride)
    needed = (count - 1) * stride + span - padded
    return max(needed, 0) if isinstance(needed, int) else needed


@converter("MaxPool")
def _max_pool(c: Conversion) -> Value | Sequence[Value]:
    x = c.input(0)
    w = _windows(c, x)
    if not c.wants(1):
        op = MaxPool(w.window, w.strides, w.extended, w.dilations)
        return channels_first(c, c.add(op, channels_last(c, x)))
    node = c.add_node(
        MaxPoolIndices(w.window, w.strides, w.extended, w.dilations), channels_last(c, x)
    )
    values, places = (channels_first(c, v) for v in node.outputs)
    return values, _in_tensor(c, places, x.shape)


def _in_tensor(c: Conversion, places: Value, shape: Sequence[DimLike]) -> Value:
    """Places inside an image's channel, as places in the whole tensor ``[N, C, *spatial]``."""
    batch, channels, *extents = shape
    if c.attr("storage_order", 0):  # column-major inside a channel
        places = _column_major(c, places, extents)
    images = iota(c, batch * channels)
    start = c.aux(ew.Mul(), images, c.aux(Dims(product(extents))))
    apart = reshaped(c, start, (batch, channels, *(1,) * len(extents)))
    return c.aux(ew.Add(), places, apart)


def _column_major(c: Conversion, places: Value, extents: Sequence[DimLike]) -> Value:
    """Row-major places as those where the first dimension runs fastest."""
    result, rest = None, places
    for axis in range(len(extents) - 1, -1, -1):
        extent = c.aux(Dims(extents[axis]))
        index = rest
        if axis:
            index = c.aux(ew.FloorMod(), rest, extent)
            rest = c.aux(ew.FloorDiv(), rest, extent)
        step = c.aux(Dims(product(extents[:axis])))
        part = c.aux(ew.Mul(), index, step)
        result = part if result is None else c.aux(ew.Add(), result, part)
    assert result is not None
    return result


@converter("MaxUnpool")
def _max_unpool(c: Conversion) -> Value:
    """The maxima written to their places in zeros."""
    x, places = c.input(0), c.input(1)
    spatial = require_image(c, x)
    window, strides = (per_axis(c, name, spatial) for name in ("kernel_shape", "strides"))
    pads = tuple(c.attr("pads", (0,) * (2 * spatial)))
    if len(pads) != 2 * spatial:
        raise c.shape_error(f"MaxUnpool over {spatial} dimensions has pads {pads}")
    size = tuple(
        (n - 1) * stride + w - before - after
        for n, stride, w, before, after in zip(
            x.shape[2:], strides, window, pads[:spatial], pads[spatial:], strict=True
        )
    )
    shape = (*x.shape[:2], *size)
    zeros = c.aux(BroadcastTo((product(shape),)), c.scalar_like(0, x))
    elements = x.type.elements
    updates = reshaped(c, x, (elements,))
    indices = reshaped(c, places, (elements, 1))
    y = reshaped(c, c.add(ScatterNd(), zeros, indices, updates), shape)
    if c.optional(2) is None:
        return y
    # places count in the shape that follows from the window; what is asked for may be larger
    wanted = c.dims(2, "the output shape")
    if len(wanted) != len(shape):
        raise c.shape_error(f"MaxUnpool gives {len(shape)} dimensions, not the shape {wanted}")
    around = tuple((0, want - have) for have, want in zip(shape, wanted, strict=True))
    if any(not isinstance(after, int) or after < 0 for _, after in around):
        raise c.unsupported(f"its output shape {wanted} is not at least {shape}")
    return c.aux(Pad(around), y) if any(after for _, after in around) else y


@converter("AveragePool")
def _average_pool(c: Conversion) -> Value:
    x = c.input(0)
    w = _windows(c, x)
    y = channels_last(c, x)
    if not c.attr("count_include_pad", 0):
        y = c.add(AvgPool(w.window, w.strides, w.extended, False, w.dilations), y)
    elif not any(w.extension):
        y = c.add(AvgPool(w.window, w.strides, w.padding, True, w.dilations), y)
    else:  # the stated padding counts, what rounding up adds does not
        y = c.aux(Pad(((0, 0), *w.padding, (0, 0))), y)
        beyond = tuple((0, more) for more in w.extension)
        y = c.add(AvgPool(w.window, w.strides, beyond, False, w.dilations), y)
    return channels_first(c, y)


@converter("LpPool")
def _lp_pool(c: Conversion) -> Value:
    """``(sum |x|^p)^(1/p)``; the sum is a mean times the window's size."""
    x, p = c.input(0), c.attr("p", 2)
    w = _windows(c, x)
    powers = c.aux(ew.Square(), x) if p == 2 else c.aux(ew.Abs(), x)
    if p not in (1, 2):
        powers = c.aux(ew.Pow(), powers, c.scalar_like(p, x))
    op = AvgPool(w.window, w.strides, w.extended, True, w.dilations)
    mean = c.add(op, channels_last(c, powers))
    total = c.aux(ew.Mul(), mean, c.scalar_like(math.prod(w.window), x))
    if p == 2:
        total = c.aux(ew.Sqrt(), total)
    elif p != 1:
        total = c.aux(ew.Pow(), total, c.scalar_like(1 / p, x))
    return channels_first(c, total)


@converter("GlobalAveragePool")
def _global_average_pool(c: Conversion) -> Value:
    x = channels_last(c, c.input(0))
    return channels_first(c, c.add(ReduceMean(tuple(range(1, x.type.rank - 1)), True), x))
