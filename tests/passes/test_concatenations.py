"""Concatenations that begin alike."""

from __future__ import annotations

import numpy as np

from planish.graph.graph import Graph, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.ops.shape import Concat
from planish.passes import optimize
from planish.passes.concatenations import share_beginnings
from planish.plan.views import insert_copies


def dense_block(layers: int) -> Graph:
    """Every layer reads all features before it."""
    graph = Graph("block")
    features = [graph.input("x", TensorType((2, 4), DType.FLOAT32))]
    for i in range(layers):
        joined = graph.add(Concat(1), *features) if i else features[0]
        weights = graph.constant(np.full((1, 1), i + 2, np.float32))
        features.append(graph.add(ew.Tanh(), graph.add(ew.Mul(), joined, weights)))
    graph.mark_output(graph.add(Concat(1), *features), "y")
    return graph


def concatenations(graph: Graph) -> list[int]:
    return [len(n.inputs) for n in graph.nodes if isinstance(n.op, Concat)]


def copies(graph: Graph) -> int:
    insert_copies(graph)
    return sum(n.op.name == "identity" for n in graph.nodes)


def test_a_dense_block_becomes_a_chain_without_copies() -> None:
    graph, x = dense_block(6), np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    (before,) = interpret(graph, {"x": x})
    assert share_beginnings(graph)
    assert concatenations(graph) == [2] * 6
    assert not share_beginnings(graph)
    (after,) = interpret(graph, {"x": x})
    np.testing.assert_array_equal(after, before)
    assert copies(graph) == 1  # the input, which is memory of the caller's
    assert copies(dense_block(6)) > 10


def test_optimize_runs_it() -> None:
    graph = dense_block(4)
    optimize(graph)
    assert concatenations(graph) == [2] * 4


def test_other_axes_and_other_orders_are_left() -> None:
    graph = Graph("other")
    a, b, c = (graph.input(n, TensorType((3, 3), DType.FLOAT32)) for n in "abc")

    def join(axis: int, *values: Value) -> None:
        graph.mark_output(graph.add(Concat(axis), *values), f"y{len(graph.outputs)}")

    join(0, a, b)
    join(1, a, b, c)
    join(0, b, a, c)
    join(0, a, c, b)
    assert not share_beginnings(graph)
    join(-2, a, b, c)
    assert share_beginnings(graph)
    assert concatenations(graph) == [2, 3, 3, 3, 2]
