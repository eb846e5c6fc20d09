"""Non-maximum suppression against TensorFlow's CPU kernels."""

import numpy as np
import pytest

from helpers.one_op import check, check_symbolic, infer, run, tensor
from planish.errors import ShapeError
from planish.ops import CombinedNonMaxSuppression, NonMaxSuppression

tf = pytest.importorskip("tensorflow")


def _boxes(rng, *shape):
    """Boxes that overlap a lot, corners in any order, some without area."""
    corners = rng.random((*shape, 4)).astype(np.float32) * 1.4 - 0.2
    flat = rng.random(shape) < 0.05
    corners[flat, 2] = corners[flat, 0]
    return corners


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pad_per_class", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("clip_boxes", [False, True])
def test_combined_like_tensorflow(seed, pad_per_class, shared, clip_boxes):
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(1, 60)), int(rng.integers(1, 5))
    boxes = _boxes(rng, 2, count, 1 if shared else classes)
    scores = rng.random((2, count, classes)).astype(np.float32)
    op = CombinedNonMaxSuppression(
        int(rng.integers(1, 9)),
        int(rng.integers(1, 25)),
        float(rng.choice([0.0, 0.2, 0.5])),
        float(rng.choice([0.0, 0.3, 0.6])),
        pad_per_class,
        clip_boxes,
    )
    expected = tf.image.combined_non_max_suppression(
        boxes,
        scores,
        op.max_per_class,
        op.max_total,
        op.iou_threshold,
        op.score_threshold,
        pad_per_class,
        clip_boxes,
    )
    check(op, [boxes, scores], [e.numpy() for e in expected])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("soft_sigma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("padded", [False, True])
def test_single_like_tensorflow(seed, soft_sigma, padded):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 80))
    boxes = _boxes(rng, count)
    scores = np.round(rng.random(count), 2 if seed % 2 else 7).astype(np.float32)  # odd: ties
    op = NonMaxSuppression(
        int(rng.integers(0, 40)),
        float(rng.choice([0.0, 0.2, 0.5])),
        float(rng.choice([0.0, 0.1, 0.4])),
        soft_sigma,
        padded,
    )
    expected = tf.raw_ops.NonMaxSuppressionV5(
        boxes=boxes,
        scores=scores,
        max_output_size=op.max_outputs,
        iou_threshold=op.iou_threshold,
        score_threshold=op.score_threshold,
        soft_nms_sigma=op.soft_sigma,
        pad_to_max_output_size=padded,
    )
    indices, kept, valid = run(op, boxes, scores) if padded else op.reference(boxes, scores)
    np.testing.assert_array_equal(indices, expected.selected_indices)
    np.testing.assert_array_equal(valid, expected.valid_outputs)
    # exp is not the same to the last bit
    tolerance = 1e-6 if soft_sigma else 0
    np.testing.assert_allclose(kept, expected.selected_scores, rtol=tolerance)


def test_ties_go_to_the_lower_index_then_class():
    box = np.array([[0, 0, 0.1, 0.1], [0.5, 0.5, 1, 1], [0, 0.8, 0.2, 1]], np.float32)
    scores = np.array([[0.5, 0.5], [0.9, 0.5], [0.5, 0.5]], np.float32)
    _, kept, classes, valid = run(
        CombinedNonMaxSuppression(3, 5, 0.5, 0.0, False, True), box[None, :, None], scores[None]
    )
    np.testing.assert_allclose(kept[0], [0.9, 0.5, 0.5, 0.5, 0.5])
    assert classes[0].tolist() == [0, 0, 0, 1, 1]
    assert valid.tolist() == [5]
    indices, _, _ = run(NonMaxSuppression(3, 0.5, 0.0), box, scores[:, 1].copy())
    assert indices.tolist() == [0, 1, 2]


def test_nothing_is_left():
    boxes, scores = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    indices, kept, valid = run(NonMaxSuppression(3, 0.5, 0.5), boxes, scores)
    assert indices.tolist() == [0, 0, 0]
    assert kept.tolist() == [0, 0, 0]
    assert valid == 0
    outputs = run(
        CombinedNonMaxSuppression(3, 4, 0.5, 2.0, False, True),
        np.ones((2, 5, 1, 4), np.float32),
        np.ones((2, 5, 3), np.float32),
    )
    assert not any(o.any() for o in outputs)


def test_halves():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 0, 0.1, 0.1]], np.float16)
    scores = np.array([0.5, 0.75, 0.25], np.float16)
    indices, kept, valid = run(NonMaxSuppression(3, 0.5, 0.0), boxes, scores)
    assert indices.tolist() == [1, 2, 0]
    assert kept.tolist() == [0.75, 0.25, 0]
    assert valid == 2


def test_symbols():
    op = CombinedNonMaxSuppression(3, 10, 0.5, 0.1, True, True)
    types = [tensor("f32", "N", "B", 1, 4), tensor("f32", "N", "B", 2)]
    check_symbolic(op, types, {"N": 2, "B": 7})
    assert [str(t) for t in infer(op, *types)] == [
        "f32[N, 6, 4]",
        "f32[N, 6]",
        "f32[N, 6]",
        "i32[N]",
    ]
    check_symbolic(
        NonMaxSuppression(4, 0.5, 0.1), [tensor("f32", "B", 4), tensor("f32", "B")], {"B": 7}
    )


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (NonMaxSuppression(3, 0.5, 0.0, padded=False), [tensor("f32", 5, 4), tensor("f32", 5)]),
        (NonMaxSuppression(3, 1.5, 0.0), [tensor("f32", 5, 4), tensor("f32", 5)]),
        (NonMaxSuppression(3, 0.5, 0.0), [tensor("f32", 5, 3), tensor("f32", 5)]),
        (NonMaxSuppression(3, 0.5, 0.0), [tensor("f32", 5, 4), tensor("f32", 6)]),
        (NonMaxSuppression(-1, 0.5, 0.0), [tensor("f32", 5, 4), tensor("f32", 5)]),
        (NonMaxSuppression(3, 0.5, 0.0, -1.0), [tensor("f32", 5, 4), tensor("f32", 5)]),
        (
            CombinedNonMaxSuppression(3, 9, 0.5, 0.0, False, True),
            [tensor("f32", 1, 5, 2, 4), tensor("f32", 1, 5, 3)],
        ),
        (
            CombinedNonMaxSuppression(3, 9, 0.5, 0.0, True, True),
            [tensor("f32", 1, 5, 1, 4), tensor("f32", 1, 5, "C")],
        ),
        (
            CombinedNonMaxSuppression(0, 9, 0.5, 0.0, True, True),
            [tensor("f32", 1, 5, 1, 4), tensor("f32", 1, 5, 2)],
        ),
    ],
)
def test_refuses(op, types):
    with pytest.raises(ShapeError):
        infer(op, *types)
