"""Engines of models whose shapes are computed from shapes, called with several sizes."""

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")

from helpers.engines import quick_engine  # noqa: E402
from planish.errors import ShapeError, UnsupportedOpError  # noqa: E402

v1 = tf.compat.v1


def flattened(x):
    shape = tf.shape(x)
    return tf.reshape(x, [shape[0], shape[1] * shape[2], 3])


def grown(x):
    """As an upsampling that rounds down computes its size in floats."""
    size = tf.cast(tf.cast(tf.shape(x)[1:3], "float32") * 1.5, "int32")
    return tf.image.resize(x, size, method="nearest")


def cropped(x):
    """The middle half."""
    height, width = tf.unstack(tf.shape(x)[1:3])
    begin = tf.stack([0, height // 4, width // 4, 0])
    return tf.slice(x, begin, tf.stack([tf.shape(x)[0], height // 2, width // 2, -1]))


def positions(x):
    count = tf.shape(x)[1]
    places = tf.cast(tf.range(count), "float32")[None, :, None, None]
    return x + places / tf.cast(count, "float32")


def padded(x):
    """To a multiple of 4, at the end."""
    height = tf.shape(x)[1]
    more = -height % 4
    return tf.pad(x, [[0, 0], [0, more], [0, 0], [0, 0]])


def tiled(x):
    first = x[:1, :, :1]
    return tf.tile(first, tf.stack([tf.shape(x)[0], 1, tf.shape(x)[2], 1])) - x


def filled(x):
    return tf.concat([x, tf.fill(tf.concat([tf.shape(x)[:3], [1]], 0), 2.5)], -1)


def halves(x):
    """The first and the second half change places."""
    count = tf.shape(x)[1]
    return tf.concat([x[:, count // 2 :], x[:, : count // 2]], 1)


def backwards(x):
    return x[:, ::-1, -2::-2, tf.newaxis, ..., 1]


def last_of_each(x):
    """Its shape does not depend on the batch: a slice of one."""
    return x[-1:, :1] + x[0, -1]


def masked(x):
    """A causal mask, as attention makes it."""
    scores = tf.einsum("bhwc,bkwc->bhk", x, x)
    count = tf.shape(scores)[1]
    mask = tf.linalg.band_part(tf.ones([count, count]), -1, 0)
    return tf.nn.softmax(scores + (1.0 - mask) * -1e9)


MODELS = (
    flattened,
    grown,
    cropped,
    positions,
    padded,
    tiled,
    filled,
    halves,
    backwards,
    last_of_each,
    masked,
)


BATCH, ALL = (None, 8, 12, 3), (None, None, None, 3)
CASES = [(m, d) for m in MODELS for d in (BATCH, ALL) if (m, d) != (grown, ALL)]


def test_sizes_computed_in_floats_must_be_known():
    with tf.Graph().as_default() as graph:
        grown(v1.placeholder("float32", ALL, "x"))
    with pytest.raises(UnsupportedOpError, match="depends on the values of tensors"):
        quick_engine(graph.as_graph_def())


@pytest.mark.parametrize(("model", "declared"), CASES)
def test_shapes_of_shapes(model, declared):
    with tf.Graph().as_default() as graph:
        x = v1.placeholder("float32", declared, "x")
        y = tf.identity(model(x), "y")
    engine = quick_engine(graph.as_graph_def(), outputs=["y"], allow_fallback=False)
    rng = np.random.default_rng(3)
    with v1.Session(graph=graph) as session:
        for sizes in ((1, 8, 12), (3, 8, 12), (2, 5, 7)):
            if declared[1] and sizes[1:] != declared[1:3]:
                continue
            array = rng.normal(size=(*sizes, 3)).astype("f")
            expected = session.run(y, {x: array})
            np.testing.assert_allclose(engine({"x": array}), expected, rtol=1e-5, atol=1e-5)


def test_a_placeholder_with_a_default_is_an_input_if_it_is_named():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder("float32", [None, 3], "x")
        scale = v1.placeholder_with_default(tf.constant(2.0), [], "scale")
        tf.multiply(x, scale, "y")
    ones = np.ones((2, 3), "f")
    engine = quick_engine(graph.as_graph_def())
    np.testing.assert_array_equal(engine({"x": ones}), 2 * ones)
    engine = quick_engine(graph.as_graph_def(), inputs={"scale": ()})
    assert [i.name for i in engine.inputs] == ["x", "scale"]
    np.testing.assert_array_equal(engine({"x": ones, "scale": np.float32(5)}), 5 * ones)


def attention(layers):
    """Two inputs of lengths of their own."""
    a, b = (tf.keras.Input((None, 8), name=n) for n in "ab")
    pooled = layers.GlobalAveragePooling1D()(layers.Attention()([a, b]))
    return tf.keras.Model([a, b], pooled), {"a": (2, 5, 8), "b": (2, 9, 8)}


def tokens_and_segments(layers):
    """Two inputs that are added up, whose lengths must be equal."""
    a, b = (tf.keras.Input((None,), name=n, dtype="int32") for n in "ab")
    vectors = layers.Embedding(50, 8)(a) + layers.Embedding(50, 8)(b)
    return tf.keras.Model([a, b], layers.Dense(4)(vectors)), {"a": (2, 7), "b": (2, 7)}


@pytest.mark.parametrize("make", [attention, tokens_and_segments])
def test_keras_models_of_several_inputs_of_unknown_length(make):
    model, shapes = make(tf.keras.layers)
    engine = quick_engine(model, allow_fallback=False)
    rng = np.random.default_rng(4)
    arrays = {
        name: rng.normal(size=s).astype("f") if len(s) == 3 else rng.integers(0, 50, s, "i4")
        for name, s in shapes.items()
    }
    expected = model([arrays["a"], arrays["b"]]).numpy()
    np.testing.assert_allclose(engine(arrays), expected, rtol=1e-5, atol=1e-5)


def test_lengths_taken_to_be_equal_must_be():
    model, _ = tokens_and_segments(tf.keras.layers)
    engine = quick_engine(model)
    with pytest.raises(ShapeError, match="length_1 is"):
        engine({"a": np.zeros((2, 7), "i4"), "b": np.zeros((2, 1), "i4")})


def test_a_batch_that_the_model_does_not_take():
    with tf.Graph().as_default() as graph:
        x = v1.placeholder("float32", [None, 3], "x")
        tf.identity(tf.split(x, [2, -1, 1], 0)[1], "y")
    engine = quick_engine(graph.as_graph_def(), allow_fallback=False)
    array = np.arange(15, dtype="f").reshape(5, 3)
    np.testing.assert_array_equal(engine({"x": array}), array[2:4])
    with pytest.raises(ShapeError, match="would have the shape"):
        engine({"x": array[:1]})
