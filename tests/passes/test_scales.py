"""Scales and offsets fold into weights on either side, with and without groups and padding."""

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.ops.normalization import BatchNorm
from planish.passes.batch_norm import lower_batch_norm
from planish.passes.scales import fold_scales

N = symbol("N")
SAME = ((1, 1), (1, 1))
VALID = ((0, 0), (0, 0))


def conv(net, x, filters, groups=1, padding=SAME, window=3):
    w = net.weights(window, window, x.shape[-1] // groups, filters)
    return net.add(Conv((1, 1), padding, (1, 1), groups), x, w)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_scale_and_offset_around_a_conv(net, check, groups):
    x = net.add(ew.Mul(), net.input(N, 6, 6, 4), net.weights(4))
    y = conv(net, x, 8, groups)
    y = net.add(ew.Mul(), net.add(ew.Add(), y, net.weights(8)), net.weights(1, 1, 8))
    net.output(net.add(ew.Add(), y, net.weights(8)))
    assert check(net, fold_scales) == ["conv", "add"]


@pytest.mark.parametrize(("padding", "left"), [(VALID, ["conv", "add"]), (SAME, ["add", "conv"])])
def test_offset_before_a_conv_folds_only_without_padding(net, check, padding, left):
    x = net.add(ew.Add(), net.input(N, 6, 6, 4), net.weights(4))
    net.output(conv(net, x, 8, 2, padding))
    assert check(net, fold_scales) == left


def test_batch_norm_after_conv_becomes_a_bias(net, check):
    y = conv(net, net.input(N, 6, 6, 3), 5)
    variance = net.constant(np.abs(net.random.standard_normal(5)) + 0.1)
    y = net.add(BatchNorm(1e-3), y, net.weights(5), net.weights(5), net.weights(5), variance)
    net.output(net.add(ew.Relu(), y))

    def change(graph):
        lower_batch_norm(graph)
        fold_scales(graph)

    assert check(net, change) == ["conv", "add", "relu"]


@pytest.mark.parametrize("transposed", [False, True])
def test_matmul_takes_scales_from_both_sides(net, check, transposed):
    x = net.input(N, 5, 4)
    x = net.add(ew.Add(), net.add(ew.Mul(), x, net.weights(4)), net.weights(4))
    w = net.weights(6, 4) if transposed else net.weights(4, 6)
    y = net.add(ew.Mul(), net.add(MatMul(False, transposed), x, w), net.weights(6))
    net.output(net.add(ew.Add(), y, net.weights(6)))
    assert check(net, fold_scales) == ["mat_mul", "add"]


def test_shared_results_keep_their_scale(net, check):
    y = conv(net, net.input(N, 6, 6, 3), 5)
    net.output(y, net.add(ew.Mul(), y, net.weights(5)))
    assert check(net, fold_scales) == ["conv", "mul"]


def test_a_scale_that_varies_along_the_image_stays(net, check):
    y = conv(net, net.input(N, 6, 6, 3), 5)
    net.output(net.add(ew.Mul(), y, net.weights(6, 1, 1)))
    assert check(net, fold_scales) == ["conv", "mul"]


def test_constants_do_not_grow_by_merging(net, check):
    x = net.input(N, 7, 5)
    net.output(net.add(ew.Add(), net.add(ew.Add(), x, net.weights(7, 1)), net.weights(5)))
    assert check(net, fold_scales) == ["add", "add"]
