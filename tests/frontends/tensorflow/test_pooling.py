import numpy as np
import pytest

import tensorflow as tf
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.interpret import interpret

raw = tf.raw_ops


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 1), (3, 2), (5, 3)])
def test_pool_2d(check, rng, padding, window, stride):
    x = rng.normal(size=(2, 7, 9, 3)).astype("f")
    check(
        lambda x: (
            tf.nn.max_pool2d(x, window, stride, padding),
            tf.nn.avg_pool2d(x, window, stride, padding),
        ),
        x,
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_pool_3d(check, rng, padding):
    x = rng.normal(size=(1, 5, 6, 4, 2)).astype("f")
    check(
        lambda x: (tf.nn.max_pool3d(x, 3, 2, padding), tf.nn.avg_pool3d(x, 3, 2, padding)),
        x,
    )


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (1, 2), (2, 3)])
@pytest.mark.parametrize("size", [6, 7, 8])
def test_same_padding_of_unknown_size(check, rng, window, stride, size):
    x = rng.normal(size=(1, size, size + 1, 3)).astype("f")
    check(
        lambda x: (
            tf.nn.max_pool2d(x, window, stride, "SAME"),
            tf.nn.avg_pool2d(x, window, stride, "SAME"),
        ),
        x,
        shapes=["everything"],
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("include_batch", [False, True])
def test_max_pool_with_argmax(check, rng, padding, include_batch):
    x = rng.normal(size=(2, 7, 9, 3)).astype("f")
    check(
        lambda x: tf.nn.max_pool_with_argmax(
            x, 3, 2, padding, include_batch_in_index=include_batch, output_dtype=tf.int64
        ),
        x,
    )
    check(lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, padding, output_dtype=tf.int32), x)


def test_window_as_input_and_explicit_padding(check, rng):
    x = rng.normal(size=(2, 7, 8, 3)).astype("f")
    ones = {"ksize": [1, 3, 2, 1], "strides": [1, 2, 2, 1]}
    check(lambda x: raw.MaxPoolV2(input=x, padding="SAME", **ones), x)
    explicit = [0, 0, 1, 2, 0, 1, 0, 0]
    check(lambda x: raw.MaxPool(input=x, padding="EXPLICIT", explicit_paddings=explicit, **ones), x)


def test_channels_first(rng):
    x = rng.normal(size=(2, 3, 8, 6)).astype("f")
    with tf.Graph().as_default() as graph:
        node = tf.compat.v1.placeholder("float32", [None, 3, 8, 6], "x")
        tf.nn.avg_pool2d(node, 3, 2, "SAME", data_format="NCHW", name="pool")
    (result,) = interpret(import_graph_def(graph.as_graph_def(), ["x"], ["pool"]), {"x": x})
    expected = tf.nn.avg_pool2d(x.transpose(0, 2, 3, 1), 3, 2, "SAME")
    np.testing.assert_allclose(result, np.transpose(expected, (0, 3, 1, 2)), atol=1e-6)
