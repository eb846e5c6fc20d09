"""The slabs that hold constants."""

from __future__ import annotations

import numpy as np

from planish.targets.cpu.pool import FIRST_SLAB, LARGEST_SLAB, ConstantPool


def read(address: int, like: np.ndarray) -> np.ndarray:
    import ctypes

    raw = (ctypes.c_uint8 * like.nbytes).from_address(address)
    return np.frombuffer(raw, like.dtype).reshape(like.shape)


def test_arrays_are_copied_apart_and_aligned() -> None:
    pool = ConstantPool()
    arrays = [np.arange(n, dtype=np.float32) + n for n in (1, 17, 1000, FIRST_SLAB // 4, 3)]
    placed = [pool.place(a) for a in arrays]
    for (address, _), array in zip(placed, arrays, strict=True):
        assert address % 64 == 0
        np.testing.assert_array_equal(read(address, array), array)


def test_empty_and_strided_arrays() -> None:
    pool = ConstantPool()
    assert pool.place(np.empty((0, 3), np.float32))[0] % 64 == 0
    strided = np.arange(20, dtype=np.int64).reshape(4, 5).T
    address, owner = pool.place(strided)
    np.testing.assert_array_equal(read(address, np.ascontiguousarray(strided)), strided)
    assert owner is not None


def test_large_aligned_arrays_are_not_copied() -> None:
    raw = np.zeros(LARGEST_SLAB + 64, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + LARGEST_SLAB]
    address, owner = ConstantPool().place(array)
    assert address == array.ctypes.data
    assert owner is array
