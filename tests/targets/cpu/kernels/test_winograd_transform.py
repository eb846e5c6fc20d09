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


def test_filters_are_transformed_along_both_axes() -> None:
    down, along = Transform(2, 3), Transform(4, 3)
    weights = np.random.default_rng(1).standard_normal((3, 3, 5, 6)).astype(np.float32)
    a, b = (np.array(t.filter, np.float64) for t in (down, along))
    want = np.einsum("pi,qj,ijck->pqck", a, b, weights).reshape(24, 5, 6)
    np.testing.assert_allclose(transform_filters(weights, down, along), want, rtol=0, atol=1e-6)
