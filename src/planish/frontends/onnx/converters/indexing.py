"""Operators whose inputs say which elements: gather, scatter, one-hot."""

from __future__ import annotations

import numpy as np

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import broadcast, iota, reshaped, transposed
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.ops import (
    Concat,
    Dims,
    Gather,
    GatherNd,
    OneHot,
    ScatterNd,
    Select,
    Slice,
    Transpose,
    ew,
    normalize_axis,
)


@converter("Gather")
def _gather(c: Conversion) -> Value:
    data, indices = c.input(0), c.input(1)
    return c.add(Gather(c.axis(data.type.rank, 0)), data, indices)


@converter("GatherND")
def _gather_nd(c: Conversion) -> Value:
    return c.add(GatherNd(c.attr("batch_dims", 0)), c.input(0), c.input(1))


@converter("GatherElements")
def _gather_elements(c: Conversion) -> Value:
    """Each row of indices picks from its own row of data: a gather with batch dimensions."""
    data, indices = c.input(0), c.input(1)
    rank = data.type.rank
    axis = c.axis(rank, 0)
    if indices.type.rank != rank:
        raise c.shape_error(f"GatherElements of {data.type} by {indices.type}: ranks differ")
    last = [i for i in range(rank) if i != axis] + [axis]
    data, indices = transposed(c, data, last), transposed(c, indices, last)
    rows = indices.shape[:-1]
    if data.shape[:-1] != rows:
        size = (*rows, data.shape[-1])
        data = c.aux(Slice((0,) * rank, size, (1,) * rank), data)
    picked = Gather(rank - 1, batch_dims=rank - 1)
    if axis == rank - 1:
        return c.add(picked, data, indices)
    back = tuple(int(i) for i in np.argsort(last))
    return c.add(Transpose(back), c.aux(picked, data, indices))


@converter("ScatterND")
def _scatter_nd(c: Conversion) -> Value:
    return c.add(ScatterNd(c.attr("reduction", "none")), *c.present())


@converter("ScatterElements", "Scatter")
def _scatter_elements(c: Conversion) -> Value:
    data, indices, updates = (c.input(i) for i in range(3))
    rank = data.type.rank
    axis = c.axis(rank, 0)
    if indices.shape != updates.shape or indices.type.rank != rank:
        raise c.shape_error(
            f"{c.node.op_type} into {data.type} at {indices.type} of {updates.type}: shapes differ"
        )
    columns = []
    for place, dim in enumerate(indices.shape):
        column = c.cast(indices, DType.INT64)
        if place != axis:  # elements stay at their own index there
            own = reshaped(c, iota(c, dim), (dim, *(1,) * (rank - place - 1)))
            column = broadcast(c, own, indices.shape)
        columns.append(reshaped(c, column, (*indices.shape, 1)))
    places = c.aux(Concat(rank), *columns) if rank > 1 else columns[0]
    return c.add(ScatterNd(c.attr("reduction", "none")), data, places, updates)


@converter("OneHot")
def _one_hot(c: Conversion) -> Value:
    indices, values = c.cast(c.input(0), DType.INT64), c.input(2)
    (depth,) = c.dims(1, "the depth")
    axis = normalize_axis(c.attr("axis", -1), indices.type.rank + 1)
    # negative indices count from the end, which our op does not know
    negative = c.aux(ew.Less(), indices, c.constant(0, DType.INT64))
    size = c.constant(depth, DType.INT64) if isinstance(depth, int) else c.aux(Dims(depth))
    wrapped = c.aux(Select(), negative, c.aux(ew.Add(), indices, size), indices)
    off, on = (reshaped(c, c.aux(Slice((i,), (1,), (1,)), values), ()) for i in range(2))
    return c.add(OneHot(depth, axis), wrapped, on, off)


@converter("ReverseSequence")
def _reverse_sequence(c: Conversion) -> Value:
    """Element t of a sequence of length n comes from n - 1 - t where t < n, else from t."""
    x, lengths = c.input(0), c.cast(c.input(1), DType.INT64)
    time, batch = c.attr("time_axis", 0), c.attr("batch_axis", 1)
    if {time, batch} != {0, 1}:
        raise c.unsupported(f"time_axis {time} and batch_axis {batch}")
    own = reshaped(c, iota(c, x.shape[time]), (1, x.shape[time]))
    ends = reshaped(c, lengths, (x.shape[batch], 1))
    mirrored = c.aux(ew.Sub(), c.aux(ew.Sub(), ends, c.constant(1, DType.INT64)), own)
    inside = c.aux(ew.Less(), own, ends)
    places = c.aux(Select(), inside, mirrored, own)
    if batch == 0:
        return c.add(Gather(1, batch_dims=1), x, places)
    swap = (1, 0, *range(2, x.type.rank))
    picked = c.aux(Gather(1, batch_dims=1), c.aux(Transpose(swap), x), places)
    return c.add(Transpose(swap), picked)


@converter("TensorScatter")
def _tensor_scatter(c: Conversion) -> Value:
    """Writes rows of a cache, from an index on that each element of the batch has for itself."""
    cache, update = c.input(0), c.input(1)
    rank = cache.type.rank
    axis = c.axis(rank, -2)
    if axis == 0:
        raise c.shape_error("TensorScatter along the batch dimension")
    order = (0, axis, *(i for i in range(1, rank) if i != axis))
    batch, count = update.shape[0], update.shape[axis]
    rows = reshaped(c, iota(c, count), (1, count))
    if (first := c.optional(2)) is not None:
        start = reshaped(c, c.cast(first, DType.INT64), (batch, 1))
        rows = c.aux(ew.Add(), start, rows)
    if c.attr("mode", "linear") == "circular":
        size = cache.shape[axis]
        length = c.constant(size, DType.INT64) if isinstance(size, int) else c.aux(Dims(size))
        rows = c.aux(ew.FloorMod(), rows, length)
    element = reshaped(c, iota(c, batch), (batch, 1))
    columns = [
        reshaped(c, broadcast(c, v, (batch, count)), (batch, count, 1)) for v in (element, rows)
    ]
    places = c.aux(Concat(2), *columns)
    written = c.add(ScatterNd(), transposed(c, cache, order), places, transposed(c, update, order))
    return transposed(c, written, [order.index(i) for i in range(rank)])
