"""Symbolic dimensions: canonical form, arithmetic, text, division, bounds."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.graph.dims import (
    Dim,
    bounds,
    ceildiv,
    dim_max,
    dim_min,
    evaluate,
    floordiv,
    parse,
    product,
    substitute,
    symbol,
    symbols,
)

N, M, H = symbol("N"), symbol("M"), symbol("H")
SIZES = st.integers(0, 40)


def _grow(dims):
    constant = st.integers(1, 6)
    return st.one_of(
        st.tuples(dims, dims).map(lambda p: p[0] + p[1]),
        st.tuples(dims, dims).map(lambda p: p[0] - p[1]),
        st.tuples(dims, dims).map(lambda p: p[0] * p[1]),
        st.tuples(dims, constant).map(lambda p: floordiv(*p)),
        st.tuples(dims, constant).map(lambda p: ceildiv(*p)),
        st.tuples(dims, dims).map(lambda p: dim_max(*p)),
        st.tuples(dims, dims).map(lambda p: dim_min(*p)),
    )


DIMS = st.recursive(st.sampled_from([N, M]) | st.integers(-9, 9), _grow, max_leaves=6)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (N + M, M + N),
        (N * 2 + N, 3 * N),
        ((N + 1) * (N - 1), N * N - 1),
        (2 - N, -N + 2),
        (dim_max(N, M), dim_max(M, N)),
        (dim_min(3, N), dim_min(N, 3)),
        (floordiv(N - 1, 2) + 1, ceildiv(N, 2)),
        (floordiv(N + 3, 2), floordiv(N + 1, 2) + 1),
        (ceildiv(ceildiv(N, 2), 2), ceildiv(N, 4)),
        (floordiv(floordiv(N, 2) + 1, 3), floordiv(N + 2, 6)),
    ],
)
def test_equal_dimensions_have_one_form(left, right):
    assert left == right
    assert hash(left) == hash(right)
    assert str(left) == str(right)


@pytest.mark.parametrize(
    ("dim", "expected"),
    [
        (N - N, 0),
        (N * 0, 0),
        (N - N + 7, 7),
        (N % 1, 0),
        ((N * 4) % 2, 0),
        (floordiv(N * 6, 3), N * 2),
        (floordiv(N * M, M), N),
        (floordiv(N * M * 4, N * 2), M * 2),
        (floordiv(N + 1, N + 1), 1),
        (floordiv(N * 4 + 3, 4), N),
        (dim_max(N, N + 2), N + 2),
        (dim_min(N, N + 2), N),
        (dim_max(3, 5), 5),
        (product([]), 1),
        (product([2, N, M]), 2 * N * M),
    ],
)
def test_simplification(dim, expected):
    assert dim == expected
    assert type(dim) is type(expected)


def test_symbols_are_not_numbers():
    assert N != M
    assert N != 3
    assert isinstance(N + 0, Dim)
    assert bool(N)
    assert symbols(floordiv(N + M, H) * 2) == {"N", "M", "H"}
    assert symbols(4) == set()
    with pytest.raises(TypeError):
        N + "1"


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (N, "N"),
        (2 * N - 1, "2*N - 1"),
        (1 - N, "-N + 1"),
        (N * M + N, "M*N + N"),
        (floordiv(N, 2) * 2, "2*floordiv(N, 2)"),
        (dim_max(N - 1, 0), "max(N - 1, 0)"),
        (floordiv(7, N), "floordiv(7, N)"),
    ],
)
def test_text(dim, text):
    assert str(dim) == repr(dim) == text


@given(DIMS, SIZES, SIZES)
def test_text_parses_back(dim, n, m):
    again = parse(str(dim))
    assert again == dim
    assert pickle.loads(pickle.dumps(dim)) == dim
    bindings = {"N": n, "M": m}
    assert evaluate(again, bindings) == evaluate(dim, bindings)


@pytest.mark.parametrize(
    "text", ["", "N +", "N / 2", "N ** 2", "1.5", "True", "sqrt(N, 2)", "max(N)", "N.real", "'N'"]
)
def test_parse_refuses(text):
    with pytest.raises(ValueError, match="not a dimension"):
        parse(text)


@given(DIMS, DIMS, SIZES, SIZES)
def test_arithmetic_is_that_of_integers(a, b, n, m):
    bindings = {"N": n, "M": m}
    x, y = evaluate(a, bindings), evaluate(b, bindings)
    assert evaluate(a + b, bindings) == x + y
    assert evaluate(a - b, bindings) == x - y
    assert evaluate(a * b, bindings) == x * y
    assert evaluate(dim_max(a, b), bindings) == max(x, y)
    assert evaluate(dim_min(a, b), bindings) == min(x, y)
    if y and b != 0:
        assert evaluate(floordiv(a, b), bindings) == x // y
        assert evaluate(ceildiv(a, b), bindings) == -(-x // y)
        assert evaluate(a - floordiv(a, b) * b, bindings) == x % y


@given(DIMS, st.integers(-6, 6).filter(bool), SIZES, SIZES)
def test_division_by_integers(dim, divisor, n, m):
    bindings = {"N": n, "M": m}
    value = evaluate(dim, bindings)
    assert evaluate(floordiv(dim, divisor), bindings) == value // divisor
    assert evaluate(ceildiv(dim, divisor), bindings) == -(-value // divisor)


@given(DIMS, st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES), st.data())
def test_bounds_hold(dim, n_range, m_range, data):
    ranges = {"N": tuple(sorted(n_range)), "M": tuple(sorted(m_range))}
    bindings = {name: data.draw(st.integers(*r)) for name, r in ranges.items()}
    low, high = bounds(dim, ranges)
    assert low <= evaluate(dim, bindings) <= high


def test_bounds_are_tight_where_symbols_occur_once():
    assert bounds(5, {}) == (5, 5)
    assert bounds(2 * N + 1, {"N": (1, 8)}) == (3, 17)
    assert bounds(floordiv(N + 1, 2), {"N": (1, 8)}) == (1, 4)
    assert bounds(dim_max(N - 3, 0), {"N": (1, 8)}) == (0, 5)
    assert bounds(-N, {"N": (1, 8)}) == (-8, -1)


@given(DIMS, SIZES, SIZES)
def test_substitution(dim, n, m):
    bindings = {"N": n, "M": m}
    assert substitute(dim, bindings) == evaluate(dim, bindings)
    swapped = substitute(dim, {"N": M, "M": N})
    assert evaluate(swapped, {"N": m, "M": n}) == evaluate(dim, bindings)


def test_substitution_simplifies_and_keeps_the_rest():
    assert substitute(floordiv(N, 2), {"N": M * 2}) == M
    assert substitute(N + M, {"N": 3}) == M + 3
    assert substitute(7, {"N": 3}) == 7


def test_evaluate_needs_every_symbol():
    with pytest.raises(KeyError):
        evaluate(N + M, {"N": 1})


class TestExtremaThatAreNone:
    """``max`` and ``min`` vanish where one side is never the answer, or the line is straight."""

    N = symbol("N")

    @pytest.mark.parametrize(
        ("dim", "simple"),
        [
            (dim_max(N, 0), N),
            (dim_min(N, 0), 0),
            (dim_max(N * 2 + 3, N), N * 2 + 3),
            (dim_min(N, N + floordiv(N, 2)), N),
            # the first element put before all, then the first dropped
            (dim_max(N + dim_min(N, 1) - 1, 0), N),
            (dim_max(dim_max(N, 3) + dim_min(N, 3), N + 3), N + 3),
        ],
    )
    def test_simple(self, dim, simple) -> None:
        assert dim == simple

    @settings(deadline=None)
    @given(st.data())
    def test_no_value_changes(self, data) -> None:
        """Expressions are compared with what they are written as, at many sizes."""

        def grow(depth: int):
            kind = data.draw(st.sampled_from(["N", "constant", "min", "max", "+", "*", "//"]))
            if depth == 0 or kind in ("N", "constant"):
                number = data.draw(st.integers(-4, 6))
                return (self.N, lambda n: n) if kind == "N" else (number, lambda n: number)
            (a, at), (b, bt) = grow(depth - 1), grow(depth - 1)
            if kind == "*":
                return a * 2, lambda n: at(n) * 2
            if kind == "//":
                return floordiv(a, 3), lambda n: at(n) // 3
            if kind == "+":
                return a + b, lambda n: at(n) + bt(n)
            make, pick = (dim_min, min) if kind == "min" else (dim_max, max)
            return make(a, b), lambda n: pick(at(n), bt(n))

        dim, truth = grow(4)
        for n in [*range(20), 100, 12345]:
            assert evaluate(dim, {"N": n}) == truth(n)

    def test_bounds_of_a_quotient_by_what_may_be_one(self) -> None:
        assert bounds(floordiv(100, self.N), {"N": (0, 50)}) == (2, 100)
