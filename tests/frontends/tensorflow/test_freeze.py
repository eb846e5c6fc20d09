"""Freezing: no GraphDef carries weights, whatever reads them."""

import numpy as np
import pytest

import tensorflow as tf
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.convert import import_model
from planish.frontends.tensorflow.freeze import freeze_function
from planish.frontends.tensorflow.load import load_graph_def
from planish.graph.interpret import interpret

X = tf.TensorSpec([None, 64], name="x")


class Net(tf.Module):
    """Weights of all kinds: matrices, an embedding, a captured tensor, a nested function."""

    def __init__(self, rng):
        def array(*shape):
            return rng.standard_normal(shape).astype(np.float32)

        self.first, self.second = tf.Variable(array(64, 500)), tf.Variable(array(64, 500))
        self.table = tf.Variable(array(1000, 500))
        self.captured = tf.constant(array(500, 300))
        self.scale = tf.Variable(array(300))

    @tf.function(input_signature=[X, tf.TensorSpec([None], tf.int32, name="ids")])
    def __call__(self, x, ids):
        y = tf.matmul(x, self.first) + tf.gather(self.table, ids)
        return {"y": self.inner(y), "z": tf.matmul(x, self.second)}

    @tf.function(jit_compile=True)  # TensorFlow leaves its calls as they are
    def inner(self, y):
        return tf.matmul(y, self.captured) * self.scale


@pytest.fixture
def net(rng):
    return Net(rng)


def arguments(rng):
    x = rng.standard_normal((3, 64)).astype(np.float32)
    return {"x": x, "ids": np.array([1, 999, 0], np.int32)}


def agrees(graph, given, expected):
    results = interpret(graph, given)
    for name, array in zip(graph.output_names, results, strict=True):
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5 * scale, err_msg=name)


def test_weights_stand_beside_the_graph(net, rng, tmp_path):
    given = arguments(rng)
    expected = net(**{k: tf.constant(v) for k, v in given.items()})
    tf.saved_model.save(net, str(tmp_path / "net"), signatures=net.__call__)
    for source in (net.__call__.get_concrete_function(), tmp_path / "net"):
        model = load_graph_def(source)
        total = sum(array.nbytes for array in model.weights.values())
        assert total == 4 * (64 * 500 * 2 + 1000 * 500 + 500 * 300 + 300)
        assert model.graph_def.ByteSize() < 10_000
        assert not model.graph_def.library.function or not any(
            n.op in ("PartitionedCall", "StatefulPartitionedCall") for n in model.graph_def.node
        )
        agrees(import_model(source), given, expected)


def test_weights_share_the_memory_of_the_variables(net):
    frozen = freeze_function(net.__call__.get_concrete_function())
    assert not any(array.flags.owndata for array in frozen.weights.values())
    (table,) = (a for a in frozen.weights.values() if a.shape == (1000, 500))
    before = table.copy()
    net.table.assign_add(tf.ones([1000, 500]))
    net.table.assign(tf.zeros([1000, 500]))
    np.testing.assert_array_equal(table, before)


def test_a_keras_model_is_not_written_into_a_graph(rng):
    layers = [tf.keras.layers.Dense(700, activation="relu"), tf.keras.layers.Dense(5)]
    model = tf.keras.Sequential([tf.keras.Input([300]), *layers])
    loaded = load_graph_def(model)
    assert loaded.graph_def.ByteSize() < 10_000
    x = rng.standard_normal((2, 300)).astype(np.float32)
    (result,) = interpret(import_model(model), {loaded.inputs[0].name: x})
    np.testing.assert_allclose(result, model(x), rtol=0, atol=1e-5)


def run(model, given):
    """A loaded model by TensorFlow, as a graph that must be complete."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(model.graph_def, name="")
        feeds = {i.tensor: given[i.name] for i in model.inputs}
        feeds |= {f"{name}:0": array for name, array in model.weights.items()}
        with tf.compat.v1.Session(graph=graph) as session:
            return session.run({o.name: o.tensor for o in model.outputs}, feeds)


def test_variables_that_loops_read_become_constants_in_them(rng):
    weight = tf.Variable(rng.standard_normal((64, 64)).astype(np.float32) / 8)
    other = tf.Variable(rng.standard_normal((64, 64)).astype(np.float32) / 8)

    @tf.function(input_signature=[X], autograph=False)
    def loop(x):
        def body(i, y):
            return i + 1, tf.tanh(tf.matmul(y, weight))

        y = tf.while_loop(lambda i, y: i < 4, body, [0, tf.matmul(x, other)])[1]
        return {"y": tf.matmul(y, weight)}

    model = load_graph_def(loop.get_concrete_function())
    assert not any(n.attr["dtype"].type == 20 for n in model.graph_def.node)
    assert len(model.weights) == 1
    x = rng.standard_normal((2, 64)).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": x})["y"], loop(x)["y"], rtol=0, atol=1e-5)
    kept = freeze_function(loop.get_concrete_function(), inside=False)
    assert [c.tensor.dtype for c in kept.captures.values()] == [tf.resource]
    assert len(kept.weights) == 2
    assert not any(n.op == "ReadVariableOp" for n in kept.graph_def.node)


def test_variables_that_are_written_stay(rng):
    count = tf.Variable(tf.zeros([64]))
    weight = tf.Variable(tf.ones([64, 64]))

    @tf.function(input_signature=[X], autograph=False)
    def counting(x):
        count.assign_add(tf.reduce_sum(x, axis=0))
        return {"y": tf.matmul(x, weight) + count}

    frozen = freeze_function(counting.get_concrete_function())
    assert [a.shape for a in frozen.weights.values()] == [(64, 64)]
    assert next(iter(frozen.captures.values())).tensor is count.handle
    ops = [n.op for n in frozen.graph_def.node]
    assert "AssignAddVariableOp" in ops
    assert "ReadVariableOp" in ops


@pytest.mark.parametrize("use_resource", [False, True])
def test_sessions_of_tensorflow_1(rng, tmp_path, use_resource):
    v1, values = tf.compat.v1, rng.standard_normal((64, 500)).astype(np.float32)
    with v1.Session(graph=tf.Graph()) as session:
        x = v1.placeholder("float32", [None, 64], "x")
        with v1.variable_scope("s", use_resource=use_resource):
            weight = v1.get_variable("w", initializer=values)
            scale = v1.get_variable("b", initializer=values[0])
            step = v1.get_variable("step", initializer=0)
        v1.assign_add(step, 1)
        y = tf.nn.relu(tf.matmul(x, weight) * scale, name="y")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "old"), {"x": x}, {"y": y})
    model = load_graph_def(tmp_path / "old")
    assert sorted(a.shape for a in model.weights.values()) == [(64, 500), (500,)]
    assert model.graph_def.ByteSize() < 5_000
    assert "step" not in "".join(graphdef.nodes_by_name(model.graph_def))
    given = rng.standard_normal((2, 64)).astype(np.float32)
    expected = np.maximum(given @ values * values[0], 0)
    agrees(import_model(tmp_path / "old"), {"x": given}, {"y": expected})
