import pytest

import tensorflow as tf
from planish.errors import ModelError
from planish.frontends.tensorflow.analysis import unsupported
from planish.graph.types import DType, TensorType


def test_all_is_well():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, 4], "x")
        tf.nn.relu(x)
    assert unsupported(graph.as_graph_def()) == {}


def test_reasons_by_node():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, 4], "x")
        counts = tf.cast(x[:, 0], "int32")
        places = tf.raw_ops.ListDiff(x=counts, y=counts[:1], name="places").out
        picked = tf.gather(x, places, name="picked")
        tf.nn.relu(picked, name="after")
        inverse = tf.linalg.inv(x[:4], name="inverse")
        tf.matmul(inverse, inverse, name="product")
    reasons = unsupported(graph.as_graph_def())
    assert list(reasons) == ["places", "inverse"]
    assert "depends on the values" in reasons["places"]
    assert "MatrixInverse" in reasons["inverse"]


def test_unknown_shapes_are_contagious():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", None, "x")
        tf.nn.relu(x, name="y")
    assert list(unsupported(graph.as_graph_def())) == ["y"]
    given = {"x": TensorType((2, 3), DType.FLOAT32)}
    assert unsupported(graph.as_graph_def(), given) == {}


def test_unregistered_ops():
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.add(name="x", op="NobodyKnows")
    graph_def.node.add(name="y", op="Relu", input=["x"])
    assert set(unsupported(graph_def)) == {"x", "y"}


def test_strings():
    with tf.Graph().as_default() as graph:
        s = tf.compat.v1.placeholder("string", [None], "s")
        tf.nn.relu(tf.strings.to_number(s, name="number"), name="y")
    assert set(unsupported(graph.as_graph_def())) == {"number"}


def test_loops_of_version_1():
    tf.compat.v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder("float32", [3], "x")
            y = tf.compat.v1.while_loop(
                lambda i, v: i < 3, lambda i, v: (i + 1, tf.nn.relu(v, name="inside")), (0, x)
            )[1]
            tf.nn.relu(tf.reshape(y, [3]), name="outside")
            tf.nn.relu(x, name="beside")
    finally:
        tf.compat.v1.enable_control_flow_v2()
    reasons = unsupported(graph.as_graph_def())
    assert "beside" not in reasons
    assert any(name.endswith("inside") and "loop" in why for name, why in reasons.items())


def test_damaged():
    graph_def = tf.compat.v1.GraphDef()
    graph_def.node.add(name="y", op="Relu", input=["gone"])
    with pytest.raises(ModelError, match="gone"):
        unsupported(graph_def)
