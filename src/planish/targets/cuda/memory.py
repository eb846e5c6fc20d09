"""Memory of a GPU: constants, arenas, tensors for tuning, arrays that users own."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from planish.targets.base import ZEROED_BYTES, Layout, TensorMemory
from planish.targets.cuda.driver import DeviceMemory, Gpu, HostMemory

ALIGNMENT = 256
FIRST_SLAB, LARGEST_SLAB = 8 << 20, 128 << 20


class ConstantPool:
    """Places arrays in slabs of device memory, which is freed with the pool."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._slab: DeviceMemory | None = None
        self._used = 0
        self._next = FIRST_SLAB

    def place(self, array: np.ndarray) -> tuple[int, object]:
        """The address of a copy of an array, and what keeps it alive."""
        array = np.ascontiguousarray(array)
        if array.nbytes > LARGEST_SLAB // 4:
            slab, start = self._gpu.allocate(array.nbytes, "constants"), 0
        else:
            if self._slab is None or self._used + array.nbytes > self._slab.nbytes:
                self._slab = self._gpu.allocate(max(self._next, array.nbytes), "constants")
                self._next = min(2 * self._next, LARGEST_SLAB)
                self._used = 0
            slab, start = self._slab, self._used
            self._used += -(-max(array.nbytes, 1) // ALIGNMENT) * ALIGNMENT
        self._gpu.upload(slab.address + start, array)
        return slab.address + start, slab


class CudaArena:
    """What one caller has on the device: memory for intermediate values, a stream, and copies of
    the inputs and outputs that lie on the host.

    `ZEROED_BYTES` before the address are zero whenever nothing runs.
    """

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu = gpu
        self.nbytes = size
        self._memory = gpu.allocate(ZEROED_BYTES + size, "intermediate results")
        self.address = self._memory.address + ZEROED_BYTES
        gpu.fill(self._memory.address, 0, ZEROED_BYTES, gpu.stream)
        gpu.stream.sync()
        self.stream = gpu.create_stream()
        self.graphs: WeakKeyDictionary[Any, OrderedDict[Any, Any]] = WeakKeyDictionary()
        """Captured executions by executable and addresses; see `CudaExecutable`."""
        self._sides: list[Any] = []
        self._last: tuple[Any, Any] | None = None
        self._staged: dict[tuple[str, int], tuple[HostMemory, DeviceMemory]] = {}

    def begin(self, stream: Any) -> None:
        """Makes a stream wait for the execution before, if that was queued on another one."""
        if self._last is not None and self._last[0] is not stream:
            stream.wait(self._last[1])

    def end(self, stream: Any) -> None:
        """Notes where an execution ends that was queued on a caller's stream."""
        if stream is self.stream:
            self._last = None  # the caller waits for it
            return
        event = self.gpu.event()
        stream.record(event)
        self._last = stream, event

    def side_streams(self, count: int) -> list[Any]:
        """Further streams, for work beside that of the first."""
        while len(self._sides) < count:
            self._sides.append(self.gpu.create_stream())
        return self._sides[:count]

    def staging(self, kind: str, number: int, size: int) -> tuple[HostMemory, DeviceMemory]:
        """Memory on host and device for an input or output that a user has on the host."""
        known = self._staged.get((kind, number))
        if known is None or known[1].nbytes < size:
            known = (self.gpu.allocate_host(size), self.gpu.allocate(size, f"an {kind}"))
            self._staged[kind, number] = known
            self.graphs.clear()  # they know the old addresses
        return known


class CudaTensor(TensorMemory):
    """A tensor of any layout in device memory; see `TensorMemory`."""

    def __init__(self, gpu: Gpu, layout: Layout, dtype: np.dtype) -> None:
        self._gpu, self._layout, self._dtype = gpu, layout, dtype
        reach = 1 + sum(s * (n - 1) for s, n in zip(layout.strides, layout.shape, strict=True) if n)
        self._raw = np.zeros(max(reach, 1) * dtype.itemsize, np.uint8)
        shift = 0 if layout.alignment >= 64 else layout.alignment
        self._memory = gpu.allocate(self._raw.nbytes + shift, "a tensor of tuning")
        self.address = self._memory.address + shift

    def write(self, array: np.ndarray) -> None:
        self._view()[...] = array
        self._gpu.upload(self.address, self._raw)

    def fill(self, period: np.ndarray) -> None:
        if not len(period):
            return
        self._gpu.upload(self.address, np.ascontiguousarray(period))
        filled = period.nbytes
        while filled < self._raw.nbytes:  # twice as much each time
            more = min(filled, self._raw.nbytes - filled)
            self._gpu.copy(self.address + filled, self.address, more, self._gpu.stream)
            filled += more
        self._gpu.stream.sync()

    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        if rows is None:
            self._gpu.download(self._raw, self.address)
            return self._view()
        view = self._view()
        step = view.strides[0]
        reach = self._raw.nbytes - step * (len(view) - 1)
        for row in rows.tolist():
            part = self._raw[row * step : row * step + reach]
            self._gpu.download(part, self.address + row * step)
        return view[rows]

    def poison(self) -> None:
        byte = 1 if self._dtype.kind == "b" else 0xFF
        self._gpu.fill(self.address, byte, self._raw.nbytes, self._gpu.stream)
        self._gpu.stream.sync()

    def _view(self) -> np.ndarray:
        steps = tuple(s * self._dtype.itemsize for s in self._layout.strides)
        return np.ndarray(self._layout.shape, self._dtype, self._raw.data, 0, steps)


class DeviceArray:
    """A dense array in device memory, as engines on a GPU take and give them.

    PyTorch, CuPy, Numba and others read it without a copy through ``__cuda_array_interface__``.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    address : int
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, address: int, owner: Any) -> None:
        self.shape, self.dtype, self.address = tuple(shape), np.dtype(dtype), address
        self._owner = owner

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        array = np.empty(self.shape, self.dtype)
        self._gpu.download(array, self.address)
        return array

    @property
    def _gpu(self) -> Gpu:
        owner = self._owner
        assert isinstance(owner, DeviceMemory)
        return owner.gpu
