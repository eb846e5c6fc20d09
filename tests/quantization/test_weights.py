"""Weights as int8: scales, sums that are kept, and the shift that is left."""

from __future__ import annotations

import numpy as np
import pytest

from planish.ops.saturation import LARGEST_SUM, largest_sums
from planish.quantization.weights import mean_shift, quantize_weights


def test_each_channel_has_a_scale() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 3, 8, 5)).astype(np.float32) * [1, 10, 0.1, 1e-3, 100]
    levels, scales = quantize_weights(weights.astype(np.float32))
    assert levels.dtype == np.int8
    assert np.abs(levels).reshape(-1, 5).max(axis=0).tolist() == [127] * 5
    assert np.all(np.abs(levels * scales - weights) <= scales / 2 * 1.0001)


def test_weights_on_levels_are_exact() -> None:
    rng = np.random.default_rng(1)
    levels = rng.integers(-127, 128, (3, 3, 1, 6)).astype(np.int8)
    levels[0, 0, 0] = 127
    scales = np.float32(2.0) ** rng.integers(-9, 3, 6).astype(np.float32)
    for keep_sums in (False, True):
        have, found = quantize_weights(levels * scales, keep_sums=keep_sums)
        np.testing.assert_array_equal(have, levels)
        np.testing.assert_array_equal(found, scales)


@pytest.mark.parametrize(("depth", "count"), [(1, 2), (7, 2), (8, 2), (20, 2), (16, 4)])
def test_levels_that_are_added_up_are_small(depth: int, count: int) -> None:
    """They are 128 together at most, and no channel loses more than it takes for that; channels
    that have few such weights lose none, or room to round up four.
    """
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((3, 3, depth, 40)).astype(np.float32)
    weights[..., 0] = np.abs(weights[..., 0])
    weights[:, :, 0, 1], weights[:, :, 1:, 1] = 1.0, 0.0
    levels, scales = quantize_weights(weights, short=True)
    _, plain = quantize_weights(weights)
    assert 120 < largest_sums(levels.astype(int), count).max() <= LARGEST_SUM
    assert np.all(np.abs(levels * scales - weights) <= scales / 2 * 1.0001)
    assert np.all(scales >= plain) and np.all(scales <= count * 1.01 * plain)
    assert scales[0] > plain[0]
    assert depth == 1 or scales[1] <= plain[1] * (1.0 if count == 2 else 1.01)


def test_channels_of_zeros() -> None:
    levels, scales = quantize_weights(np.zeros((1, 1, 4, 2), np.float32), keep_sums=True)
    assert not levels.any()
    assert scales.tolist() == [1.0, 1.0]


def test_sums_are_kept() -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((3, 3, 1, 400)).astype(np.float32)
    exact = weights.reshape(9, -1).sum(axis=0)

    def worst(keep_sums: bool) -> float:
        levels, scales = quantize_weights(weights, keep_sums=keep_sums)
        assert np.all(np.abs(levels * scales - weights) < scales)
        sums = levels.reshape(9, -1).astype(np.float64).sum(axis=0) * scales
        return float(np.max(np.abs(sums - exact) / scales))

    assert worst(False) > 1
    assert worst(True) < 0.5001


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_shift_is_what_a_constant_input_loses(groups: int) -> None:
    rng = np.random.default_rng(3)
    depth, filters = 6 // groups, 12
    weights = rng.standard_normal((3, 2, depth, filters)).astype(np.float32)
    means = rng.standard_normal(6)
    levels, scales = quantize_weights(weights)
    quantized = levels * scales

    def result(w: np.ndarray) -> np.ndarray:
        """A window whose taps all hold the means."""
        by_group = w.astype(np.float64).reshape(6, depth, groups, filters // groups)
        x = means.reshape(groups, depth)
        return np.einsum("tdgk,gd->gk", by_group, x).reshape(-1)

    shift = mean_shift(weights, levels, scales, means, groups)
    np.testing.assert_allclose(shift, result(weights) - result(quantized), rtol=1e-4, atol=1e-6)
