"""Ops that give as many elements as the data say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.counting import counted_node, leading
from planish.frontends.tensorflow.context import Context, converter, small_array
from planish.graph.dims import DimLike, dim_min, product, terms
from planish.graph.graph import Node, Value
from planish.ops.base import Op
from planish.ops.data_dependent import NonZero, Unique
from planish.ops.detection import NonMaxSuppression
from planish.ops.elementwise import ew
from planish.ops.indexing import GatherNd


@converter("Where")
def _where(ctx: Context, x: Value) -> Value:
    if not x.type.rank:
        raise ctx.unsupported("its input is a scalar")
    known = small_array(x)
    if known is not None:
        return ctx.constant(np.argwhere(known).astype(np.int64))
    node = _node(ctx, NonZero(), x)
    return _cut(ctx, node.outputs[0], _size(ctx, node, product(x.shape)))


@converter("DynamicPartition")
def _partition(ctx: Context, data: Value, partitions: Value) -> Sequence[Value]:
    """The slices of each partition: those whose number is its own."""
    if not partitions.type.rank:
        raise ctx.unsupported("it divides a scalar")
    parts = []
    for number in range(ctx.attr("num_partitions")):
        own = ctx.constant(number, partitions.dtype, part=f"number_{number}")
        chosen = ctx.add(ew.Equal(), partitions, own, part=f"is_{number}")
        node = _node(ctx, NonZero(), chosen)
        places = _cut(ctx, node.outputs[0], _size(ctx, node, product(partitions.shape)))
        parts.append(ctx.add(GatherNd(), data, places, part=f"part_{number}"))
    return parts


@converter("Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2")
def _unique(ctx: Context, x: Value, axis: Value | None = None) -> Sequence[Value]:
    if x.type.rank != 1:
        raise ctx.unsupported("its input is not a vector")
    if axis is not None and axis.shape != (0,) and ctx.integer(axis, "axis") not in (0, -1):
        raise ctx.unsupported("a vector has no such axis")
    node = _node(ctx, Unique(sorted=False), x)
    n = _size(ctx, node, x.shape[0])
    values, _, inverse, counts, _ = node.outputs
    dtype = ctx.dtype("out_idx")
    results = [_cut(ctx, values, n), ctx.cast(inverse, dtype)]
    return [*results, ctx.cast(_cut(ctx, counts, n), dtype)]


@converter("NonMaxSuppression")
def _suppress_first(ctx: Context, boxes: Value, scores: Value, limit: Value) -> Value:
    return _suppressed(ctx, boxes, scores, limit, ctx.attr("iou_threshold"))[0]


@converter("NonMaxSuppressionV2", "NonMaxSuppressionV3")
def _suppress(
    ctx: Context,
    boxes: Value,
    scores: Value,
    limit: Value,
    iou_threshold: Value,
    score_threshold: Value | None = None,
) -> Value:
    overlap = ctx.number(iou_threshold, "iou_threshold")
    return _suppressed(ctx, boxes, scores, limit, overlap, score_threshold)[0]


@converter("NonMaxSuppressionV4", "NonMaxSuppressionV5")
def _suppress_and_count(
    ctx: Context,
    boxes: Value,
    scores: Value,
    limit: Value,
    iou_threshold: Value,
    score_threshold: Value,
    soft_sigma: Value | None = None,
) -> Sequence[Value]:
    overlap = ctx.number(iou_threshold, "iou_threshold")
    found = _suppressed(ctx, boxes, scores, limit, overlap, score_threshold, soft_sigma)
    indices, kept, valid = found
    return [indices, valid] if soft_sigma is None else [indices, kept, valid]


def _suppressed(
    ctx: Context,
    boxes: Value,
    scores: Value,
    limit: Value,
    iou_threshold: float,
    score_threshold: Value | None = None,
    soft_sigma: Value | None = None,
) -> Sequence[Value]:
    """Indices, scores and number of the boxes that are kept, padded where the node says so."""
    padded = "pad_to_max_output_size" in ctx.node.attr and ctx.attr("pad_to_max_output_size")
    most = _greatest(ctx, limit, boxes)
    op = NonMaxSuppression(
        most,
        iou_threshold,
        # without a threshold all boxes count
        ctx.number(score_threshold, "score_threshold")
        if score_threshold is not None
        else float("-inf"),
        ctx.number(soft_sigma, "soft_nms_sigma") if soft_sigma is not None else 0.0,
    )
    if padded:
        return ctx.add_node(op, boxes, scores)
    node = _node(ctx, op, boxes, scores)
    # no more than there are: without boxes no index is valid, not even that of padding
    room = dim_min(boxes.shape[0], most)
    n = _size(ctx, node, room)
    indices, kept, valid = node.outputs
    return [_cut(ctx, _cut(ctx, v, room), n) for v in (indices, kept)] + [valid]


def _greatest(ctx: Context, limit: Value, boxes: Value) -> int:
    """How many boxes are kept at most; "100, or as many as there are" is 100."""
    if limit.content is not None and limit.content.size == 1:
        (dim,) = limit.content.flat
        if not isinstance(dim, int) and len(parts := terms(dim)) == 1:
            coefficient, factors = parts[0]
            if coefficient == 1 and len(factors) == 1 and factors[0][0] == "min":
                numbers = [a for a in factors[0][1] if isinstance(a, int)]
                if len(numbers) == 1 and boxes.shape[0] in factors[0][1]:
                    return numbers[0]
    return ctx.integer(limit, "max_output_size")


def _node(ctx: Context, op: Op, *inputs: Value) -> Node:
    return counted_node(ctx.graph, op, inputs, ctx.name, ctx.origin)


def _size(ctx: Context, node: Node, limit: DimLike) -> DimLike:
    return ctx.graph.measure(node.outputs[-1], limit, f"{ctx.name}_count")


def _cut(ctx: Context, value: Value, size: DimLike) -> Value:
    return leading(ctx.graph, value, size, f"{ctx.name}/cut", ctx.origin)
