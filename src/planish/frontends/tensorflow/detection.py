"""Non-maximum suppression of many classes; that of one is in `data_dependent`."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.context import Context, converter
from planish.graph.graph import Value
from planish.ops.detection import CombinedNonMaxSuppression


@converter("CombinedNonMaxSuppression")
def _combined(
    ctx: Context,
    boxes: Value,
    scores: Value,
    max_per_class: Value,
    max_total: Value,
    iou_threshold: Value,
    score_threshold: Value,
) -> Sequence[Value]:
    op = CombinedNonMaxSuppression(
        ctx.integer(max_per_class, "max_output_size_per_class"),
        ctx.integer(max_total, "max_total_size"),
        ctx.number(iou_threshold, "iou_threshold"),
        ctx.number(score_threshold, "score_threshold"),
        ctx.attr("pad_per_class"),
        ctx.attr("clip_boxes"),
    )
    return ctx.add_node(op, boxes, scores)
