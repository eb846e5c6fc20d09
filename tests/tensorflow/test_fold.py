"""Folding of what depends on weights only."""

from __future__ import annotations

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")

from planish.frontends.tensorflow import graphdef  # noqa: E402
from planish.tensorflow.fold import fold_weights  # noqa: E402

SIZE = 800


def folded(build, **weights):
    """The graph of ``build(x, **weights)`` folded, run beside the one before."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, SIZE], "x")
        given = {n: tf.compat.v1.placeholder(a.dtype, a.shape, n) for n, a in weights.items()}
        build(x, **given)
    graph_def = graph.as_graph_def()
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, SIZE)).astype(np.float32)
    results = []
    found = None
    for step in range(2):
        arrays = weights
        if step:
            graph_def, arrays = found = fold_weights(graph_def, weights, ["x", "y"])
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            feeds = {"x:0": x, **{f"{n}:0": a for n, a in arrays.items()}}
            with tf.compat.v1.Session(graph=graph) as session:
                results.append(session.run("y:0", feeds))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-6)
    return found


@pytest.fixture
def weights(rng):
    return {n: rng.uniform(1, 2, SIZE).astype(np.float32) for n in ("scale", "variance")}


def test_the_scale_of_a_batch_norm_becomes_one_weight(weights):
    def build(x, scale, variance):
        tf.multiply(x, scale * tf.math.rsqrt(variance + 1e-3), name="y")

    graph_def, found = folded(build, **weights)
    assert sorted(n.op for n in graph_def.node if n.op != "Const") == ["Mul"] + ["Placeholder"] * 2
    (array,) = found.values()
    expected = weights["scale"] / np.sqrt(weights["variance"] + 1e-3)
    np.testing.assert_allclose(array, expected, rtol=1e-5)


def test_all_outputs_of_an_op(weights):
    def build(x, scale, variance):
        first, second = tf.split(scale, 2)
        tf.add(x, tf.concat([second * x[:, : SIZE // 2], first * x[:, : SIZE // 2]], 1), "y")

    graph_def, found = folded(build, **weights)
    assert "Split" not in {n.op for n in graph_def.node}
    assert sorted(a.shape for a in found.values()) == [(SIZE // 2,)] * 2


def test_small_results_become_constants(weights):
    def build(x, scale, variance):
        tf.multiply(x, tf.reduce_mean(scale), name="y")

    graph_def, found = folded(build, **weights)
    assert not found
    (node,) = (n for n in graph_def.node if n.name == "Mean")
    assert node.op == "Const"
    mean = graphdef.constant(node.attr["value"].tensor, "")
    np.testing.assert_allclose(mean, weights["scale"].mean(), rtol=1e-6)


def test_what_must_stay(weights):
    """Random numbers, emulated quantization, and results much larger than what they are made of."""

    def build(x, scale, variance):
        noise = tf.random.uniform([SIZE], seed=1) * scale * 0.0
        rounded = tf.quantization.fake_quant_with_min_max_args(variance, 0, 2)
        large = tf.reduce_sum(tf.tile(scale[None], [SIZE, 1]), 0)
        tf.add(x, noise + rounded + large, name="y")

    graph_def, found = folded(build, **weights)
    ops = {n.op for n in graph_def.node}
    assert {"RandomUniform", "FakeQuantWithMinMaxArgs"} <= ops
    assert set(found) >= {"scale", "variance"}
