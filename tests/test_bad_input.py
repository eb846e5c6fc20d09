"""Whatever is wrong with a model is a `PlanishError`: never another exception, never a crash."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from helpers.engines import quick_engine
from helpers.onnx_graph import model, node, runtime
from helpers.provoke.models import word_counts
from helpers.refusal import refused
from planish import DeviceError, ModelError, PlanishError, ShapeError, UnsupportedOpError
from planish.frontends import import_model

FLOAT = np.float32
HUGE = 10**6
"""A tensor of this many rows and columns has 10^12 elements."""


def relu(**fields: Any) -> onnx.ModelProto:
    """x [N, 4] to y, the smallest model."""
    return model([node("Relu", "x", "y")], {"x": (FLOAT, ["N", 4])}, ["y"], **fields)


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def frozen(build: Callable[[], Any]) -> Any:
    """The GraphDef that a function builds."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        build()
    return graph.as_graph_def()


def small_frozen() -> Any:
    """x [N, 4] to y, with a constant."""
    import tensorflow as tf

    def build() -> None:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        tf.nn.relu(tf.matmul(x, tf.constant(np.eye(4, dtype=FLOAT)), name="product"), name="y")

    return frozen(build)


# ---- files that are no models ----------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".onnx", ".pb", ".h5", ".keras"])
@pytest.mark.parametrize("data", [b"this is no model, whatever it is called " * 9, b""])
def test_a_file_that_is_no_model(suffix: str, data: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, f"model{suffix}", data)
    with refused(ModelError, str(path)):
        quick_engine(path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    with refused(ModelError, "model.txt", ".onnx"):
        quick_engine(written(tmp_path, "model.txt", b"text"))


@pytest.mark.parametrize("name", ["none.onnx", "none.pb", "none", "none.keras"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    with refused(ModelError, name, "no such file"):
        quick_engine(tmp_path / name)


def test_a_folder_that_is_no_saved_model(tmp_path: Path) -> None:
    with refused(ModelError, "saved_model.pb"):
        quick_engine(tmp_path)


@pytest.mark.parametrize("thing", [None, 3, [1], np.zeros(3), b"bytes", print, object()])
def test_an_object_that_is_no_model(thing: Any) -> None:
    with refused(ModelError, "not a model", type(thing).__name__):
        quick_engine(thing)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_onnx_file(share: float, tmp_path: Path) -> None:
    weights = {"w": np.ones((4, 4), FLOAT)}
    whole = model([node("MatMul", "x w", "y")], {"x": (FLOAT, ["N", 4])}, ["y"], weights)
    data = whole.SerializeToString()
    with refused(ModelError, "cut off"):
        quick_engine(written(tmp_path, "cut.onnx", data[: int(share * len(data))]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_frozen_graph(share: float, tmp_path: Path) -> None:
    data = small_frozen().SerializeToString()
    with refused(ModelError, "cut"):
        quick_engine(written(tmp_path, "cut.pb", data[: int(share * len(data))]))


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_truncated_keras_file(suffix: str, tmp_path: Path) -> None:
    import tensorflow as tf

    layers = [tf.keras.Input((4,)), tf.keras.layers.Dense(3)]
    path = tmp_path / f"whole{suffix}"
    tf.keras.Sequential(layers).save(path)
    data = path.read_bytes()
    cut = written(tmp_path, f"cut{suffix}", data[: len(data) // 2])
    with refused(ModelError, "cannot be read as a Keras model"):
        quick_engine(cut)


def test_a_saved_model_without_its_weights(tmp_path: Path) -> None:
    import tensorflow as tf

    layers = [tf.keras.Input((4,)), tf.keras.layers.Dense(3)]
    tf.keras.Sequential(layers).export(str(tmp_path), verbose=False)
    (weights,) = (tmp_path / "variables").glob("*.data-*")
    weights.write_bytes(weights.read_bytes()[:10])
    with refused(ModelError, "cannot be loaded", "variables"):
        quick_engine(tmp_path)


@pytest.mark.parametrize("suffix", [".onnx", ".pb"])
def test_damaged_bytes(suffix: str, tmp_path: Path) -> None:
    """A few hundred random damages: the model is read, or refused with a `PlanishError`."""
    whole = relu(constants={"w": np.ones(4, FLOAT)}) if suffix == ".onnx" else small_frozen()
    data = whole.SerializeToString()
    rng = random.Random(1)
    errors: list[PlanishError] = []
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path = written(tmp_path, f"damaged{suffix}", damaged)
        try:
            import_model(path)
        except PlanishError as error:
            errors.append(error)
    assert 0 < len(errors) < 300
    assert all(error.what and error.cure for error in errors)


# ---- graphs that make no sense ---------------------------------------------------------------


@pytest.mark.parametrize("domain", ["", "acme"])
@pytest.mark.parametrize("allow", [False, True])
def test_an_unknown_onnx_op(domain: str, allow: bool) -> None:
    proto = model([node("Frob", "x", "y", "mine", domain=domain)], {"x": (FLOAT, ["N", 4])}, ["y"])
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    with refused(UnsupportedOpError, "Frob", "mine"):
        quick_engine(proto, allow_fallback=allow)


def test_an_onnx_op_without_kernel_falls_back_only_if_allowed() -> None:
    proto = word_counts()
    with refused(UnsupportedOpError, "TfIdfVectorizer", "words", "fallback"):
        quick_engine(proto, allow_fallback=False)
    engine = quick_engine(proto, allow_fallback=True)
    assert len(engine.host_steps()) == 1
    x = np.array([7, 5, 1, 7])
    np.testing.assert_array_equal(engine(x), runtime(proto, {"x": x})[0])


@pytest.mark.parametrize("allow", [False, True])
def test_an_unknown_tensorflow_op(allow: bool) -> None:
    graph_def = small_frozen()
    next(n for n in graph_def.node if n.name == "y").op = "MyOwnOp"
    with refused(UnsupportedOpError, "MyOwnOp", "y"):
        quick_engine(graph_def, allow_fallback=allow)


def test_cycles() -> None:
    nodes = [node("Add", "x b", "a", "first"), node("Relu", "a", "b", "second")]
    with refused(ModelError, "cycle", "first"):
        quick_engine(model(nodes, {"x": (FLOAT, [4])}, ["b"]))
    graph_def = small_frozen()
    product = next(n for n in graph_def.node if n.name == "product")
    product.input[0] = "y"
    sink = graph_def.node.add(name="sink", op="Relu", input=["y"])
    sink.attr["T"].type = 1
    with refused(ModelError, "loop", "product"):
        quick_engine(graph_def)


ILL_FORMED = {
    "reads nothing": ([node("Relu", "nowhere", "y")], "nowhere"),
    "makes no output": ([node("Relu", "x", "z")], "'y'"),
    "too few inputs": ([node("Add", "x", "y", "sum")], "sum"),
    "made twice": ([node("Relu", "x", "y"), node("Abs", "x", "y", "again")], "again"),
    "no attribute": ([node("Concat", "x x", "y", "both")], "axis"),
    "bad attribute": ([node("Concat", "x x", "y", "both", axis=9)], "both"),
    "attribute of another kind": ([node("Concat", "x x", "y", "both", axis="a")], "both"),
}


@pytest.mark.parametrize("name", ILL_FORMED)
def test_ill_formed_onnx_graphs(name: str) -> None:
    nodes, word = ILL_FORMED[name]
    with refused(PlanishError, word):
        quick_engine(model(nodes, {"x": (FLOAT, [4])}, ["y"]))


def test_ill_formed_tensorflow_graphs() -> None:
    for change, word in (
        (lambda n: n["product"].input.__setitem__(0, "nowhere"), "nowhere"),
        (lambda n: n["product"].input.__delitem__(1), "product"),
        (lambda n: setattr(n["product"], "name", "x"), "'x'"),
        (lambda n: setattr(n["x"].attr["dtype"], "type", 7), "'x'"),
        (lambda n: n["Const"].ClearField("attr"), "Const"),
    ):
        graph_def = small_frozen()
        change({n.name: n for n in graph_def.node})
        with refused(PlanishError, word):
            quick_engine(graph_def)


# ---- sizes out of this world -----------------------------------------------------------------


@pytest.mark.parametrize("values", [[], [1.0]])
def test_an_onnx_constant_of_10_to_the_12_elements(values: list[float]) -> None:
    proto = model([node("Add", "x w", "y")], {"x": (FLOAT, ["N", 4])}, ["y"])
    tensor = TensorProto(name="w", data_type=1, dims=[HUGE, HUGE], float_data=values)
    proto.graph.initializer.append(tensor)
    with refused(ModelError, "tensor 'w'", "1,000,000,000,000"):
        quick_engine(proto)


def test_a_tensorflow_constant_of_10_to_the_12_elements() -> None:
    """One value that TensorFlow would repeat."""
    graph_def = small_frozen()
    tensor = next(n for n in graph_def.node if n.op == "Const").attr["value"].tensor
    tensor.ClearField("tensor_content")
    tensor.float_val[:] = [1.0]
    for dim in tensor.tensor_shape.dim:
        dim.size = HUGE
    with refused(ModelError, "1000000000000", "Const"):
        quick_engine(graph_def)


@pytest.mark.parametrize("op_type", ["ConstantOfShape", "Expand", "Tile", "MatMul", "Add"])
def test_constants_are_not_folded_into_10_to_the_12_elements(op_type: str) -> None:
    inputs = {
        "ConstantOfShape": "shape",
        "Expand": "one shape",
        "Tile": "one shape",
        "MatMul": "column row",
        "Add": "column row",
    }
    constants = {
        "shape": np.array([HUGE, HUGE]),
        "one": np.ones((1, 1), FLOAT),
        "column": np.ones((HUGE, 1), FLOAT),
        "row": np.ones((1, HUGE), FLOAT),
    }
    nodes = [
        node(op_type, inputs[op_type], "w"),
        node("ReduceSum", "w", "sum", keepdims=0),
        node("Add", "x sum", "y"),
    ]
    used = {name: constants[name] for name in inputs[op_type].split()}
    engine = quick_engine(model(nodes, {"x": (FLOAT, [1, 4])}, ["y"], used))
    with refused(DeviceError, "memory"):
        engine(np.zeros((1, 4), FLOAT))


def test_an_output_of_10_to_the_12_elements() -> None:
    shape = {"shape": np.array([HUGE, HUGE])}
    proto = model([node("Expand", "x shape", "y")], {"x": (FLOAT, [1, 1])}, ["y"], shape)
    with refused(DeviceError, "memory"):
        quick_engine(proto)(np.zeros((1, 1), FLOAT))


def test_a_tensor_that_no_machine_can_address() -> None:
    most = 2**31 - 1
    inputs = {"x": (FLOAT, ["A", "B", "C"])}
    proto = model([node("Relu", "x", "y")], inputs, ["y"])
    with refused(ShapeError, "'x'", "larger than a machine can address"):
        quick_engine(proto, inputs={"x": (most, most, most)})


# ---- external data ---------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["../secret", "{folder}/secret", "", ".", "link", "none"])
def test_external_data_elsewhere(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    written(tmp_path, "secret", np.ones(4, FLOAT).tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    path = written(folder, "m.onnx", _external(location.format(folder=tmp_path)))
    with refused(ModelError, "tensor 'w'", "xternal data"):
        quick_engine(path)


@pytest.mark.parametrize(
    "field", [("offset", "4"), ("offset", "-4"), ("offset", "x"), ("length", str(10**12))]
)
def test_external_data_of_another_size(field: tuple[str, str], tmp_path: Path) -> None:
    written(tmp_path, "data", np.ones(4, FLOAT).tobytes())
    with refused(ModelError, "tensor 'w'", "xternal data"):
        quick_engine(written(tmp_path, "m.onnx", _external("data", field)))


def _external(location: str, *fields: tuple[str, str]) -> bytes:
    proto = model([node("Add", "x w", "y")], {"x": (FLOAT, ["N", 4])}, ["y"])
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    for key, value in (("location", location), *fields):
        tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(tensor)
    return proto.SerializeToString()
