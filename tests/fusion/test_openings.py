"""Which first layers become one task, and what it says."""

from __future__ import annotations

import pytest

from helpers.openings import OpeningNet, opening_tasks
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.task import make_task
from planish.plan.check import check_nodes


@pytest.mark.parametrize("transposed", [False, True])
def test_it_is_proposed_beside_its_parts(transposed: bool) -> None:
    graph = OpeningNet(transposed=transposed).graph
    (whole,) = opening_tasks(graph)
    assert set(whole.nodes) == set(graph.nodes)
    assert {n for t in propose(graph) if not t.opening for n in t.nodes} == set(graph.nodes)


def test_the_task() -> None:
    net = OpeningNet()
    (task,) = opening_tasks(net.graph)
    first, second = net.convolutions
    assert task.anchor is second
    assert (task.kind, task.pattern, task.precision) == ("opening", "opening", "fp16")
    assert task.opening is not None and task.opening.perm == (0, 2, 3, 1)
    assert task.inputs[0] is net.graph.inputs[0]
    assert task.inputs[task.opening.filters] is first.inputs[1]
    assert task.outputs == (net.result,)
    (other,) = opening_tasks(OpeningNet(transposed=False).graph)
    assert other.opening is not None and other.opening.perm is None
    assert other.key != task.key
    again = make_task(task.nodes, task.anchor)
    assert again.key == task.key


@pytest.mark.parametrize(
    "more",
    [{"shared": True}, {"activation": "neg"}, {"strides": 2}, {"window": 3}, {"channels": 5}],
    ids=str,
)
def test_what_is_none(more) -> None:
    assert not opening_tasks(OpeningNet(**more).graph)


def test_plans_may_hold_it() -> None:
    net = OpeningNet()
    (task,) = opening_tasks(net.graph)
    check_nodes(net.graph, task.nodes, task.anchor)
    with pytest.raises(PlanError, match="anchor"):
        check_nodes(net.graph, task.nodes, net.convolutions[0])
    with pytest.raises(PlanError):
        check_nodes(net.graph, [n for n in task.nodes if n.op.name != "relu"], task.anchor)
