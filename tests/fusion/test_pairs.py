"""Which nodes become a pair of convolutions, and what its task says."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.networks import N
from helpers.pairs import PairNet, PointwiseNet, pair_task
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.graph.graph import Graph
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Clip, ew
from planish.plan.check import check_nodes
from planish.targets.base import Binding
from planish.tuning.estimate import operations


def pairs(graph: Graph) -> list[frozenset[str]]:
    return [frozenset(n.name for n in t.nodes) for t in propose(graph) if t.pair]


def test_a_pair_is_proposed_beside_its_parts() -> None:
    net = PairNet((N, 8, 8, 32), 16, residual=True)
    graph = net.done()
    inside = {n.name for n in graph.nodes if n.output in (net.first, net.inner, net.second)}
    found = pairs(graph)
    assert {n.name for n in graph.nodes} in found
    assert all(inside <= nodes for nodes in found)
    others = [t for t in propose(graph) if not t.pair]
    assert {n for t in others for n in t.nodes} == set(graph.nodes)


def test_the_task() -> None:
    task = pair_task(PairNet((2, 8, 8, 32), 16))
    assert task.pair is not None and task.anchor is not None
    assert task.kind == "pair"
    assert task.precision == "fp16"
    assert task.inputs[task.pair.filters].shape == (3, 3, 1, 32)
    assert [str(i.op) for i in task.pair.between.expression.instructions] == [
        str(ew.Add()),
        str(Clip(0.0, 6.0)),
    ]
    assert task.anchor.output.shape == (2, 8, 8, 16)
    assert "groups=32" in task.key and "clip" in task.key
    assert task.key != pair_task(PairNet((2, 8, 8, 32), 16, bias=False)).key
    assert task.key != pair_task(PairNet((2, 8, 8, 32), 16, dilation=2, padding=(2, 2))).key


def test_the_reference_is_that_of_the_nodes() -> None:
    net = PairNet((2, 6, 5, 12), 7, dtype=DType.FLOAT32, residual=True)
    task = pair_task(net)
    arrays = [
        v.data if v.data is not None else np.ones(v.type.bind({}), np.float32) for v in task.inputs
    ]
    (result,) = task.evaluate(arrays)
    assert result.shape == (2, 6, 5, 7)


@pytest.mark.parametrize("kept", [True, False])
def test_two_pointwise_convolutions(kept: bool) -> None:
    net = PointwiseNet((N, 8, 8, 16), 64, 16, kept=kept)
    task = pair_task(net)
    assert task.pair is not None
    assert task.pair.kept is kept
    assert task.outputs == ((net.result, net.inner) if kept else (net.result,))
    assert ("kept" in task.key) is kept
    assert task.inputs[0] is net.x


def test_a_kept_result_is_as_the_nodes_give_it() -> None:
    task = pair_task(PointwiseNet((1, 3, 4, 8), 24, 5, dtype=DType.FLOAT32))
    arrays = [
        v.data if v.data is not None else np.ones(v.type.bind({}), np.float32) for v in task.inputs
    ]
    result, inner = task.evaluate(arrays)
    assert (result.shape, inner.shape) == ((1, 3, 4, 5), (1, 3, 4, 24))


def test_an_epilogue_that_reads_what_lies_inside_is_left_out() -> None:
    net = PointwiseNet((1, 8, 8, 16), 32, 32, kept=False)
    net.result = net.graph.add(ew.Add(), net.result, net.inner)
    graph = net.done()
    last = graph.outputs[0].producer
    assert last is not None
    found = pairs(graph)
    assert found
    assert not any(last.name in nodes for nodes in found)
    with pytest.raises(PlanError, match="its epilogue reads what lies before"):
        check_nodes(graph, graph.nodes, net.second.producer)


def test_both_convolutions_count() -> None:
    task = pair_task(PairNet((1, 8, 8, 32), 16, bias=False))
    own = 2 * 8 * 8 * 32 * 9 + 2 * 8 * 8 * 32 * 16
    assert operations(task, Binding({})) == own + 2 * 8 * 8 * 16


def test_what_is_no_pair() -> None:
    seen = PairNet((1, 8, 8, 32), 16)
    seen.graph.mark_output(seen.inner, "inner")
    twice = PairNet((1, 8, 8, 32), 16)
    twice.graph.mark_output(twice.graph.add(ew.Neg(), twice.inner), "other")
    wide = PairNet((1, 8, 8, 32), 16)
    graph = wide.graph
    last = graph.add(Conv((1, 1), ((1, 1), (1, 1)), (1, 1)), wide.inner, wide.constant(3, 3, 32, 4))
    wide.result = last
    image = PairNet((1, 8, 8, 32), 16)
    shifted = image.graph.add(ew.Add(), image.first, image.constant(1, 8, 8, 32))
    image.result = image.graph.add(
        Conv((1, 1), ((0, 0), (0, 0)), (1, 1)), shifted, image.constant(1, 1, 32, 4)
    )
    for net in (seen, twice, image):
        assert not pairs(net.done())
    assert all(last.producer.name not in nodes for nodes in pairs(wide.done()))  # type: ignore[union-attr]


@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("pointwise", [True, False])
def test_every_pair_is_a_task_that_plans_accept(choice: bool, pointwise: bool) -> None:
    if pointwise:
        graph = PointwiseNet((N, 8, 8, 32), 64, 16, kept=choice).done()
    else:
        graph = PairNet((N, 8, 8, 32), 16, bias=choice, residual=True).done()
    for task in propose(graph):
        check_nodes(graph, task.nodes, task.anchor)
