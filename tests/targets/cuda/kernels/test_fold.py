"""`Fold` in Triton's interpreter: dimensions, dtypes and layouts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted, compiled
from helpers.tactics import row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.conv import Fold
from planish.ops.elementwise import ew
from planish.targets.base import Binding
from planish.targets.cuda.kernels.fold import FoldFamily, Folding

FOLD = FoldFamily()
F32 = DType.FLOAT32
CLOSE = {F32: 1e-5, DType.FLOAT16: 2e-3, DType.BFLOAT16: 2e-2, DType.FLOAT64: 1e-12}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def check_fold(op, shape, rng, dtype=F32, layouts=None):
    task = task_of((op, 1), inputs=[(shape, dtype)])
    check_interpreted(
        FOLD,
        task,
        rng,
        tactics=[Folding(task, 16, 4, 1)],
        layouts=layouts,
        tolerance=CLOSE.get(dtype, 0.0),
    )


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (Fold((5,), (3,), (1,), (1,), (1,)), (2, 5, 3, 3)),
        (Fold((7, 6), (3, 2), (2, 3), (1, 0), (1, 2)), (1, 4, 2, 6, 5)),
        (Fold((3, 4, 5), (2, 1, 2), (1, 1, 2), (0, 0, 1), (1, 1, 1)), (1, 2, 4, 3, 4, 2)),
        (Fold((3, 4), (7, 6), (1, 2), (3, 3), (1, 1)), (1, 3, 2, 42, 1)),  # looped over
        (Fold((1, 1), (1, 1), (1, 1), (0, 0), (1, 1)), (1, 1, 1, 1, 1)),
    ],
)
def test_fold(op, shape, rng):
    check_fold(op, shape, rng)
    check_fold(op, shape, rng, layouts=lambda v: strided(v, rng))


@pytest.mark.parametrize("dtype", [*CLOSE, DType.INT8, DType.INT64, DType.UINT16])
def test_fold_of_every_dtype(dtype, rng):
    check_fold(Fold((6,), (3,), (1,), (0,), (2,)), (2, 5, 3, 4), rng, dtype)


def test_plans_take_all_that_is_offered_for_bytes(rng):
    task = task_of((Fold((6,), (3,), (1,), (0,), (2,)), 1), inputs=[((2, 5, 3, 1), DType.UINT8)])
    check_interpreted(FOLD, task, rng, limit=None)


def test_fold_with_work_around_it(rng):
    op = Fold((5, 4), (2, 2), (2, 1), (0, 1), (1, 1))
    inputs = [((2, 3, 4, 4, 5), F32), ((5,), F32)]
    task = task_of((ew.Neg(),), (op, 1), (ew.Add(),), inputs=inputs)
    check_interpreted(FOLD, task, rng, layouts=row_padded, tolerance=1e-5, limit=2)


def test_offered_tactics_compile():
    op = Fold((64, 64), (3, 3), (2, 2), (1, 1), (1, 1))
    task = task_of((op, 1), inputs=[((8, 32, 32, 9, 64), F32)])
    assert compiled(next(iter(FOLD.tactics(task, Binding({})))), Binding({}))


def test_plans_cannot_ask_for_impossible_parameters():
    task = task_of((Fold((2,), (1,), (1,), (0,), (1,)), 1), inputs=[((1, 2, 1, 4), F32)])
    with pytest.raises(PlanError, match="impossible fold kernel"):
        FOLD.restore(task, {"rows": 3, "channels": 4, "warps": 1})
