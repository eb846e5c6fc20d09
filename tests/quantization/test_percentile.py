"""Percentiles against NumPy's, within the width of a bin."""

from __future__ import annotations

import numpy as np
import pytest

from planish.errors import InputError
from planish.quantization.histogram import Histogram
from planish.quantization.percentile import PercentileCalibrator


@pytest.mark.parametrize("percentile", [0.5, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_percentile_of_magnitudes(percentile: float, seed: int) -> None:
    elements = np.random.default_rng(seed).standard_t(3, 50_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(elements)
    found = PercentileCalibrator(percentile=percentile).threshold(histogram)
    magnitudes = np.sort(np.abs(elements))
    exact = magnitudes[int(np.ceil(len(magnitudes) * percentile / 100)) - 1]
    assert exact <= found <= exact + histogram.width
    share = (magnitudes <= found).mean() * 100
    assert share >= percentile - 1e-9


def test_one_hundred_is_min_max() -> None:
    histogram = Histogram()
    histogram.add(np.array([-3.0, 7.5], np.float32))
    assert PercentileCalibrator(percentile=100).range(histogram) == (-3.0, 7.5)


def test_no_elements() -> None:
    assert PercentileCalibrator().range(Histogram()) == (0.0, 0.0)


def test_name_says_the_percentile() -> None:
    assert PercentileCalibrator(percentile=99.9).algorithm == "percentile 99.9"


@pytest.mark.parametrize("wrong", [0, -1, 100.5, "99", None])
def test_no_percentile(wrong: object) -> None:
    with pytest.raises(InputError, match="above 0 and at most 100"):
        PercentileCalibrator(percentile=wrong)  # type: ignore[arg-type]
