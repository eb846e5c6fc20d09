"""Which pairs that begin with a sum become one task, and what it says."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.pairs import PointwiseNet, SummedNet, pair_task
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.fused import ACCUMULATOR
from planish.graph import DType
from planish.plan.check import check_nodes


def net(**more) -> SummedNet:
    return SummedNet((2, 4, 5, 8), 6, 24, 12, **more)


def summed(graph) -> list:
    return [t for t in propose(graph) if t.pattern == "summed"]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_it_is_proposed_beside_its_parts(swapped: bool, kept: bool) -> None:
    built = net(swapped=swapped, kept=kept)
    graph = built.done()
    whole = max(summed(graph), key=lambda t: len(t.nodes))
    assert len(whole.nodes) == len(graph.nodes) - kept
    assert whole.outputs == ((built.result, built.inner) if kept else (built.result,))
    others = [t for t in propose(graph) if t.pattern != "summed"]
    assert {n for t in others for n in t.nodes} == set(graph.nodes)
    assert {"sum", "pair"} <= {t.pattern for t in others}


def test_the_task() -> None:
    built = net()
    task = pair_task(built)
    assert task.pair is not None and task.sum is not None
    assert task.anchor is built.second.producer
    assert {task.inputs[0], task.inputs[task.sum.image]} == {built.x, built.z}
    first, other = task.inputs[task.pair.filters], task.inputs[task.sum.filters]
    assert {first.shape[2], other.shape[2]} == {8, 6}
    assert first.shape[2] == task.inputs[0].shape[-1]
    assert task.pair.between.sources.count(ACCUMULATOR) == 2
    assert task.key != pair_task(PointwiseNet((2, 4, 5, 8), 24, 12)).key


def test_the_reference_is_that_of_the_nodes() -> None:
    built = net(dtype=DType.FLOAT32)
    task, rng = pair_task(built), np.random.default_rng()
    data = {v: rng.standard_normal(v.shape).astype(np.float32) for v in (built.x, built.z)}
    arrays = [data[v] if v.data is None else v.data for v in task.inputs]
    z, y = task.evaluate(arrays)
    known = dict(data)
    for node in built.graph.nodes:
        values = [known[v] if v.data is None else v.data for v in node.inputs]
        known.update(zip(node.outputs, node.op.reference(*values), strict=True))
    np.testing.assert_array_equal(z, known[built.result])
    np.testing.assert_array_equal(y, known[built.inner])


def test_what_is_none() -> None:
    built = net()
    built.graph.mark_output(built.graph.add(built.inner.producer.op, built.inner), "more")
    assert summed(built.done())  # who else reads the sum does not matter
    assert not summed(PointwiseNet((2, 4, 5, 8), 24, 12).done())


def test_plans_may_hold_it() -> None:
    built = net()
    graph = built.done()
    for task in propose(graph):
        check_nodes(graph, task.nodes, task.anchor)
    whole = max(summed(graph), key=lambda t: len(t.nodes))
    other = next(n for n in whole.nodes if n is not whole.anchor and n.op.name == "conv")
    with pytest.raises(PlanError, match="anchor"):
        check_nodes(graph, whole.nodes, other)
    with pytest.raises(PlanError):
        check_nodes(graph, [n for n in whole.nodes if n is not other], whole.anchor)
