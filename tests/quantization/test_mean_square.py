"""The least squared error against quantizing the elements themselves."""

from __future__ import annotations

import numpy as np
import pytest

from planish.quantization.histogram import Histogram
from planish.quantization.mean_square import CANDIDATES, MseCalibrator


def error(elements: np.ndarray, threshold: float) -> float:
    """The mean squared error of 256 levels between the ends that a threshold leaves."""
    low, high = np.clip([min(elements.min(), 0), max(elements.max(), 0)], -threshold, threshold)
    step = (high - low) / 255
    return float(np.mean((np.clip(np.rint(elements / step) * step, low, high) - elements) ** 2))


@pytest.mark.parametrize("freedom", [2.5, 4.0, 1e9])
@pytest.mark.parametrize("slope", [1.0, 0.1, 0.0])
def test_no_candidate_is_better_on_the_elements(freedom: float, slope: float) -> None:
    elements = np.random.default_rng(0).standard_t(freedom, 20_000).astype(np.float32)
    elements = np.where(elements < 0, np.float32(slope) * elements, elements)
    histogram = Histogram()
    histogram.add(elements)
    found = MseCalibrator().threshold(histogram)
    candidates = histogram.largest * np.arange(1, CANDIDATES + 1) / CANDIDATES
    assert found in candidates
    best = min(error(elements, t) for t in candidates)
    # elements count as the middles of their bins
    assert error(elements, found) <= best * 1.02


def test_nothing_is_gained_by_saturating_few_levels() -> None:
    histogram = Histogram()
    histogram.add(np.array([0.0, 1.0] * 50, np.float32))
    assert MseCalibrator().range(histogram) == (0.0, 1.0)


def test_a_bounded_activation_whose_bound_is_rarely_reached_keeps_its_range() -> None:
    """As ReLU6 in the last blocks of MobileNetV2: much near 0, a thousandth at 6."""
    elements = np.minimum(np.random.default_rng(0).exponential(0.3, 100_000), 2.0)
    elements[:100] = 6.0
    histogram = Histogram()
    histogram.add(elements.astype(np.float32))
    assert MseCalibrator().range(histogram)[1] > 5.9


@pytest.mark.parametrize("elements", [[], [0.0, 0.0]])
def test_nothing_but_zeros(elements: list[float]) -> None:
    histogram = Histogram()
    histogram.add(np.array(elements, np.float32))
    assert MseCalibrator().range(histogram) == (0.0, 0.0)
