"""Products of one input merge where the slices are not in the way."""

from planish.graph.dims import symbol
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.ops.shape import Concat, Reshape
from planish.passes import optimize
from planish.passes.siblings import merge_siblings

N = symbol("N")
SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))


def conv(net, x, filters, window=1):
    padding = SAME if window == 3 else NONE
    w = net.weights(window, window, x.shape[-1], filters)
    y = net.add(ew.Add(), net.add(Conv((1, 1), padding, (1, 1)), x, w), net.weights(filters))
    return net.add(ew.Relu(), y)


def inception(net):
    x = net.input(N, 5, 5, 4)
    branches = [conv(net, conv(net, x, k), 3, 3) for k in (3, 2)]
    net.output(net.add(Concat(3), conv(net, x, 5), *branches))


def test_inception(net, check):
    inception(net)
    names = check(net, merge_siblings)
    assert names.count("conv") == 3
    assert names[:3] == ["conv", "add", "relu"]


def test_merging_can_be_switched_off(net, check):
    inception(net)
    assert check(net, lambda g: optimize(g, merge=False)).count("conv") == 5


def test_query_key_value(net, check):
    x = net.input(N, 5, 8)
    for k in (8, 8, 4):
        y = net.add(MatMul(), x, net.weights(8, k))
        y = net.add(ew.Add(), y, net.weights(k))
        net.output(net.add(ew.Exp(), net.add(Reshape((N, 5, 2, k // 2)), y)))
    assert check(net, merge_siblings).count("mat_mul") == 1


def test_transposed_weights(net, check):
    x = net.input(N, 8)
    for k in (3, 4):
        y = net.add(MatMul(False, True), x, net.weights(k, 8))
        net.output(net.add(Reshape((N, k, 1)), y))
    assert check(net, merge_siblings).count("mat_mul") == 1


def test_other_steps_after_the_products_keep_them_apart(net, check):
    x = net.input(N, 8)
    a, b = (net.add(MatMul(), x, net.weights(8, 4)) for _ in range(2))
    net.output(net.add(ew.Mul(), net.add(ew.Sigmoid(), a), b))
    assert check(net, merge_siblings).count("mat_mul") == 2


def test_outputs_stay_apart(net, check):
    x = net.input(N, 5, 5, 4)
    net.output(conv(net, x, 3), conv(net, x, 3))
    assert check(net, merge_siblings).count("conv") == 2
