"""Convolutions, and the padding rules that they share with pooling."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import (
    channels_first,
    channels_last,
    require_image,
    transposed,
)
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, Value
from planish.graph.dims import ceildiv
from planish.ops import Conv, ew

Pads = tuple[tuple[int, int], ...]


@converter("Conv")
def _conv(c: Conversion) -> Value:
    x, w = c.input(0), c.input(1)
    spatial = require_image(c, x)
    if w.type.rank != x.type.rank:
        raise c.shape_error(f"Conv of {x.type} has filters {w.type}")
    window = w.shape[2:]
    declared = c.attr("kernel_shape")
    if not all(isinstance(d, int) for d in window) or declared not in (None, window):
        raise c.shape_error(f"Conv has filters {w.type} and kernel_shape {declared}")
    strides, dilations = (per_axis(c, name, spatial) for name in ("strides", "dilations"))
    extents = [int(d) for d in window]  # type: ignore[arg-type]
    padding = explicit_padding(c, x.shape[2:], extents, strides, dilations)
    # [K, C / groups, *window] to [*window, C / groups, K]
    filters = transposed(c, w, (*range(2, w.type.rank), 1, 0))
    op = Conv(strides, padding, dilations, c.attr("group", 1))
    y = c.add(op, channels_last(c, x), filters)
    if (bias := c.optional(2)) is not None:
        y = c.aux(ew.Add(), y, bias)
    return channels_first(c, y)


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
) -> Pads:
    """The attributes `pads` and `auto_pad` as amounts before and after each spatial dimension.

    Raises
    ------
    UnsupportedOpError
        The amounts depend on a symbolic dimension, or are negative.
    ShapeError
        `pads` does not fit.
    """
    spatial, mode = len(window), c.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        return ((0, 0),) * spatial
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return tuple(
            _same_padding(c, extent, (w - 1) * d + 1, stride, mode == "SAME_LOWER")
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


def _same_padding(
    c: Conversion, extent: DimLike, span: int, stride: int, lower: bool
) -> tuple[int, int]:
    if stride == 1:
        total: DimLike = span - 1
    else:
        total = (ceildiv(extent, stride) - 1) * stride + span - extent
    if not isinstance(total, int):
        raise c.unsupported(
            f"auto_pad SAME depends on the size {extent}, which is not fixed",
            cure="fix the size with inputs=, or export the model with explicit pads",
        )
    total = max(total, 0)
    less, more = total // 2, total - total // 2
    return (more, less) if lower else (less, more)
