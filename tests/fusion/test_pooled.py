"""Which convolutions become one task with the pooling behind them, and what it says."""

from __future__ import annotations

import pytest

from helpers.first_layers import FirstNet, first_tasks
from helpers.pooled import PooledNet, pooled_tasks
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.task import make_task
from planish.graph.types import DType
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


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.INT8], ids=str)
def test_images_with_what_stands_before_them(dtype, transposed) -> None:
    net = FirstNet(dtype=dtype, transposed=transposed)
    alone, whole = first_tasks(net.graph)
    assert set(whole.nodes) == set(net.graph.nodes)
    assert whole.pattern == alone.pattern == "pooled"
    assert whole.precision == ("int8" if dtype is DType.INT8 else "fp16")
    assert (whole.image is not None) == transposed and whole.prologue is not None
    assert alone.image is None and alone.prologue is None
    assert whole.inputs[0] is net.graph.inputs[0]
    assert whole.outputs == (net.result,)
    assert make_task(whole.nodes, whole.anchor).key == whole.key != alone.key
    for task in (alone, whole):
        check_nodes(net.graph, task.nodes, task.anchor)
    with pytest.raises(PlanError, match="anchor"):
        check_nodes(net.graph, whole.nodes, whole.nodes[-1])


def test_the_order_of_numbers_is_kept() -> None:
    """By a negative scale the largest sum becomes the smallest level."""
    assert first_tasks(FirstNet(dtype=DType.INT8).graph)
    assert not first_tasks(FirstNet(dtype=DType.INT8, scale=-1.0).graph)


@pytest.mark.parametrize("edges", [((2, 1), (1, 1)), ((1, 1), (1, 2))], ids=str)
def test_poolings_with_other_padding(edges) -> None:
    assert not first_tasks(FirstNet(edges=edges).graph)


def test_overlapping_poolings_of_many_channels_are_none() -> None:
    assert not first_tasks(FirstNet(channels=5).graph)
