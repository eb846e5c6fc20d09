"""Histograms: the same for the same elements, however they come, and right by definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.quantization.histogram import BINS, LOWEST, Histogram


def of(*portions: np.ndarray) -> Histogram:
    histogram = Histogram()
    for portion in portions:
        histogram.add(portion)
    return histogram


def same(a: Histogram, b: Histogram) -> None:
    for name in ("exponent", "least", "greatest", "zeros", "unfit"):
        assert getattr(a, name) == getattr(b, name)
    np.testing.assert_array_equal(a.counts, b.counts)


def by_definition(elements: np.ndarray, width: float) -> np.ndarray:
    """Counts in float64, where no division by a power of two rounds."""
    places = np.floor(np.abs(elements.astype(np.float64)) / width).astype(np.int64)
    return np.bincount(places.reshape(-1), minlength=BINS)


SHAPES = {
    "normal": lambda r, n: r.standard_normal(n),
    "relu": lambda r, n: np.maximum(r.standard_normal(n), 0),
    "tails": lambda r, n: r.standard_cauchy(n),
    "tiny": lambda r, n: r.standard_normal(n) * 1e-42,
    "huge": lambda r, n: r.uniform(-3e38, 3e38, n),
    "one": lambda r, n: np.full(n, 2.0),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 7, 8, 4096, 10_001])
def test_counts_are_what_the_definition_says(shape: str, count: int) -> None:
    elements = SHAPES[shape](np.random.default_rng(count), count).astype(np.float32)
    histogram = of(elements)
    assert histogram.least == elements.min()
    assert histogram.greatest == elements.max()
    assert histogram.total == count
    assert histogram.zeros == (elements == 0).sum()
    assert histogram.largest < math.ldexp(1, histogram.exponent)
    if histogram.exponent > LOWEST:  # the range is the smallest that holds the elements
        assert histogram.largest >= math.ldexp(1, histogram.exponent - 1)
        assert BINS // 2 < len(histogram.used()) <= BINS
    np.testing.assert_array_equal(histogram.counts, by_definition(elements, histogram.width))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 6000), max_size=5),
    st.sampled_from(sorted(SHAPES)),
)
def test_portions_and_order_do_not_matter(seed: int, cuts: list[int], shape: str) -> None:
    random = np.random.default_rng(seed)
    elements = SHAPES[shape](random, 6000).astype(np.float32)
    whole = of(elements)
    portions = np.split(elements, sorted(cuts))
    same(of(*portions), whole)
    same(of(*reversed(portions)), whole)
    same(of(random.permutation(elements)), whole)
    merged = Histogram()
    for portion in portions:
        merged.merge(of(portion))
    same(merged, whole)


def test_ranges_grow_one_element_at_a_time() -> None:
    elements = np.float32(1.7) ** np.arange(-40, 40, dtype=np.float32)
    same(of(*elements), of(elements[::-1]))


def test_only_zeros() -> None:
    histogram = of(np.zeros(100, np.float32))
    assert (histogram.least, histogram.greatest, histogram.largest) == (0, 0, 0)
    assert histogram.used().tolist() == [100]


def test_no_elements() -> None:
    histogram = of(np.zeros((0, 3), np.float32))
    assert (histogram.total, histogram.largest, histogram.used().size) == (0, 0.0, 0)


@pytest.mark.parametrize("place", [0, 3000, 9999])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted_apart(place: int, bad: float) -> None:
    elements = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    rest = np.delete(elements, place)
    elements[place] = bad
    histogram = of(elements)
    assert histogram.unfit == 1
    assert histogram.total == 9999
    histogram.unfit = 0
    same(histogram, of(rest))


def test_dense_or_not_and_of_any_shape() -> None:
    elements = np.random.default_rng(2).standard_normal((40, 30, 20)).astype(np.float32)
    same(of(elements[:, ::2]), of(np.ascontiguousarray(elements[:, ::2]).reshape(-1)))


def test_memory_is_bounded() -> None:
    histogram = Histogram()
    for power in range(-120, 120):
        histogram.add(np.full(100, 2.0**power, np.float32))
    assert histogram.counts.nbytes == 8 * BINS
