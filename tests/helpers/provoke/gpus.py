"""What goes wrong with GPUs, of drivers and devices that stand in for real ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

import planish
from helpers.fake_driver import FakeDevice, FakePool, stand_in
from helpers.provoke.arguments import engine
from helpers.provoke.registry import case
from helpers.simulated_gpu import SimulatedGpu, as_gpu
from planish.plan.device_code import PlanCode
from planish.plan.file import deserialize
from planish.plan.load import _permitted_now, _with_code
from planish.precision.permissions import Permissions
from planish.targets.cpu.target import cpu
from planish.targets.cuda import dlpack, driver, foreign
from planish.targets.cuda.target import CudaTarget, cuda
from planish.targets.cuda.torch_tensors import Tensors


@contextmanager
def finding(devices: list[FakeDevice] | Exception) -> Iterator[pytest.MonkeyPatch]:
    """While it lasts the driver finds these devices, and no device was opened before."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, devices)
        for opened in (driver.gpu, cuda):
            opened.cache_clear()
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        yield patch
    for opened in (driver.gpu, cuda):
        opened.cache_clear()


def build(device: str = "cuda:0") -> Any:
    """Which opens the device before it reads the model."""
    return planish.build("model.onnx", device=device)


@case("A GPU without cuda.core")
def no_package(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda.core", None)
        driver.gpu.cache_clear()
        build()


@case("A GPU without a driver")
def no_driver(folder: Path) -> None:
    with finding(RuntimeError("libcuda.so.1 is not there")):
        build()


@case("A driver without a GPU")
def no_gpu(folder: Path) -> None:
    with finding(RuntimeError("CUDA_ERROR_NO_DEVICE")):
        build()


@case("A GPU that CUDA_VISIBLE_DEVICES hides")
def hidden(folder: Path) -> None:
    with finding([]) as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        build()


@case("A number that no GPU has")
def number(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200"), FakeDevice("NVIDIA L4")]):
        build("cuda:3")


@case("A name that no GPU has")
def name(folder: Path) -> None:
    build("cuda:first")


@case("Too little memory on the GPU")
def memory(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200")]) as patch:
        gpu = driver.Gpu(0)
        patch.setattr(gpu, "_memory", FakePool(full=True))
        gpu.allocate(5 << 30, "intermediate results")


@case("More memory than PLANISH_GPU_MEMORY_FRACTION leaves")
def share(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200")]) as patch:
        patch.setenv(driver.FRACTION, "0.25")
        driver.Gpu(0).allocate(2 << 30, "constants")


@case("PLANISH_GPU_MEMORY_FRACTION that is no share")
def no_share(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200")]) as patch:
        patch.setenv(driver.FRACTION, "half")
        driver.Gpu(0)


@case("Too little pinned memory")
def pinned(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200")]) as patch:
        gpu = driver.Gpu(0)
        patch.setattr(gpu, "_pinned", FakePool(full=True))
        gpu.allocate_host(1 << 20)


@case("A kernel that does not end")
def endless(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200")]) as patch:
        gpu = driver.Gpu(0)
        patch.setattr(gpu, "_driver", MagicMock(cuStreamQuery=lambda _: (driver.NOT_READY,)))
        gpu.wait(gpu.stream, 0.01)


@case("A GPU in a forked child")
def forked(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200")]) as patch:
        gpu = driver.Gpu(0)
        child = os.getpid() + 1
        patch.setattr(driver.os, "getpid", lambda: child)
        gpu.enter()


@case("A stream that is none")
def stream(folder: Path) -> None:
    with finding([FakeDevice("NVIDIA H200")]):
        driver.Gpu(0).wrap_stream("fast")


class Array:
    """What another library has on a GPU."""

    def __init__(self, strides: tuple[int, ...] | None = None, device: int = 0) -> None:
        self._device = device
        self.__cuda_array_interface__ = {
            "shape": (2, 4),
            "typestr": "<f4",
            "data": (4096, False),
            "strides": strides,
            "version": 3,
        }


class Tensor:
    """The same with DLPack."""

    def __init__(self, device: int = 0) -> None:
        self._device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._device

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("it requires gradients")


@case("An array on the GPU that is not dense")
def not_dense(folder: Path) -> None:
    foreign.read(Tensors(as_gpu(SimulatedGpu())), Array(strides=(4, 8)), None)


@case("An array on another GPU")
def another(folder: Path) -> None:
    foreign.read(Tensors(as_gpu(SimulatedGpu())), Tensor(device=1), None)


@case("An array on the GPU that its library does not give")
def kept(folder: Path) -> None:
    foreign.read(Tensors(as_gpu(SimulatedGpu())), Tensor(), None)


# ---- plans ------------------------------------------------------------------------------------


@case("A plan whose device code is for another GPU")
def code_for_another(folder: Path) -> None:
    code = PlanCode("cuda sm_80 0123456789abcdef", {"rows_1": bytes(100)})
    _with_code(code, cpu(), True, str(folder / "model.plan"))


@case("A plan whose device code is none")
def no_code(folder: Path) -> None:
    CudaTarget(as_gpu(SimulatedGpu())).with_code({"rows_1": b"{}\n"})


@case("`load` with a precision and without `retune=True`")
def precision(folder: Path) -> None:
    planish.load(engine().serialize(), precision="fp16")


@case("A plan in FP16 that is to become one in FP32")
def lowered(folder: Path) -> None:
    stored = deserialize(engine().serialize())
    half = frozenset({"fp32", "fp16"})
    _permitted_now(stored, cpu(), Permissions(half), frozenset({"fp32"}))
