"""A GPU that is simulated: its memory is the host's, its kernels run in Triton's interpreter.

So engines for GPUs are built, saved, loaded and run where there is none: everything but the driver
is the product's own. What is queued runs at once, or when the graph that it is captured into is
launched; `notes` say what was queued where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from planish.targets.base import Kernel
from planish.targets.cuda.codegen.compile import DeviceCode
from planish.targets.cuda.driver import Gpu
from planish.targets.cuda.kernel import GeneratedKernel
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.cuda.run import interpret
from planish.targets.cuda.target import CudaTarget
from planish.targets.execution import Executable, Schedule

Note = tuple[Any, ...]


class SimulatedStream:
    """A stream that has run everything that was queued."""

    def __init__(self, gpu: SimulatedGpu, name: str, handle: int) -> None:
        self._gpu, self.name, self.handle = gpu, name, handle

    def sync(self) -> None:
        self._gpu.notes.append(("sync", self.name))

    def wait(self, event: Any) -> None:
        self._gpu.notes.append(("wait", self.name, event))

    def record(self, event: Any) -> None:
        self._gpu.notes.append(("record", self.name))


class SimulatedGpu:
    """What `planish.targets.cuda.driver.Gpu` is, on the host."""

    def __init__(self, machine: CudaMachine = H200) -> None:
        self.ordinal = 0
        self.notes: list[Note] = []
        self.kernels: dict[str, GeneratedKernel] = {}
        self.loaded: dict[str, DeviceCode] = {}
        self.library_code: dict[str, bytes] = {}
        self._machine = machine
        self._memory: dict[int, np.ndarray] = {}
        self._streams = 0
        self._captured: list[Callable[[], None]] | None = None
        self.stream = self.create_stream("gpu")

    def machine(self) -> CudaMachine:
        return self._machine

    def enter(self) -> None:
        pass

    def _place(self, size: int) -> tuple[int, np.ndarray]:
        raw = np.empty(size + 512, np.uint8)
        start = raw.ctypes.data + -raw.ctypes.data % 256
        return start, raw

    def allocate(self, size: int, what: str) -> Any:
        address, raw = self._place(size)
        self._memory[address] = raw  # kept: addresses stay the device's
        return SimpleNamespace(address=address, nbytes=size, gpu=self)

    def allocate_host(self, size: int) -> Any:
        address, raw = self._place(size)
        return SimpleNamespace(address=address, nbytes=size, keep=raw)

    def device_of(self, address: int) -> int:
        return self.ordinal

    def is_device_address(self, address: int) -> bool:
        return any(a <= address < a + raw.nbytes for a, raw in self._memory.items())

    def memory_info(self) -> tuple[int, int]:
        return 1 << 36, 1 << 37

    def _queue(self, work: Callable[[], None]) -> None:
        if self._captured is None:
            work()
        else:
            self._captured.append(work)

    def copy(self, target: int, source: int, size: int, stream: Any) -> None:
        self.notes.append(("copy", size, stream.name))
        self._queue(lambda: _bytes(target, size).__setitem__(slice(None), _bytes(source, size)))

    def fill(self, target: int, byte: int, size: int, stream: Any) -> None:
        self._queue(lambda: _bytes(target, size).fill(byte))

    def upload(self, target: int, array: np.ndarray) -> None:
        self.copy(target, array.ctypes.data, array.nbytes, self.stream)

    def download(self, array: np.ndarray, source: int) -> None:
        self.copy(array.ctypes.data, source, array.nbytes, self.stream)

    def load(self, symbol: str, code: Callable[[], DeviceCode]) -> Any:
        if symbol not in self.loaded:
            self.loaded[symbol] = code()
        return symbol.partition(" ")[0], self.loaded[symbol]

    def launch(
        self,
        loaded: tuple[str, DeviceCode],
        programs: int,
        addresses: Sequence[int],
        params: Sequence[int],
        stream: Any,
        overlap: bool = False,
        ahead: tuple[int, int] = (0, 0),
    ) -> None:
        kernel, pointers, numbers = self.kernels[loaded[0]], list(addresses), tuple(params)
        self._queue(lambda: interpret(kernel, pointers, numbers, programs))

    def create_stream(self, name: str = "own") -> Any:
        self._streams += 1
        return SimulatedStream(self, name, 4096 + self._streams)

    def handle(self, stream: Any) -> int:
        return stream.handle

    def wrap_stream(self, stream: Any) -> Any:
        return stream

    def wait(self, stream: Any) -> None:
        stream.sync()

    def event(self, timing: bool = False) -> str:
        return "event"

    def seconds(self, start: Any, end: Any) -> float:
        return 1e-6

    @contextmanager
    def capture(self, stream: Any) -> Iterator[list[Any]]:
        made: list[Any] = []
        self._captured = works = []
        try:
            yield made
        finally:
            self._captured = None
        made.append(SimulatedGraph(self, works))


class SimulatedGraph:
    """Work that was captured."""

    def __init__(self, gpu: SimulatedGpu, works: list[Callable[[], None]]) -> None:
        self._gpu, self._works = gpu, works

    def launch(self, stream: Any) -> None:
        self._gpu.notes.append(("graph", stream.name))
        for work in self._works:
            work()


class SimulatedTarget(CudaTarget):
    """The target of a simulated GPU, which must know the kernels that it interprets."""

    def __init__(self, gpu: SimulatedGpu | None = None) -> None:
        self.simulated = gpu or SimulatedGpu()
        super().__init__(self.simulated)  # type: ignore[arg-type]

    def executable(self, schedule: Schedule) -> Executable:
        for scheduled in schedule.launches:
            kernel = scheduled.launch.kernel
            if isinstance(kernel, Kernel):
                assert isinstance(kernel, GeneratedKernel)
                self.simulated.kernels[kernel.symbol] = kernel
        return super().executable(schedule)


def _bytes(address: int, size: int) -> np.ndarray:
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 1)).from_address(address))[:size]


def as_gpu(gpu: SimulatedGpu) -> Gpu:
    """The same for type checkers."""
    return gpu  # type: ignore[return-value]
