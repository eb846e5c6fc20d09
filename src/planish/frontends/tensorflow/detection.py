"""Non-maximum suppression. Results must have a size that does not depend on the data."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.context import Context, converter
from planish.graph.graph import Value
from planish.ops.detection import CombinedNonMaxSuppression, NonMaxSuppression


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


@converter("NonMaxSuppressionV4", "NonMaxSuppressionV5")
def _suppress(
    ctx: Context,
    boxes: Value,
    scores: Value,
    max_outputs: Value,
    iou_threshold: Value,
    score_threshold: Value,
    soft_sigma: Value | None = None,
) -> Sequence[Value]:
    if not ctx.attr("pad_to_max_output_size"):
        raise _data_dependent(ctx)
    op = NonMaxSuppression(
        ctx.integer(max_outputs, "max_output_size"),
        ctx.number(iou_threshold, "iou_threshold"),
        ctx.number(score_threshold, "score_threshold"),
        ctx.number(soft_sigma, "soft_nms_sigma") if soft_sigma is not None else 0.0,
    )
    indices, kept, valid = ctx.add_node(op, boxes, scores)
    return [indices, valid] if soft_sigma is None else [indices, kept, valid]


@converter("NonMaxSuppression", "NonMaxSuppressionV2", "NonMaxSuppressionV3")
def _suppress_unpadded(ctx: Context, *inputs: Value) -> Value:
    raise _data_dependent(ctx)


def _data_dependent(ctx: Context) -> Exception:
    return ctx.unsupported(
        "the number of boxes it gives depends on their values",
        "use tf.image.combined_non_max_suppression, or "
        "tf.image.non_max_suppression_padded(pad_to_max_output_size=True)",
    )
