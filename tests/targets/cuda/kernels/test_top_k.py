"""Top k in Triton's interpreter: every dtype, order of ties, rows of one block and of many."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted, compiled
from helpers.tactics import strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.reduce import TopK
from planish.targets.base import Binding
from planish.targets.cuda.kernels.ranking import Ranking
from planish.targets.cuda.kernels.top_k import BestOfRows, TopKFamily

FAMILY = TopKFamily()
F32 = DType.FLOAT32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def check(op, array, rng, block=64, layouts=None):
    task = task_of((op, 1), inputs=[(array.shape, DType.of(array.dtype))])
    tactics = [BestOfRows(task, block, 1)]
    check_interpreted(FAMILY, task, rng, tactics=tactics, arrays=[array], layouts=layouts)


def with_ties(rng, shape, dtype=F32):
    """Numbers of which many are equal."""
    low = 0 if dtype.value[0] == "u" else -4
    return rng.integers(low, 5, shape).astype(dtype.numpy)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(
    "dtype",
    [
        F32,
        DType.FLOAT16,
        DType.BFLOAT16,
        DType.FLOAT64,
        DType.INT8,
        DType.INT64,
        DType.UINT8,
        DType.UINT32,
        DType.UINT64,
    ],
)
def test_dtypes(dtype, largest, rng):
    check(TopK(5, largest=largest), with_ties(rng, (3, 19), dtype), rng)
    if dtype.is_integer:
        limits = np.iinfo(dtype.numpy)
        x = rng.integers(limits.min, limits.max, (2, 9), dtype=dtype.numpy, endpoint=True)
        x[0, 3], x[0, 5] = limits.min, limits.max
        check(TopK(9, largest=largest), x, rng)


@pytest.mark.parametrize("dtype", [F32, DType.FLOAT64])
@pytest.mark.parametrize("largest", [True, False])
def test_special_numbers(dtype, largest, rng):
    """NaN is the largest; zeros of either sign are equal and come out as they are."""
    row = [0.0, -0.0, np.nan, -np.inf, np.inf, -np.nan, 1e-45, -1e-45, 0.0, -0.0, 3.0]
    check(TopK(11, largest=largest), np.array([row, row[::-1]], dtype.numpy), rng)


@pytest.mark.parametrize(
    ("shape", "axis", "k"),
    [
        ((1,), 0, 1),
        ((1, 1), 0, 1),
        ((37,), 0, 37),
        ((5, 1, 3), 1, 1),
        ((2, 7, 9), 1, 3),
        ((11, 3, 2), 0, 11),
        ((4, 3, 33), -1, 2),
    ],
)
def test_axes_and_layouts(shape, axis, k, rng):
    for layouts in (None, lambda v: strided(v, rng)):
        x = with_ties(rng, shape)
        check(TopK(k, axis, index_dtype=DType.INT32), x, rng, layouts=layouts)


@pytest.mark.parametrize(
    ("length", "k"),
    [(65, 65), (200, 200), (200, 7), (129, 40), (193, 100), (640, 1)],
)
@pytest.mark.parametrize("dtype", [F32, DType.INT64])
def test_rows_of_many_blocks(length, k, dtype, rng):
    if dtype is DType.INT64 and length > 300:
        return
    check(TopK(k, largest=length % 2 == 0), with_ties(rng, (2, length), dtype), rng)


def test_one_run_is_left_of_every_row():
    for length in (1, 63, 64, 65, 1000, 100_000, 1_000_000):
        for keep in {1, 5, min(length, 700), length}:
            ranking = Ranking(1, 3, length, min(keep, length), 1024, 4)
            last = ranking.levels()[-1]
            assert last.runs == 1
            assert last.each >= ranking.keep
            assert len(ranking.levels()) <= 12


def test_offered_tactics_compile():
    task = task_of((TopK(5), 1), inputs=[((8, 1000), F32)])
    assert compiled(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}))
    task = task_of((TopK(300), 1), inputs=[((2, 3000), F32)])
    assert len(compiled(BestOfRows(task, 128, 1), Binding({}))) > 3


def test_plans_cannot_ask_for_impossible_parameters():
    task = task_of((TopK(1), 1), inputs=[((3,), F32)])
    with pytest.raises(PlanError, match="impossible top_k kernel"):
        FAMILY.restore(task, {"block": 3, "warps": 1})
