"""Sampling at computed positions: GridSample, AffineGrid, RoiAlign, DeformConv."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.convolution import explicit_padding, per_axis
from planish.frontends.onnx.converters.layout import (
    channels_first,
    channels_last,
    iota,
    require_image,
    reshaped,
    transposed,
)
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.graph.dims import product
from planish.ops import (
    BroadcastTo,
    Concat,
    Conv,
    DeformSample,
    Dims,
    GridSample,
    MatMul,
    RoiAlign,
    Transpose,
    ew,
)

_MODES = {"bilinear": "linear", "bicubic": "cubic"}


@converter("GridSample")
def _grid_sample(c: Conversion) -> Value:
    x, grid = c.input(0), c.input(1)
    require_image(c, x)
    mode = c.attr("mode", "linear")
    mode, border = _MODES.get(mode, mode), c.attr("padding_mode", "zeros")
    if mode not in ("nearest", "linear", "cubic"):
        raise c.unsupported(f"mode {mode!r}")
    if border not in ("zeros", "border", "reflection"):
        raise c.unsupported(f"padding_mode {border!r}")
    if not x.dtype.is_float:
        raise c.unsupported(f"its image is {x.dtype.value}")
    op = GridSample(mode, border, bool(c.attr("align_corners", 0)))
    return channels_first(c, c.add(op, channels_last(c, x), c.cast(grid, x.dtype)))


@converter("AffineGrid")
def _affine_grid(c: Conversion) -> Value:
    """Homogeneous positions of all output elements, times each image's matrix."""
    theta, size = c.input(0), c.dims(1, "the size")
    batch, _, *extents = size
    align, dtype = bool(c.attr("align_corners", 0)), theta.dtype
    full = (*extents, 1)
    columns = []
    for axis in range(len(extents) - 1, -1, -1):
        line = _coordinates(c, extents[axis], align, dtype)
        place = (1,) * axis + (extents[axis],) + (1,) * (len(extents) - axis)
        columns.append(c.aux(BroadcastTo(full), reshaped(c, line, place)))
    columns.append(c.aux(BroadcastTo(full), c.constant(1, dtype)))
    positions = c.aux(Concat(len(extents)), *columns)
    flat = reshaped(c, positions, (1, product(extents), len(extents) + 1))
    grid = c.add(MatMul(), flat, c.aux(Transpose((0, 2, 1)), theta))
    return reshaped(c, grid, (batch, *extents, len(extents)))


def _coordinates(c: Conversion, extent: DimLike, align: bool, dtype: DType) -> Value:
    """Positions of a dimension's elements between -1 and 1."""
    number = c.cast(iota(c, extent), dtype)
    two, one = c.constant(2, dtype), c.constant(1, dtype)
    if align:
        if extent == 1:
            return c.constant(np.full(1, -1), dtype)
        steps = c.cast(c.aux(Dims(extent - 1)), dtype)
        return c.aux(ew.Sub(), c.aux(ew.Div(), c.aux(ew.Mul(), number, two), steps), one)
    odd = c.aux(ew.Add(), c.aux(ew.Mul(), number, two), one)
    return c.aux(ew.Sub(), c.aux(ew.Div(), odd, c.cast(c.aux(Dims(extent)), dtype)), one)


@converter("RoiAlign")
def _roi_align_10(c: Conversion) -> Value:
    return _roi_align(c, half_pixel=False)


@converter("RoiAlign", since=16)
def _roi_align_16(c: Conversion) -> Value:
    mode = c.attr("coordinate_transformation_mode", "half_pixel")
    if mode not in ("half_pixel", "output_half_pixel"):
        raise c.unsupported(f"coordinate_transformation_mode {mode!r}")
    return _roi_align(c, half_pixel=mode == "half_pixel")


def _roi_align(c: Conversion, half_pixel: bool) -> Value:
    x, regions, images = c.input(0), c.input(1), c.input(2)
    mode = c.attr("mode", "avg")
    if mode not in ("avg", "max"):
        raise c.unsupported(f"mode {mode!r}")
    op = RoiAlign(
        (c.attr("output_height", 1), c.attr("output_width", 1)),
        c.attr("spatial_scale", 1.0),
        c.attr("sampling_ratio", 0),
        mode,
        half_pixel,
    )
    return channels_first(c, c.add(op, channels_last(c, x), regions, images))


@converter("DeformConv")
def _deform_conv(c: Conversion) -> Value:
    """What the windows hold, times the filters: a convolution over the taps of each position."""
    x, w, offsets = c.input(0), c.input(1), c.input(2)
    spatial = require_image(c, x)
    window = _window(c, w, spatial)
    strides, dilations = (per_axis(c, name, spatial) for name in ("strides", "dilations"))
    padding = explicit_padding(c, x.shape[2:], window, strides, dilations)
    op = DeformSample(window, strides, padding, dilations, c.attr("offset_group", 1))
    inputs = [x, offsets]
    if (factors := c.optional(4)) is not None:
        inputs.append(factors)
    held = c.aux(op, *(channels_last(c, v) for v in inputs))
    batch, *size, taps, channels = held.shape
    rows = reshaped(c, held, (batch, product(size), taps, channels))
    per_group, filters = w.shape[1], w.shape[0]
    weights = transposed(c, w, (*range(2, w.type.rank), 1, 0))
    weights = reshaped(c, weights, (1, op.taps, per_group, filters))
    once = ((0, 0), (0, 0))
    product_of = Conv((1, 1), once, (1, 1), c.attr("group", 1))
    y = reshaped(c, c.add(product_of, rows, weights), (batch, *size, filters))
    if (bias := c.optional(3)) is not None:
        y = c.aux(ew.Add(), y, bias)
    return channels_first(c, y)


def _window(c: Conversion, w: Value, spatial: int) -> tuple[int, ...]:
    extents: Sequence[DimLike] = w.shape[2:]
    window = tuple(d for d in extents if isinstance(d, int))
    if len(window) != spatial or c.attr("kernel_shape") not in (None, window):
        raise c.shape_error(f"{c.node.op_type} has filters {w.type}")
    return window
