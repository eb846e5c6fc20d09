"""Memory of a GPU: constants, arenas, tensors for tuning, arrays that users own."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from planish.targets.base import Layout
from planish.targets.cuda import dlpack
from planish.targets.cuda.buffers import DeviceMemory
from planish.targets.cuda.driver import LEGACY_STREAM, Gpu
from planish.targets.cuda.staging import StagingRing
from planish.targets.execution import ZEROED_BYTES, TensorMemory

Graphs = OrderedDict[tuple[int, ...], list[Any]]
"""For addresses of inputs and outputs what is launched, None for host steps."""

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
        self._graphs: WeakKeyDictionary[Any, Graphs] = WeakKeyDictionary()
        self._latest: tuple[Any, Graphs] | None = None
        self._sides: list[Any] = []
        self._last: Any = None
        self._end: Any = None
        self.ring = StagingRing(gpu)
        self._staged: dict[tuple[str, int], DeviceMemory] = {}

    def graphs(self, executable: Any) -> Graphs:
        """Captured executions by addresses; see `CudaExecutable`."""
        if self._latest is None or self._latest[0] is not executable:
            self._latest = executable, self._graphs.setdefault(executable, OrderedDict())
        return self._latest[1]

    def begin(self, stream: Any) -> None:
        """Makes a stream wait for the execution before, if that was queued on another one."""
        if self._last is not None and self._last is not stream:
            stream.wait(self._end)

    def end(self, stream: Any) -> None:
        """Notes where an execution ends that was queued on a caller's stream."""
        if stream is self.stream:
            self._last = None  # the caller waits for it
            return
        if self._end is None:
            self._end = self.gpu.event()
        stream.record(self._end)  # whoever waits for what it recorded before is not disturbed
        self._last = stream

    def side_streams(self, count: int) -> list[Any]:
        """Further streams, for work beside that of the first."""
        while len(self._sides) < count:
            self._sides.append(self.gpu.create_stream())
        return self._sides[:count]

    def staged(self, kind: str, number: int, size: int) -> int:
        """The address of device memory for an input or output that a user has elsewhere."""
        known = self._staged.get((kind, number))
        if known is None or known.nbytes < size:
            known = self._staged[kind, number] = self.gpu.allocate(size, f"an {kind}")
            self._graphs.clear()  # they know the old addresses
            self._latest = None
        return known.address


class CudaTensor(TensorMemory):
    """A tensor of any layout in device memory; see `TensorMemory`."""

    def __init__(self, gpu: Gpu, layout: Layout, dtype: np.dtype) -> None:
        self._gpu, self._layout, self._dtype = gpu, layout, dtype
        reach = 1 + sum(s * (n - 1) for s, n in zip(layout.strides, layout.shape, strict=True) if n)
        self._raw = np.zeros(max(reach, 1) * dtype.itemsize, np.uint8)
        shift = 0 if layout.alignment >= 64 else layout.alignment
        self._memory = gpu.allocate(self._raw.nbytes + shift, "a tensor of tuning")
        self.address, self.nbytes = self._memory.address + shift, self._raw.nbytes

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

    PyTorch, JAX, CuPy and others read it without a copy, through DLPack or
    ``__cuda_array_interface__``. What was queued to write it is waited for, on the reader's stream
    where the protocol names one.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    address : int
    writeable : bool
    """

    def __init__(
        self,
        gpu: Gpu,
        shape: tuple[int, ...],
        dtype: np.dtype,
        address: int,
        owner: Any,
        writeable: bool = True,
    ) -> None:
        self.shape, self.dtype, self.address = tuple(shape), np.dtype(dtype), address
        self.writeable = writeable
        self._gpu, self._owner = gpu, owner
        self._writer: Any = None

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * self.dtype.itemsize

    def written_on(self, stream: Any) -> None:
        """Notes the stream on which what writes it is queued; None: it was waited for."""
        self._writer = stream
        if stream is not None:
            self._used_on(stream)

    def ready_for(self, stream: Any) -> None:
        """Has a stream that uses it wait until it is written; None: the host waits."""
        if stream is not None:
            self._used_on(stream)
        writer = self._writer
        if writer is None or writer is stream:
            return
        if stream is None:
            self._gpu.wait(writer)
            self._writer = None
        else:
            stream.wait(writer)

    def _used_on(self, stream: Any) -> None:
        """Notes a stream on which it is used: its memory is not given to others before that."""
        if isinstance(self._owner, DeviceMemory):
            self._owner.used_on(stream)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._used_on(LEGACY_STREAM)  # whoever reads it does not say where
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, not self.writeable),
            "strides": None,
            "stream": None if self._writer is None else int(self._gpu.handle(self._writer)),
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._gpu.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule for a reader on a stream; see the Python array API standard.

        Raises
        ------
        BufferError
            It is wanted elsewhere, or as a copy.
        """
        if dl_device not in (None, self.__dlpack_device__()) or copy:
            raise BufferError("arrays of Planish are given where they lie: .numpy() is a copy")
        if stream != -1:  # -1: the reader sees to it
            reader = stream or LEGACY_STREAM
            if self._writer is None or int(self._gpu.handle(self._writer)) == reader:
                self._used_on(reader)
            else:
                self.ready_for(self._gpu.wrap_stream(reader))
        versioned = max_version is not None and max_version[0] >= dlpack.VERSION[0]
        if not (versioned or self.writeable):
            raise BufferError("a reader that does not know DLPack 1.0 could write to it")
        return dlpack.export(
            self.address,
            self.shape,
            self.dtype,
            self.__dlpack_device__(),
            self._owner,
            versioned=versioned,
            writeable=self.writeable,
        )

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
        self.ready_for(None)
        array = np.empty(self.shape, self.dtype)
        self._gpu.download(array, self.address)
        return array
