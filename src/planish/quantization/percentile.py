"""Percentile calibration: a stated share of the elements does not saturate."""

from __future__ import annotations

from typing import Any

import numpy as np

from planish.errors import InputError
from planish.quantization.calibrator import Calibrator
from planish.quantization.histogram import Histogram


class PercentileCalibrator(Calibrator):
    """The magnitude that so many percent of the elements do not exceed.

    Parameters
    ----------
    data, cache
        As for `Calibrator`.
    percentile : float
        Above 0, at most 100.

    Raises
    ------
    InputError
        The percentile is none.
    """

    def __init__(self, data: Any = None, *, cache: Any = None, percentile: float = 99.99) -> None:
        super().__init__(data, cache=cache)
        if not (isinstance(percentile, int | float) and 0 < percentile <= 100):
            raise InputError(
                f"A percentile is above 0 and at most 100, not {percentile!r}",
                where="percentile=",
                why="it is the share of the elements that do not saturate, in percent",
                cure="pass 99.99, say",
            )
        self.percentile = float(percentile)
        self.algorithm = f"percentile {self.percentile:g}"

    def threshold(self, histogram: Histogram) -> float:
        below = np.cumsum(histogram.used())
        if not below.size:
            return histogram.largest
        # the share is of integers: rounding must not ask for one more than there are
        wanted = min(int(np.ceil(below[-1] * self.percentile / 100 - 1e-9)), int(below[-1]))
        return (int(np.searchsorted(below, max(wanted, 1))) + 1) * histogram.width
