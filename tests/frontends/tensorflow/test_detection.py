import numpy as np
import pytest

import tensorflow as tf


def boxes_and_scores(rng, batch, count, classes):
    corners = rng.uniform(0, 1.2, (batch, count, 1, 2)).astype("f")
    boxes = np.concatenate([corners, corners + rng.uniform(0, 0.5, corners.shape)], -1)
    return boxes.astype("f"), rng.uniform(0, 1, (batch, count, classes)).astype("f")


@pytest.mark.parametrize("pad_per_class", [False, True])
@pytest.mark.parametrize("clip_boxes", [False, True])
def test_combined(check, rng, pad_per_class, clip_boxes):
    boxes, scores = boxes_and_scores(rng, 2, 30, 3)

    def build(boxes, scores):
        return tf.image.combined_non_max_suppression(
            boxes, scores, 5, 20, 0.4, 0.3, pad_per_class, clip_boxes
        )

    check(build, boxes, scores)


def test_padded(check, rng):
    boxes, scores = boxes_and_scores(rng, 1, 30, 1)

    def build(boxes, scores):
        return tf.raw_ops.NonMaxSuppressionV4(
            boxes=boxes,
            scores=scores,
            max_output_size=8,
            iou_threshold=0.3,
            score_threshold=0.2,
            pad_to_max_output_size=True,
        )

    check(build, boxes[0, :, 0], scores[0, :, 0])


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_soft(check, rng, sigma):
    boxes, scores = boxes_and_scores(rng, 1, 20, 1)

    def build(boxes, scores):
        return tf.raw_ops.NonMaxSuppressionV5(
            boxes=boxes,
            scores=scores,
            max_output_size=25,
            iou_threshold=0.5,
            score_threshold=0.2,
            soft_nms_sigma=sigma,
            pad_to_max_output_size=True,
        )

    check(build, boxes[0, :, 0], scores[0, :, 0])
