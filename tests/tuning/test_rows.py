"""Rows that stand for all of a large result."""

from __future__ import annotations

import numpy as np
import pytest

import planish.tuning.rows as rows_module
from helpers.attentions import Form, attention, attention_task
from helpers.levels import conv_of_levels, product_of_levels
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Value
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.ops.normalization import Softmax
from planish.ops.reduce import ReduceMean
from planish.ops.shape import Transpose
from planish.targets.base import Binding
from planish.tuning.rows import probed_rows, sampled_rows, take

RNG = np.random.default_rng(0)
BINDING = Binding({})


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "WORK", 2e4)
    monkeypatch.setattr(rows_module, "ELEMENTS", 1 << 12)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


class Net:
    def __init__(self) -> None:
        self.graph = Graph("net")

    def input(self, name: str, *shape: int) -> Value:
        return self.graph.input(name, TensorType(shape, DType.FLOAT32))

    def task(self, result: Value) -> Task:
        self.graph.mark_output(result, "y")
        return max(propose(self.graph), key=lambda task: len(task.nodes))


def convolution() -> Task:
    net = Net()
    x, other = net.input("x", 40, 8, 8, 3), net.input("other", 40, 8, 8, 4)
    filters, bias = (net.graph.constant(a) for a in (floats(3, 3, 3, 4), floats(4)))
    y = net.graph.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1)), x, filters)
    y = net.graph.add(ew.Add(), net.graph.add(ew.Add(), y, bias), other)
    return net.task(net.graph.add(ew.Relu(), y))


def product(batched: bool) -> Task:
    net = Net()
    shapes = ((40, 16, 8), (40, 8, 12)) if batched else ((400, 24), (24, 12))
    a, b = (net.input(n, *s) for n, s in zip("ab", shapes, strict=True))
    return net.task(net.graph.add(ew.Neg(), net.graph.add(MatMul(), a, b)))


def softmax() -> Task:
    net = Net()
    x, scale = net.input("x", 400, 9, 9), net.input("scale", 1, 9, 9)
    return net.task(net.graph.add(Softmax(-1), net.graph.add(ew.Mul(), x, scale)))


def mean() -> Task:
    net = Net()
    x = net.input("x", 400, 5, 5, 9)
    return net.task(net.graph.add(ReduceMean((1, 2), True), x))


def convolution_of_levels() -> Task:
    around = ((1, 1), (1, 1))
    return conv_of_levels(RNG, (40, 8, 8, 3), 4, (3, 3), padding=around, residual=True, zero=3)


def product_of_bytes() -> Task:
    return product_of_levels(RNG, (400, 24), (24, 12), residual=True)


def attended() -> Task:
    return attention_task(attention(Form(mask="keys"), batch=40))


@pytest.mark.parametrize(
    "make",
    [
        *(convolution, lambda: product(True), lambda: product(False), softmax, mean, attended),
        *(convolution_of_levels, product_of_bytes),
    ],
)
def test_sampled_rows_are_those_of_the_whole(make) -> None:
    task = make()
    rows = sampled_rows(task, BINDING)
    assert rows is not None
    count = BINDING.shape(task.output)[0]
    assert len(rows) < count
    assert {0, count - 1} <= set(rows.tolist())
    arrays = [
        v.data if v.data is not None else (40 * floats(*BINDING.shape(v))).astype(v.dtype.numpy)
        for v in task.inputs
    ]
    (whole,), (part,) = (task.evaluate(a) for a in (arrays, take(task, BINDING, arrays, rows)))
    np.testing.assert_allclose(part, whole[rows], rtol=1e-5, atol=4e-5)


def test_filters_with_as_many_rows_as_the_batch_are_not_cut() -> None:
    net = Net()
    x = net.input("x", 3, 64, 64, 2)
    y = net.graph.add(
        Conv((1, 1), ((1, 1), (1, 1)), (1, 1)), x, net.graph.constant(floats(3, 3, 2, 4))
    )
    task = net.task(y)
    arrays = [floats(3, 64, 64, 2), task.inputs[1].data]
    cut = take(task, BINDING, arrays, np.array([0, 2]))
    assert cut[0].shape == (2, 64, 64, 2)
    assert cut[1] is arrays[1]


def test_small_work_and_mixed_rows_are_computed_whole() -> None:
    small = Net()
    x = small.input("x", 10, 10)
    assert sampled_rows(small.task(small.graph.add(ew.Relu(), x)), BINDING) is None
    for op in (Softmax(0), ReduceMean((0,), True), ReduceMean((1,), False), Transpose((1, 0))):
        net = Net()
        y = net.graph.add(op, net.input("x", 300, 300))
        assert sampled_rows(net.task(y), BINDING) is None, op


def test_probes_reach_both_ends() -> None:
    assert probed_rows(3).tolist() == [0, 1, 2]
    many = probed_rows(1000)
    assert (many[0], many[-1]) == (0, 999)
    assert len(many) == rows_module.PROBES
