"""Which weights share a sum of 16 bits, against the instruction's own order."""

from __future__ import annotations

import numpy as np
import pytest

from planish.ops.saturation import LARGEST_SUM, largest_sums


def added(bytes_: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """What ``vpmaddubsw`` makes of a row, and of two of its results added up; all sums exact."""
    pairs = (bytes_ * weights).reshape(-1, 2).sum(axis=1)
    return pairs if count == 2 else pairs.reshape(-1, 2, 2).sum(axis=1)


@pytest.mark.parametrize("count", [2, 4])
def test_nothing_saturates_up_to_the_largest_sum(count: int) -> None:
    rng = np.random.default_rng(count)
    weights = rng.integers(-128, 128, (3, 16, 9))
    largest = largest_sums(weights, count)
    for channel in range(9):
        row = weights[..., channel].reshape(-1)
        sums = [added(255 * (sign * row > 0), row, count) for sign in (1, -1)]
        assert np.abs(sums).max() == 255 * largest[channel]


def test_of_an_odd_depth_any_neighbours_may_be_a_pair() -> None:
    weights = np.random.default_rng(0).integers(-128, 128, (3, 5, 7))
    rows = weights.reshape(-1, 7)
    either = [largest_sums(part, 2) for part in (rows[:-1], rows[1:])]
    np.testing.assert_array_equal(largest_sums(weights, 2), np.max(either, axis=0))


def test_four_are_of_whole_eights() -> None:
    with pytest.raises(ValueError, match="not in 12"):
        largest_sums(np.ones((12, 1)), 4)


def test_the_largest_sum_just_fits() -> None:
    assert 255 * LARGEST_SUM <= 32767 < 255 * (LARGEST_SUM + 1)


def test_no_weights() -> None:
    for count in (2, 4):
        assert largest_sums(np.zeros((1, 0, 4)), count).tolist() == [0] * 4
