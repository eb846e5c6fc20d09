"""Which sums of two convolutions become one task, and what it says."""

from __future__ import annotations

import pytest

from helpers.sums import SumNet, sum_tasks
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.fused import ACCUMULATOR
from planish.plan.check import check_nodes

SHAPES = (2, 4, 5, 8), (2, 8, 10, 6)


def net(**more) -> SumNet:
    return SumNet(*SHAPES, 12, stride=2, **more)


@pytest.mark.parametrize("swapped", [False, True])
def test_it_is_proposed_beside_its_parts(swapped: bool) -> None:
    graph = net(swapped=swapped).graph
    whole, *others = sum_tasks(graph)
    assert set(whole.nodes) == set(graph.nodes)
    assert all(set(t.nodes) < set(graph.nodes) for t in others)
    alone = [t for t in propose(graph) if not t.sum]
    assert {n for t in alone for n in t.nodes} == set(graph.nodes)


def test_the_task() -> None:
    built = net()
    task, *_ = sum_tasks(built.graph)
    first, second = (v.producer for v in built.convolutions)
    assert task.anchor is second
    assert task.sum is not None and task.sum.first is first.op
    assert (task.kind, task.pattern, task.precision) == ("sum", "sum", "fp16")
    read = task.inputs[0], task.inputs[task.sum.image], task.inputs[task.sum.filters]
    assert read == (second.inputs[0], *first.inputs)
    assert task.epilogue.sources.count(ACCUMULATOR) == 2
    other, *_ = sum_tasks(net(bias=False).graph)
    assert other.key != task.key


@pytest.mark.parametrize("more", [{"shared": True}, {"scaled": True}], ids=str)
def test_what_is_none(more) -> None:
    assert not sum_tasks(net(**more).graph)


def test_plans_may_hold_it() -> None:
    built = net()
    task, *_ = sum_tasks(built.graph)
    check_nodes(built.graph, task.nodes, task.anchor)
    first = built.convolutions[0].producer
    with pytest.raises(PlanError, match="anchor"):
        check_nodes(built.graph, task.nodes, first)
    with pytest.raises(PlanError):
        check_nodes(built.graph, [n for n in task.nodes if n is not first], task.anchor)
