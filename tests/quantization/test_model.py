"""Calibration of whole models, without building them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import planish
from helpers.onnx_graph import model, node
from planish.errors import CalibrationError
from planish.quantization import MinMaxCalibrator, calibrate_model

X = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


def small() -> onnx.ModelProto:
    return model([node("Relu", "x", "y", "act")], {"x": (np.float32, ["N", 4])}, ["y"])


def test_a_model_and_its_cache(tmp_path: Path) -> None:
    path = tmp_path / "ranges.txt"
    found = calibrate_model(small(), MinMaxCalibrator(X, cache=path), progress=False)
    assert found.tensors["x"] == (X.min(), X.max())
    assert calibrate_model(small(), path, progress=False) == found
    assert calibrate_model(small(), path, inputs={"x": (3, 4)}, progress=False) == found


def test_progress_is_told() -> None:
    told: list[planish.ProgressEvent] = []
    calibrate_model(small(), [X, X], progress=told.append)
    assert [(e.stage, e.done, e.total) for e in told] == [("calibrate", n, 2) for n in range(3)]
    assert told[0].seconds <= told[-1].seconds


def test_given_ranges() -> None:
    found = calibrate_model(small(), None, dynamic_ranges={"y": 6.0}, progress=False)
    assert list(found.tensors.values()) == [(-6.0, 6.0)]


def test_errors_come_through() -> None:
    with pytest.raises(CalibrationError, match="no calibration data"):
        calibrate_model(small(), [], progress=True)
