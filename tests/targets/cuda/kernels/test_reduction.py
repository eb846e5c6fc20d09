"""Reductions, arg max and running sums in Triton's interpreter: every op, dtype and layout."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.tactics import strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import Cast, ew
from planish.ops.reduce import (
    ArgMax,
    ArgMin,
    CumSum,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
)
from planish.ops.shape import Transpose
from planish.targets.base import Binding
from planish.targets.cuda.kernels.reduction import (
    FAMILIES,
    ReductionFamily,
    ReductionTactic,
    RunningSumFamily,
    RunningSumTactic,
)
from planish.targets.cuda.machine import H200

REDUCTION, SUM = ReductionFamily(), RunningSumFamily()
F16, F32, F64 = DType.FLOAT16, DType.FLOAT32, DType.FLOAT64
INTEGERS = [DType.INT8, DType.UINT32, DType.INT64, DType.UINT64]
CLOSE = {F16: 2e-3, DType.BFLOAT16: 2e-2, F32: 1e-5, F64: 1e-12}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def check(task, rng, family=REDUCTION, **options):
    for layouts in (None, lambda v: strided(v, rng)):
        check_interpreted(family, task, rng, layouts=layouts, **options)


def test_families():
    assert [f.name for f in FAMILIES] == ["reduction", "running_sum"]
    assert REDUCTION.on(H200) == REDUCTION
    assert SUM.on(H200) == SUM


# ---- reductions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((7, 33), (1,)),
        ((7, 33), (0,)),
        ((3, 4, 5, 6), (1, 2)),
        ((3, 4, 5, 6), (0, 2)),
        ((2, 3, 5), (0, 1, 2)),
        ((2, 3, 5), ()),
        ((1, 1, 9), (1,)),
        ((5,), (0,)),
        ((1, 1), (0, 1)),
    ],
)
@pytest.mark.parametrize("keepdims", [False, True])
def test_any_axes(shape, axes, keepdims, rng):
    check(task_of((ReduceSum(axes, keepdims),), inputs=[(shape, F32)]), rng, tolerance=1e-5)


@pytest.mark.parametrize("op", [ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceProd])
@pytest.mark.parametrize("dtype", [F16, F64, *INTEGERS])
def test_dtypes(op, dtype, rng):
    """Integers wrap around, means of them are rounded towards zero, halves only once."""
    task = task_of((op((1,)),), inputs=[((3, 9), dtype)])
    check_interpreted(REDUCTION, task, rng, tolerance=CLOSE.get(dtype, 0.0))


@pytest.mark.parametrize("op", [ReduceAny, ReduceAll, ReduceMax, ReduceMin])
@pytest.mark.parametrize("shape", [(40, 2), (2, 3)])
def test_bool(op, shape, rng):
    if op in (ReduceMax, ReduceMin):
        task = task_of((Cast(DType.INT32),), (op((1,)),), inputs=[(shape, DType.BOOL)])
    else:
        task = task_of((op((1,)),), (ew.LogicalNot(),), inputs=[(shape, DType.BOOL)])
    check(task, rng)


@pytest.mark.parametrize("op", [ReduceMax, ReduceMin, ReduceSum, ArgMax, ArgMin])
@pytest.mark.parametrize("columns", [4, 16])
def test_nan_and_infinity(op, columns, rng):
    nan, inf = np.nan, np.inf
    rows = [
        [1, nan, 3, nan, 5, 6, 7, 8, 9],
        [nan] * 9,
        [-inf] * 9,
        [inf] * 9,
        [inf, -inf, 0, 1, 2, 3, 4, 5, nan],
        [1, 2, 2, 0, 0, 2, 1, 0, 1],
    ]
    array = np.array(rows, np.float32)
    for chosen in ({"axis": 1, "select_last": False}, {"axis": 1, "select_last": True}):
        made = op(**chosen) if op in (ArgMax, ArgMin) else op((1,))
        task = task_of((made,), inputs=[(array.shape, F32)])
        for split in (1, 2):
            tactics = [ReductionTactic(task, 2, columns, split, 1)]
            check_interpreted(REDUCTION, task, rng, tactics=tactics, arrays=[array])


@pytest.mark.parametrize("op", [ReduceSum, ReduceMean, ReduceAll, ArgMax])
@pytest.mark.parametrize(("shape", "axis"), [((3, 100), 1), ((100, 3), 0), ((2, 70, 5), 1)])
@pytest.mark.parametrize("split", [1, 2, 16])
def test_loops_and_splits(op, shape, axis, split, rng):
    dtype = DType.BOOL if op is ReduceAll else F16
    made = op(axis) if op in (ArgMax, ArgMin) else op((axis,))
    task = task_of((made,), inputs=[(shape, dtype)])
    tactics = [ReductionTactic(task, 2, 8, split, 1)]
    check_interpreted(REDUCTION, task, rng, tactics=tactics, tolerance=CLOSE.get(dtype, 0.0))


@pytest.mark.parametrize("op", [ArgMax, ArgMin])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [DType.UINT64, F16, DType.BOOL])
def test_arg(op, last, dtype, rng):
    """Few different numbers: of equals the first, or the last."""
    for axis, keepdims, index in ((1, False, DType.INT64), (0, True, DType.INT32)):
        task = task_of((op(axis, keepdims, index, last),), inputs=[((4, 30), dtype)])
        array = rng.integers(0, 2 if dtype is DType.BOOL else 4, (4, 30)).astype(dtype.numpy)
        check(task, rng, arrays=[array])


@pytest.mark.parametrize("op", [ArgMax, ArgMin])
@pytest.mark.parametrize("number", [3.0, np.nan, np.inf])
def test_arg_of_a_single_number(op, number, rng):
    task = task_of((op(0, False),), inputs=[((1, 1, 1), F32)])
    check(task, rng, arrays=[np.full((1, 1, 1), number, np.float32)])


def test_work_before_and_after(rng):
    """A mean square of halves, scaled and shifted."""
    task = task_of(
        (Cast(F32),),
        (ew.Square(),),
        (ReduceMean((1, 2)),),
        (ew.Mul(),),
        (ew.Add(),),
        inputs=[((3, 4, 5, 6), F16), ((6,), F32), ((3, 6), F32)],
    )
    assert task.prologue
    check(task, rng, tolerance=1e-5)
    split = [ReductionTactic(task, 4, 4, 4, 1)]
    check_interpreted(REDUCTION, task, rng, tactics=split, tolerance=1e-5)


def test_operands_before_are_broadcast(rng):
    task = task_of((ew.Mul(),), (ReduceSum((2,), True),), inputs=[((2, 3, 20), F32), ((3, 1), F32)])
    check(task, rng, tolerance=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_randomly(seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 6))
    shape = tuple(int(n) for n in rng.integers(1, 12 if rank < 4 else 5, rank))
    axes = tuple(int(a) for a in np.flatnonzero(rng.integers(0, 2, rank)))
    op = rng.choice([ReduceSum, ReduceMax, ReduceMean])
    task = task_of((op(axes, bool(rng.integers(2))),), inputs=[(shape, F64)])
    check(task, rng, tolerance=1e-12)


def test_every_tactic_is_right(rng):
    task = task_of((ReduceMean((1, 2)),), inputs=[((2, 7, 7, 40), F16)])
    check_interpreted(REDUCTION, task, rng, limit=None, tolerance=2e-3)


# ---- running sums ----------------------------------------------------------------------------


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((3, 21), 1), ((21, 3), 0), ((2, 5, 4), 1), ((1,), 0)])
def test_running_sum(exclusive, reverse, shape, axis, rng):
    task = task_of((CumSum(axis, exclusive, reverse),), inputs=[(shape, F32)])
    check(task, rng, SUM, tolerance=1e-5)
    check_interpreted(SUM, task, rng, tactics=[RunningSumTactic(task, 2, 4, 1)], tolerance=1e-5)


@pytest.mark.parametrize("dtype", [F16, F64, DType.INT8, DType.UINT32, DType.INT64])
def test_running_sum_dtypes(dtype, rng):
    task = task_of((CumSum(1),), inputs=[((2, 9), dtype)])
    check_interpreted(SUM, task, rng, tolerance=CLOSE.get(dtype, 0.0))


def test_running_sum_of_infinity(rng):
    """What an exclusive sum leaves out is not subtracted."""
    task = task_of((CumSum(0, True),), inputs=[((4,), F32)])
    check_interpreted(SUM, task, rng, arrays=[np.array([1, 2, np.inf, 3], np.float32)])


def test_running_sum_with_work_before_and_after(rng):
    task = task_of(
        (Cast(DType.INT32),),
        (CumSum(1),),
        (ew.Sub(),),
        inputs=[((3, 12), DType.BOOL), ((3, 1), DType.INT32)],
    )
    check(task, rng, SUM)


# ---- what is offered -------------------------------------------------------------------------


def test_understands_only_its_own():
    other = task_of((Transpose((1, 0)),), inputs=[((2, 3), F32)])
    for family in (REDUCTION, SUM):
        assert not list(family.tactics(other, Binding({})))
        with pytest.raises(PlanError):
            family.restore(other, {"rows": 1, "columns": 4, "split": 1, "warps": 1})
    own = task_of((ReduceSum((1,)),), inputs=[((2, 3), F32)])
    with pytest.raises(PlanError):
        REDUCTION.restore(own, {"rows": 3, "columns": 4, "split": 1, "warps": 1})


def test_few_long_rows_are_split():
    """They fill the GPU; many short ones are reduced in one launch."""
    long = task_of((ReduceSum((1,)),), inputs=[((2, 1 << 20), F32)])
    tactic = next(iter(REDUCTION.tactics(long, Binding({}))))
    first, second = tactic.launches(Binding({}))
    assert first.tasks >= H200.multiprocessors > second.tasks
    short = task_of((ReduceSum((1,)),), inputs=[((4096, 768), F32)])
    tactic = next(iter(REDUCTION.tactics(short, Binding({}))))
    assert len(tactic.launches(Binding({}))) == 1


def test_batches_share_a_kernel():
    kernels = []
    for batch in (2, 7):
        task = task_of((ReduceMean((1, 2)),), inputs=[((batch, 7, 7, 64), F16)])
        (launch,) = ReductionTactic(task, 16, 64, 1, 2).launches(Binding({}))
        kernels.append(launch.kernel)
    assert kernels[0] == kernels[1]


def test_compiled_for_hopper():
    """Global average pooling reads neighbouring channels together; arg max compiles in two."""
    task = task_of((ReduceMean((1, 2)),), inputs=[((128, 7, 7, 2048), F16)])
    assert "ld.global.v4.b32" in assembly(ReductionTactic(task, 64, 64, 1, 8), Binding({}))
    search = task_of((ArgMax(1),), inputs=[((2, 100000), F32)])
    assert len(compiled(ReductionTactic(search, 1, 1024, 64, 2), Binding({}))) == 2
    product = task_of((ReduceProd((1,)),), inputs=[((2, 1000), F64)])
    assert compiled(ReductionTactic(product), Binding({}))
    sums = task_of((CumSum(1),), inputs=[((64, 5000), F32)])
    assert compiled(RunningSumTactic(sums), Binding({}))
