"""Where there is no GPU: what a user is told, and what is read of a described driver."""

from __future__ import annotations

from unittest.mock import MagicMock

import numpy as np
import pytest

import planish
from helpers.fake_driver import FakeDevice, FakePool, FakeStream, stand_in
from planish.errors import DeviceError, DeviceLostError, TuningError
from planish.targets.cuda import driver
from planish.targets.cuda.codegen.tensor_map import BoxedArgument
from planish.targets.cuda.memory import DeviceArray
from planish.targets.cuda.target import cuda
from planish.targets.devices import find_target


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


@pytest.mark.parametrize("devices", [[], RuntimeError("CUDA_ERROR_NO_DEVICE: none is detected")])
def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, devices: list | Exception) -> None:
    stand_in(monkeypatch, devices)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    with pytest.raises(DeviceError, match="no NVIDIA GPU") as caught:
        driver.Gpu(0)
    assert caught.value.why == "the driver finds none, and CUDA_VISIBLE_DEVICES is '7'"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(DeviceError) as caught:
        driver.Gpu(0)
    assert caught.value.why == "the driver finds none"


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


def test_a_kernel_that_does_not_end_is_no_wait_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    gpu, answers = driver.Gpu(0), [driver.NOT_READY, driver.NOT_READY, 0]
    monkeypatch.setattr(gpu, "_driver", MagicMock(cuStreamQuery=lambda _: (answers.pop(0),)))
    gpu.wait(gpu.stream, 60.0)
    assert not answers
    monkeypatch.setattr(gpu, "_driver", MagicMock(cuStreamQuery=lambda _: (driver.NOT_READY,)))
    with pytest.raises(DeviceLostError, match="does not end") as caught:
        gpu.wait(gpu.stream, 0.01)
    assert "0.01 seconds" in caught.value.why


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


def test_too_little_memory_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    gpu = driver.Gpu(0)
    monkeypatch.setattr(gpu, "_memory", FakePool(full=True))
    with pytest.raises(DeviceError, match="no device memory for constants") as caught:
        gpu.allocate(5 << 30, "constants")
    assert "5,368,709,120 bytes are needed, 3,221,225,472 of 4,294,967,296 are free" in (
        caught.value.why
    )
    assert gpu._taken == 0
    monkeypatch.setattr(gpu, "_pinned", FakePool(full=True))
    with pytest.raises(DeviceError, match="no pinned memory") as caught:
        gpu.allocate_host(100)
    assert "100 bytes are needed" in caught.value.why


def test_streams_of_users_are_kept_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    gpu = driver.Gpu(0)

    class Torch:
        def __init__(self, handle: int) -> None:
            self.cuda_stream = handle

    first = Torch(77)
    wrapped = gpu.wrap_stream(first)
    assert wrapped.handle == 77
    assert gpu.wrap_stream(first) is wrapped
    assert gpu.wrap_stream(Torch(0)).handle == driver.LEGACY_STREAM
    assert gpu.wrap_stream(77) is not wrapped  # whose it is nobody knows
    for handle in range(100, 100 + driver.STREAMS):
        gpu.wrap_stream(Torch(handle))
    assert len(gpu._streams) == driver.STREAMS
    assert gpu.wrap_stream(first) is not wrapped


def test_handles_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    gpu = driver.Gpu(0)
    asked = []

    class Stream:
        @property
        def handle(self) -> int:
            asked.append(self)
            return 7

    first = Stream()
    assert [gpu.handle(first), gpu.handle(first)] == [7, 7]
    assert asked == [first]
    for _ in range(driver.STREAMS):
        gpu.handle(Stream())
    assert len(gpu._handles) == driver.STREAMS


def test_memory_that_others_use_is_not_reused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [FakeDevice("NVIDIA H200")])
    gpu = driver.Gpu(0)
    monkeypatch.setattr(gpu, "_memory", FakePool())
    memory = gpu.allocate(1000, "an output")
    for user in (1, 77, FakeStream(78), 77):
        memory.used_on(user)
    array = DeviceArray(gpu, (4,), np.dtype(np.float32), memory.address, memory)
    array.ready_for(FakeStream(79))
    array.written_on(FakeStream(80))
    assert array.__cuda_array_interface__["stream"] == 80
    assert array.__dlpack__(stream=81)
    del memory, array
    assert sorted(gpu.stream.waited) == [1, 77, 78, 79, 80, 81]
    assert gpu._taken == 0


def test_a_tensor_map_that_the_driver_refuses_puts_a_tactic_out() -> None:
    """Tuning goes on: the error is that of a kernel that does not compile."""
    gpu = object.__new__(driver.Gpu)
    gpu.ordinal, gpu._driver = 0, MagicMock()
    gpu._driver.cuTensorMapEncodeTiled = lambda *_: (1, None)
    mapped = BoxedArgument(0, "fp16", (0, 64), (64, 1), 1, (64, 64), 3)
    with pytest.raises(TuningError, match="no tensor map"):
        gpu._tensor_map(256, mapped, (100, 64))
