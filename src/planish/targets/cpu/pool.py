"""Memory for constants: many small arrays in few large slabs; and for tensors of tuning.

A network reads all its weights once per inference. In slabs of megabytes the kernel can give them
huge pages, so that reading them does not wait for address translation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planish import native
from planish.graph.types import DType
from planish.targets.base import Layout
from planish.targets.execution import TensorMemory

ALIGNMENT = 64
FIRST_SLAB, LARGEST_SLAB = 4 << 20, 64 << 20


def aligned_empty(shape: Sequence[int], dtype: DType) -> np.ndarray:
    """Uninitialised; a `ConstantPool` takes the array as it is, without a copy, if it is large."""
    return native.aligned_empty(math.prod(shape) * dtype.size).view(dtype.numpy).reshape(shape)


class ConstantPool:
    """Places arrays in slabs, aligned to 64 bytes. Memory is freed with the pool."""

    def __init__(self) -> None:
        self._slab: np.ndarray | None = None
        self._used = 0
        self._next = FIRST_SLAB

    def place(self, array: np.ndarray) -> tuple[int, object]:
        """The address of a copy of the array (of the array itself if it is large and aligned), and
        what keeps it alive.
        """
        aligned = array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
        if aligned and array.nbytes >= FIRST_SLAB:
            return array.ctypes.data, array
        slab, start = self._room(array.nbytes, own=array.nbytes >= LARGEST_SLAB // 4)
        copy = slab[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return slab.ctypes.data + start, slab

    def _room(self, size: int, own: bool) -> tuple[np.ndarray, int]:
        if own:
            return native.aligned_empty(size), 0
        if self._slab is None or self._used + size > self._slab.nbytes:
            self._slab = native.aligned_empty(max(self._next, size))
            self._next = min(2 * self._next, LARGEST_SLAB)
            self._used = 0
        start = self._used
        self._used += -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        return self._slab, start


class HostTensor(TensorMemory):
    """A tensor of any layout in memory of its own."""

    def __init__(self, layout: Layout, dtype: np.dtype) -> None:
        reach = 1 + sum(s * (n - 1) for s, n in zip(layout.strides, layout.shape, strict=True) if n)
        shift = layout.alignment % ALIGNMENT
        self._raw = native.aligned_empty(max(reach, 1) * dtype.itemsize + shift)
        self._raw[...] = 0
        steps = tuple(s * dtype.itemsize for s in layout.strides)
        self._view = np.ndarray(layout.shape, dtype, self._raw.data, shift, steps)
        self._all = self._raw[shift : shift + max(reach, 1) * dtype.itemsize].view(dtype)
        self.address, self.nbytes = self._raw.ctypes.data + shift, self._all.nbytes

    def write(self, array: np.ndarray) -> None:
        self._view[...] = array

    def fill(self, period: np.ndarray) -> None:
        if len(period):
            self._all[...] = np.resize(period, len(self._all))

    def poison(self) -> None:
        self._view[...] = np.nan if np.issubdtype(self._view.dtype, np.floating) else 1

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        return self._view if rows is None else self._view[rows]
