from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import planish
from helpers.networks import N, Net, build, feeds, residual_net
from helpers.onnx_graph import model, node
from planish.builder import (
    LEAST_BUDGET,
    MOST_BUDGET,
    ProgressEvent,
    build_graph,
    default_budget,
    default_timing_cache,
    tune_graph,
)
from planish.errors import DeviceError, InputError, PrecisionError, UnsupportedOpError
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops import TopK
from planish.plan.views import insert_copies
from planish.profile import Profile
from planish.targets.cpu.target import CpuTarget, cpu
from planish.targets.devices import find_target
from planish.targets.target import Target


@pytest.fixture
def dense() -> object:
    """An ONNX model: ``relu(x @ w)``."""
    w = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    nodes = [node("MatMul", "x w", "h", name="fc"), node("Relu", "h", "y")]
    return model(nodes, {"x": (np.float32, ("batch", 4))}, ["y"], {"w": w})


class NoKernels(CpuTarget):
    """A CPU for which no kernel was written."""

    def families(self) -> list:
        return []


class TestBuild:
    def test_from_model_to_engine(self, dense, tmp_path: Path) -> None:
        engine = planish.build(dense, tuning_seconds=0, progress=False)
        x = np.ones((2, 4), np.float32)
        w = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
        np.testing.assert_allclose(engine(x), np.maximum(x @ w, 0), rtol=1e-5, atol=1e-6)
        engine.save(tmp_path / "m.plan")
        np.testing.assert_array_equal(planish.load(tmp_path / "m.plan")(x), engine(x))

    def test_inputs_and_outputs_are_chosen(self, dense) -> None:
        engine = planish.build(
            dense,
            inputs={"x": Profile((1, 4), (2, 4), (3, 4))},
            outputs=["h"],
            tuning_seconds=0,
            progress=False,
        )
        assert engine.outputs[0].name == "h"
        (limits,) = engine.inputs[0].profile.values()
        assert (limits.min, limits.opt, limits.max) == (1, 2, 3)
        result = engine(np.full((3, 4), -1, np.float32))
        assert result.shape == (3, 3)
        assert result.min() < 0 or result.max() > 0

    @pytest.mark.parametrize("precision", ["fp32", {"fp32"}, ["fp32"]])
    def test_precision_that_there_is(self, dense, precision) -> None:
        engine = planish.build(dense, precision=precision, tuning_seconds=0, progress=False)
        assert engine.precision == "fp32"

    @pytest.mark.parametrize("precision", ["fp17", "", {"fp32", "fp17"}, 8, None])
    def test_precision_that_there_is_not(self, dense, precision) -> None:
        with pytest.raises(PrecisionError) as caught:
            planish.build(dense, precision=precision, progress=False)
        assert caught.value.cure

    def test_device_that_there_is_not(self, dense) -> None:
        with pytest.raises(DeviceError, match="tpu"):
            planish.build(dense, device="tpu", progress=False)

    def test_accuracy_budget_needs_a_metric(self, dense) -> None:
        with pytest.raises(InputError, match="evaluate"):
            planish.build(dense, accuracy_budget=0.5, progress=False)


class TestReport:
    def test_stages_and_counts(self) -> None:
        graph = residual_net()
        imported = len(graph.nodes)
        report = build(graph).report
        assert report.nodes_imported == imported
        assert 0 < report.layers <= report.nodes_optimized <= imported
        assert set(report.seconds) >= {"optimize", "tune", "finish"}
        assert all(s >= 0 for s in report.seconds.values())
        assert not report.fallbacks

    def test_progress_events(self, dense) -> None:
        events: list[ProgressEvent] = []
        planish.build(dense, tuning_seconds=0.2, progress=events.append)
        stages = list(dict.fromkeys(e.stage for e in events))
        assert stages[:3] == ["import", "optimize", "tune"]
        assert stages[-1] == "finish"
        assert all(0 <= e.done <= e.total for e in events)
        assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(events))

    def test_nothing_is_drawn_where_nobody_looks(
        self, dense, capfd: pytest.CaptureFixture[str]
    ) -> None:
        planish.build(dense, tuning_seconds=0)
        assert capfd.readouterr() == ("", "")


class TestFallback:
    def make(self) -> Graph:
        graph = Graph()
        x = graph.input("x", TensorType((N, 9), DType.FLOAT32))
        top = graph.add_node(TopK(3), [x], origin="model/best (TopKV2)")
        graph.mark_output(top.outputs[0], "best")
        graph.mark_output(top.outputs[1], "which")
        return graph

    def test_ops_without_kernel_run_by_their_reference(self) -> None:
        engine = build_graph(self.make(), NoKernels(), tuning_seconds=0)
        assert engine.report.fallbacks
        assert set(engine.report.fallbacks) == set(engine.host_steps())
        assert engine.host_steps()[0] in engine.summary()
        graph = self.make()
        given = feeds(graph, 4)
        for have, want in zip(engine(given).values(), interpret(graph, given), strict=True):
            np.testing.assert_array_equal(have, want)

    def test_they_are_an_error_where_that_is_forbidden(self) -> None:
        with pytest.raises(UnsupportedOpError, match="no kernel") as caught:
            build_graph(self.make(), NoKernels(), tuning_seconds=0, allow_fallback=False)
        assert "model/best (TopKV2)" in caught.value.where
        assert "allow_fallback" in caught.value.cure


class TestTuning:
    def test_the_cache_may_be_chosen(self, tmp_path: Path) -> None:
        path = tmp_path / "times.sqlite"
        first = build(residual_net(), tuning_seconds=20, timing_cache=path)
        assert path.is_file()
        again = build(residual_net(), tuning_seconds=20, timing_cache=str(path))
        assert again.report.tuning.measured == 0
        assert again.serialize() == first.serialize()

    def test_the_users_own_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
        assert default_timing_cache().parent == tmp_path

    def test_workspace_is_limited(self) -> None:
        engine = build(residual_net(), max_workspace_size=0)
        for step in engine.plan.steps:
            for choice in step.choices:
                binding = engine.plan.binding(dict(choice.at), step.task)
                assert choice.tactic.workspace(binding) == 0

    def test_budget_grows_with_the_network(self) -> None:
        assert default_budget(1) == LEAST_BUDGET
        assert default_budget(10**6) == MOST_BUDGET
        assert default_budget(80) <= default_budget(160)

    def test_tune_graph_gives_plan_and_report(self) -> None:
        net = Net()
        graph = net.output(net.relu(net.input(N, 4)))
        insert_copies(graph)
        plan, report = tune_graph(graph, cpu(), tuning_seconds=0)
        assert plan.graph is graph
        assert plan.about["machine"] == cpu().timing_key
        assert plan.about["layers"] == len(plan.steps) == 1
        assert not report.complete


def test_find_target() -> None:
    target = find_target("cpu")
    assert isinstance(target, Target)
    assert target is find_target("cpu")
    with pytest.raises(DeviceError, match="'gpu'") as caught:
        find_target("gpu")
    assert "cpu" in caught.value.why
