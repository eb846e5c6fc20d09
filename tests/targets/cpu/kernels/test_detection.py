"""Non-maximum suppression: every decision equals the reference's."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.boxes import boxes, equal_scores
from helpers.machines import restricted
from helpers.tactics import check_tactics, strided
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.base import Op
from planish.ops.detection import CombinedNonMaxSuppression, NonMaxSuppression
from planish.targets.base import Binding
from planish.targets.cpu.kernels.detection import CombinedSuppressionFamily, SuppressionFamily

COMBINED, SINGLE = CombinedSuppressionFamily(), SuppressionFamily()
FLOATS = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def task_for(op: Op, b: np.ndarray, s: np.ndarray, dtype=DType.FLOAT32) -> tuple[Task, list]:
    graph = Graph()
    arrays = [b.astype(dtype.numpy), s.astype(dtype.numpy)]
    values = [graph.input(n, TensorType(a.shape, dtype)) for n, a in zip("bs", arrays, strict=True)]
    node = graph.add_node(op, values)
    return make_task([node], node), arrays


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("own_boxes", [False, True])
def test_combined(dtype, own_boxes, rng):
    op = CombinedNonMaxSuppression(10, 30, 0.3, 0.4, False, False)
    b = boxes(rng, 2, 60, 7 if own_boxes else 1)
    task, arrays = task_for(op, b, equal_scores(rng, 2, 60, 7), dtype)
    for layouts in (None, lambda v: strided(v, rng)):
        check_tactics(COMBINED, task, rng, arrays=arrays, layouts=layouts)


@pytest.mark.parametrize("machine", ["host", "avx2"])
@pytest.mark.parametrize(
    "op",
    [
        CombinedNonMaxSuppression(5, 300, 0.5, 0.1, True, True),  # several attempts
        CombinedNonMaxSuppression(400, 100, 0.05, 0.0, False, True),
        CombinedNonMaxSuppression(100, 700, 0.9, 1e-8, False, False),
        CombinedNonMaxSuppression(10, 10, 0.0, 2.0, False, True),  # nothing scores enough
    ],
)
@pytest.mark.parametrize("scores", ["equal", "different"])
def test_combined_of_many(op, scores, machine, rng):
    chosen = restricted("avx2") if machine == "avx2" else None
    s = equal_scores(rng, 1, 700, 20) if scores == "equal" else rng.random((1, 700, 20)) ** 4
    task, arrays = task_for(op, boxes(rng, 1, 700, 1, size=0.5), s)
    check_tactics(COMBINED, task, rng, arrays=arrays, machine=chosen)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (1, 1, 1), (1, 5, 33)])
def test_combined_of_few(shape, rng):
    op = CombinedNonMaxSuppression(10, 30, 0.3, 0.4, False, False)
    task, arrays = task_for(op, boxes(rng, *shape[:2], 1), rng.random(shape))
    check_tactics(COMBINED, task, rng, arrays=arrays)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("limit", "iou", "score"), [(10, 0.5, 0.0), (300, 0.1, 0.5), (5, 0.1, 2.0), (0, 0.9, 0.0)]
)
def test_single(limit, iou, score, dtype, rng):
    op = NonMaxSuppression(limit, iou, score)
    task, arrays = task_for(op, boxes(rng, 400), equal_scores(rng, 400), dtype)
    for layouts in (None, lambda v: strided(v, rng)):
        check_tactics(SINGLE, task, rng, arrays=arrays, layouts=layouts)


def test_single_with_strange_boxes(rng):
    b, s = boxes(rng, 40), rng.random(40)
    b[3], b[7, 1], b[9, 2] = np.nan, np.inf, np.nan
    s[5], s[6] = np.nan, np.inf
    task, arrays = task_for(NonMaxSuppression(40, 0.1, 0.1), b, s)
    check_tactics(SINGLE, task, rng, arrays=arrays)


@pytest.mark.parametrize(
    ("limit", "sigma", "score"), [(50, 0.5, 0.0), (50, 0.1, 0.3), (400, 1.0, 0.1), (0, 1.0, 0.1)]
)
def test_soft(limit, sigma, score, rng):
    """The decisions are equal; scores only as close as exponentials are."""
    op = NonMaxSuppression(limit, 0.5, score, sigma)
    task, arrays = task_for(op, boxes(rng, 300), rng.random(300))
    for layouts in (None, lambda v: strided(v, rng)):
        check_tactics(SINGLE, task, rng, arrays=arrays, layouts=layouts, tolerance=2e-6)


@pytest.mark.parametrize("family", [COMBINED, SINGLE])
def test_nonsense_in_a_plan(family, rng):
    op = NonMaxSuppression(3, 0.5, 0.1)
    if family is COMBINED:
        op = CombinedNonMaxSuppression(3, 3, 0.5, 0.1, True, True)
    shapes = [(1, 9, 1), (1, 9, 2)] if family is COMBINED else [(9,), (9,)]
    task, _ = task_for(op, boxes(rng, *shapes[0]), rng.random(shapes[1]))
    assert list(family.tactics(task, Binding({})))
    with pytest.raises(PlanError, match="impossible"):
        family.restore(task, {"limit": 3})
