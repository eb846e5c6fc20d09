"""MSE calibration: the threshold whose quantized values are nearest to the real ones.

Of all the methods here it keeps most of what real networks compute (docs/int8.md has the table):
by it a range is cut only where that pays. Entropy sees how many elements saturate and not by how
much: it cut MobileNetV2's ReLU6 at 3 to 5.
"""

from __future__ import annotations

import numpy as np

from planish.quantization.calibrator import Calibrator
from planish.quantization.histogram import Histogram

STEPS = 255
"""Steps from the least level to the greatest."""

CANDIDATES = 256
"""Thresholds that are tried: so many equal parts of the greatest magnitude."""


class MseCalibrator(Calibrator):
    """The least mean squared difference between elements and what 8 bits make of them.

    Rounding errors grow with the range, those of saturation shrink. Elements of one sign have all
    levels on their side. Every element counts as the middle of its bin.
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
        below, above = max(-histogram.least, 0.0), max(histogram.greatest, 0.0)
        errors = [
            squared_error(middles, counts, t, (min(below, t) + min(above, t)) / STEPS)
            if t
            else np.inf
            for t in thresholds
        ]
        return float(thresholds[int(np.argmin(errors))])


def squared_error(middles: np.ndarray, counts: np.ndarray, threshold: float, step: float) -> float:
    """The sum of squared differences that levels so far apart make, up to a threshold."""
    quantized = np.minimum(np.rint(middles / step) * step, threshold)
    return float(counts @ np.square(middles - quantized))
