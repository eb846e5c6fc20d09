"""Copies of graphs: equal, and independent of the original."""

from __future__ import annotations

import numpy as np

from helpers.networks import feeds, residual_net
from planish.graph.duplicate import duplicate
from planish.graph.interpret import interpret
from planish.graph.verify import verify
from planish.ops import ew


def test_a_copy_is_the_same_graph() -> None:
    graph = residual_net()
    copy, made = duplicate(graph)
    verify(copy)
    assert str(copy) == str(graph)
    assert {v.name for v in made.values()} == {v.name for v in graph.values()}
    given = feeds(graph)
    for a, b in zip(interpret(copy, given), interpret(graph, given), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_are_shared() -> None:
    graph = residual_net()
    copy, _ = duplicate(graph)
    for a, b in zip(graph.constants(), copy.constants(), strict=True):
        assert a is not b
        assert a.data is b.data


def test_changing_the_copy_leaves_the_original() -> None:
    graph = residual_net()
    before = str(graph)
    copy, made = duplicate(graph)
    new = copy.add(ew.Relu(), made[graph.outputs[0]], name=graph.nodes[0].name)
    assert new.name not in {v.name for v in graph.values()}
    copy.replace(copy.inputs[0], copy.constant(np.zeros((2, 6, 6, 4), np.float32)))
    copy.mark_output(new, "more")
    copy.tidy()
    assert str(graph) == before
