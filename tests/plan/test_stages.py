"""Plans of several stages: how they are divided, stored, and read from files that lie."""

from __future__ import annotations

import numpy as np
import pytest

import planish
from helpers.networks import Net, build
from helpers.plan_bytes import join, split
from planish.errors import PlanError, ShapeError
from planish.graph.graph import Graph
from planish.graph.stages import node_stages
from planish.ops import Gather, NonZero, ReduceSum, Reshape, Slice, ew


def picked_net() -> Net:
    """Features, some of their rows, and sums of all and of those."""
    net = Net()
    graph, x = net.graph, net.input(30, 4, name="x")
    score = graph.add(ReduceSum((1,), False), x)
    zero = graph.constant(np.zeros((), np.float32))
    node = graph.add_node(NonZero(), [graph.add(ew.Greater(), score, zero)])
    n = graph.measure(node.outputs[1], 30, "n")
    rows = graph.add(Slice((0, 0), (n, 1), (1, 1)), node.outputs[0])
    features = net.relu(net.dense(x, 6))
    kept = graph.add(Gather(), features, graph.add(Reshape((n,)), rows))
    net.output(graph.add(ReduceSum((0,), False), kept), net.concat(features, kept, axis=0))
    return net


def test_what_needs_no_count_runs_first() -> None:
    plan = build(picked_net().graph).plan
    first, second = plan.stages.parts
    names = {plan.steps[i].task.anchor.op.name for i in first.steps if plan.steps[i].task.anchor}
    assert {"non_zero", "mat_mul"} <= names
    assert first.counts == ("n",)
    assert "n" in second.symbols
    assert "n" not in first.symbols
    assert not plan.stages.row_wise
    number = node_stages(plan.graph)
    assert all(stage == 1 for stage in number.values())


def test_a_concatenation_of_both_stages() -> None:
    engine = build(picked_net().graph)
    for x in (np.full((30, 4), -1, np.float32), np.random.default_rng(0).standard_normal((30, 4))):
        total, joined = engine(x.astype(np.float32)).values()
        count = int((x.sum(1) > 0).sum())
        assert joined.shape == (30 + count, 6)
        np.testing.assert_allclose(total, joined[30:].sum(0), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(joined[30:], joined[:30][x.sum(1) > 0])


def test_a_plan_without_counts_says_nothing_of_them() -> None:
    net = Net()
    header, _ = split(build(net.output(net.relu(net.input(2, 3)))).serialize())
    assert {"counts", "trims"}.isdisjoint(header["graph"])


def _unknown_output(graph: dict) -> None:
    graph["counts"]["n"][0] = "nobody"


def _count_of_floats(graph: dict) -> None:
    graph["counts"]["n"][0] = "out1"


def _no_count(graph: dict) -> None:
    del graph["counts"]


def _limit_of_nothing(graph: dict) -> None:
    graph["counts"]["n"][1] = "M"


def _malformed(graph: dict) -> None:
    graph["counts"]["n"] = 7


def _padded(graph: dict) -> None:
    graph["counts"]["n"][2] = True


def _cut_of_nothing(graph: dict) -> None:
    graph["trims"] = {"nobody": [3]}


@pytest.mark.parametrize(
    "lie",
    [
        *(_unknown_output, _count_of_floats, _no_count, _limit_of_nothing),
        *(_malformed, _padded, _cut_of_nothing),
    ],
)
def test_files_that_lie(lie) -> None:
    header, weights = split(build(picked_net().graph).serialize())
    lie(header["graph"])
    with pytest.raises(PlanError):
        planish.load(join(header, weights))


def test_a_limit_that_lies_reads_nothing_outside() -> None:
    header, weights = split(build(sums().graph).serialize())
    header["graph"]["counts"]["n"][1] = 1 << 20
    engine = planish.load(join(header, weights))
    x = np.arange(10, dtype=np.float32)
    assert engine({"x": x, "count": np.full(1, 3, np.float32)}) == 3
    with pytest.raises(ShapeError):
        engine({"x": x, "count": np.full(1, 9000, np.float32)})


def sums() -> Net:
    """The sum of as many elements as an input says."""
    from planish.graph.types import DType
    from planish.ops import Cast

    net = Net()
    graph: Graph = net.graph
    x, count = net.input(10, name="x"), net.input(1, name="count")
    n = graph.measure(graph.add(Cast(DType.INT64), count), 10, "n")
    net.output(graph.add(ReduceSum((0,), False), graph.add(Slice((0,), (n,), (1,)), x)))
    return net
