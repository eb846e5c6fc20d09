"""Which convolutions become one task with the pooling behind them, and what it says."""

from __future__ import annotations

import pytest

from helpers.pooled import PooledNet, pooled_tasks
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.task import make_task
from planish.plan.check import check_nodes


def test_it_is_proposed_beside_its_parts() -> None:
    graph = PooledNet().graph
    (whole,) = pooled_tasks(graph)
    assert set(whole.nodes) == set(graph.nodes)
    assert {n for t in propose(graph) if not t.pooled for n in t.nodes} == set(graph.nodes)


def test_the_task() -> None:
    net = PooledNet()
    (task,) = pooled_tasks(net.graph)
    assert task.anchor is net.convolution
    assert (task.kind, task.pattern, task.precision) == ("pooled", "pooled", "fp16")
    assert task.inputs[:2] == net.convolution.inputs
    assert task.outputs == (net.result,)
    again = make_task(task.nodes, task.anchor)
    assert again.key == task.key
    assert task.key != make_task(task.nodes[:-1], task.anchor).key


@pytest.mark.parametrize("more", [{"activation": "none"}, {"strides": 2}, {"window": 1}], ids=str)
def test_others_of_its_kind(more) -> None:
    assert len(pooled_tasks(PooledNet(**more).graph)) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"shared": True},
        {"activation": "neg"},
        {"pool": 3},
        {"steps": 1},
        {"groups": 2},
        {"residual": True},
    ],
    ids=str,
)
def test_what_is_none(more) -> None:
    assert not pooled_tasks(PooledNet(**more).graph)


def test_plans_may_hold_it() -> None:
    net = PooledNet()
    (task,) = pooled_tasks(net.graph)
    check_nodes(net.graph, task.nodes, task.anchor)
    with pytest.raises(PlanError, match="anchor"):
        check_nodes(net.graph, task.nodes, task.nodes[-1])
    with pytest.raises(PlanError):
        check_nodes(net.graph, [n for n in task.nodes if n.op.name != "relu"], task.anchor)
