"""Calibrators by themselves: TensorRT's four methods, and what counts as a calibrator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planish.errors import CalibrationError, InputError
from planish.quantization.calibrator import METHODS, is_calibrator
from planish.quantization.entropy import EntropyCalibrator2
from planish.quantization.histogram import Histogram
from planish.quantization.mean_square import MseCalibrator
from planish.quantization.min_max import MinMaxCalibrator
from planish.quantization.percentile import PercentileCalibrator


def test_cache_methods(tmp_path: Path) -> None:
    calibrator = MinMaxCalibrator(cache=tmp_path / "ranges")
    assert calibrator.read_calibration_cache() is None
    calibrator.write_calibration_cache(b"text")
    assert calibrator.read_calibration_cache() == b"text"


def test_without_a_cache_nothing_is_kept() -> None:
    calibrator = MinMaxCalibrator()
    calibrator.write_calibration_cache(b"text")
    assert calibrator.read_calibration_cache() is None


def test_a_cache_is_a_path() -> None:
    with pytest.raises(InputError, match="cache= must be the path of a file"):
        MinMaxCalibrator(cache=3)


def test_neither_data_nor_get_batch() -> None:
    assert MinMaxCalibrator().get_batch_size() == 1
    with pytest.raises(CalibrationError, match="has no data"):
        MinMaxCalibrator().get_batch(["x"])


def test_what_is_a_calibrator() -> None:
    four = type("Four", (), {name: lambda self: None for name in METHODS})()
    three = type("Three", (), {name: lambda self: None for name in METHODS[1:]})()
    assert is_calibrator(MinMaxCalibrator())
    assert is_calibrator(four)
    assert not is_calibrator(three)
    assert not is_calibrator(np.zeros(3))


@pytest.mark.parametrize(
    "calibrator",
    [EntropyCalibrator2(), MinMaxCalibrator(), MseCalibrator(), PercentileCalibrator()],
)
@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.3, 50.0])
def test_ranges_hold_zero_and_end_where_the_data_do(calibrator, shift: float) -> None:
    histogram = Histogram()
    elements = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    histogram.add(elements + np.float32(shift))
    low, high = calibrator.range(histogram)
    assert min(histogram.least, 0) <= low <= 0 <= high <= max(histogram.greatest, 0)
    assert (low, high) == (float(np.float32(low)), float(np.float32(high)))
