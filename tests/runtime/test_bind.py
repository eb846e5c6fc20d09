from __future__ import annotations

import numpy as np
import pytest

from helpers.host_tactics import HostTactic, HostTarget
from helpers.networks import N, Net, build, feeds, mobile_net, residual_net
from planish.fusion.candidates import propose
from planish.graph.interpret import interpret
from planish.plan.plan import Choice, Plan, PlanStep
from planish.plan.views import insert_copies
from planish.runtime.bind import ConstantStore, bind
from planish.runtime.engine import Engine
from planish.targets.base import Binding, Launch, Workspace
from planish.targets.cpu.target import CpuTarget, cpu
from planish.targets.execution import ARENA, FIRST_INPUT, Schedule


class Recorder(CpuTarget):
    """The CPU, remembering the schedules it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.schedules: list[Schedule] = []

    def executable(self, schedule: Schedule):
        self.schedules.append(schedule)
        return super().executable(schedule)


def schedule_of(plan: Plan, n: int) -> Schedule:
    target = Recorder()
    bind(plan, {"N": n}, target, ConstantStore(target))
    return target.schedules[0]


class TestAddresses:
    def test_inputs_and_outputs_are_used_where_they_are(self) -> None:
        net = Net()
        a, b = net.input(N, 3, name="a"), net.input(N, 3, name="b")
        plan = build(net.output(net.add(a, b), net.relu(b))).plan
        schedule = schedule_of(plan, 2)
        bases = {x.base for launch in schedule.launches for x in launch.addresses}
        assert bases == {FIRST_INPUT, FIRST_INPUT + 1, FIRST_INPUT + 2, FIRST_INPUT + 3}
        assert schedule.arena_bytes == 0
        assert (len(schedule.input_bytes), len(schedule.output_bytes)) == (2, 2)

    def test_parts_of_an_output_are_written_in_place(self) -> None:
        net = Net()
        x = net.input(N, 4, 4, 3)
        a, b = net.conv(x, 5, 3), net.relu(net.conv(x, 8))
        schedule = schedule_of(build(net.output(net.concat(a, b))).plan, 2)
        output = FIRST_INPUT + 1
        offsets = {x.offset for s in schedule.launches for x in s.addresses if x.base == output}
        assert offsets == {0, 5 * 4}

    def test_addresses_lie_inside_the_arena(self) -> None:
        plan = build(mobile_net(32)).plan
        for n in (1, 3):
            schedule = schedule_of(plan, n)
            for scheduled in schedule.launches:
                for address, described in zip(scheduled.addresses, scheduled.layouts, strict=True):
                    if address.base != ARENA or described is None:
                        continue
                    layout, dtype = described
                    reach = 1 + sum(
                        (k - 1) * s for k, s in zip(layout.shape, layout.strides, strict=True)
                    )
                    assert address.offset + reach * dtype.itemsize <= schedule.arena_bytes


class TestBoundPlan:
    def test_fields(self) -> None:
        engine = build(residual_net())
        bound = engine.bound({"N": 3})
        assert bound.output_shapes == ((3, 5),)
        assert len(bound.tactics) == len(engine.plan.steps)
        assert sorted(set(bound.launch_steps)) == list(range(len(engine.plan.steps)))
        assert bound.launch_steps == tuple(sorted(bound.launch_steps))
        assert bound.live_bytes <= bound.arena_bytes

    def test_constants_are_made_once_for_all_sizes(self) -> None:
        engine = build(residual_net())
        made: list[int] = []
        pool = cpu().constant_pool()
        place = pool.place

        class Counting(CpuTarget):
            def constant_pool(self):
                pool.place = lambda array: (made.append(array.nbytes), place(array))[1]
                return pool

        target = Counting()
        store = ConstantStore(target)
        bind(engine.plan, {"N": 1}, target, store)
        count = len(made)
        assert count
        bind(engine.plan, {"N": 1}, target, store)
        assert len(made) == count


class Scratch(HostTactic):
    """Two launches that hand each other data through the workspace."""

    def workspace(self, binding: Binding) -> int:
        return 8 * int(np.prod(binding.shape(self.task.output)))

    def launches(self, binding: Binding) -> list[Launch]:
        (launch,) = super().launches(binding)
        return [launch, Launch(launch.kernel, launch.pointers)]


def test_workspaces_do_not_overlap_what_lives() -> None:
    net = Net()
    x = net.input(N, 50)
    a = net.dense(x, 50)
    graph = net.output(net.add(net.dense(a, 50), a))
    insert_copies(graph)
    order = {n: i for i, n in enumerate(graph.nodes)}
    tasks = [t for t in propose(graph) if len(t.nodes) == 1]
    tasks.sort(key=lambda t: order[t.nodes[0]])
    steps = tuple(PlanStep(t, (Choice((), Scratch(t)),)) for t in tasks)
    engine = Engine(Plan(graph, steps), HostTarget())
    bound = engine.bound({"N": 4})
    assert bound.live_bytes >= 2 * 4 * 50 * 4 + 2 * 4 * 50 * 4
    given = feeds(graph, 4)
    np.testing.assert_allclose(engine(given), interpret(graph, given)[0], rtol=1e-5)
    assert Workspace(64).offset == 64


@pytest.mark.parametrize("n", [1, 2, 5])
def test_whole_networks(n: int) -> None:
    graph = mobile_net(32)
    given = feeds(graph, n)
    (want,) = interpret(graph, given)
    have = build(mobile_net(32))(given)
    np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-4 * float(np.abs(want).max()))
