"""Winograd's matrices: minimal filtering computes what sliding a filter does."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from planish.targets.cpu.kernels.winograd_transform import Transform, transform_filters

TRANSFORMS = [(2, 3), (4, 3), (2, 5), (4, 5), (2, 7), (1, 1)]


@pytest.mark.parametrize(("results", "taps"), TRANSFORMS)
def test_the_matrices_filter_exactly(results: int, taps: int) -> None:
    transform = Transform(results, taps)
    rng = np.random.default_rng(0)
    source = [Fraction(int(n), 7) for n in rng.integers(-50, 50, transform.size)]
    filters = [Fraction(int(n), 5) for n in rng.integers(-50, 50, taps)]

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    factors = zip(times(transform.source, source), times(transform.filter, filters), strict=True)
    have = times(transform.result, [a * b for a, b in factors])
    want = [
        sum(f * s for f, s in zip(filters, source[i : i + taps], strict=True))
        for i in range(results)
    ]
    assert have == want


@pytest.mark.parametrize(("results", "scale", "shift"), [(2, 2, 1), (4, 24, 3)])
def test_exact_matrices_are_of_integers(results: int, scale: int, shift: int) -> None:
    transform = Transform(results, 3, exact=True)
    assert (transform.scale, transform.shift) == (scale, shift)
    matrices = transform.source, transform.filter, transform.result
    assert all(a.denominator == 1 for matrix in matrices for row in matrix for a in row)
    source, filters, result = (np.array(m, np.float64).astype(np.int64) for m in matrices)
    rng = np.random.default_rng(0)
    x, w = rng.integers(-255, 256, transform.size), rng.integers(-127, 128, 3)
    have = result @ ((source @ x) * (filters @ w))
    np.testing.assert_array_equal(have, scale * np.correlate(x, w))
    # bytes less a zero point, and weights of bytes, along both axes
    image = np.kron(source, source)
    assert max(abs(np.maximum(image, 0).sum(1).max()), abs(np.minimum(image, 0).sum(1).min())) < 128
    assert np.abs(np.kron(filters, filters)).sum(1).max() * 128 < 1 << 15


def test_integer_filters_are_transformed_along_both_axes() -> None:
    both = Transform(2, 3, exact=True), Transform(4, 3, exact=True)
    weights = np.random.default_rng(1).integers(-127, 128, (3, 3, 5, 6))
    a, b = (np.array(t.filter, np.float64).astype(np.int64) for t in both)
    want = np.einsum("pi,qj,ijck->pqck", a, b, weights).reshape(24, 5, 6)
    np.testing.assert_array_equal(transform_filters(weights, *both, np.int16), want)


def test_filters_are_transformed_along_both_axes() -> None:
    down, along = Transform(2, 3), Transform(4, 3)
    weights = np.random.default_rng(1).standard_normal((3, 3, 5, 6)).astype(np.float32)
    a, b = (np.array(t.filter, np.float64) for t in (down, along))
    want = np.einsum("pi,qj,ijck->pqck", a, b, weights).reshape(24, 5, 6)
    np.testing.assert_allclose(transform_filters(weights, down, along), want, rtol=0, atol=1e-6)
