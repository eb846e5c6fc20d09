"""The least squared error against quantizing the elements themselves."""

from __future__ import annotations

import numpy as np
import pytest

from planish.quantization.histogram import Histogram
from planish.quantization.mean_square import CANDIDATES, MseCalibrator


def error(elements: np.ndarray, threshold: float) -> float:
    """The mean squared error of signed 8-bit quantization."""
    step = threshold / 127
    return float(np.mean((np.clip(np.rint(elements / step), -127, 127) * step - elements) ** 2))


@pytest.mark.parametrize("freedom", [2.5, 4.0, 1e9])
@pytest.mark.parametrize("seed", range(3))
def test_no_candidate_is_better_on_the_elements(freedom: float, seed: int) -> None:
    elements = np.random.default_rng(seed).standard_t(freedom, 20_000).astype(np.float32)
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


@pytest.mark.parametrize("elements", [[], [0.0, 0.0]])
def test_nothing_but_zeros(elements: list[float]) -> None:
    histogram = Histogram()
    histogram.add(np.array(elements, np.float32))
    assert MseCalibrator().range(histogram) == (0.0, 0.0)
