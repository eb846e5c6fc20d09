"""The layers whose values overflow are named, and only those to blame."""

from __future__ import annotations

import numpy as np

from helpers.halves import F16, growing, lowered, normalized
from helpers.networks import Net, feeds, residual_net
from planish.ops import Softmax, ew
from planish.precision.lower import lower
from planish.precision.overflow import find_overflows

ONES = {"x": np.full((2, 4), 10, np.float32)}


def test_the_first_layer_is_named() -> None:
    before, after, _ = lowered(growing())
    first, *rest = find_overflows(after, ONES)
    assert (first.layer, first.origin, first.dtype) == ("large", "model/large (Dense)", F16)
    assert (first.overflowed, first.nan, first.elements) == (8, 0, 8)
    assert not rest
    assert "model/large (Dense)" in str(first)
    assert "8 overflow" in str(first)
    assert find_overflows(before, ONES) == []


def test_before_anything_is_lowered() -> None:
    (found,) = find_overflows(growing(), ONES, F16)
    assert found.layer == "large"
    assert found.largest == 10 * 120 * 120


def test_keeping_the_layer_cures_it() -> None:
    graph = growing()
    lower(graph, {graph.nodes[0]: F16})
    assert find_overflows(graph, ONES) == []


def test_nan_where_an_epsilon_vanishes() -> None:
    """What the policy prevents: everything in halves, and 1e-12 is 0."""
    graph = normalized(1e-12)
    lower(graph, dict.fromkeys(graph.nodes, F16))
    (found,) = find_overflows(graph, {"x": np.zeros((1, 8), np.float32)})
    assert found.layer == "inverse"
    assert found.overflowed == 1


def test_infinities_of_the_model_are_nobodys_fault() -> None:
    net = Net()
    limit = net.graph.constant(np.float32(np.inf))
    y = net.graph.add(ew.Minimum(), net.dense(net.input(2, 4), 4), limit)
    mask = net.graph.constant(np.array([0, -np.inf, 0, 0], np.float32))
    graph = net.output(net.graph.add(Softmax(1), net.add(y, mask)))
    _, after, _ = lowered(graph)
    assert find_overflows(after, feeds(graph)) == []


def test_healthy_networks_have_none() -> None:
    before, after, _ = lowered(residual_net())
    given = feeds(before, 2)
    assert find_overflows(after, given) == []
    assert find_overflows(before, given, F16) == []
