"""Small files: whole or not at all, and of bounded size."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from planish.errors import CalibrationError
from planish.quantization import files
from planish.quantization.files import read_limited, write_atomically


def test_writing_and_reading(tmp_path: Path) -> None:
    path = tmp_path / "ranges"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert read_limited(path) == b"two"
    assert os.listdir(tmp_path) == ["ranges"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_atomically(tmp_path / "no" / "ranges", b"text")


def test_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_limited(tmp_path / "nothing")
    monkeypatch.setattr(files, "LARGEST", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(CalibrationError, match="not a calibration cache"):
        read_limited(tmp_path / "large")
