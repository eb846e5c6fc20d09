"""Who takes part in `gpu.py`: Planish, and PyTorch eager and compiled, each in a CUDA graph; JAX is
in `gpu_xla.py`.

All get the same float32 images (or integer ids) in memory of the device, channels first, and give
float32: what a peer needs in between (FP16, channels last) is part of its graph, as it is of
Planish's. On the CPU, which is there to try the script, nothing is captured.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

MODES = {"torch": None, "compile": "default", "compile-max": "max-autotune-no-cudagraphs"}
"""PyTorch's runners by name, with the mode of ``torch.compile``."""

Inputs = Sequence[torch.Tensor]


class Runner(ABC):
    """Runs a model on any of several sets of inputs, each with outputs of its own."""

    name: str
    seconds: float = 0.0
    """What making it ready took."""

    @abstractmethod
    def launch(self, number: int) -> None:
        """Queues a run on that set of inputs, on the current stream."""

    @abstractmethod
    def outputs(self, number: int) -> list[torch.Tensor]:
        """Where that set's outputs are written."""

    def runs(self, clock: Any, count: int, queueing: float) -> list[float]:
        """Seconds of each of so many runs on the device alone; see `gpu_one.Clock`."""
        return clock.runs(self.launch, count, queueing)

    @abstractmethod
    def on_host(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs on arrays of the host, and gives such."""


class PlanishRunner(Runner):
    """An engine and a context on a stream of PyTorch's."""

    name = "planish"

    def __init__(self, engine: Any, sets: Sequence[Inputs], stream: Any) -> None:
        start = time.perf_counter()
        self._engine = engine
        self._on_device = stream is not None
        self._context = engine.create_execution_context(stream=stream)
        self._host = engine.create_execution_context()
        names = [info.name for info in engine.inputs]
        shapes = dict(zip(names, (tuple(t.shape) for t in sets[0]), strict=True))
        sizes = engine.plan.graph.bindings(shapes)
        self._given = [dict(zip(names, self._arrays(tensors), strict=True)) for tensors in sets]
        self._tensors = [
            [
                torch.empty(
                    [d if isinstance(d, int) else sizes[str(d)] for d in info.shape],
                    dtype=getattr(torch, str(info.dtype)),
                    device=sets[0][0].device,
                )
                for info in engine.outputs
            ]
            for _ in sets
        ]
        names = [info.name for info in engine.outputs]
        self._out = [dict(zip(names, self._arrays(t), strict=True)) for t in self._tensors]
        for number in range(len(sets)):
            self.launch(number)
        self.seconds = time.perf_counter() - start

    def _arrays(self, tensors: Inputs) -> list[Any]:
        return list(tensors) if self._on_device else [t.numpy() for t in tensors]

    def launch(self, number: int) -> None:
        self._context.enqueue(self._given[number], self._out[number])

    def outputs(self, number: int) -> list[torch.Tensor]:
        return self._tensors[number]

    def on_host(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = self._host.execute(list(arrays))
        return list(result.values()) if isinstance(result, dict) else [result]

    def profile(self, number: int) -> np.ndarray:
        """Start and end of every launch in nanoseconds."""
        return self._context.profile(self._given[number])

    def launch_steps(self, number: int) -> tuple[int, ...]:
        """Which step of the plan each launch belongs to."""
        return self._context._prepared(self._given[number])[1].launch_steps


class Served(nn.Module):
    """A module in another precision with channels last, between float32 tensors."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(dtype=dtype, memory_format=torch.channels_last)
        self.dtype = dtype

    def forward(self, *inputs: Any) -> Any:
        given = []
        for x in inputs:
            if x.is_floating_point():
                layout = torch.channels_last if x.dim() == 4 else torch.preserve_format
                x = x.to(self.dtype, memory_format=layout)
            given.append(x)
        return [y.to(torch.float32).contiguous() for y in as_list(self.module(*given))]


class TorchRunner(Runner):
    """PyTorch, eager or compiled, captured once for every set of inputs."""

    def __init__(
        self, name: str, module: nn.Module, precision: str, sets: Sequence[Inputs], stream: Any
    ) -> None:
        start = time.perf_counter()
        self.name = name
        served: Callable[..., Any] = Served(module, DTYPES[precision])
        if MODES[name] is not None:
            served = torch.compile(served, mode=MODES[name], dynamic=False)
        self._served, self._sets, self._stream = served, sets, stream
        self._results: list[list[torch.Tensor]] = []
        self._graphs: list[Any] = []
        for _ in range(3):
            found = served(*sets[0])
        if stream is None:
            self._results = [found for _ in sets]
        else:
            stream.synchronize()
            for inputs in sets:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    self._results.append(served(*inputs))
                self._graphs.append(graph)
            self._pinned = [torch.empty_like(t, device="cpu").pin_memory() for t in sets[0]]
            self._read = [torch.empty_like(t, device="cpu").pin_memory() for t in self._results[0]]
        self.seconds = time.perf_counter() - start

    def launch(self, number: int) -> None:
        if self._graphs:
            self._graphs[number].replay()
        else:
            self._results[number] = self._served(*self._sets[number])

    def outputs(self, number: int) -> list[torch.Tensor]:
        return self._results[number]

    def on_host(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if not self._graphs:
            return [t.numpy() for t in self._served(*map(torch.from_numpy, arrays))]
        for array, pinned, tensor in zip(arrays, self._pinned, self._sets[0], strict=True):
            np.copyto(pinned.numpy(), array)  # PyTorch's threads sometimes take milliseconds
            tensor.copy_(pinned, non_blocking=True)
        self._graphs[0].replay()
        for result, read in zip(self._results[0], self._read, strict=True):
            read.copy_(result, non_blocking=True)
        self._stream.synchronize()
        return [t.numpy().copy() for t in self._read]


def as_list(outputs: Any) -> list[torch.Tensor]:
    """One tensor or several as a list."""
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]
