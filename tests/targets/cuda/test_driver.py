"""Where there is no GPU: what a user is told, and what is read of a described driver."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import planish
from planish.errors import DeviceError
from planish.targets.cuda import driver
from planish.targets.cuda.target import cuda
from planish.targets.devices import find_target


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

    def create_stream(self) -> FakeStream:
        return FakeStream()


class FakeStream:
    def sync(self) -> None:
        pass


class FakePool:
    def allocate(self, size: int, stream: object) -> SimpleNamespace:
        return SimpleNamespace(handle=4096)


class FakeDriver:
    def cuMemGetInfo(self) -> tuple[int, int, int]:
        return 0, 3 << 30, 4 << 30


def stand_in(monkeypatch: pytest.MonkeyPatch, devices: list[FakeDevice] | Exception) -> None:
    def all_devices() -> list[FakeDevice]:
        if isinstance(devices, Exception):
            raise devices
        return devices

    core = SimpleNamespace(
        Device=SimpleNamespace(get_all_devices=all_devices), LegacyPinnedMemoryResource=object
    )
    monkeypatch.setattr(driver, "_modules", lambda: (core, FakeDriver()))


def test_without_cuda_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.core", None)
    with pytest.raises(DeviceError, match=r"cuda\.core is not installed") as caught:
        driver.Gpu(0)
    assert "planish[cuda]" in caught.value.cure


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, RuntimeError("libcuda.so.1 not found"))
    with pytest.raises(DeviceError, match="no NVIDIA driver") as caught:
        driver.Gpu(0)
    assert "libcuda" in caught.value.why
    assert "cpu" in caught.value.cure


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    with pytest.raises(DeviceError, match="no GPU number 3") as caught:
        driver.Gpu(3)
    assert "cuda:0 (NVIDIA H200)" in caught.value.why


def test_properties_become_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    machine = driver.Gpu(0).machine()
    assert machine.arch == "sm_90"
    assert machine.overlaps
    assert machine.memory == 4 << 30
    assert "132 multiprocessors" in machine.timing_key


def test_a_forked_child_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    gpu = driver.Gpu(0)
    monkeypatch.setattr(driver.os, "getpid", lambda: -1)
    with pytest.raises(DeviceError, match="forked child") as caught:
        gpu.enter()
    assert "spawn" in caught.value.cure


def test_engines_take_only_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(driver.FRACTION, "0.25")
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    gpu = driver.Gpu(0)
    monkeypatch.setattr(gpu, "_memory", FakePool())
    held = gpu.allocate(600 << 20, "constants")
    with pytest.raises(DeviceError, match="no device memory for an output") as caught:
        gpu.allocate(600 << 20, "an output")
    assert "0.25" in caught.value.why
    del held
    assert gpu.allocate(600 << 20, "an output").nbytes == 600 << 20


@pytest.mark.parametrize("text", ["0", "1.5", "half", ""])
def test_a_share_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(driver.FRACTION, text)
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    with pytest.raises(DeviceError, match=driver.FRACTION):
        driver.Gpu(0)


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cuda0", "cuda:"])
def test_names_of_no_device(name: str) -> None:
    with pytest.raises(DeviceError, match="There is no device") as caught:
        find_target(name)
    assert "cuda:0" in caught.value.why


def test_build_says_it_before_it_reads_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, RuntimeError("none"))
    driver.gpu.cache_clear()
    cuda.cache_clear()
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        planish.build("no_such_model.onnx", device="cuda:0")
