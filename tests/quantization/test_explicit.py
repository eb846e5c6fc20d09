"""Simulated quantization as conversions: the same levels, and weights to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tensorflow as tf
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.ops import Conv, Dequantize, FakeQuant, MatMul, Quantize, SnapToLevels
from planish.passes import optimize
from planish.quantization.explicit import holds_weights, levels_of, settle_scales
from planish.quantization.scheme import Levels

raw = tf.raw_ops
X = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32) * 3
W = np.random.default_rng(1).standard_normal((6, 5)).astype(np.float32)


def graph_of(build: Callable[[Any], Any], multiplied: bool = False) -> tuple[Graph, np.ndarray]:
    """What TensorFlow makes of the input X, imported, and its result; the graph has a second
    output if that is `multiplied` by weights that have levels.
    """
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, X.shape, "x")
        output = build(x)
        ends = [output.name]
        if multiplied:
            ends.append(raw.MatMul(a=output, b=fake(tf.constant(W), -2.0, 2.0)).name)
        with tf.compat.v1.Session(graph=graph) as session:
            expected = session.run(output, {x: X})
    return import_graph_def(graph.as_graph_def(), ["x"], ends), expected


def fake(x: Any, low: Any, high: Any, **options: Any) -> Any:
    kind = "FakeQuantWithMinMaxVars" + ("PerChannel" if np.ndim(low) else "")
    return getattr(raw, kind)(inputs=x, min=low, max=high, **options)


def snapped(x: Any, low: float, high: float, **options: Any) -> Any:
    return raw.QuantizeAndDequantizeV2(
        input=x, input_min=low, input_max=high, range_given=True, **options
    )


SIMULATED: dict[str, tuple[Callable[[Any], Any], Levels]] = {
    "args": (
        lambda x: raw.FakeQuantWithMinMaxArgs(inputs=x, min=-2.0, max=3.1),
        Levels(DType.UINT8, float(np.float32(5.1 / 255)), 100),
    ),
    "vars": (lambda x: fake(x, 0.0, 6.0), Levels(DType.UINT8, float(np.float32(6 / 255)), 0)),
    "narrow": (
        lambda x: fake(x, -1.27, 1.27, narrow_range=True),
        Levels(DType.UINT8, float(np.float32(2.54) / np.float32(254)), 127),
    ),
    "four bits": (
        lambda x: fake(x, -1.0, 2.0, num_bits=4),
        Levels(DType.UINT8, float(np.float32(0.2)), 5),
    ),
    "signed": (
        lambda x: snapped(x, -2.0, 2.0),
        Levels(DType.INT8, float(np.float32(2) / np.float32(127)), 0),
    ),
    "unsigned": (
        lambda x: snapped(x, 0.0, 2.55, signed_input=False),
        Levels(DType.UINT8, float(np.float32(2.55) / np.float32(255)), 0),
    ),
}


@pytest.mark.parametrize("case", SIMULATED)
def test_activations_get_the_levels_that_are_simulated(case: str) -> None:
    build, levels = SIMULATED[case]
    graph, expected = graph_of(build, multiplied=True)
    assert settle_scales(graph)
    end = graph.outputs[0]
    assert end.producer is not None and isinstance(end.producer.op, Dequantize)
    found = levels_of(end.producer)
    assert found is not None
    assert (found.dtype, found.zero) == (levels.dtype, levels.zero)
    assert found.scale == pytest.approx(levels.scale, rel=3e-7)
    have, _ = interpret(graph, {"x": X})
    # numbers half-way between levels may go to either
    off = np.abs(have - expected) > 1e-6
    assert off.mean() < 0.02 and np.abs(have - expected).max() < 1.01 * levels.scale


WEIGHTS: dict[str, Callable[[Any], Any]] = {
    "per tensor": lambda w: fake(w, -2.1, 2.2),
    "per channel": lambda w: fake(w, np.float32([-1, -2, -3, -1, -2]), np.float32([1, 2, 3, 2, 1])),
    "signed": lambda w: snapped(w, -2.0, 2.0, round_mode="HALF_UP", narrow_range=True),
    "by their own range": lambda w: raw.QuantizeAndDequantizeV2(
        input=w, input_min=0.0, input_max=0.0, range_given=False
    ),
    "along an axis": lambda w: raw.QuantizeAndDequantizeV3(
        input=w,
        num_bits=8,
        input_min=-np.ones(5, np.float32),
        input_max=np.float32([1, 2, 3, 4, 5]),
        range_given=True,
        axis=1,
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_are_tensorflows(case: str) -> None:
    """In levels, and kept so by the passes."""

    def build(x: Any) -> Any:
        return raw.MatMul(a=fake(x, -6.0, 6.0), b=WEIGHTS[case](tf.constant(W)))

    graph, _ = graph_of(build)
    assert settle_scales(graph)
    optimize(graph, keep=holds_weights)
    (product,) = [n for n in graph.nodes if isinstance(n.op, MatMul)]
    made = product.inputs[1].producer
    assert made is not None and isinstance(made.op, Dequantize)
    assert made.inputs[0].is_constant and made.inputs[0].dtype in (DType.INT8, DType.UINT8)
    (have,) = made.op.reference(*(v.data for v in made.inputs))  # type: ignore[arg-type]
    want = WEIGHTS[case](tf.constant(W)).numpy()
    np.testing.assert_allclose(have, want, rtol=2e-7)


OTHERS: dict[str, Callable[[Any], Any]] = {
    "no quantization": lambda x: tf.nn.relu(x),
    "16 bits": lambda x: fake(x, -6.0, 6.0, num_bits=16),
    "computed ranges": lambda x: fake(x, tf.reduce_min(x), tf.reduce_max(x)),
    "an empty range": lambda x: fake(x, 0.0, 0.0),
    "one range for each channel": lambda x: fake(x, -np.ones(6), np.float32([1, 2, 3, 4, 5, 6])),
    "activations alone": lambda x: raw.MatMul(a=fake(x, -6.0, 6.0), b=tf.constant(W)),
    "weights alone": lambda x: raw.MatMul(a=x, b=fake(tf.constant(W), -2.0, 2.0)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_says_nothing_of_activations_stays(case: str) -> None:
    graph, expected = graph_of(OTHERS[case])
    assert not settle_scales(graph)
    assert not any(isinstance(n.op, Quantize | Dequantize) for n in graph.nodes)
    np.testing.assert_allclose(interpret(graph, {"x": X})[0], expected, atol=1e-5)


def test_the_rest_of_a_network_keeps_its_simulations() -> None:
    graph, _ = graph_of(lambda x: fake(fake(x, -6.0, 6.0, num_bits=16), -6.0, 6.0), True)
    for _ in range(2):  # a second time changes nothing
        assert settle_scales(graph)
        kinds = [type(n.op) for n in graph.nodes]
        assert sorted(k.__name__ for k in kinds) == [
            "Dequantize",
            "Dequantize",
            "FakeQuant",
            "MatMul",
            "Quantize",
        ]


def test_filters_behind_other_moves_are_weights() -> None:
    def build(x: Any) -> Any:
        filters = fake(tf.reshape(tf.constant(W), (1, 1, 6, 5)), -2.0, 2.0)
        image = tf.reshape(fake(x, -6.0, 6.0), (4, 2, 5, 6))
        return tf.nn.depthwise_conv2d(image, filters, (1, 1, 1, 1), "SAME")

    graph, expected = graph_of(build)
    assert settle_scales(graph)
    optimize(graph, keep=holds_weights)
    (product,) = [n for n in graph.nodes if isinstance(n.op, Conv)]
    assert not product.inputs[1].is_constant
    assert not any(isinstance(n.op, FakeQuant | SnapToLevels) for n in graph.nodes)
    (have,) = interpret(graph, {"x": X})
    assert np.abs(have - expected).max() < 0.1
