"""`NonZero` and `Unique` in Triton's interpreter: every dtype and layout, one piece and many."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted, compiled
from helpers.tactics import strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.data_dependent import NonZero, Unique
from planish.targets.base import Binding
from planish.targets.cuda.kernels.compaction import Pieces
from planish.targets.cuda.kernels.nonzero import Indices, NonZeroFamily
from planish.targets.cuda.kernels.unique import Distinct, UniqueFamily

NON_ZERO, UNIQUE = NonZeroFamily(), UniqueFamily()
NUMBERS = [d for d in DType if d is not DType.BOOL]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def check(family, op, x, rng, layouts=None):
    task = task_of((op, 1), inputs=[(x.shape, DType.of(x.dtype))])
    make = Indices if family is NON_ZERO else Distinct
    check_interpreted(family, task, rng, tactics=[make(task, 64)], arrays=[x], layouts=layouts)


@pytest.mark.parametrize("dtype", list(DType))
def test_non_zero_of_every_dtype(dtype, rng):
    low = 0 if dtype.value[0] in "ub" else -1
    x = rng.integers(low, 2, (3, 41)).astype(dtype.numpy)
    if dtype.is_float:
        x[0, :3] = np.nan, -0.0, np.inf
    check(NON_ZERO, NonZero(), x, rng)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (64,), (65,), (2, 3, 5, 4), (7, 1, 30)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_non_zero_of_any_shape(shape, share, rng):
    x = (rng.random(shape) < share).astype(np.float32)
    check(NON_ZERO, NonZero(), x, rng)
    if share == 0.3:
        check(NON_ZERO, NonZero(), x, rng, lambda v: strided(v, rng))


@pytest.mark.parametrize("dtype", NUMBERS)
def test_unique_of_every_dtype(dtype, rng):
    low = 0 if dtype.value[0] == "u" else -4
    x = rng.integers(low, 5, 40).astype(dtype.numpy)
    if dtype.is_float:
        x[[3, 9, 10, 17, 20]] = np.nan, -0.0, 0.0, np.nan, -np.inf
    check(UNIQUE, Unique(sorted=dtype.size != 2), x, rng)


@pytest.mark.parametrize("sorted_", [True, False])
@pytest.mark.parametrize("length", [1, 2, 63, 100])
@pytest.mark.parametrize("values", [1, 9, 10_000])
def test_unique_of_any_length(values, length, sorted_, rng):
    x = rng.integers(0, values, length).astype(np.int32)
    layouts = (lambda v: strided(v, rng)) if length == 63 else None
    check(UNIQUE, Unique(sorted_), x, rng, layouts)


def test_pieces_cover_everything():
    for elements in (1, 64, 65, 1 << 16, (1 << 16) + 1, 10**7, (1 << 31) - 1):
        pieces = Pieces(elements, 64)
        assert pieces.number <= 1024
        assert pieces.each % 64 == 0
        assert (pieces.number - 1) * pieces.each < elements <= pieces.number * pieces.each


def test_offered_tactics_compile():
    task = task_of((NonZero(), 1), inputs=[((25200, 80), DType.BOOL)])
    assert all(
        c.cubin for c in compiled(next(iter(NON_ZERO.tactics(task, Binding({})))), Binding({}))
    )
    task = task_of((Unique(False), 1), inputs=[((900,), DType.INT64)])
    assert all(c.cubin for c in compiled(Distinct(task, 64), Binding({})))


@pytest.mark.parametrize("op", [NonZero(), Unique()])
def test_plans_cannot_ask_for_impossible_parameters(op):
    family = NON_ZERO if isinstance(op, NonZero) else UNIQUE
    task = task_of((op, 1), inputs=[((9,), DType.FLOAT32)])
    with pytest.raises(PlanError, match="impossible"):
        family.restore(task, {"block": 3})
