"""cuBLASLt's tactics. Without a GPU: tasks as products, interpreted in NumPy against the
references; what is refused; what plans store. With one (marked cuda): every algorithm runs, and is
right.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from helpers.tactics import row_padded
from planish.errors import PlanError, TuningError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.graph.graph import Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, Gelu, ew
from planish.ops.matmul import MatMul
from planish.targets.base import Binding, Constant, Layout, dense_strides
from planish.targets.cuda.kernels.cublaslt import CublasLtFamily, CublasLtTactic
from planish.targets.cuda.kernels.cublaslt_problem import problem_of
from planish.targets.cuda.libraries.cublaslt import SETTINGS
from planish.targets.cuda.libraries.product import Matrix
from planish.targets.cuda.machine import H200

F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32
FAMILY = CublasLtFamily(H200)
ALGORITHM = {
    "version": 130100,
    **{name.lower(): number for number, name in enumerate(SETTINGS)},
    "tf32": False,
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


class Builder:
    """A product and what follows, as a task."""

    def __init__(self, rng: np.random.Generator, dtype: DType = F32) -> None:
        self.rng, self.dtype = rng, dtype
        self.graph = Graph()
        self.nodes: list = []

    def product(self, left, right, op=None, constant=True):
        w = self.constant(right) if constant else self.input(right)
        return self.add(op or MatMul(), self.input(left), w)

    def add(self, op, *values):
        result = self.graph.add(op, *values)
        self.nodes.append(result.producer)
        return result

    def constant(self, shape, dtype=None):
        dtype = dtype or self.dtype
        scale = 1.0 if len(shape) < 2 else math.prod(shape[-2:-1]) ** -0.5
        return self.graph.constant((self.rng.standard_normal(shape) * scale).astype(dtype.numpy))

    def input(self, shape, dtype=None):
        name = f"x{len(self.graph.inputs)}"
        return self.graph.input(name, TensorType(tuple(shape), dtype or self.dtype))

    def task(self, *outputs) -> Task:
        for i, output in enumerate(outputs):
            self.graph.mark_output(output, f"y{i}")
        anchor = next(n for n in self.nodes if isinstance(n.op, Conv | MatMul))
        return make_task(self.nodes, anchor)


def product_task(rng, left, right, op=None, constant=True, dtype=F32) -> Task:
    b = Builder(rng, dtype)
    return b.task(b.product(left, right, op, constant))


def layer_task(rng, dtype=F32, shape=(2, 5, 6, 16), filters=24, activation=None) -> Task:
    """A 1x1 convolution, a bias, a residual, and perhaps an activation."""
    b = Builder(rng, dtype)
    op = Conv((1, 1), ((0, 0), (0, 0)), (1, 1))
    y = b.product(shape, (1, 1, shape[-1], filters), op)
    y = b.add(ew.Add(), b.add(ew.Add(), y, b.constant((filters,))), b.input(y.shape))
    return b.task(b.add(activation, y) if activation else y)


class Memory:
    """Tensors in one array each, laid out as a binding says."""

    def __init__(self, binding: Binding, task: Task, rng) -> None:
        self._raw: dict[Value, np.ndarray] = {}
        self.arrays = []
        for value in (*task.inputs, *task.outputs):
            layout = binding.layout(value)
            reach = sum(s * (n - 1) for s, n in zip(layout.strides, layout.shape, strict=True))
            raw = self._raw[value] = np.full(1 + reach, np.nan, value.dtype.numpy)
            steps = [s * raw.itemsize for s in layout.strides]
            view = np.lib.stride_tricks.as_strided(raw, layout.shape, steps)
            view[...] = rng.standard_normal(layout.shape) if value.data is None else value.data
            if value in task.inputs:
                self.arrays.append(view)
            else:
                self.output = view

    def __getitem__(self, value: Value) -> np.ndarray:
        return self._raw[value]


def view(matrix: Matrix, raw: np.ndarray, batch: int) -> np.ndarray:
    """Matrices as cuBLASLt sees them, by rows and columns, in the array's memory."""
    steps = [s * raw.itemsize for s in (matrix.apart, 1, matrix.step)]
    last = matrix.apart * (batch - 1) + matrix.rows - 1 + matrix.step * (matrix.columns - 1)
    assert last < raw.size, "it reads outside"
    shape = (batch, matrix.rows, matrix.columns)
    found = np.lib.stride_tricks.as_strided(raw.reshape(-1), shape, steps)
    return found.swapaxes(1, 2) if matrix.transposed else found


def check(task: Task, rng, binding: Binding | None = None, tolerance: float = 1e-5):
    """Does what a product says, on memory, in float64."""
    binding = binding or Binding({})
    problem = problem_of(task, binding, False)
    assert problem is not None
    product, batch = problem.product, problem.product.batch
    memory = Memory(binding, task, rng)
    tactic = FAMILY.restore(task, ALGORITHM)
    constants = tactic.constants()
    pointers = [
        constants[p.index].reshape(-1) if isinstance(p, Constant) else memory[p]  # type: ignore[index]
        for p in tactic.launches(binding)[0].pointers[:-1]
    ]
    left, right, *more, output = pointers
    result = product.scale * (
        view(product.left, left, batch).astype(np.float64)
        @ view(product.right, right, batch).astype(np.float64)
    )
    if product.residual:
        result += view(product.residual, more.pop(0), batch)
    if product.bias:
        result += more.pop(0)[: result.shape[1], None].astype(np.float64)
    assert not more
    if product.activation == "relu":
        result = np.maximum(result, 0)
    elif product.activation == "gelu":
        inner = (2 / np.pi) ** 0.5 * (result + 0.044715 * result**3)
        result = result / 2 * (1 + np.tanh(inner))
    wanted = task.evaluate(memory.arrays)[0].astype(np.float64)
    memory.output[...] = np.nan
    view(product.result, output, batch)[...] = result
    got = memory.output.astype(np.float64)
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    return problem


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
@pytest.mark.parametrize(
    ("left", "right", "op"),
    [
        ((5, 7), (7, 9), MatMul()),
        ((7, 5), (7, 9), MatMul(transpose_a=True)),
        ((5, 7), (9, 7), MatMul(transpose_b=True)),
        ((7, 5), (9, 7), MatMul(transpose_a=True, transpose_b=True)),
        ((1, 7), (7, 9), MatMul()),
        ((5, 1), (1, 9), MatMul()),
        ((5, 7), (7, 1), MatMul()),
        ((1, 1), (1, 1), MatMul()),
        ((3, 4, 5, 8), (8, 6), MatMul()),
        ((3, 8, 5), (8, 6), MatMul(transpose_a=True)),
        ((3, 4, 5, 8), (3, 4, 8, 6), MatMul()),
        ((3, 4, 5, 8), (3, 4, 6, 8), MatMul(transpose_b=True)),
        ((5, 8), (4, 8, 6), MatMul()),
        ((1, 5, 8), (4, 8, 6), MatMul()),
        ((4, 1, 8), (4, 8, 6), MatMul()),
        ((4, 5, 8), (1, 8, 6), MatMul()),
    ],
    ids=str,
)
def test_products(rng, left, right, op, constant) -> None:
    check(product_task(rng, left, right, op, constant), rng)


def test_batches_that_two_steps_cannot_reach_are_refused(rng) -> None:
    task = product_task(rng, (3, 4, 5, 8), (3, 1, 8, 6), constant=False)
    assert problem_of(task, Binding({}), False) is None


@pytest.mark.parametrize("activation", [None, ew.Relu(), Gelu(approximate=True)], ids=str)
def test_what_follows(rng, activation) -> None:
    problem = check(layer_task(rng, activation=activation), rng)
    assert problem.product.bias and problem.product.residual
    b = Builder(rng)
    y = b.add(ew.Mul(), b.product((4, 5, 8), (4, 8, 6), None, False), b.constant(()))
    y = b.add(ew.Div(), y, b.graph.constant(np.float32(1.7)))
    y = b.add(ew.Add(), b.input((4, 5, 6)), y)
    y = b.add(ew.Add(), b.constant((1, 1, 6)), y)
    check(b.task(b.add(activation, y) if activation else y), rng)


def test_a_result_of_one_row_has_a_bias_and_a_residual(rng) -> None:
    b = Builder(rng)
    y = b.product((1, 8), (8, 6))
    y = b.add(ew.Add(), b.add(ew.Add(), y, b.input((1, 6))), b.input((1, 6)))
    problem = check(b.task(y), rng)
    assert problem.product.bias and problem.product.residual


def test_halves_may_give_float32(rng) -> None:
    b = Builder(rng, F16)
    y = b.add(Cast(F32), b.product((5, 8), (8, 6)))
    problem = check(b.task(b.add(ew.Add(), y, b.constant((6,), F32))), rng, tolerance=1e-2)
    assert problem.product.result.dtype is F32
    assert problem.product.left.dtype is F16


def test_strided_tensors(rng) -> None:
    task = layer_task(rng)
    x, *_, residual = task.inputs
    for values in ((x,), (residual,), (task.output,), (x, residual, task.output)):
        layouts = {v: row_padded(v, 8) for v in values}
        check(task, rng, Binding({}, layouts))
    by_image = Layout((2, 5, 6, 24), (1000, 144, 24, 1))
    problem = check(task, rng, Binding({}, {task.output: by_image}))
    assert problem.product.batch == 2
    by_row = Layout((2, 5, 6, 24), (1000, 160, 24, 1))
    assert problem_of(task, Binding({}, {task.output: by_row}), False) is None


def test_transposed_in_memory(rng) -> None:
    task = product_task(rng, (5, 7), (7, 9), constant=False)
    columns = {v: Layout(s, (1, s[0])) for v in task.inputs for s in [v.type.bind({})]}
    check(task, rng, Binding({}, columns))
    for odd in ({task.output: Layout((5, 9), (1, 5))}, {task.inputs[0]: Layout((5, 7), (20, 2))}):
        assert problem_of(task, Binding({}, odd), False) is None
    heads = product_task(rng, (2, 3, 5, 8), (2, 3, 8, 5), constant=False)
    apart = Layout((2, 3, 5, 8), (120, 8, 24, 1))  # heads beside one another: two steps
    assert problem_of(heads, Binding({}, {heads.inputs[0]: apart}), False) is None
    one = product_task(rng, (1, 3, 5, 8), (1, 3, 8, 5), constant=False)
    check(one, rng, Binding({}, {one.inputs[0]: Layout((1, 3, 5, 8), (120, 8, 24, 1))}))


def test_alignment_is_told(rng) -> None:
    task = product_task(rng, (4, 5, 8), (4, 8, 6), constant=False, dtype=F16)
    x, _ = task.inputs
    binding = Binding({}, {x: Layout((4, 5, 8), dense_strides((4, 5, 8)), 2)})
    problem = problem_of(task, binding, False)
    assert problem is not None
    assert problem.product.right.alignment == 2
    assert problem.product.left.alignment == 32  # 96 bytes apart
    assert problem.product.result.alignment == 4  # 60 bytes apart


def test_other_work_is_refused(rng) -> None:
    def refused(write, dtype=F32, shape=(5, 8)) -> bool:
        b = Builder(rng, dtype)
        return problem_of(b.task(write(b, b.product(shape, (8, 6)))), Binding({}), False) is None

    assert not refused(lambda b, y: b.add(ew.Relu(), y))
    assert refused(lambda b, y: b.add(ew.Sigmoid(), y))
    assert refused(lambda b, y: b.add(Gelu(), y))
    assert refused(lambda b, y: b.add(Clip(0.0, 6.0), y))
    assert refused(lambda b, y: b.add(ew.Add(), b.add(ew.Relu(), y), b.constant((6,))))
    assert refused(lambda b, y: b.add(ew.Mul(), y, b.constant((6,))))
    assert refused(lambda b, y: b.add(ew.Add(), y, y))
    assert refused(lambda b, y: b.add(ew.Add(), b.add(ew.Mul(), y, b.constant(())), y))
    assert refused(lambda b, y: b.add(ew.Add(), y, b.constant(())))
    assert refused(lambda b, y: b.add(ew.Add(), y, b.input((5, 1))))
    assert refused(lambda b, y: b.add(Cast(DType.INT32), y))
    assert refused(lambda b, y: b.add(Cast(BF16), y), F16)
    assert refused(lambda b, y: y, DType.FLOAT64)
    three = (b_shape for b_shape in ((5, 6), (5, 6), (5, 6)))
    assert refused(lambda b, y: [y := b.add(ew.Add(), y, b.input(s)) for s in three][-1])


@pytest.mark.parametrize(
    "op",
    [
        Conv((2, 2), ((0, 0), (0, 0)), (1, 1)),
        Conv((1, 1), ((1, 0), (0, 0)), (1, 1)),
        Conv((1, 1), ((0, 0), (0, 0)), (1, 1), 2),
    ],
    ids=str,
)
def test_other_convolutions_are_refused(rng, op) -> None:
    task = product_task(rng, (1, 5, 6, 8), (1, 1, 8 // op.groups, 4), op)
    assert problem_of(task, Binding({}), False) is None


# ---- tactics -------------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_offered(rng) -> None:
    task = layer_task(rng)
    assert list(FAMILY.tactics(task, Binding({}))) == []
    assert not FAMILY.restore(task, ALGORITHM).accepts(Binding({}))


def test_a_plan_restores_what_it_stores(rng) -> None:
    task = layer_task(rng, shape=(2, 5, 6, 7))
    tactic = FAMILY.restore(task, ALGORITHM)
    assert isinstance(tactic, CublasLtTactic)
    assert tactic.parameters == ALGORITHM
    (packed,) = tactic.constants()
    weights = task.inputs[1].data
    assert weights is not None
    assert packed.shape == (24, 8)
    np.testing.assert_array_equal(packed[:, :7], weights[0, 0].T)
    computed = product_task(rng, (4, 5, 8), (4, 8, 6), constant=False)
    assert FAMILY.restore(computed, ALGORITHM).constants() == []
    single = FAMILY.restore(task, {**ALGORITHM, "tf32": True})
    assert single.precision == "tf32"
    assert not single.is_permitted({"fp32"})


@pytest.mark.parametrize(
    "wrong", [{"id": "6"}, {"version": -1}, {"tf32": 1}, {"more": 1}, {"tile_id": 1 << 40}], ids=str
)
def test_impossible_parameters_are_refused(rng, wrong) -> None:
    with pytest.raises(PlanError, match="cublaslt"):
        FAMILY.restore(layer_task(rng), {**ALGORITHM, **wrong})


def test_other_tasks_are_refused(rng) -> None:
    with pytest.raises(PlanError, match="cublaslt"):
        FAMILY.restore(layer_task(rng, activation=ew.Tanh()), ALGORITHM)
    with pytest.raises(PlanError, match="TF32"):
        FAMILY.restore(layer_task(rng, F16), {**ALGORITHM, "tf32": True})


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target():
    from planish.targets.cuda.target import cuda

    return cuda("cuda:0")


def measured(target, task: Task, binding: Binding | None = None) -> dict[str, str]:
    """For each tactic offered what is wrong with its results; empty: nothing."""
    from planish.tuning.measure import Bench

    binding = binding or Binding({})
    bench = Bench(task, binding, target, 1)
    found = {}
    for tactic in CublasLtFamily(target.machine).tactics(task, binding):
        assert tactic.accepts(binding)
        assert CublasLtFamily(target.machine).restore(task, tactic.parameters) == tactic
        try:
            found[str(tactic)] = bench.measure(tactic).wrong
        except TuningError as error:
            found[str(tactic)] = str(error)
    assert found, "cuBLASLt offers nothing"
    return found


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "computed"])
@pytest.mark.parametrize(
    ("left", "right", "op"),
    [
        ((129, 256), (256, 192), MatMul()),
        ((256, 129), (192, 256), MatMul(transpose_a=True, transpose_b=True)),
        ((1, 768), (768, 1000), MatMul()),
        ((33, 7), (7, 9), MatMul()),
        ((2, 12, 64, 32), (2, 12, 32, 64), MatMul()),
        ((2, 12, 64, 32), (2, 12, 64, 32), MatMul(transpose_b=True)),
        ((64, 32), (5, 32, 16), MatMul()),
    ],
    ids=str,
)
def test_algorithms_are_right(target, rng, left, right, op, constant, dtype) -> None:
    results = measured(target, product_task(rng, left, right, op, constant, dtype))
    assert not any(results.values()), results


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize("activation", [None, ew.Relu(), Gelu(approximate=True)], ids=str)
def test_what_follows_is_right(target, rng, dtype, activation) -> None:
    task = layer_task(rng, dtype, (2, 14, 14, 64), 96, activation)
    assert not any(measured(target, task).values())
    binding = Binding({}, {task.output: row_padded(task.output, 32)})
    assert not any(measured(target, task, binding).values())


@pytest.mark.cuda
@pytest.mark.parametrize("alignment", [2, 4, 8, 16])
def test_odd_addresses_are_right(target, rng, alignment) -> None:
    task = product_task(rng, (4, 65, 64), (4, 64, 32), constant=False, dtype=F16)
    shapes = {v: v.type.bind({}) for v in (*task.inputs, task.output)}
    layouts = {v: Layout(s, dense_strides(s), alignment) for v, s in shapes.items()}
    assert not any(measured(target, task, Binding({}, layouts)).values())


@pytest.mark.cuda
def test_algorithms_of_nobody_are_refused(target, rng) -> None:
    task = product_task(rng, (64, 64), (64, 64), dtype=F16)
    first = next(iter(CublasLtFamily(target.machine).tactics(task, Binding({}))))
    assert isinstance(first, CublasLtTactic)
    assert first.accepts(Binding({}))
    assert not replace(first, settings=(9999, *first.settings[1:])).accepts(Binding({}))
    assert not replace(first, version=1).accepts(Binding({}))
