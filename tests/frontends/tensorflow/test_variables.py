import numpy as np
import pytest

import tensorflow as tf
from planish.frontends.tensorflow import variables


def use_of(build):
    """The use of a variable by ``build(variable, x)``."""
    variable = tf.Variable(np.ones((3, 400), np.float32))
    spec = [tf.TensorSpec([400, 2], name="x")]
    traced = tf.function(lambda x: build(variable, x), input_signature=spec, autograph=False)
    graph = traced.get_concrete_function().graph
    (name,) = (inner.op.name for outer, inner in graph.captures if outer is variable.handle)
    return variables.uses(graph.as_graph_def(), [name])[name]


def in_loop(v, x):
    return tf.while_loop(
        lambda i, y: i < 3, lambda i, y: (i + 1, y + tf.reduce_sum(tf.matmul(v, x))), [0, x]
    )


def in_branch(change):
    def build(v, x):
        def yes():
            return change(v)

        return tf.cond(tf.reduce_sum(x) > 0, yes, lambda: tf.zeros([3, 400]))

    return build


@tf.function(input_signature=[tf.TensorSpec([400, 2])])
def _twice(x):
    return x * 2.0


@pytest.mark.parametrize(
    ("build", "inside", "written"),
    [
        (lambda v, x: tf.matmul(v, x), False, False),
        (lambda v, x: tf.gather(v, [0, 1]), False, False),
        (lambda v, x: tf.gather_nd(v, [[0, 1]]), False, False),
        (in_loop, True, False),
        (in_branch(lambda v: v * 2.0), True, False),
        (in_branch(lambda v: v.assign_add(tf.ones([3, 400]))), True, True),
        (lambda v, x: v.assign(v * 2.0), False, True),
        (lambda v, x: tf.function(lambda: v.assign(v * 2.0))(), True, True),
        (lambda v, x: tf.raw_ops.VariableShape(input=v.handle) + tf.shape(_twice(x))[0], 0, 0),
    ],
)
def test_uses(build, inside, written):
    use = use_of(build)
    assert (use.inside, use.written) == (bool(inside), bool(written))
    if not written:
        assert use.code in (1, None)


def test_handles_of_one_variable():
    with tf.Graph().as_default() as graph:
        for shared, change in ("a", False), ("a", True), ("b", False):
            handle = tf.raw_ops.VarHandleOp(dtype="float32", shape=[2], shared_name=shared)
            if change:
                tf.raw_ops.AssignVariableOp(resource=handle, value=[1.0, 2.0])
            else:
                tf.raw_ops.ReadVariableOp(resource=handle, dtype="float32")
    names = [n.name for n in graph.as_graph_def().node if n.op == "VarHandleOp"]
    found = variables.uses(graph.as_graph_def(), names)
    assert [found[n].written for n in names] == [True, True, False]


def test_references_that_are_written():
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph:
        kept = v1.get_variable("kept", initializer=[1.0], use_resource=False)
        changed = v1.get_variable("changed", initializer=[1.0], use_resource=False)
        tf.add_n([kept, changed])
        v1.assign_add(changed, kept)
    read = v1.graph_util.extract_sub_graph(graph.as_graph_def(), ["AddN", "AssignAdd"])
    assert variables.written_references(read) == {"changed"}


def test_reads_become_reads_of_weights(rng):
    values = rng.standard_normal((5, 4, 300)).astype(np.float32)
    with tf.Graph().as_default() as graph:
        handle = tf.raw_ops.VarHandleOp(dtype="float32", shape=[5, 4, 300], name="v")
        other = tf.identity(handle)
        indices = tf.constant([[3, 0], [1, 1], [2, 2], [0, 3], [1, 2]], name="indices")
        gather = {"indices": indices, "dtype": "float32"}
        results = {
            "read": tf.raw_ops.ReadVariableOp(resource=other, dtype="float32") * 2.0,
            "gather": tf.raw_ops.ResourceGather(resource=handle, **gather),
            "batch": tf.raw_ops.ResourceGather(resource=other, batch_dims=1, **gather),
            "nd": tf.raw_ops.ResourceGatherNd(resource=handle, **gather),
            "shape": tf.raw_ops.VariableShape(input=handle, out_type="int64"),
        }
        fetches = {k: t.name for k, t in results.items()}
        assign = tf.raw_ops.AssignVariableOp(resource=handle, value=values)
    with tf.compat.v1.Session(graph=graph) as session:
        session.run(assign)
        expected = session.run(results)
    needed = sorted({t.partition(":")[0] for t in fetches.values()})
    graph_def = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), needed)
    found = {}
    variables.replace_handles(graph_def, {"v": (values, 1)}, found)
    assert found["v"] is values
    assert graph_def.ByteSize() < 5_000
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            actual = session.run(fetches, {"v:0": values})
    for key, array in expected.items():
        np.testing.assert_array_equal(actual[key], array, key)
