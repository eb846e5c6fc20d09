from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.levels import Levels
from helpers.networks import N, Net, feeds, mobile_net, residual_net
from planish.fusion.candidates import LONGEST, propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Value
from planish.graph.interpret import bind, interpret
from planish.graph.types import DType
from planish.ops import (
    DecodeFloat8,
    Dequantize,
    EncodeFloat8,
    MatMulFloat8,
    MatMulInteger,
    Quantize,
    ew,
)
from planish.plan.check import check_nodes, check_steps
from planish.plan.views import Placements


def names(tasks: list[Task]) -> set[frozenset[str]]:
    return {frozenset(n.name for n in t.nodes) for t in tasks}


def s(text: str) -> frozenset[str]:
    return frozenset(text.split())


class TestSets:
    def test_anchor_with_all_that_follows(self) -> None:
        net = Net()
        graph = net.output(net.relu(net.bias(net.dense(net.input(N, 4), 6))))
        assert names(propose(graph)) == {
            s("mat_mul add relu"),
            s("mat_mul"),
            s("add"),
            s("add relu"),
            s("relu"),
        }

    def test_chain_is_cut_where_another_producer_could_take_over(self) -> None:
        net = Net()
        x = net.input(N, 4)
        a, b = net.bias(net.dense(x, 6)), net.bias(net.dense(x, 6))
        graph = net.output(net.relu(net.add(a, b)))
        found = names(propose(graph))
        assert s("mat_mul add add_2 relu") in found
        assert s("mat_mul_1 add_1 add_2 relu") in found
        assert s("mat_mul add") in found
        assert s("mat_mul_1 add_1") in found

    def test_bytes_are_kept_between_two_products(self) -> None:
        """One may end with bytes, and the other read these, and not what they were made of."""
        net = Net()
        x, one, none = net.input(N, 4), np.float32(1), np.float32(0)
        scale = net.graph.constant(one), net.graph.constant(none)
        levels = net.graph.add(Quantize(DType.UINT8, 0, 255), net.dense(x, 6), *scale)
        b = net.dense(x, 6)
        graph = net.output(net.relu(net.add(b, net.graph.add(Dequantize(), levels, *scale))))
        found = names(propose(graph))
        assert s("mat_mul quantize") in found
        assert s("mat_mul_1 dequantize add relu") in found

    def test_value_with_two_readers_is_not_swallowed(self) -> None:
        net = Net()
        y = net.dense(net.input(N, 4), 6)
        graph = net.output(net.relu(y), net.graph.add(ew.Neg(), y))
        assert names(propose(graph)) == {s("mat_mul"), s("relu"), s("neg")}

    def test_output_is_not_swallowed(self) -> None:
        net = Net()
        y = net.bias(net.dense(net.input(N, 4), 6))
        graph = net.output(y, net.relu(y))
        assert names(propose(graph)) == {s("mat_mul add"), s("mat_mul"), s("add"), s("relu")}

    def test_change_of_shape_ends_an_epilogue(self) -> None:
        net = Net()
        y = net.relu(net.dense(net.input(1, 4), 6))
        graph = net.output(net.add(y, net.weights(3, 6)))
        assert names(propose(graph)) == {s("mat_mul"), s("mat_mul relu"), s("relu"), s("add")}

    def test_prologue(self) -> None:
        net = Net()
        before = net.relu(net.bias(net.input(N, 4)))
        graph = net.output(net.relu(net.dense(before, 6)))
        tasks = propose(graph)
        assert s("add relu mat_mul relu_1") in names(tasks)
        assert s("add relu mat_mul") in names(tasks)
        task = max(tasks, key=lambda t: len(t.nodes))
        assert task.prologue is not None

    def test_prologue_of_two_tensors_is_none(self) -> None:
        net = Net()
        before = net.add(net.input(N, 4), net.input(N, 4, name="y"))
        graph = net.output(net.dense(before, 6))
        assert names(propose(graph)) == {s("add"), s("mat_mul")}

    def test_free_nodes_are_in_no_task(self) -> None:
        net = Net()
        y = net.reshape(net.relu(net.input(N, 4)), N, 2, 2)
        graph = net.output(net.relu(y))
        assert y.producer is not None
        assert names(propose(graph, frozenset([y.producer]))) == {s("relu"), s("relu_1")}

    def test_length_is_limited(self) -> None:
        net = Net()
        x = net.dense(net.input(N, 4), 6)
        for _ in range(3 * LONGEST):
            x = net.relu(x)
        tasks = propose(net.output(x))
        assert max(len(t.nodes) for t in tasks) == LONGEST + 1

    def test_cluster_with_a_diamond(self) -> None:
        net = Net()
        x = net.relu(net.input(N, 4))
        graph = net.output(net.add(net.graph.add(ew.Exp(), x), net.graph.add(ew.Neg(), x)))
        assert s("relu exp neg add") in names(propose(graph))


def test_sums_of_levels_are_read_by_nothing_but_elementwise_work() -> None:
    """What they become takes a quarter of their bytes, and is what the next product reads."""
    b = Levels(np.random.default_rng(2))
    sums = b.add(MatMulInteger(), b.input((4, 8)), b.levels((8, 8)), *b.zeros())
    levels = b.requantized(sums, 8, False, DType.INT8)
    more = b.add(MatMulInteger(), levels, b.levels((8, 6)), *b.zeros())
    b.graph.mark_output(b.requantized(more, 8, False, None), "y")
    tasks = propose(b.graph)
    assert {t.anchor for t in tasks if sums in t.inputs} == {None}
    assert any(t.output is levels and t.anchor is sums.producer for t in tasks)


def test_sums_of_codes_are_read_by_nothing_but_elementwise_work() -> None:
    b = Levels(np.random.default_rng(2))
    sums = b.add(MatMulFloat8(), b.input((4, 8)), b.graph.constant(np.ones((8, 8), np.int8)))
    one = b.graph.constant(np.float32(1))
    codes = b.add(EncodeFloat8(), b.add(DecodeFloat8(), sums, one), one)
    more = b.add(MatMulFloat8(), codes, b.graph.constant(np.ones((8, 6), np.int8)))
    b.graph.mark_output(b.add(DecodeFloat8(), more, one), "y")
    tasks = propose(b.graph)
    assert {t.anchor for t in tasks if sums in t.inputs} == {None}
    assert any(t.output is codes and t.anchor is sums.producer for t in tasks)


@pytest.mark.parametrize("make", [residual_net, mobile_net])
def test_invariants_of_networks(make) -> None:
    invariants(make())


def invariants(graph: Graph) -> list[Task]:
    tasks = propose(graph)
    alone = {t.nodes[0] for t in tasks if len(t.nodes) == 1}
    assert alone == set(graph.nodes)
    assert len(names(tasks)) == len(tasks)
    for task in tasks:
        check_nodes(graph, task.nodes, task.anchor)
        assert len(task.outputs) == (2 if task.pair and task.pair.kept else 1)
        assert sum(n is task.anchor for n in task.nodes) == (task.anchor is not None)
    again = propose(graph)
    assert [t.nodes for t in again] == [t.nodes for t in tasks]
    return tasks


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_every_cover_computes_the_graph(data: st.DataObject) -> None:
    net = Net()
    values = [net.input(N, 4)]
    for _ in range(data.draw(st.integers(3, 12))):
        pick: Value = data.draw(st.sampled_from(values[-3:]))
        kind = data.draw(st.sampled_from(["relu", "add", "bias", "dense"]))
        if kind == "add":
            values.append(net.add(pick, data.draw(st.sampled_from(values))))
        elif kind == "dense":
            values.append(net.dense(pick, 4))
        else:
            values.append(net.relu(pick) if kind == "relu" else net.bias(pick))
    graph = net.output(values[-1], data.draw(st.sampled_from(values[1:])))
    graph.tidy()
    tasks = invariants(graph)
    position = {n: i for i, n in enumerate(graph.nodes)}
    rest, chosen = set(graph.nodes), []
    while rest:
        node = min(rest, key=position.__getitem__)
        fitting = [t for t in tasks if node in t.nodes and rest.issuperset(t.nodes)]
        task = data.draw(st.sampled_from(fitting))
        chosen.append(task)
        rest -= set(task.nodes)
    chosen.sort(key=lambda t: position[t.nodes[-1]])
    check_steps(graph, Placements({}, frozenset()), chosen)
    arrays = feeds(graph, 2)
    known = {v: arrays[v.name] for v in graph.inputs}
    known.update({v: v.data for v in graph.constants() if v.data is not None})
    for task in chosen:
        assert all(bind(n.op, {"N": 2}) is n.op for n in task.nodes)
        known.update(zip(task.outputs, task.evaluate([known[v] for v in task.inputs]), strict=True))
    for value, want in zip(graph.outputs, interpret(graph, arrays), strict=True):
        np.testing.assert_array_equal(known[value], want)
