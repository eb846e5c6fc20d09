"""Elementwise tasks on GPUs, in Triton's interpreter and compiled."""

from __future__ import annotations

import re

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.tactics import assert_close, random_array, strided, task_of
from planish.errors import PlanError
from planish.fusion.task import make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.elementwise import Cast, Clip, Select, ew
from planish.targets.base import Binding, Layout
from planish.targets.cuda.kernels.pointwise import (
    BLOCKS,
    PART,
    PointwiseFamily,
    PointwiseKernel,
    PointwiseTactic,
)
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import interpret

F32, F16, BOOL = DType.FLOAT32, DType.FLOAT16, DType.BOOL
FAMILY = PointwiseFamily()
RNG = np.random.default_rng(7)


@pytest.mark.parametrize(
    "shapes",
    [
        [(), ()],
        [(1,), ()],
        [(5,), (1,)],
        [(1, 1, 1), (1, 1)],
        [(7, 33), (33,)],
        [(7, 33), (7, 1)],
        [(33,), (7, 1)],  # neither has the result's shape
        [(2, 3, 4, 5), (3, 1, 5)],
        [(2, 3, 4, 5), (2, 1, 4, 1)],
        [(2, 1, 4, 1), (1, 3, 1, 5)],
        [(3, 1, 5), (2, 3, 4, 5)],
        [(1, 3, 1, 37), (3, 1, 1)],
        [(129, 3), (3,)],
        [(2, 4, 8, 16), (2, 4, 8, 16)],
    ],
    ids=str,
)
def test_broadcasting(shapes):
    task = task_of((ew.Sub(),), inputs=[(s, F32) for s in shapes])
    check_interpreted(FAMILY, task, RNG)


@pytest.mark.parametrize("shape", [(4, 5, 6), (3, 1, 7), (2, 16, 8), (1, 1), (2, 3, 2, 3, 2)])
def test_layouts(shape):
    """Axes in any order in memory, with gaps, each operand its own."""
    task = task_of((ew.Mul(),), (ew.Add(),), inputs=[(shape, F32), (shape, F32), (shape[-1:], F32)])
    for _ in range(3):
        check_interpreted(FAMILY, task, RNG, layouts=lambda v: strided(v, RNG))


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
def test_dtypes(dtype):
    task = task_of((ew.NotEqual(),), inputs=[((5, 33), dtype), ((33,), dtype)])
    check_interpreted(FAMILY, task, RNG)
    task = task_of(
        (Select(),), (Cast(F32),), inputs=[((5, 33), BOOL), ((5, 33), dtype), ((), dtype)]
    )
    check_interpreted(FAMILY, task, RNG)


def test_every_tactic():
    task = task_of((ew.Add(),), (ew.Relu(),), inputs=[((3, 50, 17), F16), ((17,), F16)])
    check_interpreted(FAMILY, task, RNG, tolerance=1e-3, limit=None)
    blocks = [PointwiseTactic(task, block, 1) for block in BLOCKS]
    check_interpreted(FAMILY, task, RNG, tactics=blocks, tolerance=1e-3, limit=None)


def several_outputs():
    """A residual's sum, what is above zero in it, and a mask; a constant that is no operand."""
    graph = Graph()
    x, y = (graph.input(n, TensorType((4, 9), F32)) for n in "xy")
    half = graph.constant(np.float32(0.5))
    total = graph.add_node(ew.Add(), (x, y))
    relu = graph.add_node(ew.Relu(), (total.output,))
    above = graph.add_node(ew.Greater(), (relu.output, half))
    small = graph.add_node(Cast(DType.INT8), (total.output,))
    return make_task((total, relu, above, small))


def test_several_outputs():
    check_interpreted(FAMILY, several_outputs(), RNG)
    check_interpreted(FAMILY, several_outputs(), RNG, layouts=lambda v: strided(v, RNG))


def test_no_operands():
    """Nothing but a constant, which fills its place."""
    graph = Graph()
    node = graph.add_node(ew.Sqrt(), (graph.constant(np.float32([[4.0]])),))
    check_interpreted(FAMILY, make_task((node,)), RNG)


@pytest.mark.parametrize("divides", [True, False])
def test_numbers_of_64_bits(divides):
    """The kernel for more elements than 32 bits can count, on few of them."""
    count = 24 if divides else 23
    task = task_of((ew.Add(),), inputs=[((3, count), F32), ((3, 1), F32)])
    binding = Binding({})
    (launch,) = PointwiseTactic(task, 32, 1).launches(binding)
    few = launch.kernel
    assert isinstance(few, PointwiseKernel) and not few.wide
    many = PointwiseKernel(1, 1, few.work, 32, few.even, wide=True)
    x, y = (random_array(RNG, v.type.bind({}), F32) for v in task.inputs)
    output = np.zeros_like(x)
    addresses = [a.ctypes.data for a in (x, y, output)]
    interpret(many, addresses, (3 * count, 0), launch.tasks)
    assert_close(output, x + y, 0)
    assert many.compile(H200)


@pytest.mark.parametrize("elements", [(1 << 31) - 1024, (1 << 31) - 1, 1 << 31, 5 << 31])
def test_how_many_elements_are_counted(elements):
    task = task_of((ew.Relu(),), inputs=[((elements,), F16)])
    binding = Binding({})
    assert list(FAMILY.tactics(task, binding))
    (launch,) = PointwiseTactic(task, 1024, 4).launches(binding)
    kernel = launch.kernel
    assert isinstance(kernel, PointwiseKernel)
    assert kernel.wide == (elements > (1 << 31) - 1024)
    most = launch.tasks * 1024  # numbers of elements that are masked included
    assert kernel.wide or most <= 1 << 31
    low, high = launch.params if kernel.wide else (*launch.params, 0)
    assert low + high * PART == elements and max(launch.params) < 1 << 31
    assert "int64" in kernel.source() or not kernel.wide
    assert all(a.wide == (elements > 1 << 31) for a in (*kernel.work.leaves, *kernel.work.outputs))


def test_batches_share_kernels():
    def kernel(batch: int, per_channel: bool):
        inputs = [((batch, 8, 8, 16), F32), ((16,) if per_channel else (batch, 1, 1, 16), F32)]
        task = task_of((ew.Add(),), inputs=inputs)
        return PointwiseTactic(task).launches(Binding({}))[0].kernel

    for per_channel in (True, False):
        assert kernel(2, per_channel).symbol == kernel(129, per_channel).symbol
    assert kernel(2, True).symbol != kernel(2, False).symbol


def wide_accesses(task, binding=None) -> dict[str, int]:
    """How often a tactic's code reads and writes global memory, by the width of an access."""
    binding = binding or Binding({})
    text = assembly(next(iter(FAMILY.tactics(task, binding))), binding)
    found = re.findall(r"\b((?:ld|st)\.global\S*)", text)
    return {name: found.count(name) for name in found}


def test_halves_are_read_16_bytes_at_a_time():
    whole, wide = (8, 56, 56, 96), {"ld.global.v4.b32": 2, "st.global.v4.b32": 1}
    for other in ((96,), (8, 1, 1, 96), whole):
        task = task_of((ew.Add(),), (Clip(0, 6),), inputs=[(whole, F16), (other, F16)])
        assert wide_accesses(task) == wide


def test_what_is_dense_is_read_16_bytes_at_a_time_whatever_its_shape():
    task = task_of((Cast(F16),), (ew.Sub(),), inputs=[((8, 225, 224, 3), F32), ((3,), F16)])
    found = wide_accesses(task)
    assert found["ld.global.v4.b32"] == 2 and found["st.global.v4.b32"] == 1


def test_unaligned_operands_compile():
    shape = (4096, 64)
    task = task_of((ew.Add(),), inputs=[(shape, F16), (shape, F16)])
    layouts = {task.inputs[0]: Layout(shape, (65, 1), 2)}
    assert compiled(next(iter(FAMILY.tactics(task, Binding({})))), Binding({}, layouts))
    found = wide_accesses(task, Binding({}, layouts))
    assert found["ld.global.v4.b32"] == 1 and "ld.global.b16" in found


def test_small_tasks_use_many_multiprocessors():
    for elements, most in ((20_000, 128), (64, 64), (1, 32), (1 << 24, 4096)):
        task = task_of((ew.Relu(),), inputs=[((elements,), F16)])
        first = next(iter(FAMILY.on(H200).tactics(task, Binding({}))))
        assert first.parameters["block"] <= most


def test_declined_and_damaged():
    graph = Graph()
    x, y = graph.input("x", TensorType((3, 1), F32)), graph.input("y", TensorType((3, 4), F32))
    small = graph.add_node(ew.Relu(), (x,))
    large = graph.add_node(ew.Add(), (x, y))
    assert not list(FAMILY.tactics(make_task((small, large)), Binding({})))  # shapes differ
    task = several_outputs()
    for parameters in ({}, {"block": 100, "warps": 4}, {"block": 1024, "warps": 3}):
        with pytest.raises(PlanError):
            FAMILY.restore(task, parameters)
