"""The matrix kernel against the references: convolutions and matrix products of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.machines import restricted
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.matmul import MatMul
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cpu.kernels import matrix
from planish.targets.cpu.kernels.matrix import MatrixFamily, MatrixTactic
from planish.targets.cpu.machine import host
from planish.targets.cpu.run import run_tactic

FAMILY = MatrixFamily()


def constant(graph: Graph, rng: np.random.Generator, *shape: int):
    return graph.constant(rng.standard_normal(shape).astype(np.float32))


def conv_task(
    rng,
    *,
    shape,
    filters,
    window,
    stride=1,
    pad=0,
    dilation=1,
    groups=1,
    residual=False,
    prologue=False,
    per_pixel=False,
) -> Task:
    graph = Graph()
    x = graph.input("x", TensorType(shape, DType.FLOAT32))
    nodes, y = [], x
    if prologue:
        for op, other in ((ew.Mul(), constant(graph, rng, shape[-1])), (ew.Relu(), None)):
            y = graph.add(op, y, *([other] if other else []))
            nodes.append(y.producer)
    weights = constant(graph, rng, window, window, shape[-1] // groups, filters)
    y = graph.add(
        Conv((stride, stride), ((pad, pad), (pad, pad)), (dilation, dilation), groups), y, weights
    )
    anchor = y.producer
    nodes.append(anchor)
    others = [constant(graph, rng, filters)]
    if residual:
        others.append(graph.input("residual", y.type))
    if per_pixel:
        others.append(graph.input("scale", TensorType((*y.shape[:-1], 1), DType.FLOAT32)))
    for other in others:
        y = graph.add(ew.Add(), y, other)
        nodes.append(y.producer)
    y = graph.add(Clip(0.0, 6.0), y)
    nodes.append(y.producer)
    graph.mark_output(y, "y")
    return make_task(nodes, anchor)


def matmul_task(rng, a, b, *, transpose_b=False, constant_b=True, other=None) -> Task:
    graph = Graph()
    x = graph.input("x", TensorType(a, DType.FLOAT32))
    w = constant(graph, rng, *b) if constant_b else graph.input("w", TensorType(b, DType.FLOAT32))
    y = graph.add(MatMul(False, transpose_b), x, w)
    anchor = y.producer
    addend = graph.input("z", TensorType(other, DType.FLOAT32)) if other else None
    y = graph.add(ew.Add(), y, addend or constant(graph, rng, y.shape[-1]))
    graph.mark_output(y, "y")
    return make_task([anchor, y.producer], anchor)


def check(task: Task, rng, *, binding: Binding | None = None, most: int = 8, machine=None) -> None:
    """Compares every few tactics of a task, the first and the last among them, with the ops."""
    binding = binding or Binding({})
    arrays = [
        v.data
        if v.is_constant
        else rng.standard_normal(v.type.bind(binding.symbols)).astype(np.float32)
        for v in task.inputs
    ]
    (expected,) = task.evaluate(arrays)
    tactics = list(FAMILY.tactics(task, binding))
    assert tactics
    step = max(len(tactics) // most, 1)
    for tactic in [*tactics[::step], tactics[-1]]:
        if machine:
            tactic = MatrixTactic(
                task, machine, **{**tactic.parameters, "vectors": 1, "pixels": 4, "tail": 0}
            )
            if not tactic.accepts(binding):
                continue
        (have,) = run_tactic(tactic, binding, arrays, machine)
        scale = max(float(np.abs(expected).max(initial=0)), 1e-6)
        np.testing.assert_allclose(have, expected, rtol=0, atol=1e-5 * scale, err_msg=str(tactic))


CONVS = [
    dict(shape=(1, 14, 14, 32), filters=48, window=1),
    dict(shape=(2, 5, 7, 33), filters=17, window=1),
    dict(shape=(2, 9, 11, 3), filters=20, window=3, stride=2, pad=1, residual=True),
    dict(shape=(1, 10, 13, 16), filters=40, window=3, pad=2, dilation=2),
    dict(shape=(1, 12, 12, 8), filters=16, window=3, residual=True),
    dict(shape=(2, 8, 8, 16), filters=24, window=3, pad=1, groups=2),
    dict(shape=(1, 8, 8, 24), filters=32, window=1, stride=2),
    dict(shape=(1, 9, 9, 20), filters=32, window=1, prologue=True),
    dict(shape=(2, 9, 9, 20), filters=32, window=3, stride=2, pad=1, prologue=True, residual=True),
    dict(shape=(2, 6, 6, 8), filters=16, window=3, pad=1, per_pixel=True),
    dict(shape=(1, 30, 30, 3), filters=8, window=7, stride=2, pad=3),
    dict(shape=(1, 1, 1, 40), filters=100, window=1),
    dict(shape=(1, 3, 3, 1024), filters=16, window=1),
    dict(shape=(1, 6, 6, 8), filters=8, window=3, pad=1, groups=4, prologue=True),
]


@pytest.mark.parametrize("case", CONVS, ids=[str(i) for i in range(len(CONVS))])
def test_conv(case) -> None:
    rng = np.random.default_rng(1)
    check(conv_task(rng, **case), rng)


@pytest.mark.parametrize("case", CONVS[:6], ids=[str(i) for i in range(6)])
def test_conv_avx2(case) -> None:
    if host().isa == "neon":
        pytest.skip("an x86-64 instruction set")
    rng = np.random.default_rng(2)
    check(conv_task(rng, **case), rng, most=2, machine=restricted("avx2"))


@pytest.mark.parametrize(
    ("a", "b", "transpose_b", "constant_b"),
    [
        ((1, 64), (64, 100), False, True),
        ((40, 1024), (1024, 600), False, True),
        ((3, 7, 40), (33, 40), True, True),
        ((2, 3, 7, 40), (2, 3, 40, 50), False, False),
        ((2, 3, 7, 40), (2, 3, 50, 40), True, False),
        ((4, 9, 8), (8, 5), False, False),
        ((5, 1), (1, 70), False, True),
        ((2, 3, 7, 40), (2, 3, 40, 50), False, True),
        ((2, 3, 7, 40), (3, 50, 40), True, True),
        ((2, 3, 7, 40), (2, 1, 40, 50), False, False),
        ((2, 1, 7, 40), (2, 3, 40, 50), False, False),
        ((7, 40), (2, 3, 40, 50), False, False),
        ((2, 3, 7, 40), (3, 40, 50), False, False),
    ],
)
def test_matmul(a, b, transpose_b, constant_b) -> None:
    rng = np.random.default_rng(3)
    check(matmul_task(rng, a, b, transpose_b=transpose_b, constant_b=constant_b), rng)


@pytest.mark.parametrize("other", [(2, 1, 7, 50), (1, 3, 7, 50), (2, 3, 1, 1), (3, 1, 50)])
def test_operands_of_a_stack_of_products(other) -> None:
    """Attention masks are broadcast over the heads, position biases over the batch."""
    rng = np.random.default_rng(8)
    check(matmul_task(rng, (2, 3, 7, 40), (2, 3, 40, 50), constant_b=False, other=other), rng)


@pytest.mark.parametrize("transpose_b", [False, True])
def test_heads_are_read_and_written_where_they_lie(transpose_b) -> None:
    """``[batch, heads, row, column]`` may lie in memory as ``[batch, row, heads, column]``."""
    rng = np.random.default_rng(9)
    b = (2, 3, 50, 40) if transpose_b else (2, 3, 40, 50)
    task = matmul_task(rng, (2, 3, 7, 40), b, transpose_b=transpose_b, constant_b=False)
    layouts = {}
    for value in (*task.inputs[:2], task.output):
        n, heads, rows, columns = value.type.bind({})
        strides = dense_strides((n, rows, heads, columns))
        layouts[value] = Layout((n, heads, rows, columns), tuple(strides[i] for i in (0, 2, 1, 3)))
    check(task, rng, binding=Binding({}, layouts))


def test_no_more_than_two_levels_of_batches() -> None:
    rng = np.random.default_rng(10)
    task = matmul_task(rng, (2, 3, 4, 5, 8), (2, 1, 4, 8, 9), constant_b=False)
    assert not list(FAMILY.tactics(task, Binding({})))


def test_operands_of_a_prologue_whose_channels_lie_apart_are_declined() -> None:
    """What is applied while packing reads channels side by side."""
    graph = Graph()
    x = graph.input("x", TensorType((1, 6, 6, 8), DType.FLOAT32))
    scale = graph.input("scale", TensorType((8,), DType.FLOAT32))
    scaled = graph.add(ew.Mul(), x, scale)
    weights = constant(graph, np.random.default_rng(0), 1, 1, 8, 16)
    y = graph.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1), 1), scaled, weights)
    task = make_task([scaled.producer, y.producer], y.producer)
    dense, apart = Binding({}, {}), Binding({}, {scale: Layout((8,), (2,))})
    tactics = FAMILY.tactics(task, dense)
    assert any(t.accepts(dense) for t in tactics)
    assert not any(t.accepts(apart) for t in tactics)


def test_one_dimensional_convolution_with_a_prologue() -> None:
    rng = np.random.default_rng(11)
    graph = Graph()
    x = graph.input("x", TensorType((2, 9, 6), DType.FLOAT32))
    scale = graph.input("scale", TensorType((2, 9, 6), DType.FLOAT32))
    scaled = graph.add(ew.Mul(), x, scale)
    op = Conv((1,), ((1, 1),), (1,), 2)
    y = graph.add(op, scaled, constant(graph, rng, 3, 3, 8))
    graph.mark_output(y, "y")
    check(make_task([scaled.producer, y.producer], y.producer), rng)


@pytest.mark.parametrize(
    ("dtype", "window", "stride", "pad"),
    [(DType.UINT8, 3, 2, 1), (DType.UINT8, 1, 1, 0), (DType.FLOAT16, 1, 2, 0)],
)
def test_inputs_of_other_types_through_a_cast(dtype, window, stride, pad) -> None:
    """As where the bytes of an image are scaled before the first convolution."""
    rng = np.random.default_rng(12)
    graph = Graph()
    x = graph.input("x", TensorType((2, 9, 11, 19), dtype))
    cast = graph.add(Cast(DType.FLOAT32), x)
    scaled = graph.add(ew.Mul(), cast, constant(graph, rng, 19))
    op = Conv((stride, stride), ((pad, pad), (pad, pad)), (1, 1), 1)
    y = graph.add(op, scaled, constant(graph, rng, window, window, 19, 24))
    graph.mark_output(y, "y")
    task = make_task([cast.producer, scaled.producer, y.producer], y.producer)
    given = rng.integers(0, 256, (2, 9, 11, 19)).astype(dtype.numpy)
    arrays = [v.data if v.is_constant else given for v in task.inputs]
    (expected,) = task.evaluate(arrays)
    tactics = list(FAMILY.tactics(task, Binding({})))
    for tactic in tactics[:: max(len(tactics) // 2, 1)]:
        (have,) = run_tactic(tactic, Binding({}), arrays, None)
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(have, expected, rtol=0, atol=1e-5 * scale, err_msg=str(tactic))


def test_part_of_a_larger_tensor() -> None:
    """Input and output may be channel slices of wider tensors, as concatenation leaves them."""
    rng = np.random.default_rng(4)
    for window, pad in ((1, 0), (3, 1)):
        task = conv_task(rng, shape=(2, 6, 7, 16), filters=24, window=window, pad=pad)
        layouts = {}
        for value in (task.inputs[0], task.output):
            shape = value.type.bind({})
            layouts[value] = Layout(shape, dense_strides((*shape[:-1], 100)))
        check(task, rng, binding=Binding({}, layouts))


def test_symbolic_batch() -> None:
    rng = np.random.default_rng(5)
    from planish.graph import symbol

    graph = Graph()
    x = graph.input("x", TensorType((symbol("N"), 5, 5, 8), DType.FLOAT32))
    y = graph.add(Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), x, constant(graph, rng, 1, 1, 8, 12))
    graph.mark_output(y, "y")
    task = make_task([y.producer], y.producer)
    for n in (0, 1, 5):
        check(task, rng, binding=Binding({"N": n}))


def test_declines_what_it_cannot_run() -> None:
    rng = np.random.default_rng(6)
    task = conv_task(rng, shape=(1, 6, 6, 8), filters=8, window=3, groups=8)
    assert not list(FAMILY.tactics(task, Binding({})))


def test_tile_must_fit_the_row() -> None:
    rng = np.random.default_rng(7)
    task = conv_task(rng, shape=(1, 6, 6, 8), filters=8, window=3, pad=1)
    tactic = FAMILY.restore(
        task, {"pixels": 8, "vectors": 1, "tail": 0, "pixels_outer": False, "packed": True}
    )
    assert not tactic.accepts(Binding({}))


@pytest.mark.parametrize(
    "parameters", [{}, {"pixels": 0, "vectors": 1, "tail": 0, "pixels_outer": 0, "packed": 0}]
)
def test_restore_refuses_nonsense(parameters) -> None:
    from planish.errors import PlanError

    rng = np.random.default_rng(8)
    task = conv_task(rng, shape=(1, 6, 6, 8), filters=8, window=1)
    with pytest.raises(PlanError):
        matrix.FAMILIES[0].restore(task, parameters)
