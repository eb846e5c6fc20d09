"""Pooling over windows, with ONNX's rounding up (`ceil_mode`)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.convolution import Pads, explicit_padding, per_axis
from planish.frontends.onnx.converters.layout import (
    channels_first,
    channels_last,
    require_image,
)
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, Value
from planish.ops import AvgPool, MaxPool, Pad, ReduceMean, ew


@dataclass(frozen=True)
class _Windows:
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: Pads
    """As the node states it."""
    extension: tuple[int, ...]
    """More padding after each dimension, so that rounding down counts a last, partial window."""

    @property
    def extended(self) -> Pads:
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
    extension = (0,) * spatial
    # with auto_pad the number of windows is given, and there is nothing to round
    if c.attr("ceil_mode", 0) and c.attr("auto_pad", "NOTSET") in ("NOTSET", ""):
        extension = tuple(
            _extension(c, extents[i], (window[i] - 1) * dilations[i] + 1, strides[i], *padding[i])
            for i in range(spatial)
        )
    return _Windows(window, strides, dilations, padding, extension)


def _extension(
    c: Conversion, extent: DimLike, span: int, stride: int, before: int, after: int
) -> int:
    """Extra padding for rounding up; a window that would start beyond the data is left out."""
    if isinstance(extent, int):
        count = -(-(extent + before + after - span) // stride) + 1
        if (count - 1) * stride >= extent + before:
            count -= 1
        needed = (count - 1) * stride + span - (extent + before + after)
        return max(needed, 0)
    if stride == 1:
        return 0
    if after + stride - 1 < span:  # then no window can start beyond the data
        return stride - 1
    raise c.unsupported(
        f"ceil_mode depends on the size {extent}, which is not fixed",
        cure="fix the size with inputs=",
    )


@converter("MaxPool")
def _max_pool(c: Conversion) -> Value:
    x = c.input(0)
    w = _windows(c, x)
    op = MaxPool(w.window, w.strides, w.extended, w.dilations)
    return channels_first(c, c.add(op, channels_last(c, x)))


@converter("AveragePool")
def _average_pool(c: Conversion) -> Value:
    x = c.input(0)
    w = _windows(c, x)
    if set(w.dilations) != {1}:
        raise c.unsupported(f"it has dilations {w.dilations}")
    y = channels_last(c, x)
    if not c.attr("count_include_pad", 0):
        y = c.add(AvgPool(w.window, w.strides, w.extended), y)
    elif not any(w.extension):
        y = c.add(AvgPool(w.window, w.strides, w.padding, True), y)
    else:  # the stated padding counts, what rounding up adds does not
        y = c.aux(Pad(((0, 0), *w.padding, (0, 0))), y)
        y = c.add(AvgPool(w.window, w.strides, tuple((0, more) for more in w.extension)), y)
    return channels_first(c, y)


@converter("LpPool")
def _lp_pool(c: Conversion) -> Value:
    """``(sum |x|^p)^(1/p)``; the sum is a mean times the window's size."""
    x, p = c.input(0), c.attr("p", 2)
    w = _windows(c, x)
    if set(w.dilations) != {1}:
        raise c.unsupported(f"it has dilations {w.dilations}")
    powers = c.aux(ew.Pow(), c.aux(ew.Abs(), x), c.scalar_like(p, x))
    mean = c.add(AvgPool(w.window, w.strides, w.extended, True), channels_last(c, powers))
    total = c.aux(ew.Mul(), mean, c.scalar_like(math.prod(w.window), x))
    return channels_first(c, c.aux(ew.Pow(), total, c.scalar_like(1 / p, x)))


@converter("GlobalAveragePool")
def _global_average_pool(c: Conversion) -> Value:
    x = channels_last(c, c.input(0))
    return channels_first(c, c.add(ReduceMean(tuple(range(1, x.type.rank - 1)), True), x))
