"""Reading and writing the small text files of calibration."""

from __future__ import annotations

import os
from pathlib import Path

from planish.errors import CalibrationError
from planish.files import replaced

LARGEST = 64 << 20
"""Bytes of the largest cache that is read: some 500,000 tensors."""


def read_limited(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file.

    Raises
    ------
    CalibrationError
        It cannot be read, or is too large to be a calibration cache.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise CalibrationError(
            "The calibration cache cannot be read",
            where=os.fspath(path),
            why=str(error.strerror or error),
            cure="check the path and the permissions of the file",
        ) from error
    if len(data) > LARGEST:
        raise CalibrationError(
            "This is not a calibration cache",
            where=os.fspath(path),
            why=f"it has more than {LARGEST >> 20} MB",
            cure="check the path",
        )
    return data


def check_writable(path: str | os.PathLike[str]) -> None:
    """Whether `write_atomically` has a chance.

    Raises
    ------
    CalibrationError
        There is no folder to write to, or no permission.
    """
    folder = Path(os.path.realpath(os.fspath(path))).parent
    if not folder.is_dir():
        raise _unwritable(path, "there is no such folder")
    if not os.access(folder, os.W_OK):
        raise _unwritable(path, "permission denied")


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file as a whole or not at all.

    Raises
    ------
    CalibrationError
        It cannot be written; an old file is left as it was.
    """
    try:
        with replaced(path) as file:
            file.write(data)
    except OSError as error:
        raise _unwritable(path, str(error.strerror or error)) from error


def _unwritable(path: str | os.PathLike[str], why: str) -> CalibrationError:
    return CalibrationError(
        "The calibration cache cannot be written",
        where=os.fspath(path),
        why=why,
        cure="choose a file in a folder that can be written, on a disk with space left",
    )
