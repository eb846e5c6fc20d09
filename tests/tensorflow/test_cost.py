"""The estimate of what an engine saves."""

from __future__ import annotations

import pytest

tf = pytest.importorskip("tensorflow")

from planish.frontends.tensorflow.analysis import analyze  # noqa: E402
from planish.tensorflow.cost import gain  # noqa: E402


def gain_of(build, size):
    with tf.Graph().as_default() as graph:
        build(tf.compat.v1.placeholder(tf.float32, [None, size, size, 8], "x"))
    graph_def = graph.as_graph_def()
    nodes = [n for n in graph_def.node if n.op not in ("Placeholder", "Const")]
    return gain(nodes, analyze(graph_def).tensors, [("x", 0)])


def test_trifles_do_not_pay_and_work_does():
    filters = tf.ones([3, 3, 8, 8]).numpy()

    def conv(x):
        tf.nn.relu(tf.nn.conv2d(x, filters, 1, "SAME"))

    def shapes(x):
        tf.reshape(tf.squeeze(tf.identity(x)[:1], 0), [-1, 8])

    assert gain_of(conv, 2) < 0 < gain_of(conv, 64)
    assert gain_of(shapes, 2) < 0
    assert gain_of(conv, 64) > gain_of(tf.nn.relu, 64)
