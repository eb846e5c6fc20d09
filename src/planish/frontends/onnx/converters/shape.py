"""Operators that change or read shapes: reshape, transpose, squeeze, expand, tile, pad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.counting import refilled
from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import broadcast, reshaped
from planish.frontends.onnx.converters.sizes import items, reshape_target, size, sizes
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.graph.dims import product
from planish.ops import (
    BroadcastTo,
    Dims,
    Gather,
    Pad,
    Reshape,
    Select,
    Slice,
    Tile,
    Transpose,
    broadcast_shapes,
    expand_shape,
    normalize_axis,
    resolve_reshape,
    squeeze_shape,
)


def _reshape_to(c: Conversion, x: Value, shape: Sequence[DimLike]) -> Value:
    return x if tuple(shape) == x.shape else c.add(Reshape(tuple(shape)), x)


LONGEST_WRAPPED = 1 << 24
"""Elements of a dimension that Pad wraps: each of them is an index in a constant."""


@converter("Reshape")
def _reshape(c: Conversion) -> Value:
    x = c.input(0)
    target = items(c, 1, "the shape")
    known = [item for item in target if not isinstance(item, Value)]
    if len(known) < len(target):
        return _reshape_to(c, x, reshape_target(c, x, target))
    zero_copies = not c.attr("allowzero", 0)
    return _reshape_to(c, x, resolve_reshape(x.shape, known, zero_copies=zero_copies))


@converter("Flatten")
def _flatten(c: Conversion) -> Value:
    x, rank = c.input(0), c.input(0).type.rank
    axis = c.attr("axis", 1)
    axis = rank if axis == rank else normalize_axis(axis, max(rank, 1))
    return _reshape_to(c, x, (product(x.shape[:axis]), product(x.shape[axis:])))


@converter("Squeeze")
def _squeeze_by_attribute(c: Conversion) -> Value:
    return _reshape_to(c, c.input(0), squeeze_shape(c.input(0).shape, c.attr("axes")))


@converter("Squeeze", since=13)
def _squeeze(c: Conversion) -> Value:
    axes = c.integers(1, "the list of axes") if c.optional(1) else None
    return _reshape_to(c, c.input(0), squeeze_shape(c.input(0).shape, axes))


@converter("Unsqueeze")
def _unsqueeze_by_attribute(c: Conversion) -> Value:
    return _reshape_to(c, c.input(0), expand_shape(c.input(0).shape, c.attr("axes", ())))


@converter("Unsqueeze", since=13)
def _unsqueeze(c: Conversion) -> Value:
    axes = c.integers(1, "the list of axes")
    return _reshape_to(c, c.input(0), expand_shape(c.input(0).shape, axes))


@converter("Transpose")
def _transpose(c: Conversion) -> Value:
    x = c.input(0)
    return c.add(Transpose(c.attr("perm", tuple(reversed(range(x.type.rank))))), x)


@converter("Expand")
def _expand(c: Conversion) -> Value:
    x = c.input(0)
    wanted = items(c, 1, "the shape")
    if any(isinstance(item, Value) for item in wanted):
        own = [1] * (len(wanted) - x.type.rank) + list(x.shape)
        # a size that depends on the data is 1, or the tensor's own, where that is not 1
        wanted = [
            own[i - len(wanted)] if isinstance(w, Value) and own[i - len(wanted)] != 1 else w
            for i, w in enumerate(wanted)
        ]
    shape = broadcast_shapes(x.shape, [size(c, item) for item in wanted])
    return x if shape == x.shape else c.add(BroadcastTo(shape), x)


@converter("Tile")
def _tile(c: Conversion) -> Value:
    return c.add(Tile(sizes(c, 1, "the number of repeats")), c.input(0))


@converter("Shape")
def _shape(c: Conversion) -> Value:
    shape = c.input(0).shape
    return _dims(c, tuple(shape[c.attr("start", 0) : c.attr("end", len(shape))]))


@converter("Size")
def _size(c: Conversion) -> Value:
    return _dims(c, product(c.input(0).shape))


def _dims(c: Conversion, values: tuple[DimLike, ...] | DimLike) -> Value:
    listed = values if isinstance(values, tuple) else (values,)
    if all(isinstance(d, int) for d in listed):
        return c.constant(np.array(values, np.int64))
    return c.add(Dims(values))


@converter("Pad")
def _pad_by_attributes(c: Conversion) -> Value:
    return _padded(c, c.attr("pads", c.attr("paddings", ())), c.attr("value", 0.0), None)


@converter("Pad", since=11)
def _pad(c: Conversion) -> Value:
    value: float | Value = 0.0
    if (filler := c.optional(2)) is not None and filler.type.elements != 0:
        known = c.known(filler)
        value = filler if known is None else known.reshape(-1)[0].item()
    axes = c.integers(3, "the list of axes") if c.optional(3) else None
    return _padded(c, c.dims(1, "the padding"), value, axes)


def _padded(
    c: Conversion, pads: Sequence[DimLike], value: float | Value, axes: Sequence[int] | None
) -> Value:
    x, mode = c.input(0), c.attr("mode", "constant")
    rank = x.type.rank
    places = range(rank) if axes is None else [normalize_axis(a, rank) for a in axes]
    if len(pads) != 2 * len(places):
        raise c.shape_error(
            f"Pad of {len(places)} axes needs {2 * len(places)} amounts, not {pads}"
        )
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise c.unsupported(f"mode {mode!r}")
    padding: list[tuple[DimLike, DimLike]] = [(0, 0)] * rank
    for i, axis in enumerate(places):
        padding[axis] = (pads[i], pads[i + len(places)])
    x, grown = _cut(c, x, padding)
    if all(pair == (0, 0) for pair in grown):
        return x
    if mode == "wrap":
        return _wrapped(c, x, grown)
    if isinstance(value, Value):
        inside = refilled(c.graph, c.aux(Pad(grown), broadcast(c, c.constant(True), x.shape)))
        filler = reshaped(c, value, ())
        return c.add(Select(), inside, c.aux(Pad(grown), x), filler)
    return refilled(c.graph, c.add(Pad(grown, mode, value), x))


def _wrapped(c: Conversion, x: Value, padding: Sequence[tuple[DimLike, DimLike]]) -> Value:
    """Continued on either side from the other end, which must be long enough."""
    for axis, (before, after) in enumerate(padding):
        dim = x.shape[axis]
        if (before, after) == (0, 0):
            continue
        if not all(isinstance(d, int) for d in (dim, before, after)):
            raise c.unsupported(f"it wraps a dimension of {dim}, which is not fixed")
        assert isinstance(dim, int) and isinstance(before, int) and isinstance(after, int)
        if dim == 0:
            raise c.shape_error("Pad cannot wrap an empty dimension")
        if before + dim + after > LONGEST_WRAPPED:
            raise c.unsupported(f"it wraps a dimension of {dim} to {before + dim + after}")
        places = np.arange(-before, dim + after) % dim
        x = c.aux(Gather(axis), x, c.constant(places, DType.INT64))
    return x


def _cut(
    c: Conversion, x: Value, padding: Sequence[tuple[DimLike, DimLike]]
) -> tuple[Value, tuple[tuple[DimLike, DimLike], ...]]:
    """Negative padding cuts elements off: a slice, and the padding that is left."""
    cuts = [tuple(max(-p, 0) if isinstance(p, int) else 0 for p in pair) for pair in padding]
    if any(cut != (0, 0) for cut in cuts):
        size = tuple(d - (a + b) for d, (a, b) in zip(x.shape, cuts, strict=True))
        begin = tuple(cut[0] for cut in cuts)
        x = c.aux(Slice(begin, size, (1,) * len(size)), x)
    grown = tuple(
        (before + cut[0], after + cut[1])
        for (before, after), cut in zip(padding, cuts, strict=True)
    )
    return x, grown


@converter("DepthToSpace")
def _depth_to_space(c: Conversion) -> Value:
    x, block = c.input(0), c.attr("blocksize", 1)
    n, channels, height, width = _image_shape(c, x)
    inner = _exactly(c, channels, block * block)
    if c.attr("mode", "DCR") == "CRD":
        split, perm = (n, inner, block, block, height, width), (0, 1, 4, 2, 5, 3)
    else:
        split, perm = (n, block, block, inner, height, width), (0, 3, 4, 1, 5, 2)
    y = c.aux(Transpose(perm), reshaped(c, x, split))
    return c.add(Reshape((n, inner, height * block, width * block)), y)


@converter("SpaceToDepth")
def _space_to_depth(c: Conversion) -> Value:
    x, block = c.input(0), c.attr("blocksize", 1)
    n, channels, height, width = _image_shape(c, x)
    rows, columns = _exactly(c, height, block), _exactly(c, width, block)
    split = reshaped(c, x, (n, channels, rows, block, columns, block))
    crd = c.attr("mode", "DCR") == "CRD"  # which of block and channels comes first
    y = c.aux(Transpose((0, 1, 3, 5, 2, 4) if crd else (0, 3, 5, 1, 2, 4)), split)
    return c.add(Reshape((n, channels * (block * block), rows, columns)), y)


def _image_shape(c: Conversion, x: Value) -> tuple[DimLike, ...]:
    if x.type.rank != 4:
        raise c.shape_error(f"{c.node.op_type} needs [N, C, H, W], not {x.type}")
    return x.shape


def _exactly(c: Conversion, dim: DimLike, divisor: int) -> DimLike:
    if isinstance(dim, int) and dim % divisor:
        raise c.shape_error(f"{dim} is not a multiple of {divisor}", "of the block's size")
    return dim // divisor
