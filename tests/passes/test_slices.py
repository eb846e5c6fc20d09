"""Slices, concats and gathers of each other."""

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.ops.elementwise import ew
from planish.ops.indexing import Gather
from planish.ops.shape import Concat, Slice
from planish.passes.slices import simplify_slices

N = symbol("N")


def cut(net, x, begin, size, stride=1):
    return net.add(Slice((0, begin), (N, size), (1, stride)), x)


def test_concats_flatten(net, check):
    a, b, c = (net.input(N, 2, name=n) for n in "abc")
    inner = net.add(Concat(-1), a, b)
    net.output(net.add(Concat(1), net.add(Concat(1), c, inner), inner))
    assert check(net, simplify_slices) == ["concat"]


def test_concats_on_other_axes_stay(net, check):
    a, b = (net.input(N, 2, name=n) for n in "ab")
    inner = net.add(Concat(0), a, b)
    net.output(net.add(Concat(1), inner, inner))
    assert check(net, simplify_slices) == ["concat", "concat"]


@pytest.mark.parametrize(
    ("first", "second"), [((1, 6, 1), (2, 3, 1)), ((9, 5, -2), (3, 2, -1)), ((0, 5, 2), (4, 3, -2))]
)
def test_slices_compose(net, check, first, second):
    net.output(cut(net, cut(net, net.input(N, 10), *first), *second))
    assert check(net, simplify_slices) == ["slice"]


@pytest.mark.parametrize(
    ("begin", "size", "stride", "left"), [(0, 3, 1, 1), (3, 2, 1, 1), (4, 2, -1, 1), (2, 2, 1, 2)]
)
def test_slice_of_concat(net, check, begin, size, stride, left):
    a, b = net.input(N, 3, name="a"), net.input(N, 4, name="b")
    net.output(cut(net, net.add(Concat(1), a, b), begin, size, stride))
    assert len(check(net, simplify_slices)) == left


def test_adjacent_slices_join(net, check):
    x = net.input(N, 9)
    parts = [cut(net, x, 0, 2), cut(net, x, 2, 3), net.add(ew.Exp(), x), cut(net, x, 5, 1)]
    net.output(net.add(Concat(1), *parts))
    assert sorted(check(net, simplify_slices)) == ["concat", "exp", "slice", "slice"]


def test_split_and_concat_cancel(net, check):
    x = net.input(N, 4)
    net.output(net.add(Concat(1), cut(net, x, 0, 1), cut(net, x, 1, 3)))
    assert check(net, simplify_slices) == ["slice"]


@pytest.mark.parametrize(
    ("indices", "left"),
    [
        ([1, 2, 3], ["slice"]),
        ([4, 2, 0], ["slice"]),
        ([-1], ["slice"]),
        (2, ["slice", "reshape"]),
        ([1, 2, 4], ["gather"]),
        ([1, 1], ["gather"]),
        ([[1, 2]], ["gather"]),
    ],
)
def test_gather_of_a_range(net, check, indices, left):
    x = net.input(N, 5)
    index = net.graph.constant(np.array(indices, np.int32))
    net.output(net.add(Gather(1), x, index))
    assert check(net, simplify_slices) == left
