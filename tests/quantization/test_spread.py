"""Factors of channels: where they are used, and what they gain."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.networks import N, Net
from planish.builder import build_graph
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.ops import MaxPool, Transpose
from planish.ops.base import Op
from planish.passes import optimize
from planish.quantization.collect import collect_ranges
from planish.quantization.min_max import MinMaxCalibrator
from planish.quantization.ranges import Ranges
from planish.quantization.rewrite import is_product, quantize
from planish.quantization.scheme import UNSIGNED
from planish.quantization.spread import LEAST, channel_factors
from planish.targets.cpu.target import cpu

X = np.random.default_rng(5).standard_normal((8, 6, 6, 16)).astype(np.float32)
UNLIKE = np.float32(100.0) ** (-np.arange(16, dtype=np.float32) / 15)
"""Reaches from 1 to a hundredth."""


def net(*, depthwise: bool = False, residual: bool = False) -> Graph:
    """A convolution that reads the input, an activation, another convolution."""
    n = Net()
    x = n.input(N, 6, 6, 16, name="x")
    y = n.relu(n.bias(n.conv(x, 16, 3, groups=16 if depthwise else 1)))
    if residual:
        y = n.relu(n.add(n.bias(n.conv(y, 16)), x))
    n.graph.mark_output(n.conv(y, 5), "y")
    optimize(n.graph, merge=False)
    return n.graph


def products(graph: Graph) -> list:
    return [node for node in graph.nodes if is_product(node)]


def decibels(graph: Graph, x: np.ndarray, ranges: Ranges) -> float:
    (exact,) = interpret(graph, {"x": x})
    copy, _ = duplicate(graph)
    quantize(copy, products(copy), ranges, UNSIGNED)
    (have,) = interpret(copy, {"x": x})
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - have).sum()))


def ranges_of(graph: Graph, x: np.ndarray) -> Ranges:
    return collect_ranges(graph, [x], MinMaxCalibrator())


@pytest.mark.parametrize("residual", [False, True])
def test_small_channels_that_count_as_much_as_large_ones(residual: bool) -> None:
    graph, x = net(residual=residual), X * UNLIKE
    weights = graph.nodes[0].inputs[1]
    assert weights.data is not None
    weights.data = weights.data / UNLIKE[:, None]
    ranges = ranges_of(graph, x)
    plain = decibels(graph, x, replace(ranges, extremes={}))
    assert decibels(graph, x, ranges) > plain + 10


def test_a_depthwise_layer_pays_nothing() -> None:
    graph, x = net(depthwise=True), X * UNLIKE
    (conv, *_), given = graph.nodes, graph.inputs
    ranges = ranges_of(graph, x)
    found = channel_factors(given, [conv], ranges)
    assert found is not None
    reach = np.abs(x).max((0, 1, 2))
    np.testing.assert_allclose(found[0], reach / reach.max(), rtol=1e-4)
    np.testing.assert_allclose(max(found[2], -found[1]), reach.max(), rtol=1e-4)


def test_channels_that_are_alike_have_one_scale() -> None:
    graph = net()
    assert channel_factors(graph.inputs, products(graph), ranges_of(graph, X)) is None


def test_what_is_not_known_has_one_scale() -> None:
    graph, x = net(depthwise=True), X * UNLIKE
    ranges = ranges_of(graph, x)
    for extremes in ({}, {"x": ranges.extremes["x"][:-1]}, {"x": ((0.0, 0.0),) * 16}):
        wrong = replace(ranges, extremes=extremes)
        assert channel_factors(graph.inputs, products(graph), wrong) is None


@pytest.mark.parametrize(
    ("op", "kept"),
    [
        (MaxPool((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), True),
        (Transpose((0, 3, 1, 2)), False),
    ],
)
def test_channels_that_move_elsewhere_have_one_scale(op: Op, kept: bool) -> None:
    n = Net()
    x = n.input(N, 16, 16, 16, name="x")
    moved = n.graph.add(op, x)
    graph = n.output(n.add(n.conv(x, 8, groups=8), n.conv(moved, 8, groups=8)))
    names = [v.name for v in (x, moved)]
    ranges = Ranges({}, extremes=dict.fromkeys(names, tuple((float(-m), float(m)) for m in UNLIKE)))
    assert (channel_factors([x, moved], products(graph), ranges) is not None) == kept


def test_a_channel_of_zeros_has_a_factor_that_divides() -> None:
    graph, x = net(depthwise=True), X * UNLIKE
    x[..., 3] = 0
    found = channel_factors(graph.inputs, products(graph)[:1], ranges_of(graph, x))
    assert found is not None and found[0].min() == LEAST


def test_no_step_more_and_kernels_compute_it() -> None:
    graph, x = net(residual=True), X * UNLIKE
    ranges = ranges_of(graph, x)
    steps = []
    for one in (ranges, replace(ranges, extremes={})):
        copy, _ = duplicate(graph)
        quantize(copy, products(copy), one, UNSIGNED)
        (expected,) = interpret(copy, {"x": x})
        engine = build_graph(copy, cpu(), tuning_seconds=0)
        np.testing.assert_allclose(engine(x), expected, atol=np.abs(expected).max() / 50)
        steps.append([task.outputs[0].dtype for task in (s.task for s in engine.plan.steps)])
    assert steps[0] == steps[1]
    assert steps[0].count(DType.UINT8) == len(steps[0]) - 1
