"""MSE calibration: the threshold whose quantized values are nearest to the real ones."""

from __future__ import annotations

import numpy as np

from planish.quantization.calibrator import Calibrator
from planish.quantization.histogram import Histogram

STEPS = 127
"""Steps from zero to the threshold."""

CANDIDATES = 256
"""Thresholds that are tried: so many equal parts of the greatest magnitude."""


class MseCalibrator(Calibrator):
    """The least mean squared difference between elements and what 8 bits make of them.

    Rounding errors grow with the threshold, those of saturation shrink. Every element counts as the
    middle of its bin.
    """

    algorithm = "mse"

    def threshold(self, histogram: Histogram) -> float:
        counts = histogram.used()
        if not counts.size:
            return histogram.largest
        middles = (np.arange(len(counts)) + 0.5) * histogram.width
        filled = counts > 0
        counts, middles = counts[filled], middles[filled]
        thresholds = histogram.largest * np.arange(1, CANDIDATES + 1) / CANDIDATES
        errors = [squared_error(middles, counts, t) if t else np.inf for t in thresholds]
        return float(thresholds[int(np.argmin(errors))])


def squared_error(middles: np.ndarray, counts: np.ndarray, threshold: float) -> float:
    """The sum of squared differences that quantization to a threshold makes."""
    step = threshold / STEPS
    quantized = np.minimum(np.rint(middles / step), STEPS) * step
    return float(counts @ np.square(middles - quantized))
