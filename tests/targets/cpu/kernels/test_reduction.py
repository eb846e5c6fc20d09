"""Reductions: every op and dtype, axes, layouts, fusion, long sums, splitting."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, row_padded, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import Cast, ew
from planish.ops.reduce import (
    ArgMax,
    ArgMin,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
)
from planish.targets.base import Binding
from planish.targets.cpu.kernels.reduction import ReductionFamily
from planish.targets.cpu.run import run_tactic

FAMILY = ReductionFamily()
F32 = DType.FLOAT32
NUMBERS = (ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceProd)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def whole_numbers(rng, shape, dtype):
    """Numbers whose sums and products are exact."""
    if dtype is DType.BOOL:
        return rng.random(shape) < 0.9
    return rng.choice([1, 1, 1, 2, 0 if dtype.value[0] == "u" else -1], shape).astype(dtype.numpy)


@pytest.mark.parametrize("op", NUMBERS)
@pytest.mark.parametrize("axis", [0, 1])
def test_every_dtype(op, axis, rng):
    for dtype in DType:
        if dtype is DType.BOOL:
            continue
        task = task_of((op((axis,)), 1), inputs=[((9, 70), dtype)])
        arrays = [whole_numbers(rng, (9, 70), dtype)]
        tolerance = 1e-6 if op is ReduceMean and dtype.is_float else 0.0
        check_tactics(FAMILY, task, rng, arrays=arrays, limit=1, tolerance=tolerance)


@pytest.mark.parametrize("op", [ReduceAny, ReduceAll])
@pytest.mark.parametrize("axis", [0, 1])
def test_bools(op, axis, rng):
    task = task_of((op((axis,)), 1), inputs=[((9, 70), DType.BOOL)])
    check_tactics(FAMILY, task, rng, arrays=[whole_numbers(rng, (9, 70), DType.BOOL)])


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 3, 4, 20), (1, 2)),
        ((2, 3, 4, 20), (0, 3)),
        ((2, 3, 4, 20), (0, 1, 2, 3)),
        ((2, 3, 4, 20), ()),
        ((3, 1, 40), (1,)),
        ((1, 1), (0, 1)),
        ((5,), (0,)),
    ],
)
@pytest.mark.parametrize("keepdims", [False, True])
def test_axes_and_layouts(shape, axes, keepdims, rng):
    task = task_of((ReduceSum(axes, keepdims), 1), inputs=[(shape, F32)])
    for layouts in (None, row_padded, lambda v: strided(v, rng)):
        check_tactics(FAMILY, task, rng, layouts=layouts, tolerance=1e-4, limit=1)


@pytest.mark.parametrize("axis", [1, 2])
def test_work_before_and_after(axis, rng):
    op = ReduceMean((axis,), True)
    after = (3, 1, 40) if axis == 1 else (3, 5, 1)
    task = task_of(
        (ew.Exp(),),
        (op, 1),
        (ew.Add(),),
        (Cast(DType.FLOAT16),),
        inputs=[((3, 5, 40), F32), (after, F32)],
    )
    assert task.prologue
    check_tactics(FAMILY, task, rng, tolerance=1e-2)


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 100_000), 1), ((30_000, 24), 0), ((2, 9_000, 3), 1)]
)
@pytest.mark.parametrize("op", [ReduceSum, ReduceMean, ReduceMax])
def test_split(shape, axis, op, rng):
    """Few long results take two launches, and sums stay accurate."""
    task = task_of((op((axis,)), 1), (ew.Neg(),), inputs=[(shape, F32)])
    x = rng.random(shape).astype(np.float32) + 1
    exact = -{ReduceSum: np.sum, ReduceMean: np.mean, ReduceMax: np.max}[op](
        x.astype(np.float64), axis
    )
    tactic = next(iter(FAMILY.tactics(task, Binding({}))))
    assert len(tactic.launches(Binding({}))) == 2
    (got,) = run_tactic(tactic, Binding({}), [x])
    np.testing.assert_allclose(got, exact, rtol=5e-7)


@pytest.mark.parametrize("dtype", [DType.BOOL, DType.INT8, DType.FLOAT16, DType.UINT8])
def test_split_of_narrow_dtypes(dtype, rng):
    for op in (ReduceAny, ReduceAll) if dtype is DType.BOOL else (ReduceMean, ReduceMax):
        task = task_of((op((1,)), 1), inputs=[((2, 100_000), dtype)])
        x = whole_numbers(rng, (2, 100_000), dtype)
        x[0] = x[0, 0]
        check_tactics(FAMILY, task, rng, arrays=[x], limit=1, tolerance=1e-3)


@pytest.mark.parametrize("op", [ArgMax, ArgMin])
@pytest.mark.parametrize("select_last", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((4, 1000), 1), ((37, 20), 0), ((3, 1), 1)])
def test_arg(op, select_last, shape, axis, rng):
    for dtype in (F32, DType.INT8, DType.UINT8, DType.FLOAT16, DType.INT64):
        task = task_of((op(axis, False, DType.INT32, select_last), 1), inputs=[(shape, dtype)])
        x = rng.integers(0, 9, shape).astype(dtype.numpy)
        if dtype.is_float:
            x[0, 0] = np.inf
            x[-1] = -np.inf
        check_tactics(FAMILY, task, rng, arrays=[x], limit=1)


@pytest.mark.parametrize("machine", ["host", "avx2"])
@pytest.mark.parametrize("op", [ReduceMax((1,)), ArgMax(1), ArgMin(1, select_last=True)])
def test_nan_wins(op, machine, rng):
    x = random_array(rng, (3, 40), F32)
    x[1, 7] = x[1, 30] = np.nan
    x[2] = -np.inf
    task = task_of((op, 1), inputs=[((3, 40), F32)])
    chosen = restricted("avx2") if machine == "avx2" else None
    check_tactics(FAMILY, task, rng, arrays=[x], machine=chosen)


@pytest.mark.parametrize("machine", ["host", "avx2"])
@pytest.mark.parametrize("length", [3, 20, 40, 70])
def test_tails(length, machine, rng):
    """Lanes that do not exist take no part."""
    chosen = restricted("avx2") if machine == "avx2" else None
    task = task_of((ReduceProd((1,)), 1), inputs=[((3, length), F32)])
    check_tactics(
        FAMILY,
        task,
        rng,
        arrays=[np.full((3, length), 1.25, np.float32)],
        machine=chosen,
        tolerance=1e-5,
    )


@pytest.mark.parametrize("op", NUMBERS)
def test_of_nothing(op, rng):
    for dtype in (F32, DType.INT32):
        check_tactics(FAMILY, task_of((op((1,)), 1), inputs=[((3, 0), dtype)]), rng, limit=1)
    task = task_of((op((1,)), 1), inputs=[((0, 3), F32)])
    assert next(iter(FAMILY.tactics(task, Binding({})))).launches(Binding({})) == []


@pytest.mark.parametrize("parameters", [{}, {"vectors": 0}, {"vectors": 2.0}, {"rows": 1}])
def test_nonsense_in_a_plan(parameters):
    task = task_of((ReduceSum((0,)), 1), inputs=[((9,), F32)])
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, parameters)
