"""Channels-first models lose their transposes; every graph keeps its meaning."""

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.ops.conv import Conv
from planish.ops.elementwise import Select, ew
from planish.ops.matmul import MatMul
from planish.ops.normalization import Softmax
from planish.ops.pool import MaxPool
from planish.ops.reduce import ReduceMax, ReduceMean
from planish.ops.shape import Concat, Pad, Reshape, Slice, Transpose
from planish.ops.spatial import Resize
from planish.passes import optimize
from planish.passes.transposes import move_transposes

N = symbol("N")
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


class ChannelsFirst:
    """Ops as a frontend for channels-first models makes them."""

    def __init__(self, net):
        self.net = net

    def around(self, op, x, *more):
        y = self.net.add(op, self.net.add(Transpose(LAST), x), *more)
        return self.net.add(Transpose(FIRST), y)

    def conv(self, x, filters, window=3, stride=1):
        pad = window // 2
        op = Conv((stride, stride), ((pad, pad), (pad, pad)), (1, 1))
        w = self.net.weights(window, window, x.shape[1], filters)
        y = self.around(op, x, w)
        return self.net.add(ew.Add(), y, self.net.weights(filters, 1, 1))

    def pool(self, x):
        return self.around(MaxPool((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)), x)

    def relu(self, x):
        return self.net.add(ew.Relu(), x)


def transposes(names):
    return names.count("transpose")


def test_a_residual_network(net, check):
    m = ChannelsFirst(net)
    x = m.pool(m.relu(m.conv(net.input(N, 3, 12, 12), 4)))
    for filters, stride in ((4, 1), (6, 2), (6, 1)):
        y = m.conv(m.relu(m.conv(x, filters, 3, stride)), filters)
        shortcut = x if stride == 1 else m.conv(x, filters, 1, stride)
        x = m.relu(net.add(ew.Add(), y, shortcut))
    x = net.add(ReduceMean((2, 3), True), x)
    net.output(net.add(Softmax(1), net.add(Reshape((N, 6)), x)))
    assert transposes(check(net, move_transposes, rtol=1e-4, atol=1e-4)) == 1


def test_channel_shuffles(net, check):
    m = ChannelsFirst(net)
    x = m.conv(net.input(N, 3, 6, 6), 8)
    for _ in range(2):
        x = net.add(Reshape((N, 2, 4, 6, 6)), x)
        x = net.add(Transpose((0, 2, 1, 3, 4)), x)
        x = net.add(Reshape((N, 8, 6, 6)), x)
        halves = [net.add(Slice((0, c, 0, 0), (N, 4, 6, 6), (1, 1, 1, 1)), x) for c in (0, 4)]
        x = net.add(Concat(1), halves[0], m.relu(m.conv(halves[1], 4, 1)))
    net.output(m.conv(x, 2))
    # one at the input, one at the output, and a shuffle of the last two axes each
    assert transposes(check(net, move_transposes, rtol=1e-4, atol=1e-4)) == 4


def test_a_pyramid_with_a_head(net, check):
    m = ChannelsFirst(net)
    low = m.conv(net.input(N, 3, 8, 8), 4)
    high = m.pool(low)
    up = m.around(Resize((8, 8), "nearest", "asymmetric"), high)
    x = m.conv(net.add(Concat(1), low, up), 6, 1)
    x = net.add(Transpose((0, 2, 1)), net.add(Reshape((N, 6, 64)), x))
    net.output(net.add(ew.Sigmoid(), x))
    names = check(net, optimize, rtol=1e-4, atol=1e-4)
    assert transposes(names) == 1


def test_flatten_before_a_dense_layer(net, check):
    from planish.ops.matmul import MatMul

    m = ChannelsFirst(net)
    x = m.relu(m.conv(net.input(N, 3, 5, 4), 6))
    x = net.add(MatMul(), net.add(Reshape((N, 120)), x), net.weights(120, 7))
    net.output(x)
    assert transposes(check(net, optimize, rtol=1e-4, atol=1e-4)) == 1


def test_squeeze_and_excitation(net, check):
    m = ChannelsFirst(net)
    x = m.conv(net.input(N, 3, 6, 6), 4)
    gate = net.add(ReduceMean((2, 3), True), x)
    gate = net.add(ew.Sigmoid(), m.conv(m.relu(m.conv(gate, 2, 1)), 4, 1))
    net.output(net.add(ReduceMax((2, 3), False), net.add(ew.Mul(), x, gate)))
    assert transposes(check(net, move_transposes, rtol=1e-4, atol=1e-4)) == 1


def test_operands_of_lower_rank(net, check):
    m = ChannelsFirst(net)
    x = m.conv(net.input(N, 3, 6, 5), 4)
    x = net.add(ew.Mul(), x, net.input(6, 5, name="image"))
    x = net.add(ew.Add(), x, net.input(4, 1, 1, name="channels"))
    x = net.add(ew.Sub(), x, net.add(ew.Exp(), net.input(1, name="scalar")))
    x = net.add(ew.Div(), x, net.weights(5))
    net.output(m.conv(x, 2))
    assert transposes(check(net, move_transposes, rtol=1e-3, atol=1e-3)) <= 3


def test_an_operand_can_be_part_of_its_own_region(net, check):
    m = ChannelsFirst(net)
    x = m.conv(net.input(N, 3, 6, 6), 4)
    weights = net.add(ReduceMean((0,), False), x)
    net.output(m.conv(net.add(ew.Mul(), x, weights), 2))
    check(net, move_transposes, rtol=1e-3, atol=1e-3)


def test_other_layouts_on_the_way(net, check):
    x = net.add(Transpose(LAST), net.input(N, 3, 4, 5))
    y = net.add(ew.Exp(), x)
    condition = net.add(ew.Greater(), y, x)
    y = net.add(
        Select(), condition, x, net.add(Transpose((0, 2, 1, 3)), net.input(N, 5, 4, 3, name="z"))
    )
    net.output(net.add(Transpose(FIRST), y), y)
    check(net, move_transposes)


def test_a_transpose_that_is_an_output_is_shared(net, check):
    """What is transposed anyway costs nothing twice; else these would move back and forth."""
    x = net.input(3, 8, 21)
    less = net.add(ew.LessEqual(), x, net.input(1, 1, 21, name="y"))
    last = net.add(Slice((9, 0, 0), (2, 8, 3), (3, 1, 1)), net.add(Transpose((2, 1, 0)), less))
    net.output(net.add(Transpose((2, 1, 0)), x), last)
    names = check(net, move_transposes)
    assert sorted(names) == ["less_equal", "reshape", "slice", "transpose"]
    assert not move_transposes(net.graph)


@pytest.mark.parametrize("grows", [False, True])
def test_a_transpose_that_a_product_takes_in_is_free_from_both_sides(net, check, grows):
    x = net.add(Transpose(LAST), net.input(N, 3, 4, 5))
    if grows:
        x = net.add(Pad(((0, 0), (8, 8), (8, 8), (0, 0))), x)
    y = net.add(Reshape((N, x.shape[1] * x.shape[2] * 3)), net.add(ew.Tanh(), x))
    net.output(net.add(MatMul(), y, net.weights(y.shape[1], 7)))
    assert transposes(check(net, move_transposes, rtol=1e-4, atol=1e-4)) == 1
    assert not move_transposes(net.graph)
    assert transposes(check(net, optimize, rtol=1e-4, atol=1e-4)) == 0


def test_a_transpose_is_not_moved_for_nothing(net, check):
    x = net.add(Transpose(LAST), net.input(N, 3, 4, 5))
    net.output(net.add(ew.Relu(), x))
    assert not move_transposes(net.graph)
    assert [n.op.name for n in net.graph.nodes] == ["transpose", "relu"]


def test_transposes_move_to_the_smaller_side(net, check):
    x = net.add(Transpose(LAST), net.input(N, 3, 8, 8))
    net.output(net.add(ReduceMax((1,), True), x))
    assert check(net, move_transposes) == ["reduce_max", "transpose"]


def test_moving_axes_of_one_element_is_a_reshape(net, check):
    net.output(net.add(Transpose(LAST), net.input(N, 3, 1, 1)))
    assert check(net, move_transposes) == ["reshape"]


def test_names_and_origins_stay(net):
    m = ChannelsFirst(net)
    x = m.conv(net.input(N, 3, 6, 6), 4)
    y = net.add(ew.Relu(), x, name="block/relu")
    net.output(m.conv(y, 4))
    move_transposes(net.graph)
    (relu,) = (n for n in net.graph.nodes if n.op.name == "relu")
    assert (relu.name, relu.output.name) == ("block/relu", "block/relu")
    assert relu.origin == "block/relu (relu)"


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(net, check, seed):
    random = np.random.default_rng(seed)

    def axis():
        return int(random.integers(1, 4))

    values = [net.input(N, 4, 6, 6)]
    m = ChannelsFirst(net)
    for _ in range(14):
        a, b = (values[i] for i in random.integers(max(0, len(values) - 5), len(values), 2))
        match int(random.integers(0, 10)):
            case 0 | 1:
                new = m.around(Conv((1, 1), ((1, 1), (1, 1)), (1, 1)), a, net.weights(3, 3, 4, 4))
                new = net.add(ew.Tanh(), new)
            case 2 | 3:
                new = net.add(ew.Add(), a, b)
            case 4:
                new = net.add(ew.Mul(), a, net.weights(*([4, 1, 1], [6], [1, 6, 1])[seed % 3]))
            case 5:
                both = net.add(Concat(1), a, b)
                new = net.add(Slice((0, 2, 0, 0), (N, 4, 6, 6), (1, 1, 1, 1)), both)
            case 6:
                new = net.add(Softmax(axis()), a)
            case 7:
                new = net.add(ew.Sub(), a, net.add(ReduceMax((axis(),), True), b))
            case 8:
                x = net.add(Reshape((N, 2, 2, 6, 6)), a)
                new = net.add(Reshape((N, 4, 6, 6)), net.add(Transpose((0, 2, 1, 3, 4)), x))
            case _:
                x = net.add(
                    Pad(((0, 0), (0, 0), (1, 0), (0, 0))), net.add(Transpose((0, 1, 3, 2)), a)
                )
                new = net.add(Slice((0, 0, 1, 0), (N, 4, 6, 6), (1, 1, 1, 1)), x)
        values.append(new)
    net.output(*values[-2:])
    before = sum(n.op.name == "transpose" for n in net.graph.nodes)
    assert transposes(check(net, move_transposes, rtol=1e-3, atol=1e-3)) <= before
    assert not move_transposes(net.graph)


def test_products_of_rows_do_not_care_for_their_order(net, check):
    """As in PyTorch's attention, which wants the length before the batch."""
    x = net.add(Transpose((1, 0, 2)), net.input(N, 5, 4))
    y = net.add(ew.Add(), net.add(MatMul(), x, net.weights(4, 6)), net.weights(6))
    net.output(net.add(Transpose((1, 0, 2)), net.add(ew.Relu(), y)))
    assert check(net, move_transposes) == ["mat_mul", "add", "relu"]


def test_products_along_another_axis_stay(net, check):
    x = net.add(Transpose((0, 2, 1)), net.input(N, 5, 4))
    y = net.add(MatMul(), x, net.weights(5, 6))
    net.output(net.add(Transpose((0, 2, 1)), net.add(ew.Relu(), y)))
    assert check(net, move_transposes) == ["transpose", "mat_mul", "relu", "transpose"]
