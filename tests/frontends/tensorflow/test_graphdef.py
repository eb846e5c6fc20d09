import ml_dtypes
import numpy as np
import pytest

import tensorflow as tf
from planish.errors import ModelError, UnsupportedOpError
from planish.frontends.tensorflow import graphdef

TYPES = [
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
]


@pytest.mark.parametrize("dtype", [*TYPES, ml_dtypes.bfloat16])
def test_constants_of_all_types(dtype):
    values = np.array([[0, 1, 2], [3, 100, 1]]).astype(dtype)
    proto = tf.make_tensor_proto(values)
    result = graphdef.constant(proto, "here")
    assert result.dtype == values.dtype
    np.testing.assert_array_equal(result, values)
    one = graphdef.constant(tf.make_tensor_proto(values[:1, 1]), "here")  # in a typed field
    np.testing.assert_array_equal(one, values[:1, 1])


def tensor(dims, **fields):
    proto = tf.compat.v1.GraphDef().node.add().attr["value"].tensor
    proto.dtype = fields.pop("dtype", 1)
    for size in dims:
        proto.tensor_shape.dim.add().size = size
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(proto, name).extend(value)
        else:
            setattr(proto, name, value)
    return proto


def test_the_last_element_is_repeated():
    result = graphdef.constant(tensor([2, 3], float_val=[1.0, 2.0]), "here")
    np.testing.assert_array_equal(result, [[1, 2, 2], [2, 2, 2]])
    np.testing.assert_array_equal(graphdef.constant(tensor([2]), "here"), [0, 0])
    large = graphdef.constant(tensor([2**15, 2**15], float_val=[3.0]), "here")
    assert large.strides == (0, 0)  # one element, seen often
    assert large[-1, -1] == 3


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (tensor([10**12], float_val=[1.0]), "1000000000000 elements"),
        (tensor([2**40, 2**40], float_val=[1.0]), "elements"),
        (tensor([3], tensor_content=b"12345678"), "8 bytes, not 12"),
        (tensor([2], float_val=[1.0, 2.0, 3.0]), "lists 3"),
        (tensor([2**31 - 1], float_val=[1.0, 2.0]), "lists only 2"),
        (tensor([-1], float_val=[1.0]), "no definite shape"),
    ],
)
def test_absurd_constants(proto, message):
    with pytest.raises(ModelError, match=message) as caught:
        graphdef.constant(proto, "node (Const)")
    assert caught.value.where == "node (Const)"


def test_strings_are_refused():
    with pytest.raises(UnsupportedOpError, match="string"):
        graphdef.constant(tf.make_tensor_proto("text"), "here")


def test_tensor_names():
    assert graphdef.tensor_name("a/b") == ("a/b", 0)
    assert graphdef.tensor_name("a/b:2") == ("a/b", 2)
    node = tf.compat.v1.NodeDef(name="n", input=["a", "b:1", "^c"])
    assert graphdef.data_inputs(node) == [("a", 0), ("b", 1)]


def test_long_chains_do_not_recurse():
    nodes = {"n0": tf.compat.v1.NodeDef(name="n0")}
    for i in range(1, 5000):
        nodes[f"n{i}"] = tf.compat.v1.NodeDef(name=f"n{i}", input=[f"n{i - 1}"])
    order = graphdef.ancestors(nodes, [("n4999", 0)])
    assert [n.name for n in order] == [f"n{i}" for i in range(5000)]
    short = graphdef.ancestors(nodes, [("n4999", 0)], {("n4990", 0)})
    assert len(short) == 9
