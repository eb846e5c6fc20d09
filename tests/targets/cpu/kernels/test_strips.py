"""Depthwise convolutions with their 1x1 neighbours, strip by strip."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.tactics import random_array
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph import DType, Graph, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Add, Maximum, Minimum
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cpu.kernels import strips
from planish.targets.cpu.kernels.strips import FAMILIES, Strips
from planish.targets.cpu.machine import host
from planish.targets.cpu.run import run_tactic

F32, BF16 = DType.FLOAT32, DType.BFLOAT16
TOLERANCES = {F32: 2e-4, BF16: 2e-2}
"""By the largest result: bfloat16 is rounded between the convolutions."""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def network(
    rng,
    *,
    size=(13, 11),
    channels=(5, 24, 7),
    window=3,
    stride=1,
    dilation=1,
    padding=((1, 1), (1, 1)),
    batch=2,
    residual=False,
    clipped=True,
    dtype=F32,
) -> Graph:
    """An inverted bottleneck with biases and activations."""
    graph = Graph()
    narrow, wide, out = channels

    def constant(*shape):
        return graph.constant(rng.standard_normal(shape).astype(dtype.numpy))

    def scalar(value):
        return graph.constant(np.asarray(value, dtype.numpy))

    def activated(value):
        value = graph.add(Add(), value, constant(value.shape[-1]))
        if clipped:
            value = graph.add(Minimum(), graph.add(Maximum(), value, scalar(0)), scalar(6))
        return value

    def conv(value, filters, strides=1, pads=((0, 0), (0, 0)), dilations=1, groups=1):
        op = Conv((strides, strides), pads, (dilations, dilations), groups)
        return graph.add(op, value, filters)

    x = graph.input("x", TensorType((batch, *size, narrow), dtype))
    y = activated(conv(x, constant(1, 1, narrow, wide)))
    filters = constant(window, window, 1, wide)
    y = activated(conv(y, filters, stride, padding, dilation, wide))
    y = graph.add(Add(), conv(y, constant(1, 1, wide, out)), constant(out))
    if residual:
        y = graph.add(Add(), y, x)
    graph.outputs.append(y)
    graph.output_names.append("y")
    return graph


def task_of(graph: Graph, pattern: str) -> Task:
    tasks = [t for t in propose(graph) if t.pattern == pattern]
    return max(tasks, key=lambda t: len(t.nodes))


def check(task: Task, rng, rows, layouts=None) -> None:
    binding = Binding({}, layouts or {})
    arrays = [
        v.data if v.data is not None else random_array(rng, v.type.bind({}), v.dtype)
        for v in task.inputs
    ]
    (expected,) = task.evaluate(arrays)
    family = next(f for f in FAMILIES if f.pattern == task.pattern)
    for height in rows:
        tactic = family.restore(task, {"rows": height})
        assert tactic.accepts(binding)
        for ranges in (1, 3):
            (got,) = run_tactic(tactic, binding, arrays, host(), ranges=ranges)
            scale = np.abs(expected.astype(np.float32)).max()
            np.testing.assert_allclose(
                got.astype(np.float32),
                expected.astype(np.float32),
                rtol=0,
                atol=TOLERANCES[task.output.dtype] * scale,
            )


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"residual": True, "channels": (8, 40, 8)},
        {"stride": 2, "padding": ((0, 1), (0, 1)), "size": (14, 16)},
        {"stride": 2, "window": 5, "padding": ((2, 2), (2, 2))},
        {"dilation": 2, "padding": ((2, 2), (2, 2))},
        {"window": 1, "padding": ((0, 0), (0, 0)), "stride": 3},
        {"padding": ((3, 4), (0, 0)), "window": 5},
        {"channels": (16, 96, 24), "clipped": False},
        {"channels": (16, 96, 24), "dtype": BF16},
        {"channels": (8, 40, 8), "dtype": BF16, "residual": True},
        {
            "channels": (6, 24, 10),
            "dtype": BF16,
            "stride": 2,
            "window": 5,
            "padding": ((2, 2),) * 2,
        },
    ],
    ids=lambda g: "-".join(g) or "plain",
)
@pytest.mark.parametrize("pattern", ["bottleneck", "pair"])
def test_strips(given, pattern, rng) -> None:
    task = task_of(network(rng, **given), pattern)
    check(task, rng, (1, 3, 64))


def test_images_may_lie_apart(rng) -> None:
    """In the memory of a larger batch, say; rows must be dense."""
    graph = network(rng, residual=True, channels=(8, 40, 8))
    task = task_of(graph, "bottleneck")
    x, y = task.inputs[0], task.output
    apart = {
        v: Layout(v.type.bind({}), (9999, *dense_strides(v.type.bind({}))[1:])) for v in (x, y)
    }
    check(task, rng, (4,), apart)
    shape = x.type.bind({})
    wide = Layout(shape, dense_strides((*shape[:-1], shape[-1] + 3)))
    assert not Strips(task, host(), 4).accepts(Binding({}, {x: wide}))


@pytest.mark.parametrize("pattern", ["bottleneck", "pair"])
def test_offered_where_memory_is_far(pattern, rng, monkeypatch) -> None:
    monkeypatch.setattr(strips, "DISTANT", 24 << 20)  # random graphs, in this process too, have 0
    family = next(f for f in FAMILIES if f.pattern == pattern)
    near = network(rng, size=(56, 56), channels=(24, 144, 24), residual=True, batch=1)
    assert not list(family.tactics(task_of(near, pattern), Binding({})))
    far = network(rng, size=(56, 56), channels=(24, 144, 24), residual=True, batch=16)
    task = task_of(far, pattern)
    tactics = list(family.tactics(task, Binding({})))
    assert 1 <= len(tactics) <= 2
    for tactic in tactics:
        (launch,) = tactic.launches(Binding({}))
        assert launch.scratch <= 2 * host().l2
        assert launch.tasks >= host().cores


def test_rows_that_strips_share_are_computed_once(rng) -> None:
    """Of a band, every row of the first result is computed by one strip."""
    task = task_of(network(rng, size=(30, 8), batch=64), "bottleneck")
    (launch,) = Strips(task, host(), 4).launches(Binding({}))
    kernel = launch.kernel
    assert kernel.keeps and len(kernel.stages) == 3
    assert launch.tasks == 64  # one band each
    strips = Strips(task, host(), 4)._all_strips(Binding({}))
    computed = [row for s in strips for row in range(s.fresh, s.below)]
    assert computed == list(range(30))


def test_a_plain_convolution_makes_no_strips(rng) -> None:
    graph = network(rng)
    for task in propose(graph):
        if not task.pattern:
            assert not any(list(f.tactics(task, Binding({}))) for f in FAMILIES)
