"""Direct convolution: transposed ones, any number of dimensions, filters that are not constant."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from helpers.tactics import check_tactics, random_array, row_padded, strided, task_of
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType, symbol
from planish.ops.conv import Conv, ConvTranspose
from planish.ops.elementwise import ew
from planish.targets.base import Binding
from planish.targets.cpu.kernels.direct import DirectFamily
from planish.targets.cpu.run import run_tactic

FAMILY = DirectFamily()
F32 = DType.FLOAT32
TOLERANCE = {DType.FLOAT64: 1e-12, F32: 2e-5, DType.FLOAT16: 4e-3, DType.BFLOAT16: 2e-2}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def with_filters(rng, op, shape, window, dtype=F32) -> Task:
    """A task whose filters are constant."""
    graph = Graph()
    x = graph.input("x", TensorType(shape, dtype))
    w = graph.constant(random_array(rng, window, dtype))
    node = graph.add_node(op, (x, w))
    relu = graph.add_node(ew.Relu(), node.outputs)
    return make_task([node, relu], node)


@pytest.mark.parametrize("seed", range(12))
def test_transposed(seed):
    rng = np.random.default_rng(seed)
    rank, groups = 1 + seed % 3, int(rng.choice([1, 1, 2, 3]))

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in rng.integers(low, high, rank))

    op = ConvTranspose(some(1, 9), some(1, 4), some(-2, 4), some(1, 4), groups)
    shape = (int(rng.integers(1, 3)), *some(1, 6), 2 * groups)
    filters = groups * int(rng.choice([1, 5, 16, 20]))
    window = (*some(1, 4), 2, filters)
    if seed % 2:
        check_tactics(FAMILY, with_filters(rng, op, shape, window), rng, tolerance=2e-5, limit=2)
        return
    task = task_of((op, 2), (ew.Add(),), inputs=[(shape, F32), (window, F32), ((filters,), F32)])
    layouts = (None, row_padded, lambda v: strided(v, rng))[seed // 2 % 3]
    check_tactics(FAMILY, task, rng, layouts=layouts, tolerance=2e-5, limit=1)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BOOL], ids=lambda d: d.value)
def test_transposed_of_every_dtype(dtype, rng):
    op = ConvTranspose((7, 9), (2, 3), (1, 0), (1, 2))
    task = task_of((op, 2), inputs=[((2, 4, 3, 5), dtype), ((3, 2, 5, 37), dtype)])
    check_tactics(FAMILY, task, rng, tolerance=TOLERANCE.get(dtype, 0), limit=1)


def test_stride_larger_than_the_window(rng):
    """Most positions get nothing, and hold what the epilogue makes of zero."""
    op = ConvTranspose((21,), (7,), (0,), (1,))
    task = task_of((op, 2), (ew.Add(),), inputs=[((1, 3, 4), F32), ((2, 4, 6), F32), ((6,), F32)])
    check_tactics(FAMILY, task, rng, tolerance=2e-5)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda d: d.value)
@pytest.mark.parametrize("groups", [1, 2])
def test_volumes(dtype, groups, rng):
    op = Conv((1, 2, 1), ((1, 1), (0, 2), (2, 0)), (2, 1, 1), groups)
    task = with_filters(rng, op, (2, 5, 6, 7, 4), (3, 2, 3, 4 // groups, 34), dtype)
    check_tactics(FAMILY, task, rng, tolerance=TOLERANCE[dtype], limit=None if groups == 1 else 1)


@pytest.mark.parametrize("layout", ["gaps", "any order"])
def test_computed_filters(layout, rng):
    op = Conv((2, 1), ((1, 1), (1, 0)), (1, 1), 2)
    residual = ((2, 3, 7, 12), F32)
    task = task_of(
        (op, 2), (ew.Add(),), inputs=[((2, 6, 7, 6), F32), ((3, 2, 3, 12), F32), residual]
    )
    layouts = row_padded if layout == "gaps" else lambda v: strided(v, rng)
    check_tactics(FAMILY, task, rng, layouts=layouts, tolerance=2e-5)


def test_depthwise_with_computed_filters(rng):
    task = task_of((Conv((1,), ((1, 1),), (1,), 5), 2), inputs=[((2, 6, 5), F32), ((3, 1, 5), F32)])
    check_tactics(FAMILY, task, rng, tolerance=2e-5)


def test_another_machine(rng):
    op = ConvTranspose((9, 8), (2, 2), (1, 1), (1, 1))
    task = with_filters(rng, op, (1, 5, 4, 6), (3, 3, 6, 40))
    check_tactics(FAMILY, task, rng, machine=restricted("avx2"), tolerance=2e-5)


def test_long_rows_are_split(rng):
    task = task_of(
        (ConvTranspose((6000,), (3,), (1,), (1,)), 2),
        inputs=[((1, 2000, 2), F32), ((5, 2, 3), F32)],
    )
    tactic = next(iter(FAMILY.tactics(task, Binding({}))))
    assert tactic.launches(Binding({}))[-1].tasks >= 32
    check_tactics(FAMILY, task, rng, tolerance=2e-5)


def test_symbolic_padding(rng):
    """Padding that depends on the size is known when it is bound."""
    graph = Graph()
    height = symbol("H")
    x = graph.input("x", TensorType((1, height, 6, 2), DType.FLOAT64))
    w = graph.constant(rng.standard_normal((3, 3, 2, 4)))
    op = Conv((2, 2), ((height % 2, 1), (0, 1)), (1, 1))
    node = graph.add_node(op, (x, w))
    task = make_task([node], node)
    for size in (7, 8):
        binding = Binding({"H": size})
        array = rng.standard_normal((1, size, 6, 2))
        tactic = next(iter(FAMILY.tactics(task, binding)))
        (result,) = run_tactic(tactic, binding, [array, w.data])
        bound = Conv((2, 2), ((size % 2, 1), (0, 1)), (1, 1))
        np.testing.assert_allclose(result, bound.reference(array, w.data)[0], rtol=1e-12)


@pytest.mark.parametrize(("dilation", "accepted"), [(1 << 10, True), (1 << 31, False)])
def test_gigabytes_of_zeros_around_an_image_are_not_made(dilation, accepted):
    """The reference computes what is left of such a window."""
    op = ConvTranspose((2, 3), (255, 2), (dilation, 2), (dilation, 2))
    task = task_of((op, 2), inputs=[((3, 1, 1, 4), F32), ((4, 3, 4, 4), F32)])
    assert bool(list(FAMILY.tactics(task, Binding({})))) == accepted


def test_leaves_to_others_what_they_do_better():
    binding, plain = Binding({}), Conv((1,), ((0, 0),), (1,))
    graph = Graph()
    x = graph.input("x", TensorType((1, 9, 4), F32))
    node = graph.add_node(plain, (x, graph.constant(np.ones((3, 4, 5), np.float32))))
    assert not list(FAMILY.tactics(make_task([node], node), binding))
    bytes_ = task_of((plain, 2), inputs=[((1, 9, 4), DType.INT8), ((3, 4, 5), DType.INT8)])
    assert not list(FAMILY.tactics(bytes_, binding))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"positions": 0, "vectors": 1, "lanes": 16},
        {"positions": 4, "vectors": 2},
        {"positions": 4, "vectors": 2, "lanes": 1},
        {"positions": 4, "vectors": 2, "lanes": 6},
    ],
)
def test_nonsense_in_a_plan(parameters):
    task = task_of((Conv((1,), ((0, 0),), (1,)), 2), inputs=[((1, 9, 4), F32), ((3, 4, 5), F32)])
    with pytest.raises(PlanError, match="impossible"):
        FAMILY.restore(task, parameters)
