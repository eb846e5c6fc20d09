from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.host_tactics import HostFamily, HostTactic, HostTarget
from helpers.networks import N, Net, build, feeds, residual_net
from helpers.openings import OpeningNet
from planish.errors import DeviceLostError
from planish.fusion.candidates import propose
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.plan.file import serialize
from planish.plan.plan import Plan
from planish.plan.views import insert_copies, place
from planish.profile import tuning_points
from planish.runtime.engine import Engine
from planish.targets.base import Binding, Launch
from planish.targets.cpu.target import cpu
from planish.targets.reference import ReferenceTactic
from planish.targets.target import Target
from planish.tuning import tuner as tuner_module
from planish.tuning.cache import TimingCache
from planish.tuning.measure import Bench
from planish.tuning.tuner import Tuner, TuningReport


def one_op() -> Graph:
    net = Net()
    return net.output(net.relu(net.input(N, 5)))


def tune(
    graph: Graph,
    target: Target,
    cache: TimingCache | None = None,
    budget: float = 20.0,
    **options: Any,
) -> tuple[Plan, TuningReport]:
    insert_copies(graph)
    placements = place(graph)
    tuner = Tuner(
        graph,
        placements,
        target,
        cache or TimingCache(None),
        budget=budget,
        threads=1,
        **options,
    )
    return tuner.run(propose(graph, placements.free), tuning_points(graph)), tuner.result


def tactics(plan: Plan) -> list[Mapping[str, Any]]:
    return [c.tactic.parameters for s in plan.steps for c in s.choices]


class TestNetworksLargerThanCaches:
    @pytest.fixture
    def given(self, monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
        """For each bench, the bytes of other memory that it was given."""
        found: list[int | None] = []

        class Watched(Bench):
            def __init__(self, *arguments: Any) -> None:
                other = arguments[5]
                found.append(None if other is None else other.nbytes)
                super().__init__(*arguments)

        monkeypatch.setattr(tuner_module, "Bench", Watched)
        return found

    @pytest.mark.parametrize(("cached", "cold"), [(0, False), (79, True), (80, False)])
    def test_are_measured_with_cold_caches(
        self, given: list[int | None], cached: int, cold: bool
    ) -> None:
        target = HostTarget({"delay": 1.0})
        target.cached_bytes = cached
        graph = Net()
        tune(graph.output(graph.relu(graph.input(2, 5))), target)  # two tensors of 40 bytes
        assert given == [cached * 5 // 4 if cold else None]

    def test_times_are_kept_apart(self) -> None:
        cache = TimingCache(None)
        target = HostTarget({"delay": 1.0})
        assert tune(one_op(), target, cache)[1].cached == 0
        target.cached_bytes = 1
        assert tune(one_op(), target, cache)[1].cached == 0
        assert tune(one_op(), target, cache)[1].cached > 0


class TestTactics:
    def test_the_fastest_right_one_wins(self) -> None:
        target = HostTarget(
            {"delay": 3.0}, {"kind": "wrong"}, {"kind": "idle"}, {"delay": 1.0}, {"delay": 6.0}
        )
        plan, report = tune(one_op(), target)
        assert all(t == {"kind": "right", "delay": 1.0, "room": 0} for t in tactics(plan))
        assert len(plan.steps[0].choices) == 2
        # what was found wrong at the usual size is not tried at the other
        assert (report.measured, report.rejected, report.cached) == (6, 2, 0)
        assert report.complete
        assert report.seconds > 0
        assert not report.host_steps

    def test_a_tactic_that_does_not_compile_is_out(self) -> None:
        plan, report = tune(one_op(), HostTarget({"kind": "failing"}, {"delay": 0.5}))
        assert (report.measured, report.rejected) == (2, 1)
        assert {t["kind"] for t in tactics(plan)} == {"right"}

    def test_a_kernel_that_does_not_compile_costs_only_its_tactic(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        from planish.errors import TuningError
        from planish.targets.cpu.target import CpuTarget

        prepare = CpuTarget.prepare
        bad: list[str] = []

        def failing(self, kernels, progress=None):
            kernels = list(kernels)
            if not bad:
                bad.append(kernels[0].symbol)
            if any(k.symbol in bad for k in kernels):
                raise TuningError("It does not compile")
            prepare(self, kernels, progress)

        monkeypatch.setattr(CpuTarget, "prepare", failing)
        monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))  # what was compiled before cannot fail
        _, report = tune(residual_net(), CpuTarget())
        assert bad
        assert report.rejected
        assert report.measured

    def test_where_all_are_wrong_the_reference_runs(self) -> None:
        graph = one_op()
        target = HostTarget({"kind": "wrong"}, {"kind": "idle"})
        plan, report = tune(graph, target)
        assert isinstance(plan.steps[0].choices[0].tactic, ReferenceTactic)
        assert report.host_steps == [plan.steps[0].task.name]
        given = feeds(graph, 3)
        np.testing.assert_array_equal(Engine(plan, target)(given), interpret(graph, given)[0])

    def test_workspace_is_limited(self) -> None:
        target = HostTarget({"room": 1000}, {"delay": 1.0, "room": 100})
        assert {t["room"] for t in tactics(tune(one_op(), target)[0])} == {1000}
        limited, _ = tune(one_op(), target, max_workspace=999)
        assert {t["room"] for t in tactics(limited)} == {100}

    def test_fusion_is_chosen_by_time(self) -> None:
        """A host step costs the same for one node as for three, so that all are fused."""
        net = Net()
        graph = net.output(net.relu(net.relu(net.relu(net.input(N, 3)))))
        plan, _ = tune(graph, HostTarget({"delay": 0.5}))
        assert [len(s.task.nodes) for s in plan.steps] == [3]

    def test_what_is_wrong_at_one_size_runs_at_none(self) -> None:
        plan, _ = tune(one_op(), HostTarget({"kind": "wrong"}, {"delay": 30.0}), budget=0.15)
        assert [len(s.choices) for s in plan.steps] == [2]
        assert {t["kind"] for t in tactics(plan)} == {"right"}

    def test_what_is_wrong_or_hopeless_is_in_the_plan(self) -> None:
        target = HostTarget(
            {"delay": 1.0}, {"kind": "wrong"}, {"delay": 40.0}, {"kind": "failing"}, {"delay": 2.0}
        )
        plan, _ = tune(one_op(), target)
        (step,) = plan.steps
        assert [name.split(",")[0] for name in step.wrong] == [
            "host(kind=failing",
            "host(kind=wrong",
        ]
        assert step.slow == ("host(kind=right, delay=40.0, room=0)",)

    def test_what_is_wrong_at_another_size_only_runs_at_none(self) -> None:
        """The usual size is tuned first, and finds the tactic right."""

        class WrongForOne(HostTactic):
            def launches(self, binding: Binding) -> list[Launch]:
                small = binding.symbols["N"] == 1 and self.delay == 0.5
                return replace(self, kind="wrong" if small else self.kind)._launches(binding)

            def _launches(self, binding: Binding) -> list[Launch]:
                return HostTactic.launches(self, binding)

        class WrongFamily(HostFamily):
            def offered(self, task, binding):
                return (WrongForOne(task, **v) for v in self._variants)

        target = HostTarget()
        target._family = WrongFamily([{"delay": 0.5}, {"delay": 3.0}])
        plan, _ = tune(one_op(), target)
        assert [t["delay"] for t in tactics(plan)] == [3.0] * len(plan.steps[0].choices)
        assert plan.steps[0].wrong == ("host(kind=right, delay=0.5, room=0)",)


class TestBudget:
    def test_without_one_nothing_is_measured(self) -> None:
        plan, report = tune(one_op(), HostTarget({"delay": 50.0}, {}), budget=0)
        assert report.measured == 0
        assert not report.complete
        assert {t["delay"] for t in tactics(plan)} == {50.0}  # the first one offered
        assert all(c.seconds is None for s in plan.steps for c in s.choices)

    def test_a_budget_that_ends_with_the_last_measurement_was_enough(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        net = Net()
        graph = net.output(net.relu(net.input(4, 5)))  # one size
        now = 0.0
        measure = Bench.measure

        def measured(self, tactic, best=float("inf")):
            nonlocal now
            now += 4.0
            return measure(self, tactic, best)

        monkeypatch.setattr(Bench, "measure", measured)
        monkeypatch.setattr(tuner_module.time, "monotonic", lambda: now)
        _, report = tune(graph, HostTarget({}, {"delay": 0.2}, {"delay": 0.3}), budget=11.0)
        assert (report.measured, report.complete) == (3, True)
        now = 0.0
        _, report = tune(graph, HostTarget({}, {"delay": 0.2}, {"delay": 0.3}), budget=7.0)
        assert (report.measured, report.complete) == (2, False)

    def test_it_bounds_the_time(self) -> None:
        target = HostTarget(*({"delay": float(d)} for d in range(20, 32)))
        start = time.monotonic()
        plan, report = tune(one_op(), target, budget=0.3)
        assert time.monotonic() - start < 3
        assert 0 < report.measured < 24
        assert not report.complete
        assert plan.steps

    def test_progress_is_reported(self) -> None:
        seen: list[tuple[str, int, int]] = []
        tune(one_op(), HostTarget({}, {"delay": 0.2}), report=lambda *event: seen.append(event))
        assert seen
        assert all(0 < done <= total for _, done, total in seen)
        assert len({what for what, _, _ in seen}) > 1


class TestCache:
    def test_the_second_build_measures_nothing_and_is_equal(self, tmp_path: Path) -> None:
        cache = TimingCache(tmp_path / "t.sqlite")
        first, report = tune(residual_net(), cpu(), cache)
        assert report.measured
        assert report.complete
        cache.close()
        cache = TimingCache(tmp_path / "t.sqlite")
        again, report = tune(residual_net(), cpu(), cache)
        cache.close()
        assert report.measured == 0
        assert report.cached
        assert serialize(again) == serialize(first)

    def test_a_spent_budget_is_not_spent_again(self) -> None:
        target = HostTarget(*({"delay": float(d)} for d in range(20, 32)))
        cache = TimingCache(None)
        first, report = tune(one_op(), target, cache, budget=0.3)
        assert not report.complete
        again, report = tune(one_op(), target, cache, budget=0.3)
        assert report.measured == 0
        assert tactics(again) == tactics(first)
        _, report = tune(one_op(), target, cache, budget=0.6)
        assert report.measured

    def test_a_budget_that_passed_before_anything_was_measured_is_no_spent_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a machine too busy to compile."""
        target, cache = HostTarget({}, {"delay": 0.2}), TimingCache(None)
        with monkeypatch.context() as busy:
            busy.setattr(HostTarget, "prepare", lambda *_: time.sleep(0.2))
            _, report = tune(one_op(), target, cache, budget=0.1)
        assert (report.measured, report.complete) == (0, False)
        _, report = tune(one_op(), target, cache, budget=0.1)
        assert report.measured

    def test_a_tactic_that_took_the_device_with_it_is_not_tried_again(self) -> None:
        target, cache = HostTarget({}, {"kind": "fatal"}, {"delay": 1.0}), TimingCache(None)
        with pytest.raises(DeviceLostError, match="A kernel failed") as caught:
            tune(one_op(), target, cache)
        assert "layer 'relu'" in caught.value.where and "fatal" in caught.value.where
        assert "builds leave it out" in caught.value.cure
        plan, report = tune(one_op(), target, cache)
        assert report.complete
        assert report.cached  # what was measured before it is kept, too
        assert {t["kind"] for t in tactics(plan)} == {"right"}

    def test_equal_tasks_are_measured_once(self) -> None:
        def chain(length: int) -> Graph:
            net = Net()
            x = net.input(2, 4, 4, 8)
            for _ in range(length):
                x = net.relu(net.conv(x, 8))
            return net.output(x)

        graph = chain(6)
        plan, report = tune(graph, cpu())
        assert report.measured == tune(chain(3), cpu())[1].measured
        assert all(s.choices[0].tactic.task is s.task for s in plan.steps)
        given = feeds(graph)
        result = Engine(plan, cpu())(given)
        np.testing.assert_allclose(result, interpret(graph, given)[0], rtol=1e-4, atol=1e-5)


def test_wholes_are_measured_before_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(HostFamily):
        pattern = "opening"

    class Wholes(HostTarget):
        def families(self):
            return [*super().families(), Whole([{}, {"delay": 0.1}])]

    order: list[str] = []
    measure = Bench.measure

    def measured(self, tactic, best=float("inf")):
        order.append(tactic.task.pattern)
        return measure(self, tactic, best)

    monkeypatch.setattr(Bench, "measure", measured)
    plan, _ = tune(OpeningNet(dtype=DType.FLOAT32).graph, Wholes({"delay": 2.0}))
    assert order[0] == "opening"
    assert order.index("") == 1
    assert [step.task.pattern for step in plan.steps] == ["opening"]
    parts, _ = tune(OpeningNet(dtype=DType.FLOAT32).graph, HostTarget({}))
    assert all(not step.task.pattern for step in parts.steps)


def test_of_wholes_one_tactic_of_each_family_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow family that is offered first does not hide a fast one."""

    class OtherTactic(HostTactic):
        family = "other"

    class Whole(HostFamily):
        pattern = "opening"

    class Other(Whole):
        name = "other"

        def offered(self, task, binding):
            return [OtherTactic(task), OtherTactic(task, delay=0.1)]

    class Wholes(HostTarget):
        def families(self):
            return [*super().families(), Whole([{"delay": 8.0}, {"delay": 9.0}]), Other([])]

    order: list[tuple[str, str]] = []
    measure = Bench.measure

    def measured(self, tactic, best=float("inf")):
        order.append((tactic.task.pattern, tactic.family))
        return measure(self, tactic, best)

    monkeypatch.setattr(Bench, "measure", measured)
    tune(OpeningNet(dtype=DType.FLOAT32).graph, Wholes({"delay": 2.0}))
    assert order[:3] == [("opening", "host"), ("opening", "other"), ("", "host")]


def test_tasks_of_the_cheapest_cover_are_measured_in_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = Net()
    x = net.input(1, 4, 4, 3)
    graph = net.output(net.conv(x, 4), net.conv(x, 6))
    names: list[str] = []
    measure = Bench.measure

    def measured(self, tactic, best=float("inf")):
        names.append(tactic.task.name)
        return measure(self, tactic, best)

    monkeypatch.setattr(Bench, "measure", measured)
    sizes = [tuner_module.ROUND, tuner_module.LATER_ROUND, 2]
    target = HostTarget(*({"room": i} for i in range(sum(sizes))))
    target.tactics_per_task = sum(sizes)
    tune(graph, target)
    for size in sizes:
        assert sorted(names[: 2 * size]) == ["conv"] * size + ["conv_1"] * size
        del names[: 2 * size]


def test_steps_run_when_their_inputs_are_ready() -> None:
    from planish.plan.check import check_steps

    net = Net()
    x = net.input(N, 4, 4, 3)
    a, b = net.relu(net.conv(x, 4)), net.conv(x, 6)
    late = net.slice(net.concat(a, b), 3, 1, 8)
    graph = net.output(net.add(net.conv(late, 4), a), net.reshape(b, N, 96))
    plan, _ = tune(graph, cpu(), budget=0)
    check_steps(graph, plan.placements, [s.task for s in plan.steps])


def test_host_steps_are_named() -> None:
    engine = build(residual_net())
    assert engine.report.tuning.host_steps == [] == engine.host_steps()
