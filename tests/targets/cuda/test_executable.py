"""Where inputs and outputs go, seen with a GPU that only takes notes."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from planish import native
from planish.targets.base import Launch
from planish.targets.cuda.executable import LEAST, MOST, CudaExecutable, _ahead
from planish.targets.cuda.kernels.mapped_kernel import MappedKernel
from planish.targets.cuda.memory import CudaArena
from planish.targets.cuda.staging import PIECE
from planish.targets.execution import ABSOLUTE, ARENA, Range, Schedule, ScheduledLaunch

DEVICE = 1 << 60
"""Addresses from here on are the device's."""


class FakeStream:
    def __init__(self, notes: list[tuple[Any, ...]], name: str) -> None:
        self._notes, self.name = notes, name

    def sync(self) -> None:
        self._notes.append(("sync", self.name))

    def wait(self, event: str) -> None:
        self._notes.append(("wait", self.name, event))

    def record(self, event: str) -> None:
        self._notes.append(("record", self.name))


class FakeGpu:
    """Copies really where both sides are on the host; the rest is noted."""

    def __init__(self) -> None:
        self.notes: list[tuple[Any, ...]] = []
        self.stream = FakeStream(self.notes, "gpu")
        self._next = DEVICE
        self._keep: list[np.ndarray] = []

    def enter(self) -> None:
        pass

    def allocate(self, size: int, what: str) -> SimpleNamespace:
        self._next += -(-size // 256) * 256
        return SimpleNamespace(address=self._next, nbytes=size)

    def allocate_host(self, size: int) -> SimpleNamespace:
        self._keep.append(np.zeros(size, np.uint8))
        return SimpleNamespace(address=self._keep[-1].ctypes.data, nbytes=size)

    def create_stream(self) -> FakeStream:
        return FakeStream(self.notes, "own")

    def event(self, timing: bool = False) -> str:
        return "event"

    def fill(self, *_: Any) -> None:
        pass

    def wait(self, stream: FakeStream, seconds: float | None = None) -> None:
        stream.sync()

    def copy(self, target: int, source: int, size: int, stream: FakeStream) -> None:
        sides = tuple("device" if a >= DEVICE else "host" for a in (source, target))
        self.notes.append((*sides, size, stream.name))

    def is_device_address(self, address: int) -> bool:
        return address >= DEVICE


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()


def setting(gpu: FakeGpu, size: int = 64) -> tuple[CudaExecutable, CudaArena]:
    executable = CudaExecutable(Schedule((), (size,), (size,), 0), gpu, lambda kernel: None)  # type: ignore[arg-type]
    arena = CudaArena(gpu, 64)  # type: ignore[arg-type]
    gpu.notes.clear()
    return executable, arena


def test_host_arrays_travel_in_parts_and_are_waited_for(gpu: FakeGpu) -> None:
    size = 2 * PIECE + 100
    executable, arena = setting(gpu, size)
    x, y = np.arange(size, dtype=np.uint8), np.zeros(size, np.uint8)
    user = FakeStream(gpu.notes, "user")
    executable.run(arena, [x.ctypes.data], [y.ctypes.data], 1, stream=user)
    sizes, left = (PIECE, PIECE, 100), ("record", "user")
    sent = [note for n in sizes for note in (("host", "device", n, "user"), left)]
    fetched = [("device", "host", n, "user") for n in sizes]
    assert gpu.notes == [*sent, *fetched, ("sync", "user"), left, ("sync", "user")]


def test_arrays_on_the_device_are_used_where_they_lie(gpu: FakeGpu) -> None:
    executable, arena = setting(gpu)
    user = FakeStream(gpu.notes, "user")
    executable.run(arena, [DEVICE + 512], [DEVICE + 1024], 1, stream=user)
    assert gpu.notes == [("record", "user")]  # nothing is copied, nothing is waited for
    gpu.notes.clear()
    executable.run(arena, [DEVICE + 512], [DEVICE + 1024], 1)
    assert gpu.notes == [("wait", "own", "event"), ("sync", "own")]


def test_unaligned_arrays_are_copied_on_the_device(gpu: FakeGpu) -> None:
    executable, arena = setting(gpu)
    user = FakeStream(gpu.notes, "user")
    executable.run(arena, [DEVICE + 4], [DEVICE + 1028], 1, stream=user)
    copies = [("device", "device", 64, "user")] * 2
    assert gpu.notes == [*copies, ("record", "user")]


def test_an_input_on_the_host_is_waited_for(gpu: FakeGpu) -> None:
    executable, arena = setting(gpu)
    x = np.zeros(64, np.uint8)
    user = FakeStream(gpu.notes, "user")
    executable.run(arena, [x.ctypes.data], [DEVICE + 1024], 1, stream=user)
    assert gpu.notes[-1] == ("sync", "user")


def reading(*ranges: tuple[int, int], kernel: object = None) -> ScheduledLaunch:
    """A launch of a generated kernel that reads constants."""
    made = kernel or object.__new__(MappedKernel)
    touches = tuple(Range(ABSOLUTE, begin, end, False) for begin, end in ranges)
    touches += (Range(ARENA, 0, 1 << 20, True),)
    return ScheduledLaunch(Launch(made, ()), (), (), touches)


def test_launches_ask_for_constants_of_those_behind_them() -> None:
    first, second, third = 1 << 30, 2 << 30, 3 << 30
    library = reading((second, second + 50_000), kernel=object())
    launches = [
        reading((0, 100)),
        reading((first + 64, first + 64 + 100_000), (0, 100)),
        reading((4 << 30, (4 << 30) + MOST + 1)),  # too much
        library,
        reading((third, third + 200_000)),
        reading((third, third + 200_000)),
        reading((0, LEAST - 1)),
    ]
    found = _ahead(launches)
    assert found[0] == (first + 128, 100_000 - 64)  # at a multiple of 128 bytes
    assert found[1] == (second, 50_000)  # the one behind it reads too much
    assert found[2] == (third, 200_000)
    assert found[3:] == [(0, 0)] * 4  # libraries ask for nothing; once is enough


def test_a_program_runs_it_and_keeps_it_alive_but_is_not_kept(gpu: FakeGpu) -> None:
    size = 64
    executable, _ = setting(gpu, size)
    x, y = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    program, alive = executable.program, weakref.ref(executable)
    del executable
    program.execute(native.Arena(64), [x.ctypes.data], [y.ctypes.data], 1)
    ways = [note[:3] for note in gpu.notes if note[0] in ("host", "device")]
    assert ways == [("host", "device", size), ("device", "host", size)]
    gc.collect()
    assert alive() is not None
    del program
    gc.collect()
    assert alive() is None
