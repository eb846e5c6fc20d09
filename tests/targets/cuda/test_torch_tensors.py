"""Tensors of a PyTorch that stands in for the real one: read once, as long as nothing changes."""

from __future__ import annotations

import gc
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.simulated_gpu import SimulatedGpu, SimulatedStream, as_gpu
from planish.targets.cuda import dlpack, foreign, torch_tensors
from planish.targets.cuda.torch_tensors import Tensors


class Tensor:
    """As much of PyTorch's as is asked."""

    def __init__(self, address: int = 4096, shape: tuple[int, ...] = (2, 3)) -> None:
        self.address, self.shape, self.contiguous = address, shape, True
        self.read: list[int | None] = []

    def data_ptr(self) -> int:
        return self.address

    def is_contiguous(self) -> bool:
        return self.contiguous

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> Any:
        self.read.append(stream)
        return dlpack.export(
            self.address, self.shape, np.dtype(np.float32), (dlpack.CUDA, 0), self.shape
        )


class Torch:
    """The module; `current` is the stream that work is queued on."""

    def __init__(self) -> None:
        self.Tensor, self.current = Tensor, 5
        self._C = SimpleNamespace(_cuda_getCurrentRawStream=lambda device: self.current)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    module = Torch()
    monkeypatch.setitem(sys.modules, "torch", module)  # type: ignore[arg-type]
    return module


@pytest.fixture
def gpu() -> SimulatedGpu:
    return SimulatedGpu()


@pytest.fixture
def tensors(gpu: SimulatedGpu) -> Tensors:
    return Tensors(as_gpu(gpu))


def test_read_once(torch: Torch, tensors: Tensors, gpu: SimulatedGpu) -> None:
    stream, tensor = SimulatedStream(gpu, "user", 5), Tensor()
    first = foreign.read(tensors, tensor, stream)
    again = foreign.read(tensors, tensor, stream)
    assert tensor.read == [5]
    assert first is not None
    assert again is not None
    assert (again.address, again.shape, again.dtype) == (first.address, first.shape, first.dtype)
    assert again.writeable
    foreign.read(tensors, Tensor(), stream)
    assert tensor.read == [5]


def test_the_default_stream_has_two_names(
    torch: Torch, tensors: Tensors, gpu: SimulatedGpu
) -> None:
    stream, tensor = SimulatedStream(gpu, "legacy", 1), Tensor()
    torch.current = 0
    for _ in range(2):
        foreign.read(tensors, tensor, stream)
    assert tensor.read == [1]


@pytest.mark.parametrize(
    "change", [{"address": 8192}, {"shape": (3, 2)}, {"contiguous": False}], ids=str
)
def test_read_again_when_it_changed(
    torch: Torch, tensors: Tensors, gpu: SimulatedGpu, change: dict[str, Any]
) -> None:
    stream, tensor = SimulatedStream(gpu, "user", 5), Tensor()
    foreign.read(tensors, tensor, stream)
    for name, value in change.items():
        setattr(tensor, name, value)
    found = foreign.read(tensors, tensor, stream)
    assert tensor.read == [5, 5]
    assert found is not None
    assert (found.address, found.shape) == (tensor.address, tensor.shape)


def test_read_again_where_a_stream_must_wait(
    torch: Torch, tensors: Tensors, gpu: SimulatedGpu
) -> None:
    stream, tensor = SimulatedStream(gpu, "user", 5), Tensor()
    foreign.read(tensors, tensor, stream)
    torch.current = 7  # work on it may be queued elsewhere
    foreign.read(tensors, tensor, stream)
    foreign.read(tensors, tensor, None)
    assert tensor.read == [5, 5, gpu.stream.handle]


def test_tensors_are_not_kept_alive(torch: Torch, tensors: Tensors, gpu: SimulatedGpu) -> None:
    stream, tensor = SimulatedStream(gpu, "user", 5), Tensor()
    foreign.read(tensors, tensor, stream)
    assert tensors._seen
    del tensor
    gc.collect()
    assert not tensors._seen


def test_only_so_many(torch: Torch, tensors: Tensors, gpu: SimulatedGpu) -> None:
    stream = SimulatedStream(gpu, "user", 5)
    kept = [Tensor(4096 * n) for n in range(1, torch_tensors.MOST + 10)]
    for tensor in kept:
        foreign.read(tensors, tensor, stream)
    assert len(tensors._seen) == torch_tensors.MOST


def test_other_libraries_are_always_read(
    torch: Torch, tensors: Tensors, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, tensor = SimulatedStream(gpu, "user", 5), Tensor()
    torch.Tensor = SimpleNamespace  # type: ignore[assignment,misc]
    foreign.read(tensors, tensor, stream)
    monkeypatch.delitem(sys.modules, "torch")
    foreign.read(tensors, tensor, stream)
    torch.Tensor = Tensor
    del torch._C._cuda_getCurrentRawStream
    monkeypatch.setitem(sys.modules, "torch", torch)  # type: ignore[arg-type]
    foreign.read(tensors, tensor, stream)
    assert not tensors._seen
    assert tensor.read == [5, 5, 5]
