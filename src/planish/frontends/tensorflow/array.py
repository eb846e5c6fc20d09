"""Shapes, layouts and fills: Reshape, Transpose, Shape, Pack, Tile, Pad, SpaceToDepth, Range."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.counting import refilled
from planish.frontends.tensorflow.context import MOST_NUMBERS, Context, converter, small_array
from planish.frontends.tensorflow.layout import from_channels_last, main_part, to_channels_last
from planish.graph.dims import DimLike, ceildiv, product
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.base import broadcast_shapes, normalize_axis
from planish.ops.elementwise import Select, ew
from planish.ops.reduce import CumSum
from planish.ops.shape import (
    BroadcastTo,
    Concat,
    Dims,
    Pad,
    Reshape,
    ShapeOf,
    Slice,
    Tile,
    Transpose,
    expand_shape,
    resolve_reshape,
    squeeze_shape,
)

# ---- reshaping ---------------------------------------------------------------------------------


@converter("Reshape")
def _reshape(ctx: Context, x: Value, shape: Value) -> Value:
    return ctx.add(Reshape(resolve_reshape(x.shape, ctx.dims(shape), zero_copies=False)), x)


@converter("ExpandDims")
def _expand_dims(ctx: Context, x: Value, axis: Value) -> Value:
    return ctx.add(Reshape(expand_shape(x.shape, (ctx.integer(axis, "axis"),))), x)


@converter("Squeeze")
def _squeeze(ctx: Context, x: Value) -> Value:
    axes = tuple(ctx.attr("squeeze_dims"))
    return ctx.add(Reshape(squeeze_shape(x.shape, axes or None)), x)


@converter("Transpose", "ConjugateTranspose")
def _transpose(ctx: Context, x: Value, perm: Value) -> Value:
    axes = tuple(normalize_axis(a, x.type.rank) for a in ctx.ints(perm, "permutation"))
    return ctx.add(Transpose(axes), x)


@converter("EnsureShape")
def _ensure_shape(ctx: Context, x: Value) -> Value:
    return x


# ---- shapes as tensors -------------------------------------------------------------------------


@converter("Shape")
def _shape(ctx: Context, x: Value) -> Value:
    return ctx.add(ShapeOf(ctx.dtype("out_type")), x)


@converter("ShapeN")
def _shape_n(ctx: Context, *inputs: Value) -> Sequence[Value]:
    op = ShapeOf(ctx.dtype("out_type"))
    return [ctx.add(op, x, part=str(i)) for i, x in enumerate(inputs)]


@converter("Size")
def _size(ctx: Context, x: Value) -> Value:
    return ctx.add(Dims(x.type.elements, ctx.dtype("out_type")))


@converter("Rank")
def _rank(ctx: Context, x: Value) -> Value:
    return ctx.constant(x.type.rank, DType.INT32, part="")


@converter("BroadcastArgs")
def _broadcast_args(ctx: Context, a: Value, b: Value) -> Value:
    return ctx.add(Dims(broadcast_shapes(ctx.dims(a), ctx.dims(b)), ctx.dtype("T")))


@converter("InvertPermutation")
def _invert_permutation(ctx: Context, x: Value) -> Value:
    return ctx.constant(np.argsort(ctx.ints(x, "permutation")), x.dtype, part="")


# ---- joining and repeating ---------------------------------------------------------------------


@converter("ConcatV2")
def _concat_v2(ctx: Context, *inputs: Value) -> Value:
    *values, axis = inputs
    return _concat(ctx, values, ctx.integer(axis, "axis"))


@converter("Concat")
def _concat_v1(ctx: Context, axis: Value, *values: Value) -> Value:
    return _concat(ctx, values, ctx.integer(axis, "axis"))


def _concat(ctx: Context, values: Sequence[Value], axis: int) -> Value:
    return ctx.add(Concat(normalize_axis(axis, values[0].type.rank)), *values)


@converter("Pack")
def _pack(ctx: Context, *values: Value) -> Value:
    axis = normalize_axis(ctx.attr("axis"), values[0].type.rank + 1)
    columns = [
        ctx.reshape(v, (*v.shape[:axis], 1, *v.shape[axis:]), part=f"column_{i}")
        for i, v in enumerate(values)
    ]
    return ctx.add(Concat(axis), *columns)


@converter("Tile")
def _tile(ctx: Context, x: Value, multiples: Value) -> Value:
    return ctx.add(Tile(ctx.dims(multiples, "multiples")), x)


@converter("BroadcastTo")
def _broadcast_to(ctx: Context, x: Value, shape: Value) -> Value:
    return ctx.add(BroadcastTo(ctx.dims(shape)), x)


# ---- fills -------------------------------------------------------------------------------------


@converter("Fill")
def _fill(ctx: Context, shape: Value, value: Value) -> Value:
    return ctx.add(BroadcastTo(ctx.dims(shape)), value)


@converter("ZerosLike")
def _zeros_like(ctx: Context, x: Value) -> Value:
    return ctx.add(BroadcastTo(x.shape), ctx.constant(0, x.dtype))


@converter("OnesLike")
def _ones_like(ctx: Context, x: Value) -> Value:
    return ctx.add(BroadcastTo(x.shape), ctx.constant(1, x.dtype))


@converter("Range")
def _range(ctx: Context, start: Value, limit: Value, delta: Value) -> Value:
    parts = [a for v in (start, limit, delta) if (a := small_array(v)) is not None]
    if len(parts) == 3:
        begin, end, by = (a.item() for a in parts)
        if by and abs(end - begin) < np.inf:
            ctx.expect_room(int(min(abs((end - begin) / by), 2.0**62)), "range")
        numbers_now = np.arange(begin, end, by, dtype=start.dtype.numpy)
        return ctx.constant(numbers_now, part="")
    (first,), (last,) = ctx.dims(start, "start"), ctx.dims(limit, "limit")
    step = ctx.integer(delta, "delta")
    count = ceildiv(last - first, step)
    numbers = count_up(ctx, count, start.dtype)
    if step != 1:
        numbers = ctx.add(ew.Mul(), numbers, ctx.constant(step, start.dtype), part="steps")
    return ctx.add(ew.Add(), numbers, start)


def count_up(ctx: Context, count: DimLike, dtype: DType, part: str = "count") -> Value:
    """The vector 0, 1, ... of `count` elements."""
    if isinstance(count, int) and count <= MOST_NUMBERS:
        return ctx.constant(np.arange(count), dtype, part=part)
    ones = ctx.add(BroadcastTo((count,)), ctx.constant(1, dtype), part=f"{part}/ones")
    return ctx.add(CumSum(0, True, False), ones, part=part)


@converter("LinSpace")
def _lin_space(ctx: Context, start: Value, stop: Value, count: Value) -> Value:
    first, last = ctx.number(start, "start"), ctx.number(stop, "stop")
    number = ctx.integer(count, "number of points")
    ctx.expect_room(number, "range")
    points = np.linspace(first, last, number)
    return ctx.constant(points, start.dtype, part="")


@converter("MatrixBandPart")
def _matrix_band_part(ctx: Context, x: Value, lower: Value, upper: Value) -> Value:
    rows, columns = x.shape[-2:]
    row = ctx.reshape(count_up(ctx, rows, DType.INT64, "rows"), (rows, 1), part="row")
    column = ctx.reshape(
        count_up(ctx, columns, DType.INT64, "columns"), (1, columns), part="column"
    )
    below = ctx.add(ew.Sub(), row, column, part="below")
    for limit, sign, side in ((lower, 1, "lower"), (upper, -1, "upper")):
        width = ctx.integer(limit, f"{side} width")
        if width >= 0:  # a negative one keeps all of that side
            bound = ctx.constant(width * sign, DType.INT64)
            keep = ew.LessEqual() if sign > 0 else ew.GreaterEqual()
            mask = ctx.add(keep, below, bound, part=f"{side}_mask")
            x = ctx.add(Select(), mask, x, ctx.constant(0, x.dtype), part=side)
    return x


# ---- padding -----------------------------------------------------------------------------------


def _padding(ctx: Context, paddings: Value) -> tuple[tuple[DimLike, DimLike], ...]:
    flat = ctx.dims(paddings, "paddings")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


@converter("Pad")
def _pad(ctx: Context, x: Value, paddings: Value) -> Value:
    return refilled(ctx.graph, ctx.add(Pad(_padding(ctx, paddings)), x))


@converter("PadV2")
def _pad_v2(ctx: Context, x: Value, paddings: Value, value: Value) -> Value:
    padding = _padding(ctx, paddings)
    known = small_array(value)
    if known is not None and not _is_rounded(known):
        op = Pad(padding, "constant", float(known.reshape(())[()]))
        return refilled(ctx.graph, ctx.add(op, x))
    padded = ctx.add(Pad(padding), x, part="pad")
    everywhere = ctx.add(BroadcastTo(x.shape), ctx.constant(True), part="inside")
    inside = refilled(ctx.graph, ctx.add(Pad(padding), everywhere, part="mask"))
    return ctx.add(Select(), inside, padded, value)


def _is_rounded(number: np.ndarray) -> bool:
    """Whether a number is not the same as a float: attributes are floats."""
    return number.dtype.kind in "iu" and int(float(number)) != int(number)


@converter("MirrorPad")
def _mirror_pad(ctx: Context, x: Value, paddings: Value) -> Value:
    mode = ctx.attr("mode").lower()
    if mode not in ("reflect", "symmetric"):
        raise ctx.unsupported(f"its mode is {mode}")
    return ctx.add(Pad(_padding(ctx, paddings), mode), x)


# ---- blocks ------------------------------------------------------------------------------------


@converter("SpaceToDepth")
def _space_to_depth(ctx: Context, x: Value) -> Value:
    x, block = to_channels_last(ctx, x), ctx.attr("block_size")
    n, h, w, c = x.shape
    h, w = h // block, w // block
    x = ctx.reshape(x, (n, h, block, w, block, c), part="blocks")
    x = ctx.transpose(x, (0, 1, 3, 2, 4, 5), part="gather")
    x = ctx.add(Reshape((n, h, w, block * block * c)), x, part=main_part(ctx))
    return from_channels_last(ctx, x)


@converter("DepthToSpace")
def _depth_to_space(ctx: Context, x: Value) -> Value:
    x, block = to_channels_last(ctx, x), ctx.attr("block_size")
    n, h, w, c = x.shape
    x = ctx.reshape(x, (n, h, w, block, block, c // (block * block)), part="blocks")
    x = ctx.transpose(x, (0, 1, 3, 2, 4, 5), part="scatter")
    shape = (n, h * block, w * block, c // (block * block))
    return from_channels_last(ctx, ctx.add(Reshape(shape), x, part=main_part(ctx)))


@converter("SpaceToBatchND")
def _space_to_batch(ctx: Context, x: Value, blocks: Value, paddings: Value) -> Value:
    block = ctx.ints(blocks, "block shape")
    count = len(block)
    outer = [(0, 0)] * (x.type.rank - 1 - count)
    x = ctx.add(Pad(((0, 0), *_padding(ctx, paddings), *outer)), x, part="pad")
    batch, sizes, rest = x.shape[0], x.shape[1 : 1 + count], x.shape[1 + count :]
    apart: list[DimLike] = [batch]
    for size, b in zip(sizes, block, strict=True):
        apart += [size // b, b]
    x = ctx.reshape(x, (*apart, *rest), part="blocks")
    inside = range(2, 2 * count + 1, 2)
    across = range(1, 2 * count, 2)
    tail = range(2 * count + 1, x.type.rank)
    x = ctx.transpose(x, (*inside, 0, *across, *tail), part="to_batch")
    smaller = [size // b for size, b in zip(sizes, block, strict=True)]
    return ctx.add(Reshape((product(block) * batch, *smaller, *rest)), x)


@converter("BatchToSpaceND")
def _batch_to_space(ctx: Context, x: Value, blocks: Value, crops: Value) -> Value:
    block = ctx.ints(blocks, "block shape")
    count = len(block)
    batch = x.shape[0] // product(block)
    sizes, rest = x.shape[1 : 1 + count], x.shape[1 + count :]
    x = ctx.reshape(x, (*block, batch, *sizes, *rest), part="blocks")
    order = [count]
    for i in range(count):
        order += [count + 1 + i, i]
    x = ctx.transpose(x, (*order, *range(2 * count + 1, x.type.rank)), part="to_space")
    larger = [size * b for size, b in zip(sizes, block, strict=True)]
    x = ctx.add(Reshape((batch, *larger, *rest)), x, part="joined")
    cropping = _padding(ctx, crops)
    begin = [0, *(before for before, _ in cropping), *[0] * len(rest)]
    kept = [s - a - b for s, (a, b) in zip(larger, cropping, strict=True)]
    return ctx.add(Slice(tuple(begin), (batch, *kept, *rest), (1,) * len(begin)), x)
