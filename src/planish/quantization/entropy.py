"""Entropy calibration: the threshold at which quantized values tell most about the real ones.

The method is TensorRT's (S. Migacz, "8-bit Inference with TensorRT", GTC 2017, session S7310,
slides "Entropy calibration - pseudocode"): of all thresholds, take the one whose quantized
distribution Q has the least Kullback-Leibler divergence from the distribution P that saturates
there.

    P   the bins below the threshold; what lies above is added to the last of them
    Q   the same bins, without what lies above, merged into 128 levels; each level's mass is spread
        evenly over those of its bins that are not empty

Both are normalised. A threshold where P has mass and Q has none has an infinite divergence.

Zero is represented exactly whatever the threshold, and the zeros after a ReLU would outvote all
other elements: counted like these, they cut MobileNetV2's ReLU6 off at 0.5 and leave nothing of its
accuracy. The slides do not say what becomes of them, and TensorRT's source is closed.
`EntropyCalibrator` leaves exact zeros out. `EntropyCalibrator2` does what NVIDIA's open
pytorch-quantization does (`histogram.py`, `_compute_amax_entropy`): the first bin counts as much as
the second, so that elements near zero have no more say than others either.
"""

from __future__ import annotations

import numpy as np

from planish.quantization.calibrator import Calibrator
from planish.quantization.histogram import Histogram

LEVELS = 128
"""Magnitudes that a signed 8-bit integer tells apart."""


class EntropyCalibrator(Calibrator):
    """Least divergence over all elements but zeros, for TensorRT's `IInt8EntropyCalibrator`."""

    algorithm = "entropy"

    def threshold(self, histogram: Histogram) -> float:
        counts = self._counted(histogram)
        return (best_bins(counts) + 0.5) * histogram.width if counts.any() else histogram.largest

    def _counted(self, histogram: Histogram) -> np.ndarray:
        counts = histogram.used().copy()
        counts[:1] -= histogram.zeros
        return counts


class EntropyCalibrator2(EntropyCalibrator):
    """Least divergence, the bin at zero held down, for TensorRT's `IInt8EntropyCalibrator2`."""

    algorithm = "entropy-2"

    def _counted(self, histogram: Histogram) -> np.ndarray:
        counts = histogram.used()
        if len(counts) < 2:
            return counts
        return np.concatenate([counts[1:2], counts[1:]])


def best_bins(counts: np.ndarray, levels: int = LEVELS) -> int:
    """How many of the bins lie below the best threshold; the least number of several.

    All divergences are computed together from running sums. With h the counts, T their sum, C(i)
    the sum of the first i, S and N sum and number of the non-empty bins of a level, and S' = S but
    for the last level, to which what lies above is added,

        KL(i) = (sum over bins of p log p + sum over levels of S' (log N - log S)) / T
                + log C(i) - log T
    """
    size = len(counts)
    if size <= levels:
        return size
    h = counts.astype(np.float64)
    total = h.sum()
    below = np.concatenate([[0.0], np.cumsum(h)])
    filled = np.concatenate([[0], np.cumsum(h > 0)])
    own = _x_log_x(h)
    own_below = np.concatenate([[0.0], np.cumsum(own)])

    bins = np.arange(levels, size + 1)
    # bin j of i is in level j * levels // i: a level starts at the first j for which that is so
    edges = -(-np.arange(levels + 1)[None] * bins[:, None] // levels)
    masses = np.diff(below[edges], axis=1)
    numbers = np.diff(filled[edges], axis=1)
    above = total - below[bins]
    last = h[bins - 1]

    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.where(numbers > 0, np.log(numbers) - np.log(masses), 0.0)
        saturating = masses.copy()
        saturating[:, -1] += above
        divergence = (
            own_below[bins] - own[bins - 1] + _x_log_x(last + above) + (saturating * spread).sum(1)
        ) / total + np.log(below[bins] / total)
    divergence[(last == 0) & (above > 0)] = np.inf
    return int(bins[np.argmin(divergence)])


def _x_log_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1.0))
