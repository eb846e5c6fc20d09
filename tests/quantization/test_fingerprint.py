"""Equal for the same network at any size; another for anything that changes ranges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from helpers.networks import N, mobile_net, residual_net
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops import Conv, Gather, ew
from planish.passes import optimize
from planish.quantization.fingerprint import fingerprint


def optimized(graph: Graph) -> Graph:
    optimize(graph)
    return graph


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("make", [residual_net, lambda batch: mobile_net(64, batch)])
def test_batch_size_does_not_matter(make: Callable[..., Graph], batch: int) -> None:
    assert fingerprint(optimized(make(batch=batch))) == fingerprint(optimized(make(batch=N)))


@pytest.mark.parametrize("batch", [1, 3])
def test_constants_for_each_row_of_a_batch_do_not_matter(batch: int) -> None:
    """Positions that a frontend has written out for a batch."""

    def embedded(rows: int, last: int) -> str:
        graph = Graph()
        table = graph.constant(np.arange(24, dtype=np.float32).reshape(6, 4))
        places = np.tile(np.array([0, 1, 2, last], np.int64), (rows, 1))
        y = graph.add(Gather(0), table, graph.constant(places))
        x = graph.input("x", TensorType((rows, 4, 4), DType.FLOAT32))
        graph.mark_output(graph.add(ew.Add(), x, y), "y")
        return fingerprint(graph)

    assert embedded(batch, 3) == embedded(5, 3) != embedded(batch, 4)


def test_image_size_does_not_matter() -> None:
    assert fingerprint(optimized(mobile_net(64))) == fingerprint(optimized(mobile_net(96)))


def test_it_is_the_same_in_every_process() -> None:
    assert fingerprint(optimized(residual_net())) == "de0aac72fd0a4757"


def test_names_do_not_matter() -> None:
    graph = optimized(residual_net())
    before = fingerprint(graph)
    for value in graph.values():
        value.name += "/renamed"
    assert fingerprint(graph) == before


def test_last_digits_of_weights_do_not_matter() -> None:
    graph = optimized(residual_net())
    before = fingerprint(graph)
    for value in graph.constants():
        if value.dtype.is_float:
            value.data = np.nextafter(value.data, np.float32(np.inf))
    assert fingerprint(graph) == before


def weights(graph: Graph) -> None:
    value = next(v for v in graph.constants() if v.dtype.is_float and v.type.rank == 4)
    value.data = value.data * np.float32(1.01)


def order(graph: Graph) -> None:
    value = next(v for v in graph.constants() if v.dtype.is_float and v.type.rank == 4)
    value.data = np.ascontiguousarray(value.data[..., ::-1])


def activation(graph: Graph) -> None:
    node = next(n for n in graph.nodes if isinstance(n.op, ew.Relu))
    node.op = ew.Tanh()


def attribute(graph: Graph) -> None:
    node = next(n for n in graph.nodes if isinstance(n.op, Conv))
    node.op = replace(node.op, dilations=(2, 2))


def output(graph: Graph) -> None:
    graph.mark_output(graph.nodes[0].output, "more")


def wiring(graph: Graph) -> None:
    node = next(n for n in graph.nodes if isinstance(n.op, ew.Add) and not n.inputs[1].is_constant)
    graph.set_inputs(node, node.inputs[:1] * 2)


@pytest.mark.parametrize("change", [weights, order, activation, attribute, output, wiring])
def test_changes_are_seen(change: Callable[[Graph], None]) -> None:
    graph = optimized(residual_net())
    before = fingerprint(graph)
    change(graph)
    assert fingerprint(graph) != before
