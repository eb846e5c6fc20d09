"""Layer norm, instance norm and softmax in primitives become one op."""

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.ops.elementwise import ew
from planish.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from planish.passes import optimize

N = symbol("N")


def standardized(net, x, axes, *, difference="square", root="rsqrt"):
    mean = net.add(ReduceMean(axes, True), x)
    centered = net.add(ew.Sub(), x, mean)
    if difference == "square":
        squares = net.add(ew.Square(), centered)
    elif difference == "pow":
        squares = net.add(ew.Pow(), centered, net.constant(2.0))
    else:
        squares = net.add(ew.SquaredDifference(), x, mean)
    variance = net.add(ew.Add(), net.add(ReduceMean(axes, True), squares), net.constant(1e-3))
    if root == "rsqrt":
        return net.add(ew.Mul(), centered, net.add(ew.Rsqrt(), variance))
    return net.add(ew.Div(), centered, net.add(ew.Sqrt(), variance))


@pytest.mark.parametrize("root", ["rsqrt", "sqrt"])
@pytest.mark.parametrize("difference", ["square", "pow", "squared_difference"])
def test_layer_norm(net, check, difference, root):
    y = standardized(net, net.input(N, 3, 8), (-1,), difference=difference, root=root)
    y = net.add(ew.Add(), net.add(ew.Mul(), net.weights(8), y), net.weights(8))
    net.output(y)
    assert check(net, optimize) == ["layer_norm"]


def test_layer_norm_without_parameters(net, check):
    net.output(standardized(net, net.input(N, 3, 8), (1, 2)))
    assert check(net, optimize) == ["layer_norm"]


@pytest.mark.parametrize("scaled", [True, False])
def test_layer_norm_as_tensorflow_writes_it(net, check, scaled):
    x = net.input(N, 3, 8)
    mean = net.add(ReduceMean((2,), True), x)
    variance = net.add(ReduceMean((2,), True), net.add(ew.SquaredDifference(), x, mean))
    inverse = net.add(ew.Rsqrt(), net.add(ew.Add(), variance, net.constant(1e-3)))
    if scaled:
        inverse = net.add(ew.Mul(), inverse, net.weights(8))
    shift = net.add(ew.Sub(), net.weights(8), net.add(ew.Mul(), mean, inverse))
    net.output(net.add(ew.Add(), net.add(ew.Mul(), x, inverse), shift))
    assert check(net, optimize, atol=1e-4) == ["layer_norm"]


def test_instance_norm(net, check):
    y = standardized(net, net.input(N, 4, 5, 3), (1, 2))
    y = net.add(ew.Add(), net.add(ew.Mul(), y, net.weights(3)), net.weights(3))
    net.output(y)
    assert check(net, optimize) == ["instance_norm"]


def test_batch_statistics_stay_primitives(net, check):
    net.output(standardized(net, net.input(N, 4, 5, 3), (0, 1, 2)))
    assert "layer_norm" not in check(net, optimize)


@pytest.mark.parametrize("shifted", [True, False])
def test_softmax(net, check, shifted):
    x = net.input(N, 7, 3)
    y = net.add(ew.Sub(), x, net.add(ReduceMax((1,), True), x)) if shifted else x
    e = net.add(ew.Exp(), y)
    net.output(net.add(ew.Div(), e, net.add(ReduceSum((1,), True), e)))
    assert check(net, optimize) == ["softmax"]


def test_softmax_over_two_axes_stays(net, check):
    x = net.input(N, 7, 3)
    e = net.add(ew.Exp(), x)
    net.output(net.add(ew.Div(), e, net.add(ReduceSum((1, 2), True), e)))
    assert "softmax" not in check(net, optimize)


def test_log_softmax(net, check):
    x = net.input(N, 7)
    y = net.add(ew.Sub(), x, net.add(ReduceMax((1,), True), x))
    total = net.add(ReduceSum((1,), True), net.add(ew.Exp(), y))
    net.output(net.add(ew.Sub(), y, net.add(ew.Log(), total)))
    assert check(net, optimize) == ["log_softmax"]


def test_half_precision_parameters(net, check):
    from planish.graph.types import DType

    x = net.input(N, 8, dtype=DType.FLOAT16)
    net.constant = lambda data: net.graph.constant(np.asarray(data, np.float16))
    net.output(standardized(net, x, (1,)))
    assert check(net, optimize, rtol=2e-2, atol=2e-2) == ["layer_norm"]
