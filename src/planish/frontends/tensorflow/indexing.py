"""Slicing, splitting, gathering and scattering."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.tensorflow.context import Context, converter
from planish.graph.dims import DimLike, bounds, symbols
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.base import normalize_axis
from planish.ops.elementwise import ew
from planish.ops.indexing import Gather, GatherNd, OneHot, ScatterNd
from planish.ops.shape import BroadcastTo, Concat, Slice, index_begin, slice_bounds

MOST_PIECES = 1 << 12
"""Outputs of one op that splits; more would be a graph too large to be of use."""


def cut(ctx: Context, x: Value, axis: int, begin: DimLike, size: DimLike, part: str = "") -> Value:
    """`size` neighbours along one axis, from `begin`."""
    starts: list[DimLike] = [0] * x.type.rank
    starts[axis] = begin
    sizes = (*x.shape[:axis], size, *x.shape[axis + 1 :])
    return ctx.add(Slice(tuple(starts), sizes, (1,) * len(sizes)), x, part=part)


# ---- slices ------------------------------------------------------------------------------------


@converter("Slice")
def _slice(ctx: Context, x: Value, begin: Value, size: Value) -> Value:
    starts = ctx.dims(begin, "begin")
    sizes = tuple(
        dim - start if size == -1 else size
        for dim, start, size in zip(x.shape, starts, ctx.dims(size, "size"), strict=True)
    )
    return ctx.add(Slice(starts, sizes, (1,) * len(sizes)), x)


MOST_SLICES = 32
"""The masks of StridedSlice have so many bits."""


@converter("StridedSlice")
def _strided_slice(ctx: Context, x: Value, begin: Value, end: Value, strides: Value) -> Value:
    begins, ends = ctx.dims(begin, "begin"), ctx.dims(end, "end")
    steps = ctx.ints(strides, "strides")
    if len(steps) > MOST_SLICES:
        raise ctx.unsupported(f"it slices {len(steps)} dimensions")
    masks = {
        name: ctx.attr(f"{name}_mask")
        for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis")
    }
    starts: list[DimLike] = []
    sizes: list[DimLike] = []
    taken: list[int] = []
    shape: list[DimLike] = []

    def keep_all() -> None:
        dim = x.shape[len(starts)]
        starts.append(0)
        sizes.append(dim)
        taken.append(1)
        shape.append(dim)

    new_axes = sum(_bit(masks["new_axis"], i) for i in range(len(steps)))
    for i, step in enumerate(steps):
        if _bit(masks["ellipsis"], i):
            after = sum(not _bit(masks["new_axis"], j) for j in range(i + 1, len(steps)))
            while len(starts) < x.type.rank - after:
                keep_all()
            continue
        if _bit(masks["new_axis"], i):
            shape.append(1)
            continue
        if len(starts) >= x.type.rank:
            raise ctx.unsupported(
                f"it slices {len(steps) - new_axes} dimensions of a tensor of {x.type.rank}"
            )
        dim = x.shape[len(starts)]
        start: DimLike
        size: DimLike
        if _bit(masks["shrink_axis"], i):
            start, size, step = index_begin(dim, begins[i]), 1, 1
        else:
            first = None if _bit(masks["begin"], i) else begins[i]
            last = None if _bit(masks["end"], i) else ends[i]
            certain = _certain_slice(ctx, dim, first, last) if step == 1 else None
            start, size = certain or slice_bounds(dim, first, last, step)
            shape.append(size)
        starts.append(start)
        sizes.append(size)
        taken.append(step)
    while len(starts) < x.type.rank:
        keep_all()
    sliced = x
    whole = tuple(sizes) == x.shape and all(s == 0 for s in starts) and set(taken) <= {1}
    final = tuple(shape)
    if not whole:
        part = "" if final == tuple(sizes) else "slice"
        sliced = ctx.add(Slice(tuple(starts), tuple(sizes), tuple(taken)), x, part=part)
    return ctx.reshape(sliced, final, part="")


def _certain_slice(
    ctx: Context, dim: DimLike, first: DimLike | None, last: DimLike | None
) -> tuple[DimLike, DimLike] | None:
    """Begin and size of ``x[first:last]`` where a dimension of unknown size surely has as many.

    An unknown dimension is at least 1, unless it is counted: ``x[:1]`` and ``x[-1:]`` have one
    element, where in general the least of 1 and the dimension would have to be said.
    """
    unknown = symbols(dim)
    if isinstance(dim, int) or not unknown.isdisjoint(ctx.graph.counts):
        return None
    least, _ = bounds(dim, dict.fromkeys(unknown, (1, 2**31)))
    if (
        isinstance(last, int)
        and isinstance(first, int | None)
        and 0 <= (first or 0) < last <= least
    ):
        return first or 0, last - (first or 0)
    if last is None and isinstance(first, int) and -least <= first < 0:
        return dim + first, -first
    return None


def _bit(mask: int, position: int) -> bool:
    return bool(mask >> position & 1)


@converter("Split")
def _split(ctx: Context, axis: Value, x: Value) -> Sequence[Value]:
    count = ctx.attr("num_split")
    position = normalize_axis(ctx.integer(axis, "axis"), x.type.rank)
    dim = x.shape[position]
    if dim % count != 0:
        raise ctx.unsupported(f"dimension {position} of size {dim} may not split into {count}")
    _check_count(ctx, count)
    return _pieces(ctx, x, position, [dim // count] * count)


@converter("SplitV")
def _split_v(ctx: Context, x: Value, sizes: Value, axis: Value) -> Sequence[Value]:
    position = normalize_axis(ctx.integer(axis, "axis"), x.type.rank)
    given = list(ctx.dims(sizes, "sizes"))
    rest: DimLike = x.shape[position]
    for size in given:
        if size != -1:
            rest = rest - size
    return _pieces(ctx, x, position, [rest if size == -1 else size for size in given])


def _check_count(ctx: Context, count: int) -> None:
    """A few bytes of a damaged file can ask for more pieces than there is memory."""
    if count > MOST_PIECES:
        raise ctx.unsupported(f"it has {count} outputs, and at most {MOST_PIECES} are converted")


def _pieces(ctx: Context, x: Value, axis: int, sizes: Sequence[DimLike]) -> list[Value]:
    if len(sizes) == 1:
        return [x]
    begin: DimLike = 0
    pieces = []
    for i, size in enumerate(sizes):
        pieces.append(cut(ctx, x, axis, begin, size, part=str(i)))
        begin = begin + size
    return pieces


@converter("Unpack")
def _unpack(ctx: Context, x: Value) -> Sequence[Value]:
    axis = normalize_axis(ctx.attr("axis"), x.type.rank)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    _check_count(ctx, ctx.attr("num"))
    pieces = _pieces(ctx, x, axis, [1] * ctx.attr("num"))
    return [ctx.reshape(p, shape, part=f"{i}/squeeze") for i, p in enumerate(pieces)]


@converter("ReverseV2")
def _reverse(ctx: Context, x: Value, axes: Value) -> Value:
    reversed_axes = {normalize_axis(a, x.type.rank) for a in ctx.ints(axes, "axes")}
    begin = tuple(d - 1 if i in reversed_axes else 0 for i, d in enumerate(x.shape))
    steps = tuple(-1 if i in reversed_axes else 1 for i in range(x.type.rank))
    return ctx.add(Slice(begin, x.shape, steps), x)


@converter("Roll")
def _roll(ctx: Context, x: Value, shift: Value, axis: Value) -> Value:
    shifts, axes = ctx.ints(shift, "shift"), ctx.ints(axis, "axis")
    for i, (places, position) in enumerate(zip(shifts, axes, strict=True)):
        position = normalize_axis(position, x.type.rank)
        dim = x.shape[position]
        if dim == 0:
            continue
        head = dim - places % dim  # the elements that move to the end
        if head == dim:
            continue
        tail = cut(ctx, x, position, head, dim - head, part=f"{i}/tail")
        start = cut(ctx, x, position, 0, head, part=f"{i}/head")
        x = ctx.add(Concat(position), tail, start, part="" if i == len(axes) - 1 else f"{i}")
    return x


# ---- gathering and scattering ------------------------------------------------------------------


@converter("GatherV2")
def _gather_v2(ctx: Context, x: Value, indices: Value, axis: Value) -> Value:
    batch = ctx.attr("batch_dims")
    batch = batch + indices.type.rank if batch < 0 else batch
    position = normalize_axis(ctx.integer(axis, "axis"), x.type.rank)
    return ctx.add(Gather(position, batch), x, indices)


@converter("Gather")
def _gather(ctx: Context, x: Value, indices: Value) -> Value:
    return ctx.add(Gather(0, 0), x, indices)


@converter("GatherNd")
def _gather_nd(ctx: Context, x: Value, indices: Value) -> Value:
    if indices.type.rank and indices.shape[-1] == 0:  # at every place the whole of `x`
        return ctx.add(BroadcastTo((*indices.shape[:-1], *x.shape)), x)
    return ctx.add(GatherNd(), x, indices)


@converter("ScatterNd")
def _scatter_nd(ctx: Context, indices: Value, updates: Value, shape: Value) -> Value:
    """Into zeros; updates of one place are added up."""
    zero = ctx.constant(0, updates.dtype)
    zeros = ctx.add(BroadcastTo(ctx.dims(shape)), zero, part="zeros")
    return _scatter(ctx, "add", zeros, indices, updates)


_REDUCTIONS = {
    "TensorScatterUpdate": "none",
    "TensorScatterAdd": "add",
    "TensorScatterSub": "add",
    "TensorScatterMax": "max",
    "TensorScatterMin": "min",
}


@converter(*_REDUCTIONS)
def _tensor_scatter(ctx: Context, x: Value, indices: Value, updates: Value) -> Value:
    if ctx.node.op == "TensorScatterSub":
        updates = ctx.add(ew.Neg(), updates, part="negative")
    return _scatter(ctx, _REDUCTIONS[ctx.node.op], x, indices, updates)


def _scatter(ctx: Context, reduction: str, x: Value, indices: Value, updates: Value) -> Value:
    """Sums of halves are made in float32 and rounded once; those of bools are whether any is."""
    dtype = x.dtype
    half = dtype.is_float and dtype.size == 2
    if reduction == "add" and (half or dtype is DType.BOOL):
        wide = DType.FLOAT32 if half else DType.INT32
        x, updates = ctx.cast(x, wide, "widen_data"), ctx.cast(updates, wide, "widen_updates")
        return ctx.cast(ctx.add(ScatterNd("add"), x, indices, updates, part="sum"), dtype, "")
    return ctx.add(ScatterNd(reduction), x, indices, updates)


@converter("OneHot")
def _one_hot(ctx: Context, indices: Value, depth: Value, on: Value, off: Value) -> Value:
    axis = normalize_axis(ctx.attr("axis"), indices.type.rank + 1)
    return ctx.add(OneHot(ctx.dims(depth, "depth")[0], axis), indices, on, off)


# ---- data formats ------------------------------------------------------------------------------


@converter("DataFormatVecPermute", "DataFormatDimMap")
def _data_format(ctx: Context, x: Value) -> Value:
    source, target = ctx.attr("src_format"), ctx.attr("dst_format")
    if ctx.node.op == "DataFormatDimMap":  # the place in `target` of a dimension of `source`
        places = ctx.constant(np.array([target.index(c) for c in source]), x.dtype)
        return ctx.add(Gather(0, 0), places, x)
    if x.shape[0] == len(source) - 2:  # only the spatial dimensions
        source, target = (f.replace("N", "").replace("C", "") for f in (source, target))
    order = ctx.constant(np.array([source.index(c) for c in target], np.int64))
    return ctx.add(Gather(0, 0), x, order)


@converter("SetDiff1d", "ListDiff")
def _data_dependent(ctx: Context, *inputs: Value) -> Value:
    raise ctx.unsupported(
        "the shape of its result depends on the values of its input",
        "use a mask (tf.where with three arguments) instead of a list of places",
    )
