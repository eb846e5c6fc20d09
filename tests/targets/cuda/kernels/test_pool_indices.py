"""`MaxPoolIndices` in Triton's interpreter: dimensions, dtypes and layouts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted, compiled
from helpers.tactics import strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.pool import MaxPoolIndices
from planish.targets.base import Binding
from planish.targets.cuda.kernels.pool_indices import PoolIndicesFamily, PoolingIndices

INDICES = PoolIndicesFamily()
F32 = DType.FLOAT32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def check_indices(op, x, rng, layouts=None):
    task = task_of((op, 1), inputs=[(x.shape, DType.of(x.dtype))])
    tactics = [PoolingIndices(task, 16, 4, 1)]
    check_interpreted(INDICES, task, rng, tactics=tactics, arrays=[x], layouts=layouts)


def equals(rng, shape, dtype=F32):
    """Few different numbers, so that maxima are equal."""
    low = 0 if dtype.value[0] == "u" else -2
    return rng.integers(low, 3, shape).astype(dtype.numpy)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (MaxPoolIndices((3,), (2,), ((1, 1),), (1,)), (2, 9, 3)),
        (MaxPoolIndices((2, 3), (2, 1), ((0, 1), (1, 2)), (1, 2)), (2, 5, 6, 5)),
        (MaxPoolIndices((2, 2, 1), (1, 2, 1), ((0, 0),) * 3, (1, 1, 1)), (1, 3, 4, 2, 4)),
        (MaxPoolIndices((1, 1), (1, 1), ((0, 0), (2, 2)), (1, 1)), (1, 1, 1, 1)),
    ],
)
def test_indices(op, shape, rng):
    check_indices(op, equals(rng, shape), rng)
    check_indices(op, equals(rng, shape), rng, lambda v: strided(v, rng))


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL])
def test_indices_of_every_dtype(dtype, rng):
    op = MaxPoolIndices((2, 2), (1, 2), ((1, 0), (0, 1)), (1, 1))
    x = equals(rng, (1, 4, 3, 2), dtype)
    if dtype.is_float:
        x[0, 0], x[0, 1, 1] = -np.inf, np.nan
    elif dtype.value[0] == "i":
        x[0, 0] = np.iinfo(dtype.numpy).min
    check_indices(op, x, rng)


def test_offered_tactics_compile():
    op = MaxPoolIndices((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
    task = task_of((op, 1), inputs=[((8, 64, 64, 64), DType.FLOAT16)])
    assert compiled(next(iter(INDICES.tactics(task, Binding({})))), Binding({}))


def test_plans_cannot_ask_for_impossible_parameters():
    task = task_of((MaxPoolIndices((1,), (1,), ((0, 0),), (1,)), 1), inputs=[((1, 2, 4), F32)])
    with pytest.raises(PlanError, match="impossible max_pool_indices kernel"):
        INDICES.restore(task, {"rows": 3, "channels": 4, "warps": 1})
