"""Which products become one task with the layer norm behind them, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.normalized import NormalizedNet, normalized_tasks
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.task import make_task
from planish.plan.check import check_nodes


def test_it_is_proposed_beside_its_parts() -> None:
    graph = NormalizedNet().graph
    (whole,) = normalized_tasks(graph)
    assert set(whole.nodes) == set(graph.nodes)
    assert {n for t in propose(graph) if not t.normalized for n in t.nodes} == set(graph.nodes)


@pytest.mark.parametrize(
    ("factors", "precision"), [("floats", "fp16"), ("levels", "int8"), ("codes", "fp8")]
)
def test_the_task(factors: str, precision: str) -> None:
    net = NormalizedNet(factors=factors)
    (task,) = normalized_tasks(net.graph)
    assert task.anchor is net.product
    assert (task.kind, task.pattern, task.precision) == ("normalized", "normalized", precision)
    assert task.inputs[: len(net.product.inputs)] == net.product.inputs
    assert task.outputs == (net.result,)
    assert task.normalized is not None and not task.normalized.kept
    again = make_task(task.nodes, task.anchor)
    assert again.key == task.key
    assert task.key != make_task(task.nodes[:-1], task.anchor).key
    data = net.arrays(task)
    (whole,) = task.evaluate(data)
    assert whole.shape == net.result.shape and not np.all(whole == whole.reshape(-1)[0])


def test_what_others_read_is_a_second_output() -> None:
    net = NormalizedNet(kept=True)
    (task,) = normalized_tasks(net.graph)
    assert task.outputs == (net.result, net.inner)
    assert task.normalized is not None and task.normalized.kept
    assert task.key != NormalizedNet().task.key
    check_nodes(net.graph, task.nodes, task.anchor)


@pytest.mark.parametrize(
    "more", [{"residual": False}, {"columns": 63}, {"rows": (2, 5, 3)}, {"axis": 1}], ids=str
)
def test_others_of_its_kind(more) -> None:
    assert len(normalized_tasks(NormalizedNet(**more).graph)) == 1


@pytest.mark.parametrize(
    "more",
    [{"shared": True}, {"axis": 0}, {"by_column": False}, {"constant": False}],
    ids=str,
)
def test_what_is_none(more) -> None:
    assert not normalized_tasks(NormalizedNet(**more).graph)


def test_a_result_of_the_network_is_not_inside() -> None:
    net = NormalizedNet()
    net.graph.mark_output(net.inner, "sum")
    assert not normalized_tasks(net.graph)


def test_plans_may_hold_it() -> None:
    net = NormalizedNet(factors="levels")
    task = net.task
    check_nodes(net.graph, task.nodes, task.anchor)
    with pytest.raises(PlanError, match="anchor"):
        check_nodes(net.graph, task.nodes, task.nodes[-1])
    with pytest.raises(PlanError):
        check_nodes(net.graph, [n for n in task.nodes if n.op.name != "add"], task.anchor)
