"""Tasks as cuDNN's graphs, interpreted in NumPy against the references; what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from helpers.cudnn_tasks import (
    ACTIVATIONS,
    FAMILY,
    PLAN,
    Builder,
    check,
    conv_bias,
    interpret,
    product,
    product_with_scales,
    residual,
)
from helpers.levels import conv_of_levels
from helpers.tactics import random_array, row_padded
from planish.graph import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, Elu, Gelu, ew
from planish.ops.matmul import MatMul
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cuda.kernels import cudnn_problem
from planish.targets.cuda.kernels.cudnn_problem import problem_of

F16, BF16, F32, I8 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.INT8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"strides": 2, "padding": (0, 1)},
        {"strides": 2, "padding": (1, -1), "shape": (2, 8, 8, 8)},
        {"dilation": 2, "padding": (2, 2)},
        {"groups": 8},
        {"groups": 2, "filters": 6},
        {"shape": (1, 7, 9, 3), "filters": 5},
        {"shape": (3, 9, 4), "window": (3,)},
        {"shape": (2, 1, 1, 1), "filters": 1, "window": (1, 1), "padding": (0, 0)},
    ],
    ids=str,
)
def test_convolutions(rng, more) -> None:
    check(conv_bias(rng, ew.Relu(), **more), rng)


@pytest.mark.parametrize(
    "op",
    [ew.Relu(), Clip(-math.inf, 0.5), *ACTIVATIONS],
    ids=str,
)
def test_elementwise_work(rng, op) -> None:
    check(conv_bias(rng, op), rng)


@pytest.mark.parametrize("shape", [(14, 8), (2, 7, 8), (2, 3, 5, 8)], ids=str)
@pytest.mark.parametrize("transpose", [False, True])
def test_products_are_convolutions_of_pixels(rng, shape, transpose, monkeypatch) -> None:
    monkeypatch.setattr(cudnn_problem, "LEAST_PRODUCT", 0)
    problem = check(product(rng, Gelu(), shape=shape, transpose=transpose), rng)
    assert problem.graph.filters.shape == (16, 8, 1, 1)
    assert math.prod(problem.graph.image.shape) == math.prod(shape)
    check(product(rng, shape=shape), rng, residual_first=True)


def test_other_products_are_refused(rng, monkeypatch) -> None:
    assert problem_of(product(rng), Binding({}), False) is None  # too small
    large = product(rng, shape=(64, 128, 512), columns=512)
    assert problem_of(large, Binding({}), False) is not None
    monkeypatch.setattr(cudnn_problem, "LEAST_PRODUCT", 0)
    assert problem_of(product(rng, shape=(1, 1, 1, 5, 8)), Binding({}), False) is None
    b = Builder(rng)
    y = b.add(MatMul(transpose_a=True), b.input((2, 8, 8)), b.constant((8, 16)))
    assert problem_of(b.task(y), Binding({}), False) is None
    b = Builder(rng)
    y = b.add(MatMul(), b.input((2, 8, 8)), b.input((8, 16)))
    assert problem_of(b.task(y), Binding({}), False) is None


def test_operands(rng) -> None:
    problem = check(residual(rng), rng)
    assert [t.shape for t in problem.graph.operands] == [(1, 16, 1, 1)] * 2 + [(2, 16, 6, 5)]
    b = Builder(rng)
    y = b.conv((2, 5, 5, 8), 16, (3, 3))
    y = b.add(ew.Sub(), b.graph.constant(np.float32(3.0)), b.add(ew.Prelu(), y, b.constant((16,))))
    y = b.add(ew.Maximum(), b.add(ew.Div(), y, b.input((1, 1))), b.graph.constant(np.float32(0.25)))
    check(b.task(b.add(ew.Mul(), y, b.graph.constant(np.float32(3.0)))), rng)


def test_a_residual_may_be_added_first(rng) -> None:
    added = check(residual(rng), rng).graph
    first = check(residual(rng), rng, residual_first=True).graph
    assert [s.operation for s in first.steps] == ["mul", "add", "add", "relu"]
    assert [s.args for s in added.steps] == [(0, 1), (4, 2), (5, 3), (6,)]
    assert [s.args for s in first.steps] == [(0, 1), (4, 3), (5, 2), (6,)]
    assert problem_of(conv_bias(rng), Binding({}), False, True) is None
    b = Builder(rng)
    y = b.add(ew.Add(), b.input((2, 4, 4, 16)), b.conv((2, 4, 4, 8), 16, (1, 1)))
    already = b.task(b.add(ew.Add(), b.constant((16,)), y))
    assert [s.args for s in check(already, rng).graph.steps] == [(0, 1), (3, 2)]
    assert problem_of(already, Binding({}), False, True) is None
    b = Builder(rng)
    y = b.add(ew.Add(), b.conv((2, 4, 4, 8), 16, (1, 1)), b.constant((16,)))
    twice = b.task(b.add(ew.Mul(), b.add(ew.Add(), y, b.input((2, 4, 4, 16))), y))
    assert problem_of(twice, Binding({}), False, True) is None


def test_halves_are_computed_in_float32(rng) -> None:
    b = Builder(rng, F16)
    y = b.add(Cast(F32), b.conv((2, 5, 5, 8), 16, (3, 3)))
    problem = check(b.task(b.add(ew.Add(), y, b.constant((16,), F32))), rng, 1e-2)
    (_, result), *_ = problem.graph.results
    assert (problem.graph.image.dtype, result.dtype) == (F16, F32)


def test_tf32_is_for_float32_only(rng) -> None:
    for dtype, permitted in ((F32, True), (F16, False), (BF16, False)):
        problem = problem_of(conv_bias(rng, dtype=dtype), Binding({}), True)
        assert (problem is not None) == permitted
    tactic = FAMILY.restore(conv_bias(rng), {**PLAN, "tf32": True})
    assert tactic.precision == "tf32"
    assert not tactic.is_permitted({"fp32"})
    assert FAMILY.restore(conv_bias(rng), PLAN).precision == "fp32"


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"residual": True},
        {"stride": 2, "padding": ((0, 1), (1, 0))},
        {"to": None, "dilation": 2},
    ],
    ids=str,
)
def test_levels(rng, more) -> None:
    task = conv_of_levels(rng, (2, 6, 7, 16), 32, (3, 3), **{"padding": ((1, 1),) * 2, **more})
    problem = problem_of(task, Binding({}), False)
    assert problem is not None
    assert (problem.graph.image.dtype, problem.graph.filters.dtype) == (I8, I8)
    assert FAMILY.restore(task, PLAN).precision == "int8"
    arrays = [
        v.data if v.data is not None else random_array(rng, v.type.bind({}), v.dtype)
        for v in task.inputs
    ]
    (found,), (wanted,) = interpret(problem, task, arrays), task.evaluate(arrays)
    if wanted.dtype == np.int8:  # as cuDNN stores it: to the nearest, saturating
        found = np.clip(np.rint(found), -128, 127)
        assert np.mean(found != wanted) < 1e-3
    np.testing.assert_allclose(found, wanted.astype(np.float64), rtol=1e-5, atol=1)


def test_products_of_levels_with_scales(rng) -> None:
    task = product_with_scales(rng)
    problem = problem_of(task, Binding({}), False)
    assert problem is not None and not problem.graph.tf32
    operations = [s.operation for s in problem.graph.steps]
    assert operations == ["mul", "add", "gelu", "mul", "add", "div", "max"]
    arrays = [
        v.data if v.data is not None else random_array(rng, v.type.bind({}), v.dtype)
        for v in task.inputs
    ]
    (found,), (wanted,) = interpret(problem, task, arrays), task.evaluate(arrays)
    found = np.clip(np.rint(found), -128, 127)
    assert np.mean(found != wanted) < 1e-3
    assert problem_of(product_with_scales(rng, 64), Binding({}), False) is None  # too small
    assert problem_of(product_with_scales(rng, columns=1000), Binding({}), False) is None


@pytest.mark.parametrize(
    "more",
    [
        {"dtype": DType.UINT8, "zero": 128},
        {"zero": 1},
        {"weight_zero": 1},
        {"groups": 2},
        {"shape": (2, 6, 7, 8)},
        {"filters": 24},
        {"to": DType.UINT8},
        {"quantize": True},
    ],
    ids=str,
)
def test_other_levels_are_refused(rng, more) -> None:
    case = {"shape": (2, 6, 7, 32), "filters": 32, "window": (3, 3), **more}
    assert problem_of(conv_of_levels(rng, **case), Binding({}), False) is None


# ---- layouts -------------------------------------------------------------------------------------


def test_strided_results_are_told(rng) -> None:
    task = residual(rng, F16)
    output = task.output
    layout = row_padded(output, 24)
    problem = problem_of(task, Binding({}, {output: layout}), False)
    assert problem is not None
    ((_, result),) = problem.graph.results
    n, y, x, c = layout.strides
    assert result.strides == (n, c, y, x)


@pytest.mark.parametrize("gap", [1, 4])
def test_rows_at_odd_addresses_are_refused(rng, gap) -> None:
    task = residual(rng, F16)
    for value in (task.inputs[0], task.inputs[-1], task.output):
        assert problem_of(task, Binding({}, {value: row_padded(value, gap)}), False) is None


def test_other_orders_and_odd_addresses_are_refused(rng) -> None:
    task = residual(rng, F16)
    x = task.inputs[0]
    shape = x.type.bind({})
    channels_first = Layout(shape, tuple(dense_strides((2, 8, 6, 5))[i] for i in (0, 2, 3, 1)))
    assert problem_of(task, Binding({}, {x: channels_first}), False) is None
    odd = Layout(shape, dense_strides(shape), 8)
    assert problem_of(task, Binding({}, {x: odd}), False) is None
    repeated = Layout(shape, (0, 40, 8, 1))
    assert problem_of(task, Binding({}, {x: repeated}), False) is None


@pytest.mark.parametrize("shape", [(2, 1, 1, 16), (2, 1, 1, 1), (1, 6, 5, 16), (2, 6, 5, 1)])
def test_operands_broadcast_in_unusual_ways_are_refused(rng, shape) -> None:
    b = Builder(rng)
    task = b.task(b.add(ew.Mul(), b.conv((2, 6, 5, 8), 16, (1, 1)), b.input(shape)))
    assert problem_of(task, Binding({}), False) is None


def test_other_work_is_refused(rng) -> None:
    assert problem_of(conv_bias(rng, ew.Sin()), Binding({}), False) is None
    assert problem_of(conv_bias(rng, Elu(0.5)), Binding({}), False) is None
    assert problem_of(conv_bias(rng, Cast(DType.INT32)), Binding({}), False) is None
    assert problem_of(conv_bias(rng, dtype=DType.FLOAT64), Binding({}), False) is None
    b = Builder(rng)
    x = b.add(ew.Relu(), b.input((1, 4, 4, 8)))
    w = b.constant((1, 1, 8, 8))
    prologue = b.task(b.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), x, w))
    assert prologue.prologue is not None
    assert problem_of(prologue, Binding({}), False) is None
