"""Elementwise tasks of every broadcast, layout and tail, on the host's and a narrower machine."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, row_padded, strided, task_of
from planish.errors import PlanError
from planish.fusion.task import make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.elementwise import Cast, Clip, Select, ew
from planish.targets.base import Binding
from planish.targets.cpu.kernels.elementwise import (
    FAMILIES,
    ElementwiseFamily,
    ElementwiseTactic,
)
from planish.targets.cpu.machine import Machine, host
from planish.targets.cpu.run import run_tactic

FAMILY = ElementwiseFamily()
F32 = DType.FLOAT32


@pytest.fixture(params=["host", "avx2"])
def machine(request) -> Machine:
    if request.param == "host":
        return host()
    if host().isa not in ("avx2", "avx512"):
        pytest.skip("this machine has no AVX2")
    return restricted("avx2")


def test_families():
    assert [f.name for f in FAMILIES] == ["elementwise"]


@pytest.mark.parametrize("count", [*range(1, 34), 64, 100, 1000])
def test_tails(count, machine):
    rng = np.random.default_rng(count)
    task = task_of((ew.Add(),), (ew.Relu(),), inputs=[((3, count), F32), ((3, count), F32)])
    check_tactics(FAMILY, task, rng, layouts=row_padded, machine=machine)


@pytest.mark.parametrize("dtype", DType)
def test_dtypes(dtype, machine):
    rng = np.random.default_rng(1)
    op = ew.LogicalXor() if dtype is DType.BOOL else ew.Maximum()
    for count in (5, 77):
        task = task_of((op,), inputs=[((4, count), dtype), ((4, 1), dtype)])
        check_tactics(FAMILY, task, rng, layouts=row_padded, machine=machine)


BROADCASTS = [
    ((7, 5, 19), (19,)),
    ((7, 5, 19), (5, 1)),
    ((7, 1, 19), (1, 5, 1)),
    ((2, 3, 4, 5), (3, 1, 5)),
    ((2, 1, 4, 1), (2, 3, 1, 5)),
    ((1,), (1,)),
    ((), (6,)),
    ((), ()),
    ((300,), (1,)),
    ((5, 200), (5, 1)),
    ((100, 3), (3,)),
    ((50, 4), (50, 1)),
    ((2, 40, 2), (40, 1)),
    ((2, 3, 2, 3, 2, 3), (3, 1, 3, 1, 3)),
]


@pytest.mark.parametrize(("a", "b"), BROADCASTS)
def test_broadcasts(a, b, machine):
    rng = np.random.default_rng(0)
    task = task_of((ew.Sub(),), inputs=[(a, F32), (b, F32)])
    check_tactics(FAMILY, task, rng, machine=machine)
    for _ in range(3):
        check_tactics(
            FAMILY, task, rng, layouts=lambda v: strided(v, rng), machine=machine, limit=1
        )


@pytest.mark.parametrize("seed", range(30))
def test_random_layouts(seed):
    """Each operand has its axes in an order of its own, as transposed views have."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    shape = tuple(int(n) for n in rng.integers(1, 40 if rank < 3 else 9, rank))
    dtype = rng.choice([DType.FLOAT32, DType.INT8, DType.FLOAT16, DType.INT64])  # type: ignore[arg-type]
    smaller = tuple(n if rng.integers(2) else 1 for n in shape)
    gaps = bool(seed % 2)
    task = task_of((ew.Add(),), (ew.Minimum(),), inputs=[(shape, dtype)] * 2 + [(smaller, dtype)])
    tolerance = 1e-3 if dtype is DType.FLOAT16 else 0
    check_tactics(
        FAMILY, task, rng, layouts=lambda v: strided(v, rng, gaps), limit=1, tolerance=tolerance
    )


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.UINT8, DType.BFLOAT16, DType.FLOAT64])
@pytest.mark.parametrize("channels", [2, 3, 4, 5])
def test_few_channels(dtype, channels, machine):
    """A value per channel of few: the channels of several pixels are taken apart."""
    rng = np.random.default_rng(2)
    shape = (2, 9, 11, channels)
    task = task_of((ew.Maximum(),), inputs=[(shape, dtype), ((channels,), dtype)])
    check_tactics(FAMILY, task, rng, machine=machine)


def test_several_dtypes_in_one_expression(machine):
    rng = np.random.default_rng(3)
    shape = (9, 31)
    task = task_of(
        (Cast(F32),),
        (ew.Mul(),),
        (Clip(-128.0, 127.0),),
        (ew.Round(),),
        (Cast(DType.INT8),),
        inputs=[(shape, DType.UINT8), ((1, 31), F32)],
    )
    check_tactics(FAMILY, task, rng, layouts=row_padded, machine=machine)
    task = task_of((Select(),), inputs=[((31,), DType.BOOL), (shape, F32), ((9, 1), F32)])
    check_tactics(FAMILY, task, rng, layouts=row_padded, machine=machine)


def test_several_outputs():
    graph = Graph()
    x = graph.input("x", TensorType((8, 33), F32))
    bias = graph.input("bias", TensorType((33,), F32))
    total = graph.add_node(ew.Add(), (x, bias))
    positive = graph.add_node(ew.Greater(), (total.output, graph.constant(np.float32(0))))
    graph.add(ew.Neg(), total.output)  # a user outside the task
    task = make_task([total, positive])
    assert task.outputs == (total.output, positive.output)
    check_tactics(FAMILY, task, np.random.default_rng(0), layouts=row_padded)


def test_outputs_of_several_shapes_are_declined():
    graph = Graph()
    x = graph.input("x", TensorType((8, 4), F32))
    row = graph.input("row", TensorType((4,), F32))
    first = graph.add_node(ew.Relu(), (row,))
    second = graph.add_node(ew.Add(), (x, first.output))
    graph.add(ew.Neg(), first.output)
    assert not list(FAMILY.tactics(make_task([first, second]), Binding({})))


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2), (0, 5)])
def test_nothing_to_do(shape):
    task = task_of((ew.Relu(),), inputs=[(shape, F32)])
    (launch,) = ElementwiseTactic(task).launches(Binding({}))
    assert launch.tasks == 0
    check_tactics(FAMILY, task, np.random.default_rng(0))


def test_one_kernel_serves_all_sizes():
    kernels = set()
    for count in (10, 1000, 100000):
        task = task_of((ew.Exp(),), inputs=[((count,), F32)])
        (launch,) = ElementwiseTactic(task).launches(Binding({}))
        kernels.add(launch.kernel)
    assert len(kernels) == 1


def test_large_work_is_cut_into_tasks():
    task = task_of((ew.Exp(),), inputs=[((100000,), F32)])
    (launch,) = ElementwiseTactic(task).launches(Binding({}))
    assert launch.tasks > 8
    x = random_array(np.random.default_rng(0), (100000,), F32)
    (got,) = run_tactic(ElementwiseTactic(task), Binding({}), [x], ranges=5)
    np.testing.assert_allclose(got, np.exp(x), rtol=1e-6)


def test_impossible_parameters():
    task = task_of((ew.Relu(),), inputs=[((3,), F32)])
    with pytest.raises(PlanError, match="impossible elementwise kernel"):
        FAMILY.restore(task, {"unroll": 3})
