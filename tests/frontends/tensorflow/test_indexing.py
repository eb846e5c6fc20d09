import numpy as np
import pytest

import tensorflow as tf
from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def

raw = tf.raw_ops
EVERY = ("static", "batch", "everything")


def some(rng, *shape):
    return rng.normal(size=shape).astype("f")


SLICES = {
    "one": lambda x: x[1],
    "last": lambda x: x[:, -1],
    "range": lambda x: x[:, 1:3],
    "negative": lambda x: x[:, -3:-1],
    "beyond": lambda x: x[:, 2:100],
    "steps": lambda x: x[:, ::2, 1::2],
    "backwards": lambda x: x[:, ::-1, 3:0:-2],
    "ellipsis": lambda x: x[..., 1],
    "ellipsis inside": lambda x: x[:1, ..., 2:],
    "new axis": lambda x: x[:, tf.newaxis, 1, tf.newaxis],
    "all": lambda x: x[tf.newaxis, ..., 1:, tf.newaxis, 0],
    "empty": lambda x: x[:, 3:1],
    "whole": lambda x: x[:],
}


@pytest.mark.parametrize("name", SLICES)
def test_strided_slice(check, rng, name):
    shapes = EVERY if name not in ("backwards",) else ("static", "batch")
    check(SLICES[name], some(rng, 4, 5, 6), shapes=shapes)


def test_slices_of_shapes(check, rng):
    check(lambda x: (tf.shape(x)[1:], tf.shape(x)[-1], tf.shape(x)[::-1]), some(rng, 2, 3, 4))


def test_slice(check, rng):
    check(lambda x: tf.slice(x, [0, 1, 2], [-1, 3, -1]), some(rng, 4, 5, 6), shapes=EVERY)


def test_slice_at_data_is_refused():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [6, 2], "x")
        i = tf.compat.v1.placeholder("int32", [], "i")
        tf.identity(x[i:], name="y")
    with pytest.raises(UnsupportedOpError, match="begin"):
        import_graph_def(graph.as_graph_def(), ["x", "i"], ["y"])


def test_split_unpack(check, rng):
    x = some(rng, 4, 6, 3)
    check(lambda x: (tf.split(x, 3, 1), tf.split(x, [1, -1, 2], 1), tf.unstack(x, axis=-1)), x)
    check(lambda x: (tf.split(x, 1, 1), tf.unstack(x[:, :1], axis=1)), x)


def test_reverse_and_roll(check, rng):
    x = some(rng, 4, 6, 3)
    check(lambda x: (tf.reverse(x, [0, -1]), tf.roll(x, [1, -2], [1, 2])), x, shapes=EVERY)
    check(lambda x: (tf.roll(x, 7, 1), tf.roll(x, 0, 1)), x)


def test_gather(check, rng):
    x = some(rng, 4, 5, 6)
    indices = rng.integers(0, 4, (2, 3)).astype("int32")
    check(
        lambda x, i: (tf.gather(x, i), tf.gather(x, i, axis=1), tf.gather(x, i, axis=-1)),
        x,
        indices,
        shapes=["static"],
    )
    batched = rng.integers(0, 5, (4, 3)).astype("int64")
    check(lambda x, i: tf.gather(x, i, axis=1, batch_dims=1), x, batched, shapes=EVERY[:2])
    check(lambda x, i: tf.gather(x, i, axis=2, batch_dims=-1), x, batched[:, :1], shapes=["static"])
    check(lambda x, i: raw.Gather(params=x, indices=i), x, indices, shapes=["static"])


def test_gather_and_scatter_nd(check, rng):
    x = some(rng, 4, 5, 6)
    places = rng.integers(0, 4, (3, 2)).astype("int32")
    check(lambda x, i: tf.gather_nd(x, i), x, places, shapes=["static"])
    updates = some(rng, 3, 6)
    check(lambda u, i: tf.scatter_nd(i, u, [4, 5, 6]), updates, places, shapes=["static"])
    for op in ("add", "sub", "max", "min"):
        scatter = getattr(tf, f"tensor_scatter_nd_{op}")
        check(lambda x, u, i, f=scatter: f(x, i, u), x, updates, places, shapes=["static"])
    distinct = np.int32([[0, 1], [2, 3], [3, 4]])
    check(lambda x, u: tf.tensor_scatter_nd_update(x, distinct, u), x, updates, shapes=["static"])


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(check, rng, axis):
    x = rng.integers(-1, 6, (3, 4)).astype("int32")
    check(lambda x: tf.one_hot(x, 5, 2.0, -1.0, axis), x)


def test_data_formats(check):
    x = np.int32([2, 3, 4, 5])
    formats = {"src_format": "NHWC", "dst_format": "NCHW"}
    check(lambda x: raw.DataFormatVecPermute(x=x, **formats), x, shapes=["static"])
    check(lambda x: raw.DataFormatVecPermute(x=x[:2], **formats), x, shapes=["static"])
    check(lambda x: raw.DataFormatDimMap(x=x - 3, **formats), x, shapes=["static"])


def test_sizes_that_depend_on_data_are_refused():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [6], "x")
        tf.identity(raw.ListDiff(x=x, y=x[:2]).out, name="y")
    with pytest.raises(UnsupportedOpError, match="depends on the values"):
        import_graph_def(graph.as_graph_def(), ["x"], ["y"])


@pytest.mark.parametrize("op", ["Split", "Unpack"])
def test_more_pieces_than_memory_are_refused(op):
    """A few bytes of a damaged file can ask for them."""
    count = 2**31 - 1
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (2, 2), "x")
        y = tf.split(x, 2, axis=0) if op == "Split" else tf.unstack(x, 2, axis=0)
        tf.identity(y[0], "y")
    damaged = graph.as_graph_def()
    for node in damaged.node:
        if node.op in ("Split", "Unpack"):
            node.attr["num_split" if op == "Split" else "num"].i = count
        if node.op == "Placeholder":
            node.attr["shape"].shape.dim[0].size = count
    with pytest.raises(UnsupportedOpError, match=op):
        import_graph_def(damaged, ["x:0"], ["y:0"])


def test_more_axes_than_memory_are_refused():
    """A constant of one repeated element needs few bytes; as many are not gone through."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [2, 2], "x")
        tf.reduce_mean(x, tf.constant([0], name="axes"), name="y")
    damaged = graph.as_graph_def()
    for node in damaged.node:
        if node.name == "axes":
            tensor = node.attr["value"].tensor
            tensor.tensor_shape.dim[0].size = 1 << 20
            tensor.ClearField("tensor_content")
            tensor.int_val[:] = [0]
    with pytest.raises(UnsupportedOpError, match="Mean") as caught:
        import_graph_def(damaged, ["x"], ["y"])
    assert "1048576 elements" in caught.value.why


def test_slices_beyond_the_masks_are_refused():
    """A constant of one repeated element makes them free in a file; they took minutes to read."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [2, 3], "x")
        many = tf.constant([1, 1], name="many")
        raw.StridedSlice(input=x, begin=many, end=many, strides=many, name="y")
    graph_def = graph.as_graph_def()
    value = next(n for n in graph_def.node if n.name == "many").attr["value"]
    value.tensor.CopyFrom(tf.make_tensor_proto(np.ones(40, np.int32)))
    with pytest.raises(UnsupportedOpError, match="slices 40 dimensions"):
        import_graph_def(graph_def, ["x"], ["y"])
