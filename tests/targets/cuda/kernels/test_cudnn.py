"""cuDNN's tactics. Without a GPU: tasks as graphs, interpreted in NumPy against the references;
what is refused; what plans store. With one (marked cuda): every plan runs, and is right.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from helpers.levels import Levels, conv_of_levels
from helpers.tactics import random_array, row_padded
from planish.errors import PlanError, TuningError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.graph.dims import symbol
from planish.graph.graph import DimRange, Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, Elu, Gelu, HardSigmoid, LeakyRelu, ew
from planish.ops.matmul import MatMul
from planish.ops.quantization import Dequantize, MatMulInteger, Quantize
from planish.targets.base import Binding, Constant, Layout, dense_strides
from planish.targets.cuda.kernels import cudnn_problem
from planish.targets.cuda.kernels.cudnn import CudnnFamily, CudnnTactic
from planish.targets.cuda.kernels.cudnn_problem import Problem, problem_of
from planish.targets.cuda.libraries.cudnn_graph import Tensor
from planish.targets.cuda.machine import H200

F16, BF16, F32, I8 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.INT8
FAMILY = CudnnFamily(H200)
PLAN = {"version": 91900, "plan": "eng4_k24=25", "tf32": False, "residual_first": False}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


class Builder:
    """A convolution and what follows, as a task."""

    def __init__(self, rng: np.random.Generator, dtype: DType = F32) -> None:
        self.rng, self.dtype = rng, dtype
        self.graph = Graph()
        self.nodes: list = []

    def conv(self, shape, filters, window, strides=1, padding=(0, 0), dilation=1, groups=1):
        spatial = len(window)
        x = self.graph.input("x", TensorType(tuple(shape), self.dtype))
        size = (*window, shape[-1] // groups, filters)
        weights = self.rng.standard_normal(size) * math.prod(size[:-1]) ** -0.5
        w = self.graph.constant(weights.astype(self.dtype.numpy))
        op = Conv((strides,) * spatial, (padding,) * spatial, (dilation,) * spatial, groups)
        return self.add(op, x, w)

    def add(self, op, *values):
        result = self.graph.add(op, *values)
        self.nodes.append(result.producer)
        return result

    def constant(self, shape, dtype=None):
        dtype = dtype or self.dtype
        return self.graph.constant(self.rng.standard_normal(shape).astype(dtype.numpy))

    def input(self, shape, dtype=None):
        name = f"x{len(self.graph.inputs)}"
        return self.graph.input(name, TensorType(tuple(shape), dtype or self.dtype))

    def task(self, *outputs) -> Task:
        for i, output in enumerate(outputs):
            self.graph.mark_output(output, f"y{i}")
        anchor = next(n for n in self.nodes if isinstance(n.op, Conv | MatMul))
        return make_task(self.nodes, anchor)


def conv_bias(rng, epilogue=None, dtype=F32, shape=(2, 6, 5, 8), filters=16, **more) -> Task:
    """A 3x3 convolution, a bias, and an op."""
    b = Builder(rng, dtype)
    more = {"window": (3, 3), "padding": (1, 1), **more}
    y = b.add(ew.Add(), b.conv(shape, filters, **more), b.constant((filters,)))
    return b.task(b.add(epilogue, y) if epilogue else y)


def product(rng, epilogue=None, dtype=F32, shape=(2, 7, 8), columns=16, transpose=False) -> Task:
    """A product by a constant matrix, a bias, a residual, an op."""
    b = Builder(rng, dtype)
    size = (columns, shape[-1]) if transpose else (shape[-1], columns)
    weights = rng.standard_normal(size) * shape[-1] ** -0.5
    w = b.graph.constant(weights.astype(dtype.numpy))
    y = b.add(MatMul(transpose_b=transpose), b.input(shape), w)
    y = b.add(ew.Add(), y, b.constant((columns,)))
    y = b.add(ew.Add(), y, b.input(y.shape))
    return b.task(b.add(epilogue, y) if epilogue else y)


def residual(rng, dtype=F32, shape=(2, 6, 5, 8)) -> Task:
    """A convolution, a scale and a bias per channel, a residual, ReLU."""
    b = Builder(rng, dtype)
    y = b.add(ew.Mul(), b.conv(shape, 16, (1, 1)), b.constant((1, 1, 1, 16)))
    y = b.add(ew.Add(), b.add(ew.Add(), y, b.constant((16,))), b.input(y.shape))
    return b.task(b.add(ew.Relu(), y))


def arrays_of(task: Task, rng) -> list[np.ndarray]:
    return [
        v.data if v.data is not None else rng.standard_normal(v.type.bind({})).astype(v.dtype.numpy)
        for v in task.inputs
    ]


# ---- graphs, interpreted -------------------------------------------------------------------------

ELEMENTWISE = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5)),
    "gelu_approx_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "abs": np.abs,
    "neg": np.negative,
    "exp": np.exp,
}
"""What cuDNN's operations mean, by its documentation."""


def view(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """The elements of an array as cuDNN sees them: images, channels, rows, columns."""
    flat = np.ascontiguousarray(array).reshape(-1)
    steps = [s * flat.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps).astype(np.float64)


def interpret(problem: Problem, task: Task, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What a graph computes, in float64, as the task's outputs."""
    graph = problem.graph
    assert np.isfinite(problem.scalars).all()
    known = dict(zip(task.inputs, arrays, strict=True))
    tactic = FAMILY.restore(task, PLAN)
    launch = tactic.launches(Binding({}))[0]
    constants = tactic.constants()
    pointers = [
        constants[p.index] if isinstance(p, Constant) else known.get(p)
        for p in launch.pointers[: 2 + len(graph.operands)]
    ]
    x, w = view(graph.image, pointers[0]), view(graph.filters, pointers[1])
    images, channels, *_ = x.shape
    filters, depth, *window = w.shape
    pads = list(zip(graph.before, graph.after, strict=True))
    x = np.pad(x, ((0, 0), (0, 0), *pads))
    sizes = [
        (x.shape[2 + i] - (window[i] - 1) * graph.dilations[i] - 1) // graph.strides[i] + 1
        for i in range(2)
    ]
    y = np.zeros((images, filters, *sizes))
    groups = channels // depth
    x = x.reshape(images, groups, depth, *x.shape[2:])
    w = w.reshape(groups, filters // groups, depth, *window)
    for row, column in np.ndindex(*window):
        r, c = row * graph.dilations[0], column * graph.dilations[1]
        part = x[..., r : r + (sizes[0] - 1) * graph.strides[0] + 1 : graph.strides[0], :][
            ..., c : c + (sizes[1] - 1) * graph.strides[1] + 1 : graph.strides[1]
        ]
        y += np.einsum("ngchw,gkc->ngkhw", part, w[..., row, column]).reshape(y.shape)
    slots = [y, *(view(t, p) for t, p in zip(graph.operands, pointers[2:], strict=True))]
    for step in graph.steps:
        args = [slots[i] for i in step.args]
        if step.operation == "relu":
            slots.append(np.where(args[0] > 0, args[0], (step.slope or 0.0) * args[0]))
        else:
            slots.append(ELEMENTWISE[step.operation](*args))
    results = []
    for (slot, described), value in zip(graph.results, task.outputs, strict=True):
        assert slots[slot].shape == described.shape
        results.append(slots[slot].transpose(0, 2, 3, 1).reshape(value.type.bind({})))
    return results


def check(task: Task, rng, tolerance: float = 1e-5, residual_first: bool = False) -> Problem:
    problem = problem_of(task, Binding({}), False, residual_first)
    assert problem is not None
    arrays = arrays_of(task, rng)
    for got, wanted in zip(interpret(problem, task, arrays), task.evaluate(arrays), strict=True):
        wanted = wanted.astype(np.float64)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    return problem


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
    [
        ew.Relu(),
        Clip(0.0, 6.0),
        Clip(-math.inf, 0.5),
        LeakyRelu(0.3),
        Elu(),
        Gelu(),
        Gelu(approximate=True),
        HardSigmoid(0.2, 0.4),
        ew.HardSwish(),
        ew.Mish(),
        ew.Sigmoid(),
        ew.Silu(),
        ew.Tanh(),
        ew.Softplus(),
        ew.Square(),
        ew.Exp(),
        ew.Neg(),
    ],
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


def product_with_scales(rng, rows: int = 1024, columns: int = 1024) -> Task:
    """A product of levels as it stands in a transformer: scales of channels before and after."""
    b = Levels(rng)
    zero = b.graph.constant(np.float32(0))
    sums = b.add(MatMulInteger(), b.input((rows, 768)), b.levels((768, columns)), *b.zeros())
    scales = rng.uniform(0.5, 1.5, columns).astype(np.float32) / 2000
    y = b.add(Dequantize(), sums, b.graph.constant(scales), zero)
    y = b.add(Gelu(), b.add(ew.Add(), y, b.floats((columns,))))
    y = b.add(ew.Add(), y, b.add(Dequantize(), b.input((rows, columns)), *numbers(b, 0.05, 0)))
    steps = b.graph.constant((scales * 200).astype(np.float32))
    return b.task(b.add(Quantize(I8, -127, 127), y, steps, zero))


def numbers(b: Levels, *values: float) -> list[Value]:
    return [b.graph.constant(np.float32(n)) for n in values]


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


# ---- tactics -------------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_offered(rng) -> None:
    task = conv_bias(rng)
    assert list(FAMILY.tactics(task, Binding({}))) == []
    assert not FAMILY.restore(task, PLAN).accepts(Binding({}))


def test_a_plan_restores_what_it_stores(rng) -> None:
    task = conv_bias(rng, Clip(0.0, 6.0))
    tactic = FAMILY.restore(task, PLAN)
    assert isinstance(tactic, CudnnTactic)
    assert tactic.parameters == PLAN
    filters, *scalars = tactic.constants()
    weights = task.inputs[1].data
    assert weights is not None
    np.testing.assert_array_equal(filters, weights.transpose(3, 0, 1, 2))
    assert filters.flags["C_CONTIGUOUS"]
    assert [s.tolist() for s in scalars] == [[0.0], [6.0]]
    kernel = tactic.launches(Binding({}))[0].kernel
    again = FAMILY.restore(task, dict(PLAN)).launches(Binding({}))[0].kernel
    assert kernel.symbol == again.symbol  # type: ignore[union-attr]
    other = FAMILY.restore(task, {**PLAN, "plan": "eng4_k24=24"}).launches(Binding({}))[0].kernel
    assert kernel.symbol != other.symbol  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "wrong",
    [
        {"plan": "eng4; rm"},
        {"plan": 4},
        {"version": -1},
        {"version": "9"},
        {"tf32": 1},
        {"more": 1},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(rng, wrong) -> None:
    with pytest.raises(PlanError, match="cudnn"):
        FAMILY.restore(conv_bias(rng), {**PLAN, **wrong})


def test_other_tasks_are_refused(rng) -> None:
    with pytest.raises(PlanError, match="cudnn"):
        FAMILY.restore(conv_bias(rng, ew.Sin()), PLAN)
    with pytest.raises(PlanError, match="TF32"):
        FAMILY.restore(conv_bias(rng, dtype=F16), {**PLAN, "tf32": True})
    without = {name: value for name, value in PLAN.items() if name != "plan"}
    with pytest.raises(PlanError, match="plan"):
        FAMILY.restore(conv_bias(rng), without)


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target():
    from planish.targets.cuda.target import cuda

    return cuda("cuda:0")


def offered(target, task: Task, binding: Binding | None = None) -> list[CudnnTactic]:
    found = list(CudnnFamily(target.machine).tactics(task, binding or Binding({})))
    assert found, "cuDNN offers nothing"
    return found  # type: ignore[return-value]


def measured(target, task: Task, binding: Binding | None = None) -> dict[str, str]:
    """For each tactic offered what is wrong with its results; empty: nothing."""
    from planish.tuning.measure import Bench

    binding = binding or Binding({})
    bench = Bench(task, binding, target, 1)
    found = {}
    for tactic in offered(target, task, binding):
        assert tactic.accepts(binding)
        try:
            found[str(tactic)] = bench.measure(tactic).wrong
        except TuningError as error:
            found[str(tactic)] = str(error)
    return found


@pytest.mark.cuda
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("window", [(1, 1), (3, 3)])
def test_levels_on_a_gpu(target, rng, residual, window) -> None:
    around = ((window[0] // 2,) * 2,) * 2
    task = conv_of_levels(rng, (4, 14, 14, 64), 128, window, padding=around, residual=residual)
    wrong = measured(target, task)
    assert any(not why for why in wrong.values()), wrong


@pytest.mark.cuda
def test_products_of_levels_on_a_gpu(target, rng) -> None:
    wrong = measured(target, product_with_scales(rng))
    assert not any(wrong.values()), wrong  # there need not be any plan


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"shape": (1, 56, 56, 64), "filters": 64},
        {"strides": 2, "padding": (0, 1), "shape": (3, 28, 28, 32), "filters": 96},
        {"shape": (2, 1, 1, 64), "window": (1, 1), "padding": (0, 0)},
        {"dilation": 2, "padding": (2, 2), "shape": (1, 14, 14, 64)},
        {"groups": 8},
        {"groups": 4, "shape": (2, 14, 14, 64), "filters": 64},
        {"shape": (1, 17, 9, 3), "filters": 5},
        {"shape": (3, 90, 32), "window": (3,)},
    ],
    ids=str,
)
def test_plans_are_right(target, rng, dtype, more) -> None:
    results = measured(target, conv_bias(rng, ew.Relu(), dtype=dtype, **more))
    assert not any(list(results.values())[:1]), results
    assert sum(not wrong for wrong in results.values()) * 2 > len(results), results


@pytest.mark.cuda
@pytest.mark.parametrize(
    "op",
    [
        Clip(0.0, 6.0),
        LeakyRelu(0.3),
        Elu(),
        Gelu(),
        Gelu(approximate=True),
        HardSigmoid(0.2, 0.4),
        ew.HardSwish(),
        ew.Mish(),
        ew.Sigmoid(),
        ew.Silu(),
        ew.Tanh(),
        ew.Softplus(),
        ew.Square(),
        ew.Exp(),
        ew.Neg(),
    ],
    ids=str,
)
def test_fused_work_is_right(target, rng, op) -> None:
    task = conv_bias(rng, op, dtype=F16, shape=(2, 14, 14, 64), filters=64)
    results = measured(target, task)
    assert any(not wrong for wrong in results.values()), results


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(1024, 768), (2, 512, 768), (2, 4, 128, 768)], ids=str)
def test_products_are_right(target, rng, dtype, shape) -> None:
    results = measured(target, product(rng, Gelu(), dtype, shape, 1024))
    assert any(not wrong for wrong in results.values()), results


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
def test_residuals_and_strided_results_are_right(target, rng, dtype) -> None:
    task = residual(rng, dtype, (2, 14, 14, 64))
    results = measured(target, task)
    assert any("residual_first=True" in name for name in results)
    assert not any(results.values()), results
    binding = Binding({}, {task.output: row_padded(task.output, 16)})
    results = measured(target, task, binding)
    assert any(not wrong for wrong in results.values()), results


@pytest.mark.cuda
def test_float32_is_not_rounded_to_tf32(target, rng) -> None:
    task = conv_bias(rng, ew.Relu(), shape=(2, 14, 14, 64), filters=64)
    tactics = offered(target, task)
    assert {t.precision for t in tactics} == {"fp32", "tf32"}
    results = measured(target, task)
    assert not any(results[str(t)] for t in tactics if t.precision == "fp32"), results


@pytest.mark.cuda
def test_plans_are_made_again(target, rng) -> None:
    """By name, and as cuDNN wrote them, in a session that knows nothing."""
    from planish.targets.cuda.libraries import cudnn as library
    from planish.tuning.measure import Bench

    task = conv_bias(rng, dtype=F16, shape=(2, 14, 14, 64), filters=64)
    bench = Bench(task, Binding({}), target, 1)
    old = library.session(target.gpu.ordinal)
    assert old is not None
    for tactic in offered(target, task):
        kernel = tactic.launches(Binding({}))[0].kernel
        old._cache._memory.pop(f"{kernel.symbol}_plan", None)  # type: ignore[union-attr]
        fresh = library.CudnnSession(target.gpu, old.cudnn)
        fresh._cache._folder = None
        for stored in (False, True):  # the second time from what the first one wrote
            assert (fresh.code(kernel.symbol) is not None) == stored  # type: ignore[union-attr]
            old._ready[kernel.symbol] = fresh.make(kernel)  # type: ignore[union-attr, arg-type]
            target._libraries.clear()
            assert bench.measure(tactic).wrong == ""


@pytest.mark.cuda
def test_plans_of_nobody_are_refused(target, rng) -> None:
    task = conv_bias(rng, dtype=F16, shape=(2, 14, 14, 64), filters=64)
    first = offered(target, task)[0]
    assert first.accepts(Binding({}))
    assert not replace(first, plan="eng9999_k24=3").accepts(Binding({}))
    assert not replace(first, version=80000).accepts(Binding({}))


@pytest.mark.cuda
def test_several_threads_queue_at_once(target, rng) -> None:
    tasks = [conv_bias(rng, dtype=F16, shape=(2, 14, 14, 64), filters=k) for k in (32, 64, 96)]
    wrong: list[str] = []

    def work(task: Task) -> None:
        wrong.extend(w for w in measured(target, task).values() if w)

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_of_libraries_only(target, rng, monkeypatch, precision) -> None:
    """Built, run at sizes tuned and others, saved, and loaded where nothing is ready."""
    from planish.builder import build_graph
    from planish.plan.load import load
    from planish.targets.cpu.target import cpu
    from planish.targets.cuda.libraries import cublaslt, cudnn

    def network() -> Graph:
        random = np.random.default_rng(3)
        graph = Graph("net")
        y = graph.input("x", TensorType((symbol("N"), 14, 14, 8), F32))
        graph.ranges["N"] = DimRange(1, 4, 16)
        for size in ((3, 3, 8, 32), (1, 1, 32, 64), (3, 3, 64, 64)):
            pads = ((size[0] // 2,) * 2,) * 2
            weights = random.standard_normal(size) * math.prod(size[:-1]) ** -0.5
            bias = random.standard_normal(size[-1]).astype(np.float32)
            conv = Conv((1, 1), pads, (1, 1))
            y = graph.add(conv, y, graph.constant(weights.astype(np.float32)))
            y = graph.add(ew.Relu(), graph.add(ew.Add(), y, graph.constant(bias)))
        graph.mark_output(y, "y")
        return graph

    chosen = [f for f in target.families() if f.name in ("cudnn", "cublaslt", "pointwise")]
    monkeypatch.setattr(target, "_families", tuple(chosen))
    engine = build_graph(network(), target, precision=frozenset({"fp32", precision}))
    used = {step.choices[0].tactic.family for step in engine.plan.steps}
    assert used <= {"cudnn", "cublaslt", "pointwise"} and "cudnn" in used
    reference = build_graph(network(), cpu(), tuning_seconds=0)
    stored = engine.serialize()
    for module in (cudnn, cublaslt):
        module.session.cache_clear()
    target._libraries.clear()
    again = load(stored)
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for images in (4, 1, 16, 7, 3):
        x = rng.standard_normal((images, 14, 14, 8)).astype(np.float32)
        wanted = reference(x)
        for made in (engine, again):
            error = np.abs(made(x) - wanted).max()
            assert error <= tolerance * np.abs(wanted).max()
        np.testing.assert_array_equal(engine(x), again(x))
