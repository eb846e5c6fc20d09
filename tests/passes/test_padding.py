"""Pads fold into what follows only where the meaning allows it."""

import math

import pytest

from planish.graph.dims import symbol
from planish.ops.conv import Conv
from planish.ops.elementwise import Clip, ew
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.shape import Pad
from planish.passes.padding import fold_padding

N = symbol("N")
NONE = ((0, 0), (0, 0))
AROUND = ((0, 0), (1, 2), (2, 1), (0, 0))


def conv(net, x):
    return net.add(Conv((2, 2), ((1, 0), (0, 0)), (1, 1)), x, net.weights(3, 3, 3, 4))


@pytest.mark.parametrize(
    ("pad", "left"),
    [
        (Pad(AROUND), ["conv"]),
        (Pad(AROUND, value=1.0), ["pad", "conv"]),
        (Pad(AROUND, mode="reflect"), ["pad", "conv"]),
        (Pad(((1, 0), (0, 0), (0, 0), (0, 0))), ["pad", "conv"]),
    ],
    ids=str,
)
def test_conv(net, check, pad, left):
    net.output(conv(net, net.add(pad, net.input(N, 6, 6, 3))))
    assert check(net, fold_padding) == left


def test_a_pad_of_channels_stays(net, check):
    x = net.add(Pad(((0, 0), (0, 0), (0, 0), (1, 1))), net.input(N, 6, 6, 1))
    net.output(conv(net, x))
    assert check(net, fold_padding) == ["pad", "conv"]


def test_a_shared_pad_folds_into_every_conv(net, check):
    x = net.add(Pad(AROUND), net.input(N, 6, 6, 3))
    net.output(conv(net, x), conv(net, x), net.add(ew.Exp(), x))
    assert sorted(check(net, fold_padding)) == ["conv", "conv", "exp", "pad"]


@pytest.mark.parametrize(
    ("own", "counted", "folds"), [(0, False, True), (1, True, True), (1, False, False)]
)
def test_avg_pool(net, check, own, counted, folds):
    x = net.add(Pad(AROUND), net.input(N, 6, 6, 3))
    net.output(net.add(AvgPool((3, 3), (2, 2), ((own, own),) * 2, counted), x))
    assert check(net, fold_padding) == (["avg_pool"] if folds else ["pad", "avg_pool"])


MAX_POOLS = {
    "after relu": ([ew.Relu()], 0.0, (3, 3), ["relu", "max_pool"]),
    "after clip": ([Clip(1, 6)], 0.0, (3, 3), ["clip", "max_pool"]),
    "of anything": ([ew.Tanh()], 0.0, (3, 3), ["tanh", "pad", "max_pool"]),
    "with -inf": ([], -math.inf, (3, 3), ["max_pool"]),
    "empty windows": ([ew.Relu()], 0.0, (2, 2), ["relu", "pad", "max_pool"]),
}


@pytest.mark.parametrize("case", MAX_POOLS)
def test_max_pool(net, check, case):
    ops, value, window, left = MAX_POOLS[case]
    x = net.input(N, 6, 6, 3)
    for op in ops:
        x = net.add(op, x)
    x = net.add(Pad(AROUND, value=value), x)
    net.output(net.add(MaxPool(window, (2, 2), NONE, (1, 1)), x))
    assert check(net, fold_padding) == left


def test_pads_merge(net, check):
    x = net.add(Pad(((0, 1), (2, 0))), net.input(N, 3))
    net.output(net.add(Pad(((1, 0), (1, 1))), x))
    assert check(net, fold_padding) == ["pad"]


def test_pads_of_other_values_do_not_merge(net, check):
    x = net.add(Pad(((0, 1), (2, 0))), net.input(N, 3))
    net.output(net.add(Pad(((1, 0), (1, 1)), value=2.0), x))
    assert check(net, fold_padding) == ["pad", "pad"]


def test_symbolic_padding(net, check):
    """A convolution adds it up; whether a window holds nothing but padding cannot be told."""
    own = ((N % 2, 1), (0, 0))
    x = net.add(Pad(AROUND, value=-math.inf), net.input(1, N, 6, 3))
    net.output(net.add(MaxPool((3, 3), (2, 2), own, (1, 1)), x))
    assert check(net, fold_padding) == ["pad", "max_pool"]


def test_symbolic_padding_of_a_conv(net, check):
    own = ((N % 2, 1), (0, 0))
    x = net.add(Pad(AROUND), net.input(1, N, 6, 3))
    net.output(net.add(Conv((2, 2), own, (1, 1)), x, net.weights(3, 3, 3, 4)))
    assert check(net, fold_padding) == ["conv"]
