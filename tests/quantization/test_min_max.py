"""Min-max: the extremes, and zero."""

from __future__ import annotations

import numpy as np
import pytest

from planish.quantization.histogram import Histogram
from planish.quantization.min_max import MinMaxCalibrator


@pytest.mark.parametrize("shift", [-5.0, 0.0, 0.5, 5.0])
def test_extremes_are_the_range(shift: float) -> None:
    elements = (np.random.default_rng(0).standard_normal(1000) + shift).astype(np.float32)
    histogram = Histogram()
    histogram.add(elements)
    low, high = MinMaxCalibrator().range(histogram)
    assert low == min(elements.min(), 0)
    assert high == max(elements.max(), 0)
