"""Models that are none, are damaged, or ask for what does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from helpers.engines import quick_engine
from helpers.onnx_graph import model, node
from helpers.provoke.registry import case

FLOAT = np.float32
HUGE = 10**6
"""A tensor of this many rows and columns has 10^12 elements."""


def relu() -> onnx.ModelProto:
    """x [N, 4] to y."""
    return model([node("Relu", "x", "y", "act")], {"x": (FLOAT, ["N", 4])}, ["y"])


def product() -> onnx.ModelProto:
    """x [N, 4] times w to y."""
    weights = {"w": np.ones((4, 4), FLOAT)}
    return model([node("MatMul", "x w", "y", "dense")], {"x": (FLOAT, ["N", 4])}, ["y"], weights)


def word_counts() -> onnx.ModelProto:
    """How often 5 and 7 are among 4 numbers: an op that only ONNX's reference runs."""
    attributes = {
        "mode": "TF",
        "min_gram_length": 1,
        "max_gram_length": 1,
        "max_skip_count": 0,
        "ngram_counts": [0],
        "ngram_indexes": [0, 1],
        "pool_int64s": [5, 7],
    }
    nodes = [node("TfIdfVectorizer", "x", "y", "words", **attributes)]
    return model(nodes, {"x": (np.int64, [4])}, ["y"])


def frozen() -> Any:
    """A GraphDef of x [N, 4] to y, with a constant."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        weights = tf.constant(np.eye(4, dtype=FLOAT), name="w")
        tf.nn.relu(tf.matmul(x, weights, name="product"), name="y")
    return graph.as_graph_def()


def keras_model() -> Any:
    """x [N, 4] to [N, 3]."""
    import tensorflow as tf

    return tf.keras.Sequential([tf.keras.Input((4,), name="x"), tf.keras.layers.Dense(3)])


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- files -----------------------------------------------------------------------------------


@case("A model file that does not exist")
def missing(folder: Path) -> None:
    quick_engine(folder / "model.onnx")


@case("A file that is no model, called .onnx")
def no_onnx(folder: Path) -> None:
    quick_engine(written(folder / "model.onnx", b"this is no model " * 20))


@case("A file that is no model, called .pb")
def no_graph_def(folder: Path) -> None:
    quick_engine(written(folder / "model.pb", b"this is no model " * 20))


@case("A file that is no model, called .keras")
def no_keras(folder: Path) -> None:
    quick_engine(written(folder / "model.keras", b"this is no model " * 20))


@case("An empty file, called .onnx")
def empty(folder: Path) -> None:
    quick_engine(written(folder / "model.onnx", b""))


@case("A file of another kind")
def other_suffix(folder: Path) -> None:
    quick_engine(written(folder / "model.txt", b"text"))


@case("An object that is no model")
def no_model(folder: Path) -> None:
    quick_engine(3)


@case("A truncated ONNX file")
def cut_onnx(folder: Path) -> None:
    data = product().SerializeToString()
    quick_engine(written(folder / "model.onnx", data[: len(data) // 2]))


@case("A truncated frozen graph")
def cut_graph_def(folder: Path) -> None:
    data = frozen().SerializeToString()
    quick_engine(written(folder / "model.pb", data[: len(data) // 2]))


@case("A truncated Keras file")
def cut_keras(folder: Path) -> None:
    keras_model().save(folder / "whole.keras")
    data = (folder / "whole.keras").read_bytes()
    quick_engine(written(folder / "model.keras", data[: len(data) // 2]))


@case("A folder that is no SavedModel")
def no_saved_model(folder: Path) -> None:
    quick_engine(folder)


@case("A SavedModel whose weights are cut short")
def no_weights(folder: Path) -> None:
    keras_model().export(str(folder), verbose=False)
    (weights,) = (folder / "variables").glob("*.data-*")
    weights.write_bytes(weights.read_bytes()[:10])
    quick_engine(folder)


@case("An ONNX model of a very old opset")
def old_opset(folder: Path) -> None:
    proto = relu()
    proto.opset_import[0].version = 3
    quick_engine(proto)


# ---- graphs ----------------------------------------------------------------------------------


@case("An unknown ONNX op")
def unknown_op(folder: Path) -> None:
    proto = model([node("Frob", "x", "y", "mine", domain="acme")], {"x": (FLOAT, [4])}, ["y"])
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    quick_engine(proto)


@case("An ONNX op without a kernel, `allow_fallback=False`")
def no_fallback(folder: Path) -> None:
    proto = word_counts()
    assert quick_engine(proto).host_steps()
    quick_engine(proto, allow_fallback=False)


@case("An ONNX input of strings")
def strings(folder: Path) -> None:
    proto = relu()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    quick_engine(proto)


@case("An ONNX input that is a sequence")
def sequence(folder: Path) -> None:
    proto = relu()
    proto.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
    quick_engine(proto)


@case("An ONNX output that is a sequence, whose tensors cannot be named")
def named_sequence(folder: Path) -> None:
    nodes = [node("SequenceConstruct", "x x", "s"), node("Neg", "x", "s_0")]
    quick_engine(model(nodes, {"x": (FLOAT, [2])}, ["s", "s_0"]))


@case("An unknown TensorFlow op")
def unknown_tensorflow_op(folder: Path) -> None:
    graph_def = frozen()
    next(n for n in graph_def.node if n.name == "y").op = "MyOwnOp"
    quick_engine(graph_def)


@case("A cycle in an ONNX graph")
def onnx_cycle(folder: Path) -> None:
    nodes = [node("Add", "x b", "a", "first"), node("Relu", "a", "b", "second")]
    quick_engine(model(nodes, {"x": (FLOAT, [4])}, ["b"]))


@case("A cycle in a TensorFlow graph")
def tensorflow_cycle(folder: Path) -> None:
    graph_def = frozen()
    next(n for n in graph_def.node if n.name == "product").input[0] = "y"
    graph_def.node.add(name="end", op="Relu", input=["y"]).attr["T"].type = 1
    quick_engine(graph_def)


@case("A tensor that nothing produces")
def nowhere(folder: Path) -> None:
    quick_engine(model([node("Relu", "nowhere", "y", "act")], {"x": (FLOAT, [4])}, ["y"]))


@case("A tensor that two nodes produce")
def twice(folder: Path) -> None:
    nodes = [node("Relu", "x", "y", "act"), node("Abs", "x", "y", "again")]
    quick_engine(model(nodes, {"x": (FLOAT, [4])}, ["y"]))


@case("An ONNX op without a required attribute")
def no_attribute(folder: Path) -> None:
    quick_engine(model([node("Concat", "x x", "y", "both")], {"x": (FLOAT, [4])}, ["y"]))


@case("Shapes inside the model that do not fit")
def misfit(folder: Path) -> None:
    weights = {"w": np.ones((5, 4), FLOAT)}
    nodes = [node("MatMul", "x w", "y", "dense")]
    quick_engine(model(nodes, {"x": (FLOAT, ["N", 4])}, ["y"], weights))


# ---- sizes and numbers -----------------------------------------------------------------------


@case("An ONNX constant of 10^12 elements")
def huge_onnx(folder: Path) -> None:
    proto = model([node("Add", "x w", "y")], {"x": (FLOAT, ["N", 4])}, ["y"])
    proto.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[HUGE, HUGE]))
    quick_engine(proto)


@case("A TensorFlow constant of 10^12 elements")
def huge_tensorflow(folder: Path) -> None:
    graph_def = frozen()
    tensor = next(n for n in graph_def.node if n.op == "Const").attr["value"].tensor
    tensor.ClearField("tensor_content")
    tensor.float_val[:] = [1.0]
    for dim in tensor.tensor_shape.dim:
        dim.size = HUGE
    quick_engine(graph_def)


@case("A result of 10^12 elements")
def huge_result(folder: Path) -> None:
    shape = {"shape": np.array([HUGE, HUGE])}
    proto = model([node("Expand", "x shape", "y")], {"x": (FLOAT, [1, 1])}, ["y"], shape)
    quick_engine(proto)(np.zeros((1, 1), FLOAT))


@case("A tensor that no machine can address")
def unaddressable(folder: Path) -> None:
    most = 2**31 - 1
    proto = model([node("Relu", "x", "y")], {"x": (FLOAT, ["A", "B", "C"])}, ["y"])
    quick_engine(proto, inputs={"x": (most, most, most)})


@case("Weights that are NaN")
def nan(folder: Path) -> None:
    weights = {"w": np.full((4, 4), np.nan, FLOAT)}
    nodes = [node("MatMul", "x w", "y")]
    quick_engine(model(nodes, {"x": (FLOAT, ["N", 4])}, ["y"], weights))


# ---- external data ---------------------------------------------------------------------------


def _external(folder: Path, location: str, **fields: str) -> Path:
    proto = model([node("Add", "x w", "y")], {"x": (FLOAT, ["N", 4])}, ["y"])
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(tensor)
    return written(folder / "model.onnx", proto.SerializeToString())


@case("External data outside the model's folder")
def outside(folder: Path) -> None:
    quick_engine(_external(folder, "../secret"))


@case("External data that is a link to a file elsewhere")
def link(folder: Path) -> None:
    inner = folder / "model"
    inner.mkdir()
    written(folder / "secret", np.ones(4, FLOAT).tobytes())
    (inner / "data").symlink_to(folder / "secret")
    quick_engine(_external(inner, "data"))


@case("External data that does not exist")
def no_external(folder: Path) -> None:
    quick_engine(_external(folder, "data"))


@case("External data that ends early")
def short_external(folder: Path) -> None:
    written(folder / "data", np.ones(3, FLOAT).tobytes())
    quick_engine(_external(folder, "data"))
