"""Slice bounds and reshape targets: NumPy's and ONNX's rules, on integers and on symbols."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import ShapeError
from planish.graph import symbol
from planish.graph.dims import Dim, evaluate, floordiv
from planish.ops import (
    expand_shape,
    index_begin,
    resolve_reshape,
    slice_bounds,
    squeeze_shape,
)

N, M = symbol("N"), symbol("M")
BOUND = st.one_of(st.none(), st.integers(-9, 9), st.sampled_from([2**31 - 1, 2**63 - 1]))
STRIDE = st.sampled_from([1, 2, 3, -1, -2, -3])


@given(st.integers(0, 8), BOUND, BOUND, STRIDE)
def test_bounds_of_integers_are_numpys(dim, start, stop, stride):
    begin, size = slice_bounds(dim, start, stop, stride)
    expected = np.arange(dim)[start:stop:stride]
    assert [begin + i * stride for i in range(size)] == expected.tolist()


@given(st.integers(0, 8), BOUND, BOUND, STRIDE)
def test_bounds_of_symbols_are_numpys(dim, start, stop, stride):
    begin, size = (evaluate(d, {"N": dim}) for d in slice_bounds(N, start, stop, stride))
    expected = np.arange(dim)[start:stop:stride]
    assert [begin + i * stride for i in range(size)] == expected.tolist()


@given(st.integers(0, 8), st.integers(1, 8), STRIDE)
def test_symbolic_bounds(dim, other, stride):
    bindings = {"N": dim, "M": other}
    for start, stop in [(M, None), (None, M), (M - 1, M * 2), (-M, None), (None, -M), (2, M)]:
        begin, size = (evaluate(d, bindings) for d in slice_bounds(N, start, stop, stride))
        first, last = (None if b is None else evaluate(b, bindings) for b in (start, stop))
        expected = np.arange(dim)[first:last:stride]
        assert [begin + i * stride for i in range(size)] == expected.tolist(), (start, stop)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((N,), "(0, N)"),
        ((N, 0, 2**31 - 1), "(0, N)"),
        ((N, 1), "(1, max(N - 1, 0))"),
        ((N, None, -1), "(0, max(N - 1, 0))"),
        ((N + 1, 1), "(1, N)"),
        ((N, None, None, -1), "(N - 1, N)"),
        ((N, -1, -(2**63), -1), "(N - 1, N)"),
        ((N, None, None, 2), "(0, floordiv(N + 1, 2))"),
        ((N, 0, N), "(0, N)"),
        ((N * 2, N), "(N, N)"),
        ((N, -1), "(max(N - 1, 0), min(N, 1))"),
        ((N + 4, -3), "(N + 1, 3)"),
    ],
)
def test_bounds_stay_simple(arguments, expected):
    assert str(slice_bounds(*arguments)) == expected


def test_bounds_refuse():
    with pytest.raises(ShapeError, match="stride 0"):
        slice_bounds(4, 0, 2, 0)
    with pytest.raises(ShapeError, match="may be negative or not"):
        slice_bounds(N, M - 5, None)


def test_index_begin():
    assert index_begin(4, -1) == 3
    assert index_begin(N, -1) == N - 1
    assert index_begin(N, 2) == 2
    for wrong in (4, -5):
        with pytest.raises(ShapeError, match="outside"):
            index_begin(4, wrong)


@pytest.mark.parametrize(
    ("shape", "target", "expected"),
    [
        ((2, 3, 4), (6, -1), (6, 4)),
        ((2, 3, 4), (0, -1), (2, 12)),
        ((N, 3, 4), (-1, 6), (N * 2, 6)),
        ((N, 8, 8, 3), (0, 0, -1), (N, 8, 24)),
        ((N, M, 4), (N, -1), (N, M * 4)),
        ((N + 1, 4), (N + 1, -1), (N + 1, 4)),
        ((N, M), (-1,), (N * M,)),
        ((N,), (-1, 4), (floordiv(N, 4), 4)),
        ((0, 3), (0, -1), (0, 3)),
        ((3,), (3,), (3,)),
        ((), (-1,), (1,)),
    ],
)
def test_resolve_reshape(shape, target, expected):
    assert resolve_reshape(shape, target) == expected


def test_zeros_may_be_empty_dimensions():
    assert resolve_reshape((3, 0), (0, 7), zero_copies=False) == (0, 7)


@pytest.mark.parametrize(
    ("shape", "target"),
    [((2, 3), (-1, -1)), ((2, 3), (4, -1)), ((2,), (1, 0)), ((4,), (5, -1))],
)
def test_resolve_reshape_refuses(shape, target):
    with pytest.raises(ShapeError):
        resolve_reshape(shape, target)


@given(st.lists(st.integers(1, 4), max_size=4), st.data())
def test_resolve_reshape_keeps_the_elements(shape, data):
    target = list(data.draw(st.permutations(shape)))
    if target:
        target[data.draw(st.integers(0, len(target) - 1))] = -1
    assert np.prod(resolve_reshape(shape, target)) == np.prod(shape)


def test_squeeze_and_expand():
    assert squeeze_shape((1, N, 1, 3)) == (N, 3)
    assert squeeze_shape((1, N, 1, 3), (0,)) == (N, 1, 3)
    assert squeeze_shape((1, N, 3), (-2, 0)) == (3,)
    assert expand_shape((N, 3), (0, -1)) == (1, N, 3, 1)
    assert expand_shape((), (0,)) == (1,)
    assert expand_shape((N,), (1, 2)) == (N, 1, 1)
    with pytest.raises(ShapeError, match="cannot be squeezed"):
        squeeze_shape((2, 1), (0,))
    with pytest.raises(ShapeError, match="twice"):
        expand_shape((2,), (0, -3))
    with pytest.raises(ShapeError, match="does not exist"):
        expand_shape((2,), (3,))
    assert isinstance(expand_shape((N,), ())[0], Dim)
