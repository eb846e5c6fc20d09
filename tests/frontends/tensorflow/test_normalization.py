import numpy as np
import pytest

import tensorflow as tf
from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.interpret import interpret

raw = tf.raw_ops


def parameters(rng, channels):
    scale, offset, mean = rng.normal(size=(3, channels)).astype("f")
    return scale, offset, mean, rng.uniform(0.5, 2, channels).astype("f")


@pytest.mark.parametrize("version", ["", "V2", "V3"])
def test_batch_norm(check, rng, version):
    x = rng.normal(size=(2, 4, 5, 3)).astype("f")
    scale, offset, mean, variance = parameters(rng, 3)
    op = getattr(raw, f"FusedBatchNorm{version}")

    def build(x):
        y, *_ = op(
            x=x,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=0.01,
            is_training=False,
        )
        return y

    graph = check(build, x)
    assert [n.op.name for n in graph.nodes] == ["batch_norm"]


def test_batch_norm_of_halves(check, rng):
    x = rng.normal(size=(2, 4, 5, 3)).astype("float16")
    scale, offset, mean, variance = parameters(rng, 3)

    def build(x):
        return raw.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            epsilon=0.01,
            is_training=False,
        )[0]

    check(build, x, tolerance=1e-3)


def test_batch_norm_by_the_batch(check, rng):
    x = rng.normal(size=(2, 4, 5, 3)).astype("f")
    scale, offset, _, _ = parameters(rng, 3)

    def build(x):
        return raw.FusedBatchNormV3(
            x=x, scale=scale, offset=offset, mean=[], variance=[], epsilon=0.01
        )[0]

    check(build, x, tolerance=1e-5)


def test_layer_norm_by_batch_norm(rng):
    """Keras 2 normalizes layers so: every row is a channel of an NCHW image."""
    x = rng.normal(size=(3, 7, 16)).astype("f")
    with tf.Graph().as_default() as graph:
        node = tf.compat.v1.placeholder("float32", [None, 7, 16], "x")
        rows = tf.shape(node)[0] * 7
        image = tf.reshape(node, [1, rows, 16, 1])
        y = raw.FusedBatchNormV3(
            x=image,
            scale=tf.fill([rows], 1.0),
            offset=tf.fill([rows], 0.0),
            mean=tf.constant([], "float32"),
            variance=tf.constant([], "float32"),
            epsilon=0.001,
            data_format="NCHW",
        )[0]
        tf.reshape(y, tf.shape(node), name="y")
    (result,) = interpret(import_graph_def(graph.as_graph_def(), ["x"], ["y"]), {"x": x})
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.001)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_statistics_of_the_batch(check, rng, factor):
    x = rng.normal(size=(2, 4, 4, 3)).astype("f")
    old = np.float32([1, 2, 3]) if factor != 1 else np.zeros(0, "f")

    def build(x):
        return raw.FusedBatchNormV3(
            x=x,
            scale=[1.0] * 3,
            offset=[0.0] * 3,
            mean=old,
            variance=old,
            exponential_avg_factor=factor,
        )[:3]

    check(build, x, shapes=("static", "batch"), tolerance=5e-6)


def test_reserved_results_are_not_available():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [2, 4, 4, 3], "x")
        raw.FusedBatchNormV3(
            x=x, scale=[1.0] * 3, offset=[0.0] * 3, mean=[], variance=[], name="norm"
        )
    with pytest.raises(UnsupportedOpError, match="Output 3 of norm"):
        import_graph_def(graph.as_graph_def(), ["x"], ["norm:3"])


def test_channels_first(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype("f")
    scale, offset, mean, variance = parameters(rng, 3)
    with tf.Graph().as_default() as graph:
        node = tf.compat.v1.placeholder("float32", [None, 3, 4, 5], "x")
        raw.FusedBatchNormV3(
            x=node,
            scale=scale,
            offset=offset,
            mean=mean,
            variance=variance,
            is_training=False,
            data_format="NCHW",
            name="norm",
        )
    (result,) = interpret(import_graph_def(graph.as_graph_def(), ["x"], ["norm"]), {"x": x})
    a, b, m, v = (p.reshape(3, 1, 1) for p in (scale, offset, mean, variance))
    np.testing.assert_allclose(result, (x - m) / np.sqrt(v + 1e-4) * a + b, atol=1e-4)


def test_softmax(check, rng):
    x = rng.normal(size=(3, 4, 7)).astype("f") * 20
    check(lambda x: (tf.nn.softmax(x), tf.nn.log_softmax(x)), x)
    check(lambda x: tf.nn.softmax(x, axis=1), x)


def test_lrn(check, rng):
    x = rng.normal(size=(2, 3, 4, 9)).astype("f")
    check(lambda x: tf.nn.lrn(x, 2, bias=1.5, alpha=0.3, beta=0.6), x)
