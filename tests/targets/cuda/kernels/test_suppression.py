"""Non-maximum suppression in Triton's interpreter: every decision equals the reference's."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.boxes import boxes, equal_scores
from helpers.interpreted import check_interpreted, compiled
from helpers.tactics import strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.data_dependent import SelectBoxes
from planish.ops.detection import CombinedNonMaxSuppression, NonMaxSuppression
from planish.targets.base import Binding
from planish.targets.cuda.kernels.suppression import (
    SoftSuppression,
    SoftSuppressionFamily,
    Suppressing,
    SuppressionFamily,
)

HARD, SOFT = SuppressionFamily(), SoftSuppressionFamily()
FLOATS = [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def check(op, b, s, rng, dtype=DType.FLOAT32, layouts=None, block=64, candidates=16):
    arrays = [b.astype(dtype.numpy), s.astype(dtype.numpy)]
    task = task_of((op, 2), inputs=[(a.shape, dtype) for a in arrays])
    tactics = [Suppressing(task, block, candidates)]
    check_interpreted(HARD, task, rng, tactics=tactics, arrays=arrays, layouts=layouts)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("own_boxes", [False, True])
def test_combined(dtype, own_boxes, rng):
    op = CombinedNonMaxSuppression(10, 9, 0.3, 0.4, False, own_boxes)
    b = boxes(rng, 2, 20, 2 if own_boxes else 1)
    layouts = (lambda v: strided(v, rng)) if own_boxes else None
    check(op, b, equal_scores(rng, 2, 20, 2), rng, dtype, layouts)


@pytest.mark.parametrize(
    "op",
    [
        CombinedNonMaxSuppression(5, 90, 0.5, 0.1, True, True),
        CombinedNonMaxSuppression(400, 50, 0.05, 0.0, False, True),
        CombinedNonMaxSuppression(100, 90, 0.9, 1e-8, False, False),
        CombinedNonMaxSuppression(10, 10, 0.0, 2.0, False, True),  # nothing scores enough
    ],
)
def test_combined_of_many(op, rng):
    b = boxes(rng, 1, 70, 1, size=0.5)
    check(op, b, equal_scores(rng, 1, 70, 2), rng, candidates=32)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 9), (3, 2, 1)])
def test_combined_of_few(shape, rng):
    op = CombinedNonMaxSuppression(10, 30, 0.3, 0.4, False, False)
    check(op, boxes(rng, *shape[:2], 1), rng.random(shape), rng)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("limit", "iou", "score"), [(10, 0.5, 0.0), (200, 0.1, 0.5), (5, 0.1, 2.0)]
)
def test_single(limit, iou, score, dtype, rng):
    op = NonMaxSuppression(limit, iou, score)
    layouts = (lambda v: strided(v, rng)) if limit == 10 else None
    check(op, boxes(rng, 70), equal_scores(rng, 70), rng, dtype, layouts, candidates=32)


def test_single_with_strange_boxes(rng):
    b, s = boxes(rng, 40), rng.random(40)
    b[3], b[7, 1], b[9, 2] = np.nan, np.inf, np.nan
    s[5], s[6] = np.nan, np.inf
    check(NonMaxSuppression(40, 0.1, 0.1), b, s, rng)
    check(NonMaxSuppression(40, 0.1, -np.inf), b, s, rng)


def test_long_chains(rng):
    """Each box overlaps the one before and the one after it: every second one stays."""
    start = np.arange(33)[:, None] * 0.4
    b = np.concatenate([start, start * 0, start + 1, start * 0 + 1], 1)
    check(NonMaxSuppression(40, 0.2, 0.0), b, np.linspace(1, 0.1, 33), rng, candidates=64)
    check(NonMaxSuppression(40, 0.2, 0.0), b, np.linspace(1, 0.1, 33), rng, candidates=16)


@pytest.mark.parametrize("limit", [1, 7, 1000])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 66, 2), (1, 20, 9)])
def test_selection(shape, limit, rng):
    op = SelectBoxes(limit, 0.4, 0.3)
    layouts = (lambda v: strided(v, rng)) if limit == 7 else None
    check(op, boxes(rng, *shape[:2], 1), equal_scores(rng, *shape), rng, layouts=layouts)


@pytest.mark.parametrize(
    ("limit", "sigma", "score"), [(5, 0.5, 0.0), (9, 0.1, 0.3), (12, 1.0, 0.1)]
)
@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64])
def test_soft(limit, sigma, score, dtype, rng):
    """The decisions are equal; scores only as close as exponentials are."""
    op = NonMaxSuppression(limit, 0.5, score, sigma)
    arrays = [boxes(rng, 9, size=0.9).astype(dtype.numpy), equal_scores(rng, 9).astype(dtype.numpy)]
    task = task_of((op, 2), inputs=[(a.shape, dtype) for a in arrays])
    tactics = [SoftSuppression(task, 64)]
    layouts = (lambda v: strided(v, rng)) if limit == 9 else None
    check_interpreted(
        SOFT, task, rng, tactics=tactics, arrays=arrays, layouts=layouts, tolerance=2e-6
    )


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (
            CombinedNonMaxSuppression(100, 100, 0.5, 0.1, False, True),
            ((1, 1917, 1, 4), (1, 1917, 9)),
        ),
        (SelectBoxes(200, 0.5, 0.1), ((1, 300, 1, 4), (1, 300, 80))),
        (NonMaxSuppression(100, 0.5, 0.1), ((300, 4), (300,))),
    ],
)
def test_kernels_compile(op, shapes):
    task = task_of((op, 2), inputs=[(shape, DType.FLOAT32) for shape in shapes])
    tactic = Suppressing(task, 64, 32)  # the parameters change sizes only
    assert all(code.cubin for code in compiled(tactic, Binding({})))


def test_the_soft_kernel_compiles():
    op = NonMaxSuppression(100, 0.5, 0.1, 0.5)
    task = task_of((op, 2), inputs=[(shape, DType.FLOAT32) for shape in ((300, 4), (300,))])
    assert all(
        code.cubin for code in compiled(next(iter(SOFT.tactics(task, Binding({})))), Binding({}))
    )


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_plans_cannot_ask_for_impossible_parameters(sigma):
    op = NonMaxSuppression(3, 0.5, 0.1, sigma)
    task = task_of((op, 2), inputs=[((9, 4), DType.FLOAT32), ((9,), DType.FLOAT32)])
    family, other = (SOFT, HARD) if sigma else (HARD, SOFT)
    tactic = next(iter(family.tactics(task, Binding({}))))
    with pytest.raises(PlanError, match="impossible"):
        other.restore(task, tactic.parameters)
    with pytest.raises(PlanError, match="impossible"):
        family.restore(task, {**tactic.parameters, "candidates": 3})
