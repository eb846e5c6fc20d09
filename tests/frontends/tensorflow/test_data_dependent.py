"""Ops whose results' sizes depend on the data: imported, and built, beside TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorflow as tf
from helpers.networks import build as build_engine
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph.types import DType
from planish.tensorflow.engines import relax


@pytest.fixture
def check_engine(check):
    """Compares import and engine with TensorFlow, at several data for one engine.

    ``check_engine(function, *lists of arrays, stages=…)``: every list has one array per run.
    """

    def compare(function, *runs: list[np.ndarray], stages: int | None = None) -> Any:
        if all(a.size for r in runs for a in r):
            check(function, *(r[0] for r in runs))
        for dims in (lambda a: list(a.shape), lambda a: [None, *a.shape[1:]]):
            graph = tf.Graph()
            with graph.as_default():
                ends = [
                    tf.compat.v1.placeholder(r[0].dtype, dims(r[0]), f"x{i}")
                    for i, r in enumerate(runs)
                ]
                outputs = tf.nest.flatten(function(*ends))
            engine = build_engine(
                import_graph_def(
                    graph.as_graph_def(), [e.op.name for e in ends], [o.name for o in outputs]
                )
            )
            relax(engine.plan.graph)
            assert not engine.host_steps() or not all(r[0].size for r in runs)
            if stages is not None:
                assert len(engine.plan.stages.parts) == stages
            with tf.compat.v1.Session(graph=graph) as session:
                for arrays in zip(*runs, strict=True):
                    expected = session.run(outputs, dict(zip(ends, arrays, strict=True)))
                    got = engine(*arrays)
                    got = list(got.values()) if isinstance(got, dict) else [got]
                    for wanted, result in zip(expected, got, strict=True):
                        assert result.shape == wanted.shape
                        assert result.dtype == wanted.dtype
                        if DType.of(wanted.dtype).is_float:
                            np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-5)
                        else:
                            np.testing.assert_array_equal(result, wanted)
        return engine

    return compare


def masks(rng, *shape: int) -> list[np.ndarray]:
    """Masks with some, all, one and no element set."""
    one = np.zeros(shape, bool)
    one.reshape(-1)[-1] = True
    return [rng.random(shape) < 0.4, np.ones(shape, bool), one, np.zeros(shape, bool)]


@pytest.mark.parametrize("dtype", ["bool", "float32", "int32", "uint8"])
@pytest.mark.parametrize("shape", [(9,), (4, 5), (2, 3, 4)])
def test_where(check_engine, rng, dtype, shape):
    arrays = [m.astype(dtype) for m in masks(rng, *shape)]
    check_engine(lambda x: tf.where(x), arrays, stages=1)


def test_where_of_nothing(check_engine):
    check_engine(lambda x: tf.where(x), [np.zeros((0, 3), "f")], stages=1)


@pytest.mark.parametrize("axis", [0, 1])
def test_boolean_mask(check_engine, rng, axis):
    x = [rng.standard_normal((6, 6, 3)).astype("f") for _ in range(4)]
    check_engine(lambda x, m: tf.boolean_mask(x, m, axis=axis), x, masks(rng, 6), stages=1)


def test_boolean_mask_of_several_axes(check_engine, rng):
    x = [rng.standard_normal((4, 5, 3)).astype("f") for _ in range(4)]
    check_engine(lambda x, m: tf.boolean_mask(x, m) * 2, x, masks(rng, 4, 5), stages=1)


def test_one_mask_of_two_tensors_gives_one_size(check_engine, rng):
    x = [rng.standard_normal((7, 3)).astype("f") for _ in range(4)]

    def function(x, m):
        return tf.boolean_mask(x, m) + tf.boolean_mask(tf.exp(x), m)

    check_engine(function, x, masks(rng, 7), stages=1)


def test_gather_nd_of_where(check_engine, rng):
    x = [(rng.standard_normal((5, 6)) * m).astype("f") for m in masks(rng, 5, 6)]

    def function(x):
        places = tf.where(x > 0)
        return tf.gather_nd(x, places), tf.shape(places), tf.shape(places)[0] * 3 + 1

    check_engine(function, x, stages=1)


def test_what_was_picked_is_combined(check_engine, rng):
    x = [rng.standard_normal((9, 4)).astype("f") for _ in range(4)]

    def function(x, m):
        rows = tf.boolean_mask(x, m)
        return tf.reduce_sum(rows, 0), tf.cumsum(rows), tf.concat([rows, x], 0)

    check_engine(function, x, masks(rng, 9), stages=2)


def test_picked_rows_are_padded_to_a_fixed_number(check_engine, rng):
    x = [rng.standard_normal((9, 4)).astype("f") for _ in range(4)]

    def function(x, m):
        rows = tf.boolean_mask(x, m)
        return tf.pad(rows, [[0, 12 - tf.shape(rows)[0]], [0, 0]], constant_values=-1.0)

    check_engine(function, x, masks(rng, 9))


@pytest.mark.parametrize("op", ["unique", "unique_with_counts"])
@pytest.mark.parametrize("dtype", ["int32", "int64", "float32"])
def test_unique(check_engine, rng, op, dtype):
    arrays = [rng.integers(0, k, 40).astype(dtype) for k in (9, 1, 1000)]
    check_engine(lambda x: tuple(getattr(tf, op)(x)), arrays, stages=1)


def test_dynamic_partition(check_engine, rng):
    x = [rng.standard_normal((8, 3)).astype("f") for _ in range(3)]
    numbers = [rng.integers(0, 3, 8).astype("i4"), np.zeros(8, "i4"), np.full(8, 2, "i4")]
    check_engine(lambda x, n: tf.dynamic_partition(x, n, 3), x, numbers, stages=1)


def boxes(rng, count: int, runs: int) -> list[np.ndarray]:
    corners = rng.uniform(0, 1.0, (runs, count, 2))
    return list(np.concatenate([corners, corners + 0.3], -1).astype("f"))


def scores(rng, count: int) -> list[np.ndarray]:
    """Scores of which some, all, one and none are good."""
    s = rng.uniform(0.5, 1, (4, count)).astype("f")
    s[0] -= rng.uniform(0, 1, count) > 0.5
    s[2, 1:] = 0
    s[3] = 0
    return list(s)


@pytest.mark.parametrize("version", ["", "V2", "V3", "V4", "V5"])
def test_suppression(check_engine, rng, version):
    function = getattr(tf.raw_ops, f"NonMaxSuppression{version}")
    arguments: dict[str, Any] = {"max_output_size": 8, "iou_threshold": 0.3}
    if version in ("V3", "V4", "V5"):
        arguments["score_threshold"] = 0.2
    if version == "V5":
        arguments["soft_nms_sigma"] = 0.0

    def build(b, s):
        found = function(boxes=b, scores=s, **arguments)
        return found if isinstance(found, tf.Tensor) else tuple(found)

    check_engine(build, boxes(rng, 20, 4), scores(rng, 20), stages=1)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_suppression_of_few(check_engine, rng, count):
    def function(b, s):
        kept = tf.image.non_max_suppression(b, s, 8, 0.4, 0.1)
        return kept, tf.gather(b, kept), tf.gather(s, kept)

    check_engine(function, boxes(rng, count, 1), [rng.random(count).astype("f")], stages=1)


def test_at_most_as_many_boxes_as_there_are(check_engine, rng):
    def function(b, s):
        most = tf.minimum(8, tf.shape(b)[0])
        return tf.gather(b, tf.image.non_max_suppression(b, s, most, 0.4, 0.1))

    check_engine(function, boxes(rng, 20, 4), scores(rng, 20))


@pytest.mark.parametrize("count", [20, 60])
def test_detection_head(check_engine, rng, count):
    """Suppression, the features of what is left, dense layers on them."""
    first = rng.standard_normal((24, 16)).astype("f") / 5
    second = rng.standard_normal((16, 5)).astype("f") / 4

    def function(b, s, features):
        kept = tf.image.non_max_suppression(b, s, count, 0.6, 0.1)
        rows = tf.nn.relu(tf.gather(features, kept) @ first)
        return tf.nn.softmax(rows @ second), tf.gather(b, kept), tf.shape(kept)[0]

    features = [rng.standard_normal((100, 24)).astype("f") for _ in range(4)]
    stages = 1 if count <= 32 else 2
    check_engine(function, boxes(rng, 100, 4), scores(rng, 100), features)
    engine = check_engine(function, boxes(rng, 100, 4), scores(rng, 100), features)
    assert len(engine.plan.stages.parts) == 2 or stages == 1


def test_suppression_of_what_was_picked(check_engine, rng):
    def function(b, s):
        good = tf.squeeze(tf.where(s > 0.7), 1)
        b, s = tf.gather(b, good), tf.gather(s, good)
        return tf.gather(b, tf.image.non_max_suppression(b, s, 8, 0.4))

    check_engine(function, boxes(rng, 30, 4), scores(rng, 30))
