from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.networks import N, Net, feeds
from planish.fusion.task import ACCUMULATOR, Task, make_task
from planish.graph.graph import Graph, Node, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops import TopK, ew


def numbered(task: Task) -> dict[str, int]:
    """The inputs' names with their numbers."""
    return {v.name: i for i, v in enumerate(task.inputs)}


def producer(value: Value) -> Node:
    assert value.producer is not None
    return value.producer


class TestWithoutAnchor:
    def test_all_stands_in_the_epilogue(self) -> None:
        net = Net()
        x, y = net.input(N, 3), net.input(N, 3, name="y")
        graph = net.output(net.relu(net.add(net.add(x, y), x)))
        task = make_task(graph.nodes)
        assert task.anchor is None
        assert task.prologue is None
        assert task.inputs == (x, y)
        assert task.outputs == (graph.outputs[0],)
        assert task.epilogue.sources == (0, 1)
        assert str(task.epilogue.expression) == "relu(add(add(x0, x1), x0))"

    def test_constants_of_one_element_are_leaves(self) -> None:
        net = Net()
        x = net.input(N, 3)
        two = net.graph.constant(np.full((1, 1), 2.0, np.float32))
        y = net.graph.add(ew.Mul(), x, two)
        bias = net.weights(3)
        graph = net.output(net.add(y, bias))
        task = make_task(graph.nodes)
        assert task.inputs == (x, bias)
        assert task.epilogue.sources == (0, None, 1)
        assert task.epilogue.expression.leaves[1].constant == 2.0

    def test_results_needed_outside_are_outputs(self) -> None:
        net = Net()
        a = net.relu(net.input(N, 3))
        b = net.relu(a)
        graph = net.output(net.dense(a, 2), b)
        task = make_task([producer(a), producer(b)])
        assert task.outputs == (a, b)
        assert len(task.epilogue.expression.results) == 2
        assert graph


class TestAnchor:
    def test_epilogue_reads_the_accumulator_and_operands(self) -> None:
        net = Net()
        x, rest = net.input(N, 4), net.input(N, 6, name="rest")
        w, bias = net.weights(4, 6), net.weights(6)
        from planish.ops import MatMul

        y = net.graph.add(MatMul(), x, w)
        out = net.relu(net.add(net.add(rest, y), bias))
        graph = net.output(out)
        task = make_task(graph.nodes, producer(y))
        assert task.inputs == (x, w, rest, bias)
        assert task.epilogue.sources == (ACCUMULATOR, 2, 3)
        assert str(task.epilogue.expression) == "relu(add(add(x1, x0), x2))"
        assert task.outputs == (out,)
        assert task.output is out
        assert task.name == producer(out).name

    def test_alone_has_the_identity(self) -> None:
        net = Net()
        graph = net.output(net.dense(net.input(N, 4), 6))
        task = make_task(graph.nodes, graph.nodes[0])
        assert task.epilogue.expression.is_copy
        assert task.epilogue.sources == (ACCUMULATOR,)

    def test_prologue_takes_the_place_of_input_0(self) -> None:
        net = Net()
        bias, x = net.weights(4), net.input(N, 4)
        before = net.relu(net.graph.add(ew.Sub(), bias, x))
        y = net.dense(before, 6)
        out = net.relu(y)
        graph = net.output(out)
        task = make_task(graph.nodes, producer(y))
        assert task.inputs[0] is x  # the operand of the input's own shape first
        assert task.prologue is not None
        assert [task.inputs[s] for s in task.prologue.sources if s is not None] == [bias, x]
        assert str(task.prologue.expression) == "relu(sub(x0, x1))"
        assert producer(y).inputs[1] in task.inputs
        assert str(task.epilogue.expression) == "relu(x0)"

    def test_operand_that_is_also_an_input_is_one_input(self) -> None:
        net = Net()
        x = net.input(N, 4)
        y = net.dense(x, 4)
        task = make_task(net.output(net.add(y, x)).nodes, producer(y))
        assert len(task.inputs) == 2
        assert task.epilogue.sources == (ACCUMULATOR, 0)

    def test_several_outputs(self) -> None:
        graph = Graph()
        x = graph.input("x", TensorType((N, 9), DType.FLOAT32))
        node = graph.add_node(TopK(2), [x])
        graph.mark_output(node.outputs[1], "indices")
        task = make_task([node], node)
        assert task.outputs == node.outputs
        assert task.epilogue.sources == (ACCUMULATOR,)


class TestKey:
    def make(self, *, batch=N, channels: int = 4, seed: int = 0, op=None) -> Task:
        net = Net(seed=seed)
        y = net.dense(net.input(batch, 3), channels)
        graph = net.output(net.graph.add(op or ew.Relu(), y))
        return make_task(graph.nodes, graph.nodes[0])

    def test_holds_what_kernels_depend_on(self) -> None:
        key = self.make().key
        assert self.make(seed=1).key == key  # not the weights' values
        assert self.make(batch=2).key != key
        assert self.make(channels=5).key != key
        assert self.make(op=ew.Neg()).key != key

    def test_tells_constants_from_tensors(self) -> None:
        net = Net()
        x, y = net.input(2, 3), net.input(3, name="y")
        with_tensor = make_task([producer(net.add(x, y))])
        with_constant = make_task([producer(net.bias(x))])
        assert with_tensor.key != with_constant.key

    def test_tells_operands_apart(self) -> None:
        net = Net()
        x, y = net.input(2, 3), net.input(2, 3, name="y")
        keys = {make_task([producer(net.graph.add(ew.Sub(), *p))]).key for p in ((x, y), (x, x))}
        assert len(keys) == 2


def test_origin_names_the_users_ops() -> None:
    net = Net()
    y = net.dense(net.input(N, 4), 6)
    producer(y).origin = "model/fc (MatMul)"
    graph = net.output(net.relu(y))
    assert make_task(graph.nodes, producer(y)).origin == "model/fc (MatMul) + relu"


UNARY = [ew.Relu(), ew.Neg(), ew.Abs(), ew.Square(), ew.Tanh()]
BINARY = [ew.Add(), ew.Sub(), ew.Mul(), ew.Maximum()]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_expressions_compute_what_the_graph_does(data: st.DataObject) -> None:
    """Random elementwise work around a matrix product, with broadcasting operands."""
    net = Net()
    x, y = net.input(N, 4), net.input(N, 4, name="y")
    scalar = net.graph.constant(np.array([0.5], np.float32))

    def grow(values: list[Value]) -> Value:
        for _ in range(data.draw(st.integers(1, 5))):
            if data.draw(st.booleans()):
                made = net.graph.add(data.draw(st.sampled_from(UNARY)), values[-1])
            else:
                pair = [values[-1], data.draw(st.sampled_from([*values, net.weights(4), scalar]))]
                pair = pair[::-1] if data.draw(st.booleans()) else pair
                made = net.graph.add(data.draw(st.sampled_from(BINARY)), *pair)
            values.append(made)
        return values[-1]

    anchored = data.draw(st.booleans())
    if anchored:
        product = net.dense(grow([x]), 4)
        graph = net.output(grow([y, product]))
        graph.tidy()
        anchor = producer(product) if producer(product) in graph.nodes else None
    else:
        graph, anchor = net.output(grow([x, y])), None
        graph.tidy()
    if anchored and anchor is None:
        return
    if anchor is not None:  # epilogue operands that come before the anchor are no prologue
        cut = graph.nodes.index(anchor)
        if any(
            v in n.outputs
            for n in graph.nodes[:cut]
            for m in graph.nodes[cut + 1 :]
            for v in m.inputs
        ):
            return
    task = make_task(graph.nodes, anchor)
    arrays = feeds(graph, 3)
    given_arrays = [v.data if v.data is not None else arrays[v.name] for v in task.inputs]
    (want,) = interpret(graph, arrays)
    np.testing.assert_array_equal(task.evaluate(given_arrays)[0], want)

    def leaves(fused, accumulator):
        pick = {ACCUMULATOR: accumulator, None: np.zeros(0)}
        return [pick[s] if s in pick else given_arrays[s] for s in fused.sources]

    accumulator = None
    if anchor is not None:
        first = task.inputs[0]
        fed = given_arrays[task.inputs.index(first)]
        if task.prologue:
            (fed,) = task.prologue.expression.evaluate(leaves(task.prologue, None))
        weights = anchor.inputs[1].data
        accumulator = anchor.op.reference(fed, weights)[0]
    (have,) = task.epilogue.expression.evaluate(leaves(task.epilogue, accumulator))
    np.testing.assert_array_equal(np.broadcast_to(have, want.shape), want)


def test_evaluate_takes_as_many_arrays_as_inputs() -> None:
    net = Net()
    task = make_task(net.output(net.relu(net.input(N, 2))).nodes)
    with pytest.raises(ValueError, match="argument"):
        task.evaluate([])


def test_a_task_prints_without_its_graph() -> None:
    net = Net()
    last = net.output(net.relu(net.relu(net.input(N, 2))))
    assert repr(make_task(last.nodes)) == f"<Task {last.nodes[-1].name}: elementwise>"
