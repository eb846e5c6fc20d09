"""As much of NVIDIA's driver as opening a device and taking memory needs, where there is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from planish.targets.cuda import driver


class FakeDevice:
    """As much of a device of `cuda.core` as reading its properties takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.entered = 0
        self.memory_resource = None
        self.properties = SimpleNamespace(
            compute_capability_major=9,
            compute_capability_minor=0,
            multiprocessor_count=132,
            l2_cache_size=50 << 20,
            max_shared_memory_per_block_optin=232448,
            max_shared_memory_per_multiprocessor=233472,
            max_registers_per_multiprocessor=65536,
        )

    def set_current(self) -> None:
        self.entered += 1

    def create_stream(self, stream: object = None) -> FakeStream:
        if stream is not None:
            raise TypeError("it does not follow the protocol of streams")
        return FakeStream()


class FakeStream:
    """A stream that notes for which it waits."""

    def __init__(self, handle: int = 5) -> None:
        self.handle = handle
        self.waited: list[int] = []

    @staticmethod
    def from_handle(handle: int) -> FakeStream:
        return FakeStream(handle)

    def sync(self) -> None:
        pass

    def wait(self, other: FakeStream) -> None:
        self.waited.append(other.handle)


class FakePool:
    """Memory without end, or none."""

    def __init__(self, full: bool = False) -> None:
        self.full = full

    def allocate(self, size: int, stream: object) -> SimpleNamespace:
        if self.full:
            raise MemoryError("CUDA_ERROR_OUT_OF_MEMORY")
        return SimpleNamespace(handle=4096)


class FakeDriver:
    def cuMemGetInfo(self) -> tuple[int, int, int]:
        return 0, 3 << 30, 4 << 30


def stand_in(monkeypatch: pytest.MonkeyPatch, devices: list[FakeDevice] | Exception) -> None:
    """Lets the driver find these devices, or fail."""

    def all_devices() -> list[FakeDevice]:
        if isinstance(devices, Exception):
            raise devices
        return devices

    core = SimpleNamespace(
        Device=SimpleNamespace(get_all_devices=all_devices),
        LegacyPinnedMemoryResource=object,
        Stream=FakeStream,
    )
    monkeypatch.setattr(driver, "_modules", lambda: (core, FakeDriver()))
