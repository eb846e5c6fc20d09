"""Repetition along spatial dimensions becomes one resize."""

import pytest

from planish.graph.dims import symbol
from planish.ops.shape import Reshape, Tile
from planish.ops.spatial import Resize
from planish.passes.upsampling import recognize_upsampling

N = symbol("N")


def repeat(net, x, axis, factor):
    """As frameworks lower it: a new axis, repeated and merged with the one before it."""
    shape = (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :])
    repeats = tuple(factor if i == axis + 1 else 1 for i in range(len(shape)))
    merged = (*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :])
    return net.add(Reshape(merged), net.add(Tile(repeats), net.add(Reshape(shape), x)))


@pytest.mark.parametrize("factor", [2, 3, 41])
def test_one_axis(net, check, factor):
    net.output(repeat(net, net.input(N, 5, 4, 2), 1, factor))
    assert check(net, recognize_upsampling) == ["resize"]


def test_two_axes_are_one_resize(net, check):
    x = repeat(net, net.input(N, 5, symbol("W"), 2), 1, 2)
    net.output(repeat(net, x, 2, 3))
    assert check(net, recognize_upsampling) == ["resize"]


@pytest.mark.parametrize("axis", [0, 3])
def test_other_axes_stay(net, check, axis):
    net.output(repeat(net, net.input(N, 5, 4, 2), axis, 2))
    assert "resize" not in check(net, recognize_upsampling)


def test_tiling_the_whole_stays(net, check):
    x = net.add(Reshape((N, 1, 5, 4, 2)), net.input(N, 5, 4, 2))
    net.output(net.add(Reshape((N, 10, 4, 2)), net.add(Tile((1, 2, 1, 1, 1)), x)))
    assert "resize" not in check(net, recognize_upsampling)


def test_resizing_one_axis_twice_stays(net, check):
    x = net.input(N, 8, 4, 2)
    for size in (6, 7):
        x = net.add(Resize((size, 4), "nearest", "half_pixel"), x)
    net.output(x)
    assert check(net, recognize_upsampling) == ["resize", "resize"]
