"""Engines by their plan: found once, kept, released."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tensorflow")

from planish.builder import build_graph, find_target
from planish.errors import PlanError, ShapeError
from planish.graph.dims import symbol
from planish.graph.graph import DimRange, Graph
from planish.graph.types import DType, TensorType
from planish.ops import elementwise as ew
from planish.tensorflow.engines import Registry

F32 = DType.FLOAT32


@pytest.fixture(scope="module")
def engine():
    graph = Graph("sum")
    a = graph.input("a", TensorType((symbol("N"), 4), F32))
    b = graph.input("b", TensorType((symbol("N"), 4), F32))
    weight = graph.constant(np.arange(4, dtype=np.float32), "weight")
    (total,) = graph.add_node(ew.Add(), (a, b)).outputs
    graph.mark_output(graph.add_node(ew.Mul(), (total, weight)).outputs[0], "y")
    graph.ranges["N"] = DimRange(2, 2, 8)
    return build_graph(graph, find_target("cpu"), tuning_seconds=0)


@pytest.fixture(params=["bytes", "path"])
def plan(request, engine, tmp_path):
    if request.param == "bytes":
        return engine.serialize()
    engine.save(tmp_path / "sum.plan")
    return str(tmp_path / "sum.plan").encode()


def test_one_engine_for_one_plan(plan):
    registry = Registry()
    first = registry.resolve("e", plan, {"programs": 2})
    assert registry.resolve("other", plan, {"programs": 2}) is first
    assert registry.resolve("e", plan, {"programs": 3}) is not first
    x = np.ones((3, 4), np.float32)
    (y,) = first.run([x, x])
    np.testing.assert_array_equal(y, 2 * x * np.arange(4))
    assert registry.shapes(plan) == [{"N": 3}]


def test_shapes_beyond_the_profile_and_empty_ones(plan):
    native = Registry().resolve("e", plan, {})
    for rows in (1, 9, 100, 0):
        x = np.ones((rows, 4), np.float32)
        (y,) = native.run([x, x])
        np.testing.assert_array_equal(y, 2 * x * np.arange(4, dtype=np.float32))


def test_ready_says_whether_shapes_fit(plan, monkeypatch):
    kinds = [TensorType((3, 4), F32), TensorType((1, 4), F32)]
    native = Registry().resolve("e", plan, {})
    assert not native.ready(kinds)
    assert native.ready([kinds[0], kinds[0]])
    with pytest.raises(ShapeError, match="N is 3"):
        native.bind(kinds)
    assert Registry().resolve("e", plan, {"native": False}).ready(kinds)
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "0")
    assert Registry().resolve("e", plan, {}).ready(kinds)


def test_weights(plan):
    registry = Registry()
    weight = registry.weight("weight", plan, TensorType((4,), F32))
    np.testing.assert_array_equal(weight, np.arange(4))
    with pytest.raises(PlanError, match="holds no weight 'bias'"):
        registry.weight("bias", plan, TensorType((4,), F32))


def test_release_and_missing_files(plan, engine, tmp_path):
    registry = Registry()
    registry.put(plan, engine)
    assert registry.loaded(plan, {}).engine is engine
    registry.release()
    assert registry.loaded(plan, {}).engine is not engine
    with pytest.raises(PlanError, match="cannot be read"):
        registry.resolve("e", str(tmp_path / "absent.plan").encode(), {})
