from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import pytest

from helpers.networks import N, Net, residual_net
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.plan.plan import Choice, Plan, PlanStep, binding_of
from planish.plan.views import insert_copies, place
from planish.targets.base import Binding, Family, Launch, Layout, Tactic
from planish.targets.cpu.target import CpuTarget
from planish.targets.reference import ReferenceTactic
from planish.targets.restoring import Allowed


@dataclass(frozen=True, eq=False)
class Picky(Tactic):
    """A tactic that accepts batches up to a size."""

    family: ClassVar[str] = "picky"
    most: int

    def accepts(self, binding: Binding) -> bool:
        return binding.symbols["N"] <= self.most

    def launches(self, binding: Binding) -> list[Launch]:
        return ReferenceTactic(self.task).launches(binding)


class PickyFamily(Family):
    name: ClassVar[str] = "picky"
    tactic: ClassVar[type[Tactic]] = Picky
    allowed: ClassVar[Allowed] = {"most": range(1, 100)}

    def understands(self, task: Task) -> bool:
        return True

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        yield Picky(task, 50)


class PickyTarget(CpuTarget):
    def families(self) -> list[Family]:
        return [PickyFamily()]


@pytest.fixture
def task() -> Task:
    net = Net()
    (task,) = propose(net.output(net.relu(net.input(N, 3))))
    return task


def test_the_nearest_size_that_accepts(task: Task) -> None:
    one, eight, all_sizes = Picky(task, 2), Picky(task, 10), Picky(task, 20)
    step = PlanStep(
        task,
        (
            Choice((("N", 1),), one),
            Choice((("N", 8),), eight),
            Choice((("N", 32),), all_sizes),
        ),
    )
    target = PickyTarget()

    def chosen(n: int) -> Tactic:
        return step.tactic(Binding({"N": n}), target)

    assert chosen(1) is one
    assert chosen(2) is one
    assert chosen(3) is eight  # 2.67 times apart rather than 3
    assert chosen(10) is eight
    assert chosen(12) is all_sizes  # nearer to 8, whose tactic refuses
    assert str(chosen(40)) == "picky(most=50)"  # the target's guess
    assert isinstance(chosen(60), ReferenceTactic)


class RangeTarget(CpuTarget):
    """Offers tactics for up to 10, 20 and 30 elements a dimension, in this order."""

    def families(self) -> list[Family]:
        class Several(PickyFamily):
            def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
                return (Picky(task, most) for most in (10, 20, 30))

        return [Several()]


def test_what_tuning_found_bad_is_not_guessed(task: Task) -> None:
    target = RangeTarget()

    def guess(n: int, **bad: tuple[str, ...]) -> str:
        return str(PlanStep(task, (), **bad).tactic(Binding({"N": n}), target))

    first, second, third = (f"picky(most={most})" for most in (10, 20, 30))
    assert guess(5) == first
    assert guess(5, wrong=(first,)) == second
    assert guess(5, slow=(first,)) == second
    assert guess(5, wrong=(first,), slow=(second,)) == third
    assert guess(25, slow=(third,)) == third  # nothing else can
    assert guess(25, wrong=(third,)) == "reference()"
    assert guess(5, wrong=(third,), slow=(first, second)) == first


def test_a_step_without_choices_takes_the_targets_guess(task: Task) -> None:
    assert str(PlanStep(task, ()).tactic(Binding({"N": 1}), PickyTarget())) == "picky(most=50)"


def test_binding_gives_layouts_of_views() -> None:
    net = Net()
    x = net.input(N, 3)
    a, b = net.relu(x), net.dense(x, 5)
    graph = net.output(net.dense(net.concat(a, b), 2))
    insert_copies(graph)
    plan = Plan(graph, ())
    task = next(t for t in propose(graph, plan.placements.free) if t.outputs == (b,))
    binding = plan.binding({"N": 4}, task)
    assert binding.layout(b) == Layout((4, 5), (8, 1), alignment=4)
    assert not binding.layout(b).is_dense
    assert binding.layout(x) == Layout((4, 3), (3, 1))
    assert binding.shape(b) == (4, 5)
    assert binding.strides(b) == (8, 1)


def test_binding_of_unplaced_values_is_dense() -> None:
    graph = residual_net()
    placements = place(graph)
    binding = binding_of(placements, {"N": 2}, ())
    assert binding.layout(graph.inputs[0]).strides == (144, 24, 4, 1)
