"""What ops do on stored tensors is what they do on plain ones."""

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.ops.elementwise import Clip, ew
from planish.ops.indexing import Gather
from planish.ops.normalization import LogSoftmax, Softmax
from planish.ops.pool import MaxPool
from planish.ops.reduce import ArgMax, CumSum, ReduceMax, ReduceSum, TopK
from planish.ops.shape import BroadcastTo, Concat, Pad, Reshape, Slice, Tile
from planish.passes.layouts import (
    compose,
    inverse,
    is_identity,
    keeps_order,
    reshape_groups,
    spread,
    stored_op,
)

N = symbol("N")
LAYOUT = (0, 2, 3, 1)

OPS = {
    "clip": (Clip(0, 1), 1),
    "add": (ew.Add(), 2),
    "softmax": (Softmax(1), 1),
    "log_softmax": (LogSoftmax(-1), 1),
    "cum_sum": (CumSum(-2, reverse=True), 1),
    "concat": (Concat(1), 2),
    "pad": (Pad(((0, 0), (1, 0), (2, 3), (0, 4))), 1),
    "slice": (Slice((0, 1, 3, 0), (2, 2, 2, 5), (1, 1, -1, 1)), 1),
    "tile": (Tile((1, 2, 3, 1)), 1),
    "broadcast": (BroadcastTo((2, 3, 4, 5)), 1),
    "sum": (ReduceSum((1, -1), True), 1),
    "max": (ReduceMax((2,), False), 1),
    "mean of channels": (ReduceSum((1,), False), 1),
    "arg_max": (ArgMax(1), 1),
    "arg_max, keepdims": (ArgMax(-1, True), 1),
    "top_k": (TopK(2, 2), 1),
    "split channels": (Reshape((2, 1, 3, 4, 5)), 1),
    "merge two": (Reshape((2, 3, 20)), 1),
    "split rows": (Reshape((2, 3, 2, 2, 5)), 1),
}


@pytest.mark.parametrize("name", OPS)
def test_stored_results(net, name):
    op, count = OPS[name]
    arrays = [net.random.standard_normal((2, 3, 4, 5)).astype(np.float32) for _ in range(count)]
    values = [net.input(2, 3, 4, 5, name=f"x{i}") for i in range(count)]
    node = net.graph.add_node(op, values)
    layouts = spread(node, values[0], LAYOUT)
    assert layouts is not None
    stored = [a.transpose(layouts[v]) for a, v in zip(arrays, values, strict=True)]
    plain = op.reference(*arrays)
    results = stored_op(node, layouts).reference(*stored)
    for value, expected, result in zip(node.outputs, plain, results, strict=True):
        np.testing.assert_allclose(result, expected.transpose(layouts[value]), rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in OPS if "max" not in n and "mean" not in n])
def test_layouts_spread_backwards_alike(net, name):
    op, count = OPS[name]
    values = [net.input(2, 3, 4, 5, name=f"x{i}") for i in range(count)]
    node = net.graph.add_node(op, values)
    forwards = spread(node, values[0], LAYOUT)
    assert forwards is not None
    assert spread(node, node.outputs[0], forwards[node.outputs[0]]) == forwards


def test_gather_by_constant_places(net):
    x = net.input(2, 3, 4, 5)
    index = net.graph.constant(np.array([2, 0], np.int64))
    node = net.graph.add_node(Gather(1), (x, index))
    layouts = spread(node, x, LAYOUT)
    assert stored_op(node, layouts) == Gather(3)


@pytest.mark.parametrize(
    "op", [Reshape((2, 60)), Reshape((2, 12, 5)), MaxPool((1, 1), (1, 1), ((0, 0),) * 2, (1, 1))]
)
def test_ops_that_need_their_own_layout(net, op):
    x = net.input(2, 3, 4, 5)
    assert spread(net.graph.add_node(op, (x,)), x, LAYOUT) is None


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ((N, 8, 5), (N, 2, 4, 5), [([0], [0]), ([1], [1, 2]), ([2], [3])]),
        ((N, 4, 1, 1), (N, 4), [([0], [0]), ([1], [1]), ([2], []), ([3], [])]),
        ((N, 6), (N * 6,), [([0, 1], [0])]),
        ((N * 6,), (N, 6), [([0], [0, 1])]),
        ((4, 6), (6, 4), [([0, 1], [0, 1])]),
        ((2, N), (N, 2), [([0, 1], [0, 1])]),
        ((0, 3), (3, 0), None),
        ((), (1, 1), [([], [0]), ([], [1])]),
    ],
)
def test_reshape_groups(before, after, groups):
    assert reshape_groups(before, after) == groups


def test_permutations():
    assert inverse(LAYOUT) == (0, 3, 1, 2)
    assert is_identity(compose(LAYOUT, inverse(LAYOUT)))
    assert keeps_order(LAYOUT, (N, 7, 1, 1))
    assert not keeps_order(LAYOUT, (N, 7, 2, 1))
