"""Min-max calibration: nothing saturates."""

from __future__ import annotations

from planish.quantization.calibrator import Calibrator
from planish.quantization.histogram import Histogram


class MinMaxCalibrator(Calibrator):
    """The extremes that the data reached, as TensorRT's `IInt8MinMaxCalibrator`."""

    algorithm = "min-max"

    def threshold(self, histogram: Histogram) -> float:
        return histogram.largest
