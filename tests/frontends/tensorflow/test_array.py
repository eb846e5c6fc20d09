import numpy as np
import pytest

import tensorflow as tf
from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.interpret import interpret

raw = tf.raw_ops
EVERY = ("static", "batch", "everything")


def some(rng, *shape):
    return rng.normal(size=shape).astype("f")


def test_reshape(check, rng):
    x = some(rng, 2, 3, 4)
    check(lambda x: (tf.reshape(x, [-1, 4]), tf.reshape(x, [-1, 2, 6])), x)
    check(lambda x: tf.reshape(x, [tf.shape(x)[0], -1]), x)
    check(
        lambda x: tf.reshape(x, [tf.shape(x)[0], tf.shape(x)[1] * tf.shape(x)[2]]), x, shapes=EVERY
    )


def test_zero_is_no_placeholder(check):
    check(lambda x: tf.reshape(x, [0, 5]), np.zeros((0, 3), "f"), shapes=["static"])


def test_reshape_by_data_is_refused():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [6], "x")
        shape = tf.compat.v1.placeholder("int32", [2], "shape")
        tf.reshape(x, shape, name="y")
    with pytest.raises(UnsupportedOpError, match="depends on the values") as caught:
        import_graph_def(graph.as_graph_def(), ["x", "shape"], ["y"])
    assert caught.value.where == "y (Reshape)"


def test_dimensions_of_one(check, rng):
    x = some(rng, 2, 1, 3, 1)
    check(lambda x: (tf.squeeze(x), tf.squeeze(x, [1]), tf.squeeze(x, [-1])), x)
    check(lambda x: (tf.expand_dims(x, 0), tf.expand_dims(x, -1), tf.expand_dims(x, 2)), x)


def test_transpose(check, rng):
    check(lambda x: tf.transpose(x, [2, 0, 1]), some(rng, 2, 3, 4), shapes=EVERY)


def test_shapes_as_tensors(check, rng):
    x = some(rng, 2, 3, 4)
    check(lambda x: (tf.shape(x), tf.size(x), tf.rank(x), tf.shape(x, "int64")), x, shapes=EVERY)
    check(lambda x: tf.shape_n([x, x[0]]), x, shapes=EVERY)
    check(lambda x: tf.broadcast_dynamic_shape(tf.shape(x), tf.constant([1, 1])), x)


def test_float_arithmetic_on_sizes(check, rng):
    """Scale factors are floats in many graphs; they disappear where the sizes are known."""

    def build(x):
        size = tf.cast(tf.cast(tf.shape(x)[1:3], "float32") * 1.5, "int32")
        return tf.fill(tf.concat([tf.shape(x)[:1], size], 0), 2.0)

    check(build, some(rng, 2, 4, 6))


def test_concat_pack(check, rng):
    x = some(rng, 2, 3, 4)
    check(lambda x: (tf.concat([x, x * 2], 1), tf.concat([x, x], -1)), x, shapes=EVERY)
    check(lambda x: (tf.stack([x, x * 2], 1), tf.stack([x, x], -1)), x, shapes=EVERY)
    check(lambda x: raw.Concat(concat_dim=2, values=[x, x]), x)


def test_tile_and_broadcast(check, rng):
    x = some(rng, 2, 1, 4)
    check(lambda x: tf.tile(x, [1, 3, 2]), x)
    check(lambda x: tf.broadcast_to(x, [tf.shape(x)[0], 5, 4]), x)


def test_fills(check, rng):
    x = some(rng, 2, 3)
    check(lambda x: (tf.fill(tf.shape(x), 2.5), tf.fill([2, 2], 7)), x, shapes=EVERY)
    check(lambda x: (raw.ZerosLike(x=x), raw.OnesLike(x=x)), x, shapes=EVERY)


def test_range(check, rng):
    x = some(rng, 5, 3)
    check(lambda x: tf.range(tf.shape(x)[0]), x, shapes=EVERY)
    check(lambda x: tf.range(2, tf.shape(x)[0] * 4, 3), x, shapes=EVERY)
    check(lambda x: (tf.range(0.0, 1.0, 0.3), tf.range(10, 2, -3), tf.linspace(0.0, 1.0, 5)), x)


@pytest.mark.parametrize(("lower", "upper"), [(-1, 0), (0, -1), (1, 2), (0, 0), (-1, -1)])
def test_band_part(check, rng, lower, upper):
    check(lambda x: tf.linalg.band_part(x, lower, upper), some(rng, 2, 4, 5), shapes=EVERY)


def test_pads(check, rng):
    x = some(rng, 2, 4, 5)
    pairs = [[0, 0], [1, 2], [3, 0]]
    check(lambda x: (tf.pad(x, pairs), tf.pad(x, pairs, constant_values=-3)), x, shapes=EVERY)
    check(lambda x: (tf.pad(x, pairs, "REFLECT"), tf.pad(x, pairs, "SYMMETRIC")), x)


def test_depth_and_space(check, rng):
    check(lambda x: tf.nn.space_to_depth(x, 2), some(rng, 2, 4, 6, 3))
    check(lambda x: tf.nn.depth_to_space(x, 2), some(rng, 2, 3, 2, 8))


def test_depth_and_space_channels_first(rng):
    x = some(rng, 2, 8, 4, 6)
    with tf.Graph().as_default() as graph:
        node = tf.compat.v1.placeholder("float32", [None, 8, 4, 6], "x")
        tf.nn.space_to_depth(node, 2, "NCHW", name="down")
        tf.nn.depth_to_space(node, 2, "NCHW", name="up")
    imported = import_graph_def(graph.as_graph_def(), ["x"], ["down", "up"])
    last = x.transpose(0, 2, 3, 1)
    for result, op in zip(
        interpret(imported, {"x": x}), (tf.nn.space_to_depth, tf.nn.depth_to_space), strict=True
    ):
        np.testing.assert_array_equal(result, np.transpose(op(last, 2), (0, 3, 1, 2)))


def test_batch_and_space(check, rng):
    check(lambda x: tf.space_to_batch(x, [2, 3], [[1, 1], [0, 2]]), some(rng, 2, 4, 7, 3))
    check(lambda x: tf.batch_to_space(x, [2, 3], [[1, 0], [0, 2]]), some(rng, 12, 3, 4, 2))
