import ml_dtypes
import numpy as np
import pytest

import tensorflow as tf
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.weights import SMALL_BYTES, place, put_back, take_out


def graph_of(*arrays):
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, 64], "x")
        for i, array in enumerate(arrays):
            tf.constant(array, name=f"c{i}")
        with graph.control_dependencies([x]):  # as in a loop of TensorFlow 1
            tf.constant(np.ones(999), name="late")
        tf.constant(["text"] * 999, name="text")
    return graph.as_graph_def()


def test_large_constants_are_taken_out_and_put_back(rng):
    large = rng.standard_normal((64, 9)).astype(np.float32)
    half = rng.standard_normal((64, 9)).astype(ml_dtypes.bfloat16)
    small = rng.standard_normal((4, 9)).astype(np.float32)
    given = graph_of(large, half, small)
    before = given.SerializeToString()
    light, weights = take_out(given, {"other": small})
    assert given.SerializeToString() == before
    nodes = graphdef.nodes_by_name(light)
    assert set(weights) == {"c0", "c1", "other"}
    np.testing.assert_array_equal(weights["c0"], large)
    assert weights["c1"].dtype == half.dtype
    assert [nodes[n].op for n in ("c0", "c1", "c2", "text", "late")] == [
        "Placeholder",
        "Placeholder",
        "Const",
        "Const",
        "Const",
    ]
    assert light.ByteSize() < given.ByteSize() - large.nbytes - half.nbytes + 200
    with tf.Graph().as_default() as graph:  # TensorFlow knows type and shape
        tf.import_graph_def(light, name="")
        tensor = graph.get_tensor_by_name("c1:0")
        assert (tensor.dtype, tensor.shape) == (tf.bfloat16, [64, 9])
    put_back(light, weights)
    for node in given.node:
        other = graphdef.nodes_by_name(light)[node.name]
        assert list(other.input) == list(node.input)
        assert other.op == node.op
        if node.op == "Const":
            np.testing.assert_array_equal(
                tf.make_ndarray(other.attr["value"].tensor),
                tf.make_ndarray(node.attr["value"].tensor),
            )


def test_a_splat_is_a_view():
    light, weights = take_out(graph_of(np.zeros(2**21, np.float32)))
    assert weights["c0"].shape == (2**21,)
    assert not weights["c0"].any()
    assert light.ByteSize() < 20_000


@pytest.mark.parametrize("count", [SMALL_BYTES // 8, SMALL_BYTES // 8 + 1])
def test_only_larger_arrays_stand_beside_the_graph(count):
    node = tf.compat.v1.GraphDef().node.add(name="n", op="VarHandleOp", input=["a", "^b"])
    node.attr["shared_name"].s = b"v"
    weights = {}
    place(node, np.arange(count), 9, weights)
    assert list(node.input) == ["^b"]
    assert "shared_name" not in node.attr
    assert (node.op, list(weights)) == (("Const", []), ("Placeholder", ["n"]))[count > 128]
