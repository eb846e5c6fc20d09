"""Top k and running sums: order of equals, special values, dtypes, axes, layouts."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, strided, task_of
from planish.errors import PlanError
from planish.fusion.task import make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.elementwise import ew
from planish.ops.reduce import CumSum, TopK
from planish.targets.base import Binding
from planish.targets.cpu.kernels.ordering import CumSumFamily, TopKFamily

TOP_K, CUMSUM = TopKFamily(), CumSumFamily()
F32 = DType.FLOAT32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def top_k(op: TopK, shape, dtype=F32):
    graph = Graph()
    node = graph.add_node(op, [graph.input("x", TensorType(shape, dtype))])
    return make_task([node], node)


def with_equals(rng, shape, dtype):
    """Few different numbers; both zeros, infinities and NaN where there are such."""
    x = rng.integers(0, 8, shape).astype(dtype.numpy)
    if dtype.is_float and x.size > 20:
        x.reshape(-1)[[3, 8, 11, 15, 17]] = [np.nan, -0.0, np.inf, -np.inf, np.nan]
    return x


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL])
@pytest.mark.parametrize("largest", [True, False])
def test_top_k_of_every_dtype(dtype, largest, rng):
    task = top_k(TopK(9, largest=largest), (4, 70), dtype)
    check_tactics(TOP_K, task, rng, arrays=[with_equals(rng, (4, 70), dtype)])


@pytest.mark.parametrize("machine", ["host", "avx2"])
@pytest.mark.parametrize(
    ("shape", "axis", "k"),
    [((3, 5, 70), 1, 5), ((2, 1000), 1, 100), ((2, 1000), -1, 1000), ((9,), 0, 1), ((1, 1), 1, 1)],
)
def test_top_k_shapes(shape, axis, k, machine, rng):
    chosen = restricted("avx2") if machine == "avx2" else None
    task = top_k(TopK(k, axis, index_dtype=DType.INT32), shape)
    for layouts in (None, lambda v: strided(v, rng)):
        arrays = [with_equals(rng, shape, F32)]
        check_tactics(TOP_K, task, rng, arrays=arrays, layouts=layouts, machine=chosen)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_top_k_of_rows_in_order(order, rng):
    """The buffer of candidates overflows again and again, or never after the first."""
    x = np.sort(random_array(rng, (1, 5000), F32))
    x = {"ascending": x, "descending": -x, "equal": x * 0}[order]
    check_tactics(TOP_K, top_k(TopK(100), (1, 5000)), rng, arrays=[x])


def test_top_k_of_the_lowest(rng):
    """The lowest integer is a candidate like any other."""
    for dtype, lowest in ((DType.INT8, -128), (DType.UINT8, 0), (DType.INT64, -(2**63))):
        x = np.full((1, 40), lowest, dtype.numpy)
        check_tactics(TOP_K, top_k(TopK(3), (1, 40), dtype), rng, arrays=[x])


def test_top_none():
    task = top_k(TopK(0), (4, 70))
    assert next(iter(TOP_K.tactics(task, Binding({})))).launches(Binding({})) == []


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 70), 1), ((3, 50), 1), ((4,), 0), ((3, 1, 9), 1), ((20, 130), 0)]
)
def test_cumsum(shape, axis, exclusive, reverse, rng):
    task = task_of((CumSum(axis, exclusive, reverse), 1), inputs=[(shape, F32)])
    for layouts in (None, lambda v: strided(v, rng)):
        check_tactics(CUMSUM, task, rng, layouts=layouts)


@pytest.mark.parametrize("dtype", [DType.INT8, DType.UINT16, DType.INT64, DType.FLOAT64])
def test_cumsum_dtypes(dtype, rng):
    for axis in (0, 1):
        check_tactics(CUMSUM, task_of((CumSum(axis), 1), inputs=[((7, 40), dtype)]), rng)


@pytest.mark.parametrize("axis", [0, 1])
def test_cumsum_with_work_around(axis, rng):
    task = task_of(
        (ew.Mul(),),
        (CumSum(axis), 1),
        (ew.Add(),),
        inputs=[((7, 40), F32), ((40,), F32), ((7, 1), F32)],
    )
    assert task.prologue
    check_tactics(CUMSUM, task, rng, tolerance=1e-5, machine=restricted("avx2"))


@pytest.mark.parametrize("family", [TOP_K, CUMSUM])
def test_nonsense_in_a_plan(family):
    task = top_k(TopK(3), (4, 70))
    with pytest.raises(PlanError, match="impossible"):
        family.restore(task, {"k": 3})
