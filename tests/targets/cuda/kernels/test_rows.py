"""Softmax and normalizations in Triton's interpreter: every op, dtype, layout and tile."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.tactics import random_array, strided, task_of
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.elementwise import Cast, ew
from planish.ops.normalization import (
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    LogSoftmax,
    Lrn,
    QuantizedSoftmax,
    Softmax,
)
from planish.ops.reduce import ReduceSum
from planish.targets.base import Binding
from planish.targets.cuda.kernels.rows import FAMILIES, LrnFamily, LrnTactic, RowsFamily, RowsTactic
from planish.targets.cuda.machine import H200

ROWS, LRN = RowsFamily(), LrnFamily()
F16, F32, F64 = DType.FLOAT16, DType.FLOAT32, DType.FLOAT64
CLOSE = {F16: 4e-3, DType.BFLOAT16: 3e-2, F32: 2e-5, F64: 1e-12}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def check(task, rng, family=ROWS, **options):
    for layouts in (None, lambda v: strided(v, rng)):
        check_interpreted(family, task, rng, layouts=layouts, **options)


def of_op(op, shape, dtype, parameter=None):
    """A task of one op, its parameters (of `parameter`, if they are of another dtype) included."""
    parameter = parameter or dtype
    count = {BatchNorm: 4, LayerNorm: 2, InstanceNorm: 2}.get(type(op), 0)
    inputs = [(shape, dtype), *[((shape[-1],), parameter)] * count]
    return task_of((op, count + 1), inputs=inputs)


def arrays_for(task, rng):
    """Random arrays; a variance, which comes last, is not negative."""
    arrays = [random_array(rng, v.type.bind({}), v.dtype) for v in task.inputs]
    if isinstance(task.anchor.op, BatchNorm):
        arrays[4] = np.abs(arrays[4])
    return arrays


def test_families():
    assert [f.name for f in FAMILIES] == ["rows", "lrn"]
    assert ROWS.on(H200) == ROWS
    assert LRN.on(H200) == LRN


@pytest.mark.parametrize("dtype", [F16, DType.BFLOAT16, F32, F64])
@pytest.mark.parametrize(
    "op",
    [
        Softmax(-1),
        LogSoftmax(1),
        LayerNorm(-1, 1e-5),
        LayerNorm(1, 1e-3),
        InstanceNorm(1e-5),
        BatchNorm(1e-3),
    ],
    ids=str,
)
def test_ops_and_dtypes(op, dtype, rng):
    task = of_op(op, (2, 5, 13), dtype)
    check_interpreted(ROWS, task, rng, arrays=arrays_for(task, rng), tolerance=CLOSE[dtype])


@pytest.mark.parametrize("columns", [64, 8])
def test_quantized_softmax(columns, rng):
    """Weights are quantized by the greatest of the whole row, in registers or read anew."""
    task = of_op(QuantizedSoftmax(1, 255), (5, 61), F32)
    tactics = [RowsTactic(task, 2, columns, split, 1) for split in (1, 4)]
    check_interpreted(ROWS, task, rng, tactics=tactics, tolerance=2e-5)
    assert all(t.split == 1 for t in ROWS.on(H200).tactics(task, Binding({})))


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((7, 33), 1), ((7, 33), 0), ((2, 3, 4, 5), 2), ((1, 9), 0), ((5,), 0), ((3, 1, 6), 2)],
)
@pytest.mark.parametrize("op", [Softmax, LogSoftmax])
def test_any_axis(op, shape, axis, rng):
    check(task_of((op(axis),), inputs=[(shape, F32)]), rng, tolerance=2e-5)


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (LayerNorm(-1, 1e-5), (3, 20)),
        (LayerNorm(1, 1e-5), (3, 4, 5)),
        (InstanceNorm(1e-3), (2, 4, 5, 3)),
        (InstanceNorm(1e-3), (1, 9, 40)),
        (BatchNorm(1e-3), (2, 3, 4, 7)),
        (BatchNorm(1e-3), (7,)),
    ],
    ids=str,
)
def test_normalizations(op, shape, rng):
    """Parameters of float32 go with halves."""
    task = of_op(op, shape, F32)
    check(task, rng, arrays=arrays_for(task, rng), tolerance=2e-5)
    halves = of_op(op, shape, F16, F32)
    check_interpreted(ROWS, halves, rng, arrays=arrays_for(halves, rng), tolerance=4e-3)


@pytest.mark.parametrize("op", [Softmax(1), LogSoftmax(1), LayerNorm(1, 1e-5)], ids=str)
@pytest.mark.parametrize("length", [61])
@pytest.mark.parametrize(("columns", "split"), [(64, 1), (8, 1), (8, 8), (16, 2), (8, 2)])
def test_registers_loops_and_splits(op, length, columns, split, rng):
    task = of_op(op, (5, length), F32)
    tactics = [RowsTactic(task, 2, columns, split, 1)]
    check_interpreted(ROWS, task, rng, tactics=tactics, tolerance=2e-5)


@pytest.mark.parametrize("split", [1, 4])
def test_far_from_zero(split, rng):
    """The mean is taken off before squares are summed, also where chunks are joined."""
    task = of_op(LayerNorm(1, 1e-5), (3, 64), F32)
    array = (rng.standard_normal((3, 64)) + 1000).astype(np.float32)
    scale, offset = np.ones(64, np.float32), np.zeros(64, np.float32)
    tactics = [RowsTactic(task, 2, 16, split, 1)]
    check_interpreted(
        ROWS, task, rng, tactics=tactics, arrays=[array, scale, offset], tolerance=2e-4
    )


@pytest.mark.parametrize("op", [Softmax(1), LogSoftmax(1)], ids=str)
@pytest.mark.parametrize(("columns", "split"), [(16, 1), (4, 1), (4, 2)])
def test_nan_infinity_and_large(op, columns, split, rng):
    nan, inf = np.nan, np.inf
    rows = [
        [-inf] * 4 + [1.0, 2, 3, 4],
        [-inf] * 8,
        [inf, 1, 2, 3, 4, 5, 6, 7],
        [-inf, -inf, nan, -inf, 1, 2, 3, 4],
        [1e4, -1e4, 1e4, 0, 0, 0, 0, 0],
        [-1e30, 0, 1e30, 0, 0, 0, 0, 0],
    ]
    task = of_op(op, (6, 8), F32)
    tactics = [RowsTactic(task, 2, columns, split, 1)]
    arrays = [np.array(rows, np.float32)]
    check_interpreted(ROWS, task, rng, tactics=tactics, arrays=arrays, tolerance=2e-5)


def test_attention_scores(rng):
    """Scores are scaled and masked before, and become halves after."""
    task = task_of(
        (ew.Mul(),),
        (ew.Add(),),
        (Softmax(-1),),
        (Cast(F16),),
        inputs=[((2, 3, 4, 20), F32), ((), F32), ((2, 1, 1, 20), F32)],
    )
    assert task.prologue
    check(task, rng, tolerance=2e-3)


def test_layer_norm_with_work_before_and_after(rng):
    task = task_of(
        (ew.Add(),),
        (LayerNorm(-1, 1e-12), 3),
        (ew.Relu(),),
        (ew.Add(),),
        inputs=[((3, 4, 24), F32), ((24,), F32), ((24,), F32), ((24,), F32), ((3, 4, 24), F32)],
    )
    check(task, rng, tolerance=2e-5)
    split = [RowsTactic(task, 2, 8, 2, 1)]
    check_interpreted(ROWS, task, rng, tactics=split, tolerance=2e-5)


def test_parameters_broadcast_as_they_like(rng):
    task = task_of(
        (LayerNorm(1, 1e-5), 3), inputs=[((2, 3, 8), F32), ((3, 1), F32), ((2, 1, 8), F32)]
    )
    check(task, rng, tolerance=2e-5)


@pytest.mark.parametrize("seed", range(5))
def test_randomly(seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    shape = tuple(int(n) for n in rng.integers(1, 9, rank))
    axis = int(rng.integers(rank))
    op = rng.choice([Softmax, LogSoftmax])(axis) if seed % 2 else LayerNorm(axis, 1e-3)
    check(of_op(op, shape, F64), rng, tolerance=1e-11)


def test_every_tactic_is_right(rng):
    task = of_op(Softmax(-1), (6, 70), F16)
    check_interpreted(ROWS, task, rng, limit=None, tolerance=4e-3)


# ---- local response normalization --------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 4, 11), (1, 1), (5,)])
@pytest.mark.parametrize("op", [Lrn(2, 1.0, 0.5, 0.75), Lrn(7, 2.0, 1e-4, 0.5)], ids=str)
def test_lrn(op, shape, rng):
    check(task_of((op,), inputs=[(shape, F32)]), rng, LRN, tolerance=2e-5)


def test_lrn_with_work_before_and_after(rng):
    task = task_of((Cast(F32),), (Lrn(1, 1.0, 1.0, 0.75),), (ew.Relu(),), inputs=[((2, 3, 9), F16)])
    check(task, rng, LRN, tolerance=2e-5)
    tiles = [LrnTactic(task, 2, 4, 1)]
    check_interpreted(LRN, task, rng, tactics=tiles, tolerance=2e-5)


# ---- what is offered -------------------------------------------------------------------------


def test_understands_only_its_own():
    other = task_of((ReduceSum((0,)),), inputs=[((2, 3), F32)])
    for family in (ROWS, LRN):
        assert not list(family.tactics(other, Binding({})))
        with pytest.raises(PlanError):
            family.restore(other, {"rows": 1, "columns": 4, "split": 1, "warps": 1})
    with pytest.raises(PlanError):
        ROWS.restore(of_op(Softmax(1), (2, 3), F32), {"rows": 3, "columns": 4})


def test_short_rows_stay_in_registers():
    for shape in ((12 * 128, 128), (1024, 768), (8, 4096)):
        task = of_op(Softmax(1), shape, F16)
        tactic = next(iter(ROWS.tactics(task, Binding({}))))
        assert tactic.parameters["columns"] >= shape[1]
        assert tactic.parameters["split"] == 1


def test_few_long_rows_are_split():
    task = of_op(InstanceNorm(1e-5), (1, 512, 512, 32), F16)
    tactic = next(iter(ROWS.tactics(task, Binding({}))))
    first, second = tactic.launches(Binding({}))
    assert min(first.tasks, second.tasks) >= H200.multiprocessors


def test_batches_share_a_kernel():
    kernels = []
    for batch in (1, 8):
        task = of_op(Softmax(-1), (batch, 12, 128, 128), F16)
        (launch,) = RowsTactic(task, 4, 128, 1, 1).launches(Binding({}))
        kernels.append(launch.kernel)
    assert kernels[0] == kernels[1]


def test_compiled_for_hopper():
    """BERT's rows are read and written in vectors."""
    softmax = of_op(Softmax(-1), (8, 12, 128, 128), F16)
    layer = of_op(LayerNorm(-1, 1e-12), (8, 128, 768), F16)
    for task in (softmax, layer):
        tactic = next(iter(ROWS.tactics(task, Binding({}))))
        text = assembly(tactic, Binding({}))
        assert "ld.global.v" in text
        assert "st.global.v" in text
    image = of_op(InstanceNorm(1e-5), (1, 256, 256, 32), F16)
    tactic = next(iter(ROWS.tactics(image, Binding({}))))
    assert len(compiled(tactic, Binding({}))) == 2
    lrn = task_of((Lrn(2, 1.0, 1e-4, 0.75),), inputs=[((8, 27, 27, 96), F16)])
    assert compiled(LrnTactic(lrn), Binding({}))
