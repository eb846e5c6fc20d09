import numpy as np
import pytest

import tensorflow as tf
from planish.errors import ModelError
from planish.frontends.tensorflow.load import load_graph_def, loose_ends
from planish.graph.types import DType


def small_graph():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, 3], "x")
        tf.compat.v1.placeholder("float32", [2], "unused")
        y = tf.nn.relu(x, name="y")
        tf.identity(x, name="echo")
        tf.math.top_k(y * 2, 2, name="best")
        tf.debugging.Assert(tf.reduce_all(tf.greater(y, 0)), ["text"], name="assert")
    return graph.as_graph_def()


def test_frozen_file(tmp_path):
    path = tmp_path / "net.pb"
    path.write_bytes(small_graph().SerializeToString())
    model = load_graph_def(path)
    assert model.name == "net"
    assert not model.has_signature
    assert model.inputs[0] == ("x", "x:0", (None, 3), DType.FLOAT32)
    assert [i.name for i in model.inputs] == ["x", "unused"]
    assert [o.name for o in model.outputs] == ["best", "best:1"]


def test_graph_objects():
    graph_def = small_graph()
    assert load_graph_def(graph_def).outputs == load_graph_def(str_of_graph(graph_def)).outputs


def str_of_graph(graph_def):
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    return graph


def test_identity_of_an_input_is_an_output_if_there_is_no_other():
    with tf.Graph().as_default() as graph:
        tf.identity(tf.compat.v1.placeholder("float32", [2], "x"), name="y")
    assert loose_ends(graph.as_graph_def()) == ["y"]


class Doubler(tf.Module):
    def __init__(self):
        self.factor = tf.Variable([2.0, 3.0])

    @tf.function(input_signature=[tf.TensorSpec([None, 2], name="b"), tf.TensorSpec([2], name="a")])
    def __call__(self, b, a):
        return {"z": b * self.factor, "c": a + 1.0}


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "doubler"
    module = Doubler()
    tf.saved_model.save(module, str(folder), signatures=module.__call__)
    return folder


def test_saved_model(saved_model):
    model = load_graph_def(saved_model)
    assert model.has_signature
    assert {i.name: i.shape for i in model.inputs} == {"a": (2,), "b": (None, 2)}
    assert sorted(o.name for o in model.outputs) == ["c", "z"]
    assert not any("Variable" in n.op for n in model.graph_def.node)


def test_the_file_inside_a_saved_model(saved_model):
    assert load_graph_def(saved_model / "saved_model.pb").outputs


def test_missing_signature_and_tags(saved_model):
    with pytest.raises(ModelError, match="no signature 'other'") as caught:
        load_graph_def(saved_model, signature="other")
    assert "'serving_default'" in caught.value.why
    with pytest.raises(ModelError, match="tags gpu") as caught:
        load_graph_def(saved_model, tags=("gpu",))
    assert "serve" in caught.value.why


def test_saved_model_of_version_1(tmp_path):
    folder = str(tmp_path / "old")
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        x = v1.placeholder("float32", [None, 2], "x")
        weight = v1.get_variable("w", initializer=[[1.0], [2.0]], use_resource=False)
        y = tf.matmul(x, weight, name="y")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, folder, {"in": x}, {"out": y})
    model = load_graph_def(folder)
    assert model.inputs == (("in", "x:0", (None, 2), DType.FLOAT32),)
    assert model.outputs == (("out", "y:0"),)
    assert not any("Variable" in n.op for n in model.graph_def.node)


def test_concrete_function():
    module = Doubler()
    model = load_graph_def(module.__call__.get_concrete_function())
    assert sorted(i.name for i in model.inputs) == ["a", "b"]
    assert [o.name for o in model.outputs] == ["c", "z"]


def test_keras_model_and_files(tmp_path):
    first, second = tf.keras.Input([4], name="left"), tf.keras.Input([4], name="right")
    shared = tf.keras.layers.Dense(3, name="dense")
    both = tf.keras.layers.Concatenate(name="both")([shared(first), shared(second)])
    model = tf.keras.Model([first, second], [both, shared(first)], name="twins")
    paths = [tmp_path / "m.keras", tmp_path / "m.h5"]
    for path in paths:
        model.save(path)
    for source in (model, *paths):
        loaded = load_graph_def(source)
        assert loaded.name == "twins"
        assert [i.name for i in loaded.inputs] == ["left", "right"]
        assert len(loaded.outputs) == 2
        assert loaded.inputs[0].shape == (None, 4)


def test_keras_model_that_was_never_called():
    class Custom(tf.keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ModelError, match="no defined inputs") as caught:
        load_graph_def(Custom())
    assert "concrete function" in caught.value.cure


@pytest.mark.parametrize("name", ["m.pb", "m.keras", "m.h5", "saved_model.pb"])
def test_garbage(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x08garbage" * 9)
    with pytest.raises(ModelError) as caught:
        load_graph_def(path)
    assert caught.value.where
    assert caught.value.why
    assert caught.value.cure


def test_truncated(tmp_path):
    path = tmp_path / "net.pb"
    data = small_graph().SerializeToString()
    for size in (1, len(data) // 3, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ModelError, match="cannot be read as a frozen graph"):
            load_graph_def(path)


def test_truncated_saved_model(saved_model, tmp_path):
    folder = tmp_path / "cut"
    (folder / "variables").mkdir(parents=True)
    data = (saved_model / "saved_model.pb").read_bytes()
    (folder / "saved_model.pb").write_bytes(data)
    with pytest.raises(ModelError, match="cannot be loaded"):  # without its variables
        load_graph_def(folder)
    (folder / "saved_model.pb").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        load_graph_def(folder)


def test_not_a_model(tmp_path):
    with pytest.raises(ModelError, match="no file"):
        load_graph_def(tmp_path / "missing.pb")
    with pytest.raises(ModelError, match="not a SavedModel"):
        load_graph_def(tmp_path)
    with pytest.raises(ModelError, match="ndarray is not a TensorFlow model"):
        load_graph_def(np.zeros(3))
    with pytest.raises(ModelError, match="no nodes"):
        load_graph_def(tf.compat.v1.GraphDef())
