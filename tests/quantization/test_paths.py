"""Files of data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planish.errors import CalibrationError
from planish.quantization.paths import is_cache, read_path


def test_arrays_by_name_or_the_only_one(tmp_path: Path) -> None:
    x = np.arange(6.0).reshape(2, 3)
    np.savez_compressed(tmp_path / "a.npz", x=x, y=x + 1)
    found = read_path(tmp_path / "a.npz")
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["y"], x + 1)
    np.savez(tmp_path / "b.npz", x)
    np.testing.assert_array_equal(read_path(str(tmp_path / "b.npz")), x)


def test_what_is_a_cache(tmp_path: Path) -> None:
    assert is_cache(tmp_path / "ranges.txt")
    assert is_cache("model.ranges")
    assert not is_cache(tmp_path)
    assert not is_cache(tmp_path / "DATA.NPZ")


@pytest.mark.parametrize("cut", [0, 1, 30, 100, 200])
def test_a_damaged_file(tmp_path: Path, cut: int) -> None:
    np.savez(tmp_path / "whole.npz", x=np.arange(100.0))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:cut])
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_path(tmp_path / "cut.npz")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], object))
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_path(tmp_path / "objects.npz")


def test_folders_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="needs to know how they are prepared"):
        read_path(tmp_path)
    with pytest.raises(CalibrationError, match="holds no calibration data"):
        read_path(tmp_path / "x.npy")
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_path(tmp_path / "nothing.npz")
