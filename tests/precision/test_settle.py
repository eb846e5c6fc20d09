"""Precisions end to end: build, run, save, load, tune again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

import planish
from helpers.engines import quick_engine
from helpers.halves import HalfCpu, detector, masked_attention
from helpers.networks import Net, as_list, feeds, mobile_net, residual_net
from helpers.onnx_graph import model, node
from planish.builder import build_graph
from planish.errors import PlanError, PrecisionError
from planish.graph.interpret import interpret
from planish.plan.file import deserialize
from planish.plan.load import restore
from planish.runtime.engine import Engine
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.target import cpu
from planish.targets.reference import ReferenceTactic
from planish.targets.restoring import FLAG, Allowed

FP16 = frozenset({"fp32", "fp16"})


def dense() -> onnx.ModelProto:
    """y = relu(x · w)."""
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    nodes = [node("MatMul", "x w", "h", "dense"), node("Relu", "h", "y", "relu")]
    return model(nodes, {"x": (np.float32, ["N", 4])}, ["y"], {"w": w})


X = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)


# ---- a CPU that has FP32 -----------------------------------------------------------------------


@pytest.mark.usefixtures("without_bf16")
@pytest.mark.parametrize("precision", ["fp16", "bf16", {"fp16", "fp32"}, "tf32"])
def test_the_cpu_runs_in_fp32_and_says_so_once(
    precision: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = quick_engine(dense())
    caplog.clear()
    with caplog.at_level(logging.INFO, "planish"):
        engine = quick_engine(dense(), precision=precision)
    assert sum("permitted and not used" in r.getMessage() for r in caplog.records) == 1
    assert engine.precision == "fp32"
    assert {row["precision"] for row in engine.layers()} == {"fp32"}
    assert engine.report.lowered == 0
    np.testing.assert_array_equal(engine(X), plain(X))


@pytest.mark.usefixtures("without_bf16")
def test_the_best_of_the_cpu_is_fp32(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "planish"):
        assert quick_engine(dense(), precision="best").precision == "fp32"
    assert not caplog.records


def test_layers_on_the_cpu() -> None:
    quick_engine(dense(), precision="fp16", layer_precision={"dense": "fp32"}, strict_types=True)
    with pytest.raises(PrecisionError, match="'dense' cannot compute in fp16"):
        quick_engine(
            dense(), precision="fp16", layer_precision={"dense": "fp16"}, strict_types=True
        )


# ---- a target that has halves --------------------------------------------------------------------


def halved(graph: Any, **options: Any) -> tuple[Engine, Any]:
    """An engine in FP16, and the graph as it was."""
    before = copy.deepcopy(graph)
    options = {"precision": FP16, "tuning_seconds": 0, **options}
    return build_graph(graph, HalfCpu(), **options), before


def errors(engine: Engine, before: Any, given: Mapping[str, np.ndarray]) -> list[float]:
    """The largest error of each output, as a share of its scale."""
    found = []
    for have, want in zip(as_list(engine(given)), interpret(before, given), strict=True):
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        scale = max(float(np.abs(want).max()), 1e-6)
        found.append(float(np.abs(have.astype(np.float64) - want).max()) / scale)
    return found


@pytest.mark.parametrize(
    "make", [residual_net, lambda: mobile_net(32, 2), masked_attention, detector]
)
def test_lowered_networks_run(make: Any) -> None:
    engine, before = halved(make())
    assert not engine.host_steps(), "every lowered task has a kernel"
    assert engine.precision == "fp16"
    assert engine.report.lowered
    given = feeds(before, 2, seed=4)
    if "mask" in given:
        given["mask"] = np.zeros_like(given["mask"])
    assert all(error < 1e-2 for error in errors(engine, before, given))


def test_layers_show_their_precision() -> None:
    engine, _ = halved(detector())
    shown = {row["op"]: row["precision"] for row in engine.layers()}
    assert shown["conv"] == "fp16"
    assert shown["combined_non_max_suppression"] == "fp32"
    assert "fp16" in engine.summary()
    assert set(engine.report.kept_in_fp32) >= {"likely", "suppress"}


def test_save_and_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planish.builder.LEAST_BUDGET", 0.1)
    monkeypatch.setattr("planish.builder.SECONDS_PER_TASK", 0.01)
    engine, before = halved(residual_net())
    path = tmp_path / "half.plan"
    engine.save(path)
    given = feeds(before, 3)
    assert path.stat().st_size < _size_in_fp32(tmp_path)
    for target in (HalfCpu(), cpu()):
        plan = restore(deserialize(path), target)
        loaded = Engine(plan, target)
        assert loaded.precision == "fp16"
        np.testing.assert_array_equal(as_list(loaded(given))[0], as_list(engine(given))[0])
    assert planish.load(path, retune=True).precision == "fp16"


def _size_in_fp32(folder: Path) -> int:
    path = folder / "whole.plan"
    build_graph(residual_net(), cpu(), tuning_seconds=0).save(path)
    return path.stat().st_size


def test_layer_precision_reaches_the_plan() -> None:
    engine, before = halved(residual_net(), layer_precision={"conv_1": "fp32"})
    types = {n.name: n.outputs[0].dtype.value for n in engine.plan.graph.nodes}
    assert (types["conv"], types["conv_1"]) == ("f16", "f32")
    assert errors(engine, before, feeds(before, 2))[0] < 1e-2


# ---- tactics that round more than their dtypes ---------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rounding(ReferenceTactic):
    """Stands for a product of TF32 factors."""

    family: ClassVar[str] = "rounding"
    rounds: bool = True

    @property
    def precision(self) -> str:
        return "tf32" if self.rounds else super().precision

    def launches(self, binding: Binding) -> list[Launch]:
        return super().launches(binding)


class RoundingFamily(Family):
    name: ClassVar[str] = "rounding"
    tactic: ClassVar[type[Tactic]] = Rounding
    allowed: ClassVar[Allowed] = {"rounds": FLAG}

    def understands(self, task: Any) -> bool:
        return task.anchor is not None

    def offered(self, task: Any, binding: Binding) -> Iterable[Tactic]:
        yield Rounding(task, True)
        yield Rounding(task, False)


class RoundingCpu(HalfCpu):
    precisions = frozenset({"fp32", "tf32"})

    def families(self) -> list[Family]:
        return [RoundingFamily(), *super().families()]


def used(engine: Engine) -> dict[str, bool]:
    """For each product whether its tactic rounds."""
    return {
        step.task.anchor.name: tactic.rounds
        for step in engine.plan.steps
        for tactic in [step.tactic(engine.plan.binding({}, step.task), engine.target)]
        if isinstance(tactic, Rounding) and step.task.anchor
    }


def products() -> Any:
    net = Net()
    return net.output(net.dense(net.dense(net.input(2, 4), 5), 6))


def test_a_finer_tactic_needs_permission(tmp_path: Path) -> None:
    def build(**options: Any) -> Engine:
        return build_graph(products(), RoundingCpu(), tuning_seconds=0, **options)

    assert used(build()) == {"mat_mul": False, "mat_mul_1": False}
    tf32 = frozenset({"fp32", "tf32"})
    engine = build(precision=tf32)
    assert engine.precision == "tf32"
    assert used(engine) == {"mat_mul": True, "mat_mul_1": True}
    assert {row["precision"] for row in engine.layers()} == {"tf32"}
    mixed = build(precision=tf32, layer_precision={"mat_mul_1": "fp32"})
    assert used(mixed) == {"mat_mul": True, "mat_mul_1": False}
    mixed.save(tmp_path / "m.plan")
    again = restore(deserialize(tmp_path / "m.plan"), RoundingCpu())
    assert [step.precisions for step in again.steps] == [tf32, {"fp32"}]
    # without choices the guess obeys too
    bare = [type(s)(s.task, (), (), (), s.precisions) for s in again.steps]
    guessed = [s.tactic(again.binding({}, s.task), RoundingCpu()) for s in bare]
    assert [getattr(t, "rounds", None) for t in guessed] == [True, False]


def test_a_plan_that_permits_less_than_it_does(tmp_path: Path) -> None:
    engine = build_graph(
        products(), RoundingCpu(), tuning_seconds=0, precision=frozenset({"fp32", "tf32"})
    )
    engine.plan.about["precision"] = "fp32"
    stored = deserialize(engine.serialize())
    # written as steps that permit more than their plan: that is what they say
    assert {step.precisions for step in stored.steps} == {frozenset({"fp32", "tf32"})}
    narrowed = [type(s)(s.nodes, s.anchor, s.choices) for s in stored.steps]
    changed = type(stored)(stored.graph, tuple(narrowed), stored.about, stored.source)
    with pytest.raises(PlanError, match="computes in tf32, which it does not permit"):
        restore(changed, RoundingCpu())
