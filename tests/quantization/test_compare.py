"""Networks in which one layer was spoilt: it is named first, with what was done to it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.halves import F16, growing, lowered
from helpers.networks import N, Net, build
from planish.errors import InputError
from planish.graph.duplicate import duplicate
from planish.graph.graph import DimRange, Graph, Node, Value
from planish.ops import Clip, Conv, MatMul
from planish.passes import optimize
from planish.precision.lower import lower
from planish.quantization import compare
from planish.quantization.calibration import calibrate
from planish.quantization.compare import compare_graph
from planish.quantization.comparison import Comparison, LayerError, checked_labels
from planish.quantization.min_max import MinMaxCalibrator
from planish.runtime.engine import Engine

X = np.random.default_rng(1).standard_normal((12, 8, 8, 16)).astype(np.float32)


def chain(limit: float = 60.0) -> Graph:
    """Four convolutions of 16 channels, limited to 0 … `limit`, and a dense layer."""
    net = Net("chain", seed=2)
    x = net.input(N, 8, 8, 16)
    for name in ("first", "second", "third", "fourth"):
        x = _convolved(net, x, name)
        x = net.graph.add(Clip(0.0, limit), x, name=f"{name}/limited")
    net.graph.ranges["N"] = DimRange(1, 4, 16)
    graph = net.output(net.dense(net.pooled(x), 10))
    optimize(graph)
    return graph


def _convolved(net: Net, x: Value, name: str) -> Value:
    op = Conv((1, 1), ((1, 1), (1, 1)), (1, 1))
    scaled = net.graph.constant(1.4 * np.asarray(net.weights(3, 3, 16, 16).data), f"{name}/w")
    return net.graph.add(op, x, scaled, name=name)


def products(graph: Graph) -> dict[str, Node]:
    return {node.name: node for node in graph.nodes if isinstance(node.op, Conv)}


def quantized(graph: Graph, data: np.ndarray = X, **ranges: Any) -> Engine:
    """An INT8 engine of one scale a tensor, whose ranges hold the data, but for those given."""
    found = calibrate(graph, MinMaxCalibrator(data), dynamic_ranges=ranges or None)
    found = replace(found, extremes={})
    copy, _ = duplicate(graph)
    return build(copy, precision=frozenset({"fp32", "int8"}), calibration=found)


def by_layer(found: Comparison) -> dict[str, LayerError]:
    return {layer.layer: layer for layer in found.layers}


def test_a_healthy_network_in_int8() -> None:
    graph = chain()
    engine = quantized(graph)
    found = compare_graph(graph, engine, X)
    assert {"x", "first", "second", "third", "fourth"} <= set(by_layer(found))
    assert found.samples == len(X)
    for layer in found.layers:
        assert layer.own_sqnr >= layer.sqnr - 1  # what is made here is part of the whole
        assert layer.own_sqnr > 30
        assert 0 <= layer.inherited <= 1
        assert layer.saturated == 0
    right = build(duplicate(graph)[0])(X)
    have = engine(X)
    (output,) = found.outputs
    assert output.sqnr == pytest.approx(
        10 * math.log10(np.sum(right**2.0) / np.sum((have - right) ** 2.0)), abs=0.01
    )
    assert output.top1 == np.mean(right.argmax(1) == have.argmax(1))
    assert by_layer(found)["fourth"].inherited > 0.5


def test_a_channel_far_larger_than_the_others() -> None:
    """The next layer undoes it, so that the network computes the same as before."""
    graph = chain(limit=1e6)
    nodes = products(graph)
    for name, axis, factor in (("second", 3, 500.0), ("third", 2, 1 / 500.0)):
        weights = nodes[name].inputs[1]
        place = [slice(None)] * 4
        place[axis] = 5  # type: ignore[call-overload]
        weights.data = np.array(weights.data)
        weights.data[tuple(place)] *= factor
    found = compare_graph(graph, quantized(graph), X)
    assert found.layers[0].layer == "second"
    assert found.layers[0].tensor == "second/limited"
    assert "channels of very unlike ranges" in found.layers[0].cause
    assert found.layers[0].sqnr > 30  # the large channel hides the others
    assert by_layer(found)["fourth"].inherited > 0.9
    assert by_layer(found)["mat_mul"].cause == "inherited from earlier layers"


def test_a_range_that_was_calibrated_too_narrow() -> None:
    graph = chain()
    (value,) = (v for v in graph.values() if v.name == "third/limited")
    found = compare_graph(graph, quantized(graph, **{value.name: 0.4}), X)
    assert found.layers[0].layer == "third"
    assert found.layers[0].cause.startswith("saturated: ")
    assert found.layers[0].saturated > 0.1
    assert by_layer(found)["second"].saturated == 0


def test_a_range_far_wider_than_the_data() -> None:
    graph = chain()
    found = compare_graph(graph, quantized(graph, **{"second/limited": 500.0}), X)
    assert found.layers[0].layer == "second"
    assert found.layers[0].cause.startswith("range wider than the data: ")


def test_outliers() -> None:
    graph = chain(limit=6.0)
    data = X.copy()
    data.reshape(-1)[::2999] *= 200
    found = compare_graph(graph, quantized(graph, data), data)
    assert found.layers[0].layer == "x"
    assert "because of outliers" in found.layers[0].cause
    assert found.layers[0].vanished > 0.5


def test_an_overflow_in_halves() -> None:
    before, after, _ = lowered(growing())
    data = np.array([[10, 10, 10, 10], [10, 10, 10, 11]], np.float32)
    found = compare_graph(before, build(after), data)
    first = found.layers[0]
    assert first.layer == "large"
    assert first.cause.startswith("overflow: 8 of 8 values are beyond 65504")
    assert first.saturated == 1
    assert first.own_sqnr == -math.inf
    assert by_layer(found)["small"].own_sqnr > 60
    assert by_layer(found)["larger"].cause == "inherited: earlier layers give infinity or NaN"
    assert found.outputs[0].sqnr == -math.inf


@pytest.mark.parametrize("inside", [False, True])
def test_an_underflow_in_halves(inside: bool) -> None:
    """Memory has the small numbers as halves, or only the kernel does."""
    net = Net(seed=4)
    y = net.input(2, 8)
    for name, factor in (("tiny", 1e-9), ("same", 1.0), ("back", 1e9)):
        matrix = net.graph.constant(np.float32(factor) * np.eye(8, dtype=np.float32))
        y = net.graph.add(MatMul(), y, matrix, name=name)
    graph = net.output(y)
    after, _ = duplicate(graph)
    lower(after, dict.fromkeys(after.nodes[: 1 if inside else 2], F16))
    found = compare_graph(graph, build(after), X[:2, 0, 0, :8])
    assert found.layers[0].layer == "tiny"
    start = "underflow inside the layer: 100.0%" if inside else "underflow: 100.0% of the values"
    assert found.layers[0].cause.startswith(start)


def test_float32_has_nothing_to_explain() -> None:
    graph = chain()
    found = compare_graph(graph, build(duplicate(graph)[0]), X)
    assert len(found.layers) >= 5
    assert all(layer.cause == "nothing but float32 rounding" for layer in found.layers)
    assert all(layer.off < 0.01 for layer in found.layers)


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = chain()
    engine = quantized(graph)
    whole = compare_graph(graph, engine, X)
    monkeypatch.setattr(compare, "MOST_BYTES", 100_000)
    twice = np.concatenate((X, X))  # more rows than the engine takes
    parts = compare_graph(graph, engine, [X[:5], X[5:], twice])
    assert parts.samples == 3 * whole.samples
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert a.layer == b.layer
        assert a.own_sqnr == pytest.approx(b.own_sqnr, abs=1e-6)


def test_labels_are_counted() -> None:
    graph = chain()
    engine = quantized(graph)
    right = build(duplicate(graph)[0])(X).argmax(1)
    labels = np.where(np.arange(len(X)) < 3, (right + 1) % 10, right)
    (output,) = compare_graph(
        graph, engine, X, labels=checked_labels(labels - 1, 1, None, engine)
    ).outputs
    assert output.accuracy_fp32 == 75.0
    assert output.accuracy == pytest.approx(100 * np.mean(engine(X).argmax(1) == labels))
    with pytest.raises(InputError, match="3 labels for 12 samples"):
        compare_graph(graph, engine, X, labels=checked_labels([1, 2, 3], 0, None, engine))
