"""Calibrators: how ranges follow from what was observed, and where data and cache come from.

A calibrator brings its data as an argument, or in the four methods that TensorRT's calibrators had,
for which a user derives a class:

    class Mine(planish.quantization.EntropyCalibrator2):
        def get_batch_size(self): ...
        def get_batch(self, names): ...            # arrays in the order of the names, or None
        def read_calibration_cache(self): ...      # bytes, or None
        def write_calibration_cache(self, cache): ...

An object of any class with these methods works too; it is calibrated by `DEFAULT`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from planish.errors import CalibrationError, InputError
from planish.quantization.files import read_limited, write_atomically
from planish.quantization.histogram import Histogram

METHODS = (
    "get_batch_size",
    "get_batch",
    "read_calibration_cache",
    "write_calibration_cache",
)
"""What an object has that is a calibrator in TensorRT's sense."""


class Calibrator(ABC):
    """Base of all calibrators: data, cache, and an algorithm.

    Parameters
    ----------
    data : optional
        What `planish.build` takes as ``calibration=``: an array, an iterable of batches, a function
        that gives one, a path. None: `get_batch` is overridden.
    cache : path, optional
        A file of ranges. Where it exists the data are not needed; else it is written at the end.
    """

    algorithm: str = ""
    """What the method is called, with its parameters; part of a cache."""

    def __init__(self, data: Any = None, *, cache: Any = None) -> None:
        if cache is not None and not isinstance(cache, str | os.PathLike):
            raise InputError(
                "cache= must be the path of a file",
                where=f"{type(self).__name__}(cache=)",
                why=f"its type is {type(cache).__name__}",
                cure="pass a path; the file need not exist",
            )
        self.data = data
        self.cache = None if cache is None else Path(cache)

    @abstractmethod
    def threshold(self, histogram: Histogram) -> float:
        """The magnitude at which elements saturate."""

    def range(self, histogram: Histogram) -> tuple[float, float]:
        """The dynamic range: up to the threshold on both sides, and no further than the data went.

        It always holds zero, which padding and ReLU need.
        """
        # as float32, so that a cache holds it exactly
        limit = float(np.float32(min(self.threshold(histogram), histogram.largest)))
        least = max(min(histogram.least, 0.0), -limit)
        return least + 0.0, min(max(histogram.greatest, 0.0), limit)

    # ---- TensorRT's four methods ----------------------------------------------------------

    def get_batch_size(self) -> int:
        """How many rows a batch of `get_batch` has; accepted for TensorRT's sake."""
        return 1

    def get_batch(self, names: Sequence[str]) -> Any:
        """The next batch: arrays in the order of the inputs' names, or by name; None at the end."""
        raise CalibrationError(
            "The calibrator has no data",
            where=type(self).__name__,
            why="it was made without data=, and does not override get_batch",
            cure=f"pass {type(self).__name__}(data), or override get_batch",
        )

    def read_calibration_cache(self) -> bytes | None:
        """The text of the cache as bytes; None: there is none yet."""
        if self.cache is None or not self.cache.exists():
            return None
        return read_limited(self.cache)

    def write_calibration_cache(self, cache: bytes) -> None:
        """Keeps the text of the cache."""
        if self.cache is not None:
            write_atomically(self.cache, cache)


def is_calibrator(given: Any) -> bool:
    """Whether an object is a calibrator, of ours or in TensorRT's sense."""
    return not isinstance(given, type) and (
        isinstance(given, Calibrator) or all(callable(getattr(given, m, None)) for m in METHODS)
    )
