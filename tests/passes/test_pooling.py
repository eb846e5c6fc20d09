"""An average and a product of single pixels change places where pixels then have fewer channels."""

import pytest

from planish.graph.dims import symbol
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.pool import AvgPool
from planish.passes.pooling import narrow_averages

N = symbol("N")
NONE, AROUND = ((0, 0), (0, 0)), ((1, 1), (1, 1))
LEFT, CHANGED = ["avg_pool", "conv"], ["conv", "avg_pool"]


def branch(net, x, pool, filters=3, taps=1, strides=(1, 1), padding=NONE, groups=1):
    channels = x.shape[-1] // groups
    op = Conv(strides, padding, (1, 1), groups)
    return net.add(op, net.add(pool, x), net.weights(taps, taps, channels, filters))


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("padding", [AROUND, NONE, ((2, 0), (0, 3))])
def test_they_change_places(net, check, counted, padding):
    pool = AvgPool((3, 3), (1, 1), padding, counted)
    y = branch(net, net.input(N, 6, 5, 8), pool)
    net.output(net.add(ew.Relu(), net.add(ew.Add(), y, net.weights(3))))
    assert check(net, narrow_averages) == [*CHANGED, "add", "relu"]


@pytest.mark.parametrize(
    "more",
    [
        {"filters": 8},
        {"taps": 3},
        {"strides": (2, 2)},
        {"padding": AROUND},
        {"groups": 2, "filters": 2},
    ],
    ids=str,
)
def test_other_products_stay(net, check, more):
    net.output(branch(net, net.input(N, 6, 5, 8), AvgPool((3, 3), (1, 1), AROUND), **more))
    assert check(net, narrow_averages) == LEFT


def test_an_average_that_leaves_fewer_pixels_stays_first(net, check):
    net.output(branch(net, net.input(N, 6, 5, 8), AvgPool((2, 2), (2, 2), NONE)))
    assert check(net, narrow_averages) == LEFT


def test_an_average_that_others_read_stays(net, check):
    pooled = net.add(AvgPool((3, 3), (1, 1), AROUND), net.input(N, 6, 5, 8))
    product = net.add(Conv((1, 1), NONE, (1, 1)), pooled, net.weights(1, 1, 8, 3))
    net.output(product, net.add(ew.Exp(), pooled))
    assert check(net, narrow_averages) == ["avg_pool", "conv", "exp"]
