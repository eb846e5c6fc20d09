"""Sizes that a model does not take are refused before a kernel runs with them."""

import numpy as np
import pytest

from helpers.networks import Net
from planish.errors import ShapeError
from planish.graph.dims import symbol
from planish.graph.sizes import check_sizes
from planish.ops import Conv, Pad, Reshape, Slice, TopK

N = symbol("N")


def graph_of(op, *shape, weights=()):
    net = Net()
    inputs = [net.input(*shape), *(net.weights(*w) for w in weights)]
    node = net.graph.add_node(op, inputs, origin="cut (Slice)")
    return net.output(*node.outputs)


CASES = {
    "slice": (graph_of(Slice((2, 0), (3, 4), (1, 1)), N, 4), 5, 4),
    "negative": (graph_of(Slice((0, 3), (1, N - 4), (1, 1)), 1, N), 5, 3),
    "reshape": (graph_of(Reshape(((N * 3) // 2, 2)), N, 3), 4, 5),
    "reflect": (graph_of(Pad(((3, 0),), "reflect"), N), 4, 3),
    "top k": (graph_of(TopK(3), N), 3, 2),
    "window": (
        graph_of(Conv((1, 1), ((0, 0),) * 2, (1, 1)), 1, N, 8, 2, weights=[(3, 3, 2, 4)]),
        3,
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_sizes(name):
    graph, right, wrong = CASES[name]
    check_sizes(graph, {"N": right})
    with pytest.raises(ShapeError) as caught:
        check_sizes(graph, {"N": wrong})
    assert caught.value.where == f"cut (Slice), with N = {wrong}"


def test_what_is_not_known_yet_is_not_checked():
    graph, _, _ = CASES["slice"]
    check_sizes(graph, {})
    check_sizes(graph, {"M": 1})


def test_an_engine_reads_nothing_beyond_its_input():
    from planish.builder import build_graph
    from planish.targets.cpu.target import cpu

    graph = graph_of(Slice((2, 0), (3, 4), (1, 1)), N, 4)
    engine = build_graph(graph, cpu(), tuning_seconds=0)
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    np.testing.assert_array_equal(engine({"x": x}), x[2:5])
    with pytest.raises(ShapeError, match="slice reads elements 2 to 4"):
        engine({"x": x[:4]})


def test_an_engine_is_built_where_the_usual_size_is_none():
    """A batch of 1 has no part of -3 rows: the engine is tuned for larger ones."""
    from planish.builder import build_graph
    from planish.graph.graph import DimRange
    from planish.profile import UNBOUNDED
    from planish.targets.cpu.target import cpu

    graph = graph_of(Slice((2, 0), (N - 4, 4), (1, 1)), N, 4)
    graph.ranges["N"] = DimRange(1, 1, UNBOUNDED)
    engine = build_graph(graph, cpu(), tuning_seconds=0, allow_fallback=False)
    assert graph.ranges["N"].opt == 5
    x = np.arange(28, dtype=np.float32).reshape(7, 4)
    np.testing.assert_array_equal(engine({"x": x}), x[2:5])
