"""Reshapes merge, and move behind elementwise ops."""

import pytest

from planish.graph.dims import symbol
from planish.ops.elementwise import ew
from planish.ops.reduce import ReduceMean
from planish.ops.shape import Reshape, Transpose
from planish.passes.reshapes import simplify_reshapes

N = symbol("N")


def test_chains_merge(net, check):
    x = net.add(Reshape((N * 6, 2)), net.input(N, 3, 4))
    net.output(net.add(Reshape((N, 2, 6)), x))
    assert check(net, simplify_reshapes) == ["reshape"]


def test_elementwise_ops_come_first(net, check):
    x = net.add(ew.Exp(), net.input(N, 3, 4))
    x = net.add(ew.Relu(), net.add(Reshape((N * 3, 4)), x))
    x = net.add(ew.Add(), net.add(ew.Mul(), x, net.weights(4)), net.constant([[2.0]]))
    net.output(net.add(Reshape((N, 12)), x))
    assert check(net, simplify_reshapes) == ["exp", "relu", "mul", "add", "reshape"]


def test_constants_of_the_axes_that_are_split_or_merged(net, check):
    x = net.add(Reshape((N, 3, 2, 4)), net.add(ew.Exp(), net.input(N, 3, 8)))
    net.output(net.add(ew.Add(), x, net.weights(2, 4)), net.add(ew.Mul(), x, net.weights(2, 1)))
    y = net.add(Reshape((N, 3, 8)), net.add(ew.Exp(), net.input(N, 3, 2, 4, name="y")))
    net.output(net.add(ew.Sub(), y, net.weights(8)))
    names = check(net, simplify_reshapes)
    assert names.index("sub") < len(names) - 1 or names[-1] != "sub"


@pytest.mark.parametrize("shape", [(6,), (2, 1), (2, 6)])
def test_constants_that_lose_their_meaning_stay(net, check, shape):
    x = net.add(Reshape((N, 2, 6)), net.add(ew.Exp(), net.input(N, 3, 4)))
    net.output(net.add(ew.Mul(), x, net.weights(*shape)))
    assert check(net, simplify_reshapes) == ["exp", "reshape", "mul"]


def test_two_reshapes_alike_become_one(net, check):
    a, b = (net.add(Reshape((N, 12)), net.input(N, 3, 4, name=n)) for n in "ab")
    net.output(net.add(ew.Add(), a, b))
    assert check(net, simplify_reshapes) == ["add", "reshape"]


def test_operands_of_other_shapes_stay(net, check):
    a = net.add(Reshape((N, 12)), net.input(N, 3, 4, name="a"))
    b = net.add(Reshape((N, 12)), net.input(N, 4, 3, name="b"))
    net.output(net.add(ew.Add(), a, b))
    assert check(net, simplify_reshapes) == ["reshape", "reshape", "add"]


@pytest.mark.parametrize("kept", [True, False])
def test_a_reduction_keeps_or_drops_its_ones_itself(net, check, kept):
    x = net.add(ReduceMean((1, 2), kept), net.input(N, 3, 3, 4))
    net.output(net.add(Reshape((N, 4) if kept else (N, 1, 1, 4)), x))
    assert check(net, simplify_reshapes) == ["reduce_mean"]


def test_heads_are_split_before_they_are_moved(net, check):
    """As PyTorch's attention has it: heads merged with the batch, transposed, and split again."""
    x = net.add(Reshape((5, N * 3, 4)), net.add(ew.Exp(), net.input(5, N, 12)))
    x = net.add(Transpose((1, 0, 2)), x)
    net.output(net.add(Reshape((N, 3, 5, 4)), x))
    assert check(net, simplify_reshapes) == ["exp", "reshape", "transpose"]
    assert net.graph.nodes[-1].op == Transpose((1, 2, 0, 3))


@pytest.mark.parametrize("shape", [(N, 60), (N * 5, 12), (N * 5, 3, 4)])
def test_a_reshape_that_does_not_only_split_stays(net, check, shape):
    x = net.add(Transpose((1, 0, 2)), net.add(ew.Exp(), net.input(5, N, 12)))
    net.output(net.add(Reshape(shape), x))
    assert check(net, simplify_reshapes) == ["exp", "transpose", "reshape"]
