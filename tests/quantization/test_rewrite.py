"""The rewrite to integers: what becomes of a graph, and how near its results stay."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.networks import N, Net
from planish.builder import build_graph
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.ops import (
    Concat,
    Conv,
    ConvInteger,
    Dequantize,
    MatMul,
    MatMulFloat8,
    MatMulInteger,
    MaxPool,
    Pad,
    Quantize,
    ReduceMean,
    Reshape,
    Slice,
    Transpose,
    ew,
)
from planish.passes import optimize
from planish.quantization.means import averaged
from planish.quantization.ranges import Ranges
from planish.quantization.rewrite import (
    is_product,
    missing_ranges,
    quantize,
    quantized_values,
    summands,
)
from planish.quantization.scheme import FLOAT8, SYMMETRIC, UNSIGNED, Scheme
from planish.targets.cpu.target import cpu


def net() -> Graph:
    """A residual block, a depthwise layer, a concatenation of branches, pooling, a classifier."""
    n = Net()
    x = n.input(N, 12, 12, 3)
    a = n.relu(n.bias(n.conv(x, 16, 3, 2)))
    b = n.relu(n.add(n.bias(n.conv(a, 16, 3)), a))
    c = n.relu(n.bias(n.conv(b, 16, 3, groups=16)))
    pooled = n.graph.add(MaxPool((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)), c)
    left, right = n.relu(n.conv(pooled, 8)), n.relu(n.conv(pooled, 24))
    both = n.graph.add(Concat(3), left, right)
    d = n.relu(n.conv(both, 16))
    y = n.graph.add(ReduceMean((1, 2), False), d)
    n.graph.mark_output(n.dense(y, 10), "y")
    optimize(n.graph, merge=False)
    return n.graph


def observed(graph: Graph, x: np.ndarray) -> Ranges:
    """Extremes and means on some inputs."""
    tensors, means = {"x": (float(x.min()), float(x.max()))}, {}
    wanted = {v.name for v in averaged(graph)}

    def note(node, given, results) -> None:
        for value, array in zip(node.outputs, results, strict=True):
            if array.dtype == np.float32:
                tensors[value.name] = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
                if value.name in wanted:
                    flat = array.reshape(-1, array.shape[-1])
                    means[value.name] = tuple(map(float, flat.mean(axis=0)))

    interpret(graph, {"x": x}, note)
    return Ranges(tensors, means=means)


def data(count: int = 4) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 12, 12, 3)).astype(np.float32)


def noise(exact: np.ndarray, have: np.ndarray) -> float:
    """Error by signal, in decibels."""
    return float(10 * np.log10(np.square(exact - have).sum() / np.square(exact).sum()))


@pytest.mark.parametrize("scheme", [UNSIGNED, SYMMETRIC])
def test_results_stay_near(scheme: Scheme) -> None:
    graph, x = net(), data()
    ranges = observed(graph, x)
    (exact,) = interpret(graph, {"x": x})
    products = [node for node in graph.nodes if is_product(node)]
    assert len(products) == 7
    made = quantize(graph, products, ranges, scheme)
    assert len(made.layers) == 7
    assert not any(isinstance(node.op, Conv | MatMul) for node in graph.nodes)
    (have,) = interpret(graph, {"x": x})
    assert noise(exact, have) < -30


def test_float8() -> None:
    """Products of matrices; what only moves codes moves them, what compares does not."""
    n = Net("codes", 3)
    x = n.input(4, 6, 6, 8)
    first = n.bias(n.dense(x, 16))
    pooled = n.graph.add(MaxPool((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1)), first)
    turned = n.graph.add(Transpose((0, 2, 1, 3)), n.relu(pooled))
    last = n.bias(n.dense(n.reshape(n.add(turned, turned), 36, 16), 24))
    n.graph.mark_output(last, "y")
    graph, x = n.graph, np.random.default_rng(2).standard_normal((4, 6, 6, 8)).astype(np.float32)
    ranges = observed(graph, x)
    (exact,) = interpret(graph, {"x": x})
    products = [m for m in graph.nodes if is_product(m)]
    made = quantize(graph, products, ranges, FLOAT8)
    assert len(made.layers) == 2
    assert sum(isinstance(m.op, MatMulFloat8) for m in graph.nodes) == 2
    assert next(m for m in graph.nodes if isinstance(m.op, MaxPool)).output.dtype is DType.FLOAT32
    assert next(m for m in graph.nodes if isinstance(m.op, Reshape)).output.dtype is DType.INT8
    assert all(np.log2(levels.scale) % 1 == 0 for levels in made.levels.values())
    # what quantizing weights shifts goes into the bias that there is
    assert sum(isinstance(m.op, ew.Add) for m in graph.nodes) == 3
    (have,) = interpret(graph, {"x": x})
    assert noise(exact, have) < -25


def test_only_bytes_lie_between_quantized_layers() -> None:
    graph, x = net(), data()
    quantize(graph, [n for n in graph.nodes if is_product(n)], observed(graph, x), UNSIGNED)
    engine = build_graph(graph, cpu(), tuning_seconds=0)
    inner = [step.task for step in engine.plan.steps]
    for task in inner:
        for value in task.outputs:
            averages = all(isinstance(u.op, ReduceMean) for u in value.users)
            assert value.dtype is DType.UINT8 or averages
    # the residual is dequantized where it is added
    assert sum(isinstance(t.anchor.op, ConvInteger | MatMulInteger) for t in inner if t.anchor) == 7
    assert len(inner) <= 11
    (exact,) = interpret(graph, {"x": x})
    np.testing.assert_allclose(engine(x), exact, atol=1e-5)


def test_moves_move_levels_and_share_a_scale() -> None:
    graph, x = net(), data()
    made = quantize(graph, [n for n in graph.nodes if is_product(n)], observed(graph, x), UNSIGNED)
    by_op = {type(node.op): node for node in graph.nodes}
    for op in (Concat, MaxPool):
        assert by_op[op].output.dtype is DType.UINT8
    together = next(n for n in graph.nodes if isinstance(n.op, Concat))
    scales = set()
    for value in together.inputs:
        assert value.producer is not None and isinstance(value.producer.op, Quantize)
        scales.add(made.levels[value.name.removesuffix("/int8")])
    assert len(scales) == 1


def test_some_layers_only() -> None:
    graph, x = net(), data()
    ranges = observed(graph, x)
    (exact,) = interpret(graph, {"x": x})
    products = [n for n in graph.nodes if is_product(n)]
    for chosen in (products[:1], products[1:2], products[2:4], products[-1:]):
        copy, _ = duplicate(graph)
        names = {node.name for node in chosen}
        quantize(copy, [n for n in copy.nodes if n.name in names], ranges, UNSIGNED)
        integers = [n for n in copy.nodes if isinstance(n.op, ConvInteger | MatMulInteger)]
        assert {n.name for n in integers} == names
        assert noise(exact, interpret(copy, {"x": x})[0]) < -30


def test_nothing_to_do() -> None:
    graph = net()
    before = str(graph)
    assert quantize(graph, [], Ranges({}), UNSIGNED).layers == ()
    assert str(graph) == before


def test_shortcuts_of_slices_and_zeros() -> None:
    """What a quantized tensor is moved to is levels too; zeros are the zero point."""
    n = Net()
    a = n.relu(n.conv(n.input(N, 12, 12, 3), 8, 3))
    part = n.graph.add(Slice((0, 0, 0, 0), (N, 6, 6, 8), (1, 2, 2, 1)), a)
    wide = n.graph.add(Pad(((0, 0), (0, 0), (0, 0), (4, 4))), part)
    n.graph.mark_output(n.relu(n.add(n.conv(a, 16, 3, 2), wide)), "y")
    graph, x = n.graph, data()
    ranges = observed(graph, x)
    (exact,) = interpret(graph, {"x": x})
    quantize(graph, [m for m in graph.nodes if is_product(m)], ranges, UNSIGNED)
    padding = next(m for m in graph.nodes if isinstance(m.op, Pad))
    assert padding.output.dtype is DType.UINT8
    assert noise(exact, interpret(graph, {"x": x})[0]) < -30


def test_marked_tensors_stay_floats() -> None:
    n = Net()
    a = n.relu(n.conv(n.input(N, 12, 12, 3), 8, 3))
    n.graph.mark_output(a, "middle")
    n.graph.mark_output(n.conv(a, 4), "y")
    ranges = observed(n.graph, data())
    quantize(n.graph, [m for m in n.graph.nodes if is_product(m)], ranges, UNSIGNED)
    assert [v.dtype for v in n.graph.outputs] == [DType.FLOAT32] * 2
    producer = n.graph.outputs[0].producer
    assert producer is not None and isinstance(producer.op, ew.Relu)


def test_missing_ranges_are_found_by_group() -> None:
    graph, x = net(), data()
    ranges = observed(graph, x)
    products = [n for n in graph.nodes if is_product(n)]
    groups = quantized_values(graph, products)
    assert not missing_ranges(graph, products, ranges)
    gone = {v.name for v in groups[0]}
    fewer = Ranges({k: v for k, v in ranges.tensors.items() if k not in gone})
    (missing,) = missing_ranges(graph, products, fewer)
    assert missing.name in gone


@pytest.mark.parametrize("channels", [3, 5])
def test_means_of_another_width_are_ignored(channels: int) -> None:
    """A cache may say anything."""
    graph, x = net(), data()
    ranges = observed(graph, x)
    means = dict.fromkeys(ranges.means, (1.0,) * channels)
    wrong = Ranges(ranges.tensors, means=means)
    quantize(graph, [n for n in graph.nodes if is_product(n)], wrong, UNSIGNED)
    assert any(isinstance(n.op, Dequantize) for n in graph.nodes)


# ---- sums of two products ------------------------------------------------------------------------


def projection() -> Graph:
    """A residual block whose shortcut is a convolution, too."""
    n = Net()
    x = n.relu(n.bias(n.conv(n.input(N, 12, 12, 3), 16, 3)))
    shortcut = n.bias(n.conv(x, 32, 1, 2))
    y = n.bias(n.conv(n.relu(n.bias(n.conv(x, 16, 3, 2))), 32))
    z = n.relu(n.add(y, shortcut))
    n.graph.mark_output(n.conv(z, 8), "y")
    optimize(n.graph, merge=False)
    return n.graph


def test_the_earlier_of_two_summands_is_kept_as_levels() -> None:
    graph = projection()
    ranges = observed(graph, data())
    (exact,) = interpret(graph, {"x": data()})
    products = [n for n in graph.nodes if is_product(n)]
    (summand,) = summands(graph, products)
    assert summand.producer is not None
    done = quantize(graph, products, ranges, UNSIGNED)
    assert summand.name in done.levels
    kept = [n for n in graph.nodes if isinstance(n.op, Quantize)]
    assert len(kept) == 5  # what the four products read, and the summand
    (have,) = interpret(graph, {"x": data()})
    assert noise(exact, have) < -25


def test_summands_of_unknown_range_stay_floats() -> None:
    graph = projection()
    ranges = observed(graph, data())
    products = [n for n in graph.nodes if is_product(n)]
    (summand,) = summands(graph, products)
    known = {name: ends for name, ends in ranges.tensors.items() if name != summand.name}
    done = quantize(graph, products, Ranges(known, means=ranges.means), UNSIGNED)
    assert summand.name not in done.levels
    assert len(done.layers) == 5


def test_a_summand_that_others_read_stays_floats() -> None:
    graph = projection()
    products = [n for n in graph.nodes if is_product(n)]
    (summand,) = summands(graph, products)
    graph.mark_output(summand, "shortcut")
    assert not summands(graph, products)
    assert not summands(graph, products[:1])
