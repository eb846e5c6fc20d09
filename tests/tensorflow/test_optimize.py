"""TensorFlow's optimizer before the partition."""

from __future__ import annotations

import pytest

tf = pytest.importorskip("tensorflow")

from planish.tensorflow.optimize import optimize_graph_def  # noqa: E402


def test_folds_prunes_and_shares_but_fuses_nothing():
    with tf.Graph().as_default() as graph, graph.device("/device:CPU:0"):
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], "x")
        weight = tf.reshape(tf.range(27.0 * 4), [3, 3, 3, 4]) * 0.01
        y = tf.nn.bias_add(tf.nn.conv2d(x, weight, 1, "SAME"), tf.ones([4]))
        tf.nn.relu(tf.exp(y) + tf.exp(y), "y")
        tf.tanh(x, "unused")
    found, _ = optimize_graph_def(graph.as_graph_def(), ["x", "y"])
    ops = sorted(n.op for n in found.node if n.op != "Const")
    assert ops == ["AddV2", "BiasAdd", "Conv2D", "Exp", "Placeholder", "Relu"]
    assert not any(n.device for n in found.node)


def test_a_graph_that_cannot_be_optimized_stays_as_it_is():
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.add(name="y", op="NoSuchOp", input=["x"])
    found, weights = optimize_graph_def(graph_def, ["y"])
    assert not weights
    assert [n.op for n in found.node] == ["NoSuchOp"]
