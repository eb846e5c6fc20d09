import numpy as np

import tensorflow as tf
from planish.frontends.tensorflow.inline import Inlined


def compiled(function):
    """A function whose calls TensorFlow's optimizer leaves alone."""
    return tf.function(function, autograph=False, experimental_attributes={"_noinline": True})


def inlined(build, *arrays):
    """The graph of ``build(*placeholders)`` inlined, and the results before and after, twice."""
    results = []
    with tf.Graph().as_default() as graph:
        given = [tf.compat.v1.placeholder(a.dtype, a.shape, f"x{i}") for i, a in enumerate(arrays)]
        fetches = [t.name for t in tf.nest.flatten(build(*given))]
    result = Inlined(graph.as_graph_def())
    flat = [result.tensor(name) for name in fetches]
    for graph_def, names in ((graph.as_graph_def(), fetches), (result.graph_def, flat)):
        with tf.Graph().as_default() as other:
            tf.import_graph_def(graph_def, name="")
            feeds = {f"x{i}:0": a for i, a in enumerate(arrays)}
            with tf.compat.v1.Session(graph=other) as session:
                session.run([op for op in other.get_operations() if op.name.endswith("/Assign")])
                results.append([session.run(names, feeds) for _ in range(2)])
    return result.graph_def, results


def calls(graph_def):
    return [n for n in graph_def.node if "PartitionedCall" in n.op]


def test_nested_calls(rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)

    @compiled
    def inner(a, b):
        return a + b, tf.nn.top_k(a - b, 2).indices

    @compiled
    def outer(a):
        total, best = inner(a, a * 2.0)
        return inner(total, a)[0], best

    graph_def, (before, after) = inlined(lambda a: outer(a * 3.0), x)
    assert not calls(graph_def)
    assert any(n.name.count("/") >= 2 for n in graph_def.node)
    for first, second in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(first, second)


def variable(name, value):
    handle = tf.raw_ops.VarHandleOp(dtype="float32", shape=[], shared_name=name)
    tf.raw_ops.AssignVariableOp(resource=handle, value=value, name=f"{name}/Assign")
    return handle


def read(handle):
    return tf.raw_ops.ReadVariableOp(resource=handle, dtype="float32")


def test_effects_happen_and_in_order():
    x = np.float32(5.0)

    def build(a):
        count = variable("count", 1.0)

        @compiled
        def add(handle, b):
            tf.raw_ops.AssignAddVariableOp(resource=handle, value=b)
            return b * 2.0

        @compiled
        def add_and_read(handle, b):
            add(handle, b)
            return read(handle)

        first = add_and_read(count, a)
        with tf.control_dependencies([first]):
            doubled = add(count, a)
        with tf.control_dependencies([doubled.op]):
            return first, doubled, read(count)

    graph_def, (before, after) = inlined(build, x)
    assert not calls(graph_def)
    assert before == after
    assert before[0] == [6.0, 10.0, 11.0]
    assert before[1] == [16.0, 10.0, 21.0]


def test_nobody_waits_for_calls_without_effects():
    def build(a):
        weight = variable("weight", 3.0)

        @compiled
        def scale(handle, b):
            return b * read(handle)

        first = scale(weight, a)
        with tf.control_dependencies([first.op]):
            return scale(weight, a + 1.0)

    graph_def, (before, after) = inlined(build, np.float32(2.0))
    assert before == after
    assert not any(n.name.endswith("/done") for n in graph_def.node)
    for node in graph_def.node:
        for text in node.input:
            if text.startswith("^"):  # inside one call
                assert node.name.partition("/")[0] == text[1:].partition("/")[0]
