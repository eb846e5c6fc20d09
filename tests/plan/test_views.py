from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from helpers.networks import N, Net, check
from planish.graph.dims import symbol
from planish.graph.graph import Graph
from planish.ops import Transpose, ew
from planish.plan.views import dense, insert_copies, place, reshape_strides


@st.composite
def strided_and_shape(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """A strided view of an array of distinct elements, and another shape of as many."""
    base = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    array = np.arange(math.prod(base)).reshape(base)
    array = array[tuple(slice(None, None, draw(st.sampled_from([1, 1, 2]))) for _ in base)]
    if draw(st.booleans()):
        array = array.transpose(draw(st.permutations(range(array.ndim))))
    rest, shape = array.size, []
    while rest > 1:
        factor = draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
        shape.append(factor)
        rest //= factor
        assume(len(shape) < 7)
    position = draw(st.integers(0, len(shape)))
    return array, (*shape[:position], *([1] * draw(st.integers(0, 2))), *shape[position:])


@settings(max_examples=400, deadline=None)
@given(strided_and_shape())
def test_reshape_strides_agrees_with_numpy(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
    array, shape = case
    strides = tuple(s // array.itemsize for s in array.strides)
    found = reshape_strides(array.shape, strides, shape)
    needs_copy = not np.shares_memory(array.reshape(shape), array)
    assert (found is None) == needs_copy
    if found is not None:
        assert len(found) == len(shape)
        view = np.lib.stride_tricks.as_strided(
            array, shape, tuple(int(str(s)) * array.itemsize for s in found)
        )
        np.testing.assert_array_equal(view, array.reshape(shape))


def test_reshape_strides_of_symbols() -> None:
    n, m = symbol("n"), symbol("m")
    assert reshape_strides((n, 4, 5), dense((n, 4, 5)), (n, 20)) == (20, 1)
    assert reshape_strides((n, 20), (40, 1), (n, 4, 5)) == (40, 5, 1)
    assert reshape_strides((n, 4, 5), (40, 5, 1), (n * 4, 5)) is None
    assert reshape_strides((n, 4, 5), dense((n, 4, 5)), (n * 4, 5)) == (5, 1)
    assert reshape_strides((n * 4, 5), (7, 1), (n, 4, 5)) == (28, 7, 1)
    assert reshape_strides((n, m), dense((n, m)), (m, n)) is None


def test_reshape_strides_of_nothing_to_symbols() -> None:
    assert reshape_strides((0, 3), (3, 1), (n := symbol("N"), n)) is None


def placed(graph: Graph) -> tuple[int, int]:
    """How many nodes need no kernel, and how many copies were inserted."""
    before = len(graph.nodes)
    insert_copies(graph)
    return len(place(graph).free), len(graph.nodes) - before


class TestPlacement:
    def test_producers_write_into_their_concatenation(self) -> None:
        net = Net()
        x = net.input(N, 4, 4, 3)
        a, b = net.conv(x, 5), net.conv(x, 7)
        joined = net.concat(a, b)
        graph = net.output(net.conv(joined, 4))
        assert placed(graph) == (1, 0)
        of = place(graph).of
        assert of[a].root is of[b].root is joined
        assert (of[a].offset, of[b].offset) == (0, 5)
        assert of[b].strides == (192, 48, 12, 1)

    def test_a_value_in_two_concatenations_is_copied_once(self) -> None:
        net = Net()
        x = net.input(N, 4)
        a, b = net.dense(x, 5), net.dense(x, 6)
        graph = net.output(net.dense(net.concat(a, b), 3), net.dense(net.concat(b, a), 3))
        assert placed(graph)[1] == 2

    def test_inputs_constants_and_outputs_are_copied(self) -> None:
        net = Net()
        x = net.input(2, 4)
        a = net.dense(x, 5)
        joined = net.concat(a, x, net.weights(2, 3))
        assert placed(net.output(joined, a)) == (1, 3)

    def test_slice_is_a_view(self) -> None:
        net = Net()
        a = net.dense(net.input(N, 4), 10)
        part = net.slice(a, 1, 3, 4)
        graph = net.output(net.dense(part, 2))
        assert placed(graph) == (1, 0)
        placement = place(graph).of[part]
        assert (placement.root, placement.offset, placement.strides) == (a, 3, (10, 1))

    def test_output_is_never_part_of_another_value(self) -> None:
        net = Net()
        x = net.input(N, 4)
        graph = net.output(x, net.slice(net.dense(x, 6), 1, 0, 2), net.reshape(x, N, 2, 2))
        insert_copies(graph)
        of = place(graph).of
        for value in graph.outputs:
            assert of[value].root is value
            assert of[value].strides == dense(value.shape)

    def test_reshape_of_a_transposed_view_needs_a_kernel(self) -> None:
        net = Net()
        turned = net.graph.add(Transpose((0, 2, 1)), net.input(N, 3, 4))
        graph = net.output(net.reshape(turned, N, 12))
        insert_copies(graph)
        assert turned.producer not in place(graph).free


def two(net: Net) -> Graph:
    x = net.input(N, 4, 4, 3)
    return net.output(net.conv(net.concat(net.relu(net.conv(x, 5)), net.conv(x, 7)), 4))


def nested(net: Net) -> Graph:
    x = net.input(N, 3, 3, 4)
    inner = net.concat(net.conv(x, 4), net.conv(x, 4))
    return net.output(net.conv(net.concat(inner, net.conv(x, 8)), 4))


def shared(net: Net) -> Graph:
    x = net.input(N, 6)
    a = net.relu(net.dense(x, 6))
    return net.output(net.concat(a, a), net.concat(a, net.dense(a, 3)))


def to_output(net: Net) -> Graph:
    x = net.input(N, 6)
    a, b = net.dense(x, 5), net.dense(x, 8)
    return net.output(net.concat(a, b), a)


def with_input_and_constant(net: Net) -> Graph:
    x = net.input(2, 6)
    return net.output(net.relu(net.concat(x, net.weights(2, 3), net.dense(x, 5))))


def along_rows(net: Net) -> Graph:
    x = net.input(N, 2, 3, 4)
    return net.output(net.concat(net.conv(x, 4), net.conv(x, 4), axis=1))


def along_batch(net: Net) -> Graph:
    x = net.input(N, 4)
    return net.output(net.dense(net.concat(net.dense(x, 8), net.dense(x, 8), axis=0), 3))


def detection_heads(net: Net) -> Graph:
    """As in SSD: feature maps of several sizes, flattened into one list of boxes."""
    x = net.input(N, 8, 8, 4)
    y = net.conv(x, 8, 3, 2)
    first = net.reshape(net.bias(net.conv(x, 12)), N, 192, 4)
    second = net.reshape(net.bias(net.conv(y, 12)), N, 48, 4)
    return net.output(net.concat(first, second, axis=1))


def split_and_join(net: Net) -> Graph:
    """As in ShuffleNet: half goes around."""
    x = net.relu(net.conv(net.input(N, 4, 4, 8), 8))
    left, right = net.slice(x, 3, 0, 4), net.slice(x, 3, 4, 4)
    joined = net.concat(left, net.relu(net.conv(right, 4)))
    mixed = net.graph.add(Transpose((0, 1, 2, 4, 3)), net.reshape(joined, N, 4, 4, 2, 4))
    return net.output(net.conv(net.reshape(mixed, N, 4, 4, 8), 5))


def concat_of_concat_outputs(net: Net) -> Graph:
    x = net.input(N, 4)
    inner = net.concat(net.dense(x, 4), net.dense(x, 8))
    return net.output(inner, net.concat(inner, net.dense(x, 4)))


def same_value_twice_as_output(net: Net) -> Graph:
    y = net.relu(net.dense(net.input(N, 4), 4))
    return net.output(y, y, net.reshape(y, N, 2, 2))


def residual_through_views(net: Net) -> Graph:
    x = net.input(N, 4, 4, 4)
    y = net.reshape(net.conv(x, 4), N, 16, 4)
    z = net.graph.add(ew.Mul(), y, net.reshape(x, N, 16, 4))
    return net.output(net.reshape(z, N, 64))


def slice_of_slice(net: Net) -> Graph:
    y = net.dense(net.input(N, 4), 16)
    return net.output(net.dense(net.slice(net.slice(y, 1, 2, 12), 1, 4, 6), 5))


@pytest.mark.parametrize(
    "make",
    [
        two,
        nested,
        shared,
        to_output,
        with_input_and_constant,
        along_rows,
        along_batch,
        detection_heads,
        split_and_join,
        concat_of_concat_outputs,
        same_value_twice_as_output,
        residual_through_views,
        slice_of_slice,
    ],
    ids=lambda f: f.__name__,
)
def test_engine_agrees_with_the_references(make) -> None:
    check(make(Net()))
