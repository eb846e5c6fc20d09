"""Calibration data in files: arrays in an .npz file; a folder of images needs its `Preprocess`."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from planish.errors import CalibrationError


def is_cache(path: str | os.PathLike[str]) -> bool:
    """Whether a path means a calibration cache: neither a folder nor an .npz file."""
    return Path(path).suffix.lower() != ".npz" and not Path(path).is_dir()


def read_path(path: str | os.PathLike[str]) -> dict[str, np.ndarray] | np.ndarray:
    """The arrays of an .npz file: by name, or the only one.

    Raises
    ------
    CalibrationError
        There is no such file, it is damaged, or it is none that holds data.
    """
    place = Path(path)
    if place.is_dir():
        raise CalibrationError(
            "A folder of images needs to know how they are prepared",
            where=os.fspath(path),
            why="size, cropping, mean and scale are the model's; nothing in the folder says them",
            cure="pass planish.quantization.ImageFolder(folder, planish.Preprocess((224, 224), "
            "mean=127.5, scale=1 / 127.5))",
        )
    if place.suffix.lower() != ".npz":
        raise CalibrationError(
            "This file holds no calibration data",
            where=os.fspath(path),
            why="data come as an .npz file or a folder of images",
            cure="save the arrays by numpy.savez, under the names of the inputs",
        )
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(
            "The calibration data cannot be read",
            where=os.fspath(path),
            why=getattr(error, "strerror", None) or str(error) or "it is cut short",
            cure="check the path; write the file by numpy.savez, with arrays of numbers",
        ) from error
    return next(iter(arrays.values())) if list(arrays) == ["arr_0"] else arrays
