import numpy as np
import pytest
from tensorflow.python.framework import op_def_library

import tensorflow as tf
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.interpret import interpret


def apply_op(op, **arguments):
    """Any registered op, also TensorFlow's internal ones."""
    return op_def_library.apply_op(op, name="op", **arguments)


def filters(rng, *shape):
    return rng.normal(size=shape).astype("f")


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
@pytest.mark.parametrize("size", [7, 8])
def test_conv_2d(check, rng, padding, stride, dilation, size):
    x = rng.normal(size=(2, size, size + 2, 4)).astype("f")
    w = filters(rng, 3, 2, 4, 6)
    check(lambda x: tf.nn.conv2d(x, w, stride, padding, dilations=dilation), x)


def test_conv_2d_explicit_padding(check, rng):
    x = rng.normal(size=(2, 7, 8, 3)).astype("f")
    w = filters(rng, 3, 3, 3, 5)
    padding = [[0, 0], [1, 2], [0, 3], [0, 0]]
    check(lambda x: tf.nn.conv2d(x, w, 2, padding), x)


def test_conv_2d_groups(check, rng):
    x = rng.normal(size=(2, 5, 6, 8)).astype("f")
    w = filters(rng, 3, 3, 4, 6)
    graph = check(lambda x: tf.nn.conv2d(x, w, 1, "SAME"), x)
    assert graph.nodes[0].op.groups == 2


def test_conv_2d_unknown_size(rng):
    x = rng.normal(size=(2, 5, 6, 3)).astype("f")
    w = filters(rng, 3, 3, 3, 4)
    with tf.Graph().as_default() as graph:
        node = tf.compat.v1.placeholder("float32", [None, None, None, 3], "x")
        tf.nn.conv2d(node, w, 1, "SAME", name="same")
        tf.nn.conv2d(node, w, 2, "VALID", name="valid")
    imported = import_graph_def(graph.as_graph_def(), ["x"], ["same", "valid"])
    same, valid = interpret(imported, {"x": x})
    np.testing.assert_allclose(same, tf.nn.conv2d(x, w, 1, "SAME"), atol=1e-4)
    np.testing.assert_allclose(valid, tf.nn.conv2d(x, w, 2, "VALID"), atol=1e-4)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (1, 2), (2, 3), (5, 3)])
@pytest.mark.parametrize("size", [6, 7, 8])
def test_same_padding_of_unknown_size(rng, window, stride, size):
    x = rng.normal(size=(1, size, size + 1, 3)).astype("f")
    w, shortcut = filters(rng, window, window, 3, 4), filters(rng, 1, 1, 3, 4)

    def build(x):
        # the sizes of both branches must be known to be equal
        return tf.nn.conv2d(x, w, stride, "SAME") + tf.nn.conv2d(x, shortcut, stride, "SAME")

    with tf.Graph().as_default() as graph:
        tf.identity(build(tf.compat.v1.placeholder("float32", [None, None, None, 3], "x")), "sum")
    imported = import_graph_def(graph.as_graph_def(), ["x"], ["sum"])
    assert f", {stride})" in str(imported.outputs[0].shape[1])
    (result,) = interpret(imported, {"x": x})
    np.testing.assert_allclose(result, build(x), atol=1e-4)


def channels_first(build, x, w, **attributes):
    """The GraphDef of a channels-first op; TensorFlow runs these on GPUs only."""
    with tf.Graph().as_default() as graph:
        node = tf.compat.v1.placeholder("float32", [None, *x.shape[1:]], "x")
        build(node, w, name="op", **attributes)
    return import_graph_def(graph.as_graph_def(), ["x"], ["op"])


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_channels_first(rng, padding):
    x = rng.normal(size=(2, 3, 7, 8)).astype("f")
    w = filters(rng, 3, 3, 3, 4)
    strides = [1, 1, 2, 2]
    graph = channels_first(tf.nn.conv2d, x, w, strides=strides, padding=padding, data_format="NCHW")
    (result,) = interpret(graph, {"x": x})
    expected = tf.nn.conv2d(x.transpose(0, 2, 3, 1), w, 2, padding)
    np.testing.assert_allclose(result, np.transpose(expected, (0, 3, 1, 2)), atol=1e-4)


def test_channels_first_explicit_padding(rng):
    x = rng.normal(size=(2, 3, 7, 8)).astype("f")
    w = filters(rng, 3, 3, 3, 4)
    padding = [[0, 0], [0, 0], [1, 2], [3, 0]]
    graph = channels_first(tf.nn.conv2d, x, w, strides=1, padding=padding, data_format="NCHW")
    (result,) = interpret(graph, {"x": x})
    last = [[0, 0], [1, 2], [3, 0], [0, 0]]
    expected = tf.nn.conv2d(x.transpose(0, 2, 3, 1), w, 1, last)
    np.testing.assert_allclose(result, np.transpose(expected, (0, 3, 1, 2)), atol=1e-4)


@pytest.mark.parametrize("fused", [["BiasAdd"], ["BiasAdd", "Relu"], ["BiasAdd", "LeakyRelu"]])
def test_fused_conv(check, rng, fused):
    x = rng.normal(size=(2, 6, 6, 3)).astype("f")
    w, bias = filters(rng, 3, 3, 3, 4), filters(rng, 4)

    def build(x):
        return apply_op(
            "_FusedConv2D",
            input=x,
            filter=w,
            args=[bias],
            num_args=1,
            explicit_paddings=[],
            dilations=[1, 1, 1, 1],
            use_cudnn_on_gpu=True,
            data_format="NHWC",
            filter_format="HWIO",
            epsilon=0.0001,
            host_args=[],
            strides=[1, 1, 1, 1],
            padding="SAME",
            fused_ops=fused,
            leakyrelu_alpha=0.3,
        )

    check(build, x)


def test_fused_conv_with_batch_norm(check, rng):
    x = rng.normal(size=(2, 6, 6, 3)).astype("f")
    w = filters(rng, 3, 3, 3, 4)
    parameters = [filters(rng, 4) for _ in range(3)] + [np.float32([0.5, 1, 2, 3])]

    def build(x):
        return apply_op(
            "_FusedConv2D",
            input=x,
            filter=w,
            args=parameters,
            num_args=4,
            explicit_paddings=[],
            dilations=[1, 1, 1, 1],
            use_cudnn_on_gpu=True,
            data_format="NHWC",
            filter_format="HWIO",
            leakyrelu_alpha=0.2,
            host_args=[],
            strides=[1, 2, 2, 1],
            padding="VALID",
            fused_ops=["FusedBatchNorm", "Relu"],
            epsilon=0.01,
        )

    check(build, x, tolerance=1e-5)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise(check, rng, padding, stride, multiplier):
    x = rng.normal(size=(2, 7, 8, 4)).astype("f")
    w = filters(rng, 3, 3, 4, multiplier)
    strides = [1, stride, stride, 1]
    graph = check(lambda x: tf.nn.depthwise_conv2d(x, w, strides, padding), x)
    assert graph.nodes[0].op.groups == 4


def test_depthwise_with_computed_filters(check, rng):
    x = rng.normal(size=(2, 5, 5, 2)).astype("f")
    w = rng.normal(size=(3, 3, 2, 2)).astype("f")
    check(
        lambda x, w: tf.nn.depthwise_conv2d(x, w * 2, [1, 1, 1, 1], "SAME"),
        x,
        w,
        shapes=["static"],
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_3d(check, rng, padding, stride):
    x = rng.normal(size=(2, 5, 6, 4, 3)).astype("f")
    w = filters(rng, 2, 3, 3, 3, 4)
    check(lambda x: tf.nn.conv3d(x, w, [1, stride, stride, stride, 1], padding), x)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (3, 2), (2, 2), (4, 2), (2, 3), (1, 2)])
def test_transposed_2d(check, rng, padding, window, stride):
    x = rng.normal(size=(2, 4, 5, 3)).astype("f")
    w = filters(rng, window, window, 4, 3)

    def build(x):
        height, width = (
            (4 * stride, 5 * stride)
            if padding == "SAME"
            else (3 * stride + window, 4 * stride + window)
        )
        shape = tf.stack([tf.shape(x)[0], height, width, 4])
        return tf.nn.conv2d_transpose(x, w, shape, stride, padding)

    check(build, x)


def test_transposed_2d_of_unknown_size(rng):
    x = rng.normal(size=(2, 4, 5, 3)).astype("f")
    w = filters(rng, 3, 3, 4, 3)
    with tf.Graph().as_default() as graph:
        node = tf.compat.v1.placeholder("float32", [None, None, None, 3], "x")
        n, h, wide, _ = tf.unstack(tf.shape(node))
        shape = tf.stack([n, h * 2, wide * 2, 4])
        tf.nn.conv2d_transpose(node, w, shape, 2, "SAME", name="up")
    imported = import_graph_def(graph.as_graph_def(), ["x"], ["up"])
    (result,) = interpret(imported, {"x": x})
    expected = tf.nn.conv2d_transpose(x, w, [2, 8, 10, 4], 2, "SAME")
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "stride"), [(3, 1), (3, 2), (2, 3)])
def test_transposed_3d(check, rng, padding, window, stride):
    x = rng.normal(size=(1, 2, 3, 2, 3)).astype("f")
    w = filters(rng, window, window, window, 2, 3)
    sizes = [n * stride if padding == "SAME" else (n - 1) * stride + window for n in (2, 3, 2)]

    def build(x):
        return tf.nn.conv3d_transpose(x, w, [1, *sizes, 2], stride, padding)

    check(build, x, shapes=["static"])


def test_transposed_with_dilations_and_explicit_padding(check, rng):
    x = rng.normal(size=(2, 4, 5, 3)).astype("f")
    w = filters(rng, 3, 2, 4, 3)
    padding = [[0, 0], [1, 2], [0, 1], [0, 0]]
    check(lambda x: tf.nn.conv2d_transpose(x, w, [2, 6, 9, 4], 2, padding), x, shapes=["static"])


def test_transposed_1d(check, rng):
    x = rng.normal(size=(2, 5, 3)).astype("f")
    w = filters(rng, 4, 2, 3)
    check(lambda x: tf.nn.conv1d_transpose(x, w, [2, 10, 2], 2, "SAME"), x)


def test_transposed_with_computed_filters(check, rng):
    x = rng.normal(size=(1, 3, 3, 2)).astype("f")
    w = rng.normal(size=(3, 3, 4, 2)).astype("f")
    check(
        lambda x, w: tf.nn.conv2d_transpose(x, w, [1, 6, 6, 4], 2, "SAME"),
        x,
        w,
        shapes=["static"],
    )


def test_fused_conv_with_side_input(rng):
    """An op that only TensorFlow for GPUs has."""
    x = rng.normal(size=(2, 6, 6, 3)).astype("f")
    w, bias, side = filters(rng, 3, 3, 3, 4), filters(rng, 4), filters(rng, 2, 6, 6, 4)
    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder("float32", [None, 6, 6, 3], "x")
        tf.compat.v1.placeholder("float32", [None, 6, 6, 4], "side")
        constants = {"w": w, "bias": bias, "half": np.float32(0.5), "two": np.float32(2)}
        for name, value in constants.items():
            tf.constant(value, name=name)
    graph_def = graph.as_graph_def()
    node = graph_def.node.add(name="op", op="FusedConv2DBiasActivation")
    node.input.extend(["x", "w", "bias", "side", "half", "two"])
    for name in ("strides", "dilations"):
        node.attr[name].list.i.extend([1, 1, 1, 1])
    texts = {
        "padding": "SAME",
        "data_format": "NHWC",
        "filter_format": "HWIO",
        "activation_mode": "Relu",
    }
    for name, text in texts.items():
        node.attr[name].s = text.encode()
    imported = import_graph_def(graph_def, ["x", "side"], ["op"])
    (result,) = interpret(imported, {"x": x, "side": side})
    expected = tf.nn.relu(0.5 * tf.nn.conv2d(x, w, 1, "SAME") + 2.0 * side + bias)
    np.testing.assert_allclose(result, expected, atol=1e-4)
