"""Segments of real GraphDefs: what is in them, what is not and why; random graphs keep results."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

tf = pytest.importorskip("tensorflow")

from planish.tensorflow.conversion import convert_graph_def  # noqa: E402
from planish.tensorflow.converter_v1 import _store_in_constant  # noqa: E402
from planish.tensorflow.rewrite import keep_names  # noqa: E402
from planish.tensorflow.segments import find_segments  # noqa: E402
from planish.tensorflow.settings import Settings  # noqa: E402

EAGER = Settings(minimum_segment_size=1, weigh=False, tuning_seconds=0)


def graph_of(build):
    with tf.Graph().as_default() as graph:
        build()
    return graph.as_graph_def()


def placeholder(shape, name, dtype=tf.float32):
    return tf.compat.v1.placeholder(dtype, shape, name)


def names(segmentation):
    return [set(s.nodes) for s in segmentation.segments]


def test_constants_belong_to_the_segment_and_count():
    def build():
        tf.nn.relu(tf.add(placeholder([None, 4], "x"), 1.0, "sum"), "y")

    graph_def = graph_of(build)
    (segment,) = find_segments(graph_def, [("y", 0)], EAGER).segments
    assert segment.nodes == ("sum", "y")
    assert segment.constants == ("sum/y",)
    assert segment.size == 3
    assert segment.inputs == (("x", 0),)
    few = Settings(minimum_segment_size=4, weigh=False)
    found = find_segments(graph_def, [("y", 0)], few)
    assert not found.segments
    assert "minimum_segment_size is 4" in found.reasons["sum"]


def test_reasons():
    def build():
        x = placeholder([None, 4], "x")
        tf.identity(tf.abs(x), "end")
        tf.raw_ops.ListDiff(x=x[:, 0], y=x[:, 1], name="difference")
        tf.strings.as_string(x, name="text")
        tf.exp(x, "denied")
        tf.square(x, "square")

    settings_ = Settings(
        minimum_segment_size=1, weigh=False, denied_nodes={"denied:0"}, denied_ops={"Square"}
    )
    ends = [("end", 0), ("difference", 0), ("text", 0), ("denied", 0), ("square", 0)]
    reasons = find_segments(graph_of(build), ends, settings_).reasons
    assert reasons["x"] == "it is an input of the graph"
    assert reasons["end"] == "it only gives an output its name"
    assert reasons["denied"] == "the denylist names it"
    assert reasons["square"] == "the denylist names the op Square"
    assert "difference" in reasons
    assert "text" in reasons


def test_the_largest_segments_are_kept():
    def build():
        x = placeholder([None, 4], "x")
        for i in range(4):
            for _ in range(i + 1):
                x = tf.abs(x)
            x = tf.strings.to_number(tf.strings.as_string(x))

    graph_def = graph_of(build)
    last = graph_def.node[-1].name
    kept = find_segments(
        graph_def, [(last, 0)], Settings(max_engines=2, weigh=False, minimum_segment_size=1)
    )
    assert [len(s.nodes) for s in kept.segments] == [3, 4]
    assert "2 largest" in kept.reasons["Abs"]
    assert len(find_segments(graph_def, [(last, 0)], EAGER).segments) == 4


def test_shapes_cross_from_one_segment_into_another():
    """The second segment knows the shape that was computed beside the first one."""

    def build():
        x = placeholder([None, None, 8], "x")
        shape = tf.shape(x)
        flat = tf.reshape(tf.abs(x), [shape[0] * shape[1], 8], "flat")
        middle = tf.strings.to_number(tf.strings.as_string(flat))
        middle = tf.ensure_shape(middle, [None, 8])
        both = tf.stack([shape[1], shape[0], 8])
        tf.add(tf.reshape(tf.abs(tf.reshape(middle, both)), both), tf.transpose(x, [1, 0, 2]), "y")

    graph_def = graph_of(build)
    found = find_segments(graph_def, [("y", 0)], EAGER)
    assert len(found.segments) == 2
    assert not any("Reshape" in name for name in found.reasons)


def test_branches_of_a_switch_stay_apart():
    with tf.Graph().as_default() as graph:
        tf.compat.v1.disable_control_flow_v2()
        try:
            x = placeholder([None, 4], "x")
            y = tf.compat.v1.cond(
                tf.reduce_sum(x) > 0.0, lambda: tf.abs(x) + 1.0, lambda: tf.exp(x) * 2.0
            )
        finally:
            tf.compat.v1.enable_control_flow_v2()
        tf.identity(y, "y")
    found = find_segments(graph.as_graph_def(), [("y", 0)], EAGER)
    for segment in found.segments:
        branches = {n.split("/")[1] for n in segment.nodes if n in ("cond/Abs", "cond/Exp")}
        assert len(branches) <= 1, segment.nodes


def test_coverage():
    def build():
        a, b = placeholder([None, 4], "a"), placeholder([None, 4], "b")
        tf.add(a, b, "y")
        tf.concat([tf.abs(a), tf.square(a)], 0, "z")

    graph_def = graph_of(build)
    (both,) = find_segments(graph_def, [("y", 0)], EAGER).segments
    assert not both.covered
    denied = Settings(minimum_segment_size=1, weigh=False, denied_nodes={"y"})
    (alone,) = find_segments(graph_def, [("z", 0)], denied).segments
    assert alone.covered


def test_inputs_declared_alike_are_taken_to_be_equal_where_that_helps():
    def build():
        numbers = placeholder([None, None], "numbers", tf.int32)
        mask = placeholder([None, None], "mask", tf.int32)
        table = np.ones((9, 8), np.float32)
        embedded = tf.gather(table, numbers)
        weights = tf.cast(mask, tf.float32)[:, :, None]
        tf.reduce_sum(embedded * weights, 1, name="sum")
        tf.concat([tf.reduce_sum(embedded, 1), tf.cast(mask[:, :8], tf.float32)], 1, name="both")

    graph_def = graph_of(build)
    (segment,) = find_segments(graph_def, [("sum", 0)], EAGER).segments
    assert not segment.covered
    assert len({str(t.shape[1]) for t in segment.types}) == 1
    apart = Settings(minimum_segment_size=1, weigh=False, denied_nodes={"mul"})
    for segment in find_segments(graph_def, [("both", 0)], apart).segments:
        assert segment.inputs


# ---- random graphs ---------------------------------------------------------------------------

UNARY = [tf.abs, tf.nn.relu, tf.square, tf.tanh]
BINARY = [tf.add, tf.maximum, tf.subtract]


@st.composite
def plans(draw):
    """A list of nodes (op, sources) and the numbers of those that must stay in TensorFlow."""
    nodes: list = []
    for i in range(draw(st.integers(2, 10))):
        available = list(range(-2, i))
        if draw(st.booleans()):
            nodes.append((draw(st.sampled_from(UNARY)), [draw(st.sampled_from(available))]))
        else:
            two = [draw(st.sampled_from(available)) for _ in range(2)]
            nodes.append((draw(st.sampled_from(BINARY)), two))
    return nodes, draw(st.sets(st.sampled_from(range(len(nodes)))))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_random_graphs_compute_the_same(plan):
    nodes, denied = plan
    with tf.Graph().as_default() as graph:
        tensors = {-2: placeholder([None, 4], "a"), -1: placeholder([None, 4], "b")}
        for i, (op, sources) in enumerate(nodes):
            tensors[i] = op(*(tensors[s] for s in sources), name=f"n{i}")
    graph_def = graph.as_graph_def()
    read = {s for _, sources in nodes for s in sources}
    ends = [f"n{i}" for i in range(len(nodes)) if i not in read]
    chosen = Settings(
        minimum_segment_size=1,
        weigh=False,
        tuning_seconds=0,
        denied_nodes={f"n{i}" for i in denied},
    )
    converted = convert_graph_def(graph_def, ends, chosen, _store_in_constant)
    keep_names(converted.graph_def, converted.engines, ends)
    inside = [n for e in converted.engines for n in e.segment.nodes]
    assert sorted(inside) == sorted(f"n{i}" for i in range(len(nodes)) if i not in denied)
    left = [n.name for n in converted.graph_def.node if n.name not in ends]
    assert not set(inside) & set(left)
    generator = np.random.default_rng(0)
    feeds = {f"{n}:0": generator.standard_normal((3, 4)).astype(np.float32) for n in "ab"}
    results = []
    # TensorFlow's own optimizer makes max(x, 2x) a LeakyRelu with alpha 2, which is min(x, 2x)
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    for one in (graph_def, converted.graph_def):
        with tf.Graph().as_default() as graph, tf.compat.v1.Session("", graph, config) as session:
            tf.graph_util.import_graph_def(one, name="")
            results.append(session.run([f"{n}:0" for n in ends], feeds))
    for expected, got in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
