"""Signatures read from a SavedModel's files, against the same ones from TensorFlow's loader."""

import numpy as np
import pytest

import tensorflow as tf
from planish.errors import ModelError
from planish.frontends.tensorflow import saved_function, saved_model
from planish.frontends.tensorflow.load import load_graph_def

X = tf.TensorSpec([None, 4], name="x")


class Shared(tf.Module):
    """Two signatures that share one of three variables; one of them captures a constant."""

    def __init__(self):
        self.parts = [tf.Variable(tf.random.normal([4, 4])), {"b": tf.Variable(tf.ones([4]))}]
        self.half = tf.Variable(tf.cast([1, 2, 3, 4], tf.bfloat16))
        self.fixed = tf.constant([0.5, 1, 2, 4])

    @tf.function(input_signature=[X])
    def first(self, x):
        return {"z": x @ self.parts[0] + self.parts[1]["b"], "a": x * self.fixed}

    @tf.function(input_signature=[X])
    def second(self, x):
        return {"y": self.twice(x) @ self.parts[0]}

    @tf.function
    def twice(self, x):
        return x + tf.cast(self.half, tf.float32)


def saved(module, path, **signatures):
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


def by_the_loader(folder, signature, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(saved_model, "signature_function", lambda *_: None)
        return load_graph_def(folder, signature=signature)


@pytest.mark.parametrize("signature", ["first", "second"])
def test_the_same_as_by_the_loader(signature, tmp_path, monkeypatch):
    module = Shared()
    folder = saved(module, tmp_path / "m", first=module.first, second=module.second)
    expected = by_the_loader(folder, signature, monkeypatch)
    monkeypatch.delattr(tf.saved_model, "load")
    model = load_graph_def(folder, signature=signature)
    assert model.inputs == expected.inputs
    assert model.outputs == expected.outputs
    assert model.weights.keys() == expected.weights.keys()
    for name, array in model.weights.items():
        np.testing.assert_array_equal(array, expected.weights[name])
        assert array.dtype == expected.weights[name].dtype
    assert [(n.name, n.op) for n in model.graph_def.node] == [
        (n.name, n.op) for n in expected.graph_def.node
    ]


def test_a_table_is_left_to_the_loader(tmp_path):
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant([1, 2], tf.int64), tf.constant([3.0, 4.0])),
        0.0,
    )
    ids = tf.TensorSpec([None], tf.int64, name="ids")
    module.f = tf.function(lambda ids: {"y": module.table.lookup(ids)}, input_signature=[ids])
    folder = saved(module, tmp_path / "m", serving_default=module.f)
    meta = saved_model._meta_graph(folder, ["serve"])
    assert saved_function.signature_function(meta, folder, "serving_default") is None


def test_variables_inside_control_flow_are_left_to_the_loader(tmp_path, monkeypatch):
    module = tf.Module()
    module.w = tf.Variable(tf.ones([4]))

    @tf.function(input_signature=[X])
    def f(x):
        return {"y": tf.cond(tf.reduce_sum(x) > 0, lambda: x * module.w, lambda: x)}

    module.f = f
    folder = saved(module, tmp_path / "m", serving_default=f)
    expected = by_the_loader(folder, "serving_default", monkeypatch)
    model = load_graph_def(folder)
    assert [n.name for n in model.graph_def.node] == [n.name for n in expected.graph_def.node]
    assert model.weights.keys() == expected.weights.keys()


def test_a_missing_value_is_an_error(tmp_path):
    one, other = Shared(), tf.Module()
    folder = saved(one, tmp_path / "m", first=one.first)
    other.v = tf.Variable(1.0)
    strange = saved(other, tmp_path / "other")
    for file in (folder / "variables").iterdir():
        file.write_bytes((strange / "variables" / file.name).read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_graph_def(folder, signature="first")
