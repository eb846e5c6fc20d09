"""The CUDA target without a GPU: its families and plans, kernels run in Triton's interpreter.

Memory that a GPU would have lies in NumPy arrays that only this target knows, so that the path of
data is that of a GPU, too. Nothing is measured and nothing compiled: the first tactic is taken.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from planish import native
from planish.builder import build_graph
from planish.fusion.task import Task
from planish.graph.graph import Graph
from planish.runtime.engine import Engine
from planish.targets.base import Binding, Family, Kernel, Layout, Tactic
from planish.targets.cuda.kernel import GeneratedKernel
from planish.targets.cuda.kernels import FAMILIES
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import interpret
from planish.targets.execution import (
    ABSOLUTE,
    ARENA,
    FIRST_INPUT,
    ZEROED_BYTES,
    Executable,
    Schedule,
    TensorMemory,
    host_program,
)
from planish.targets.target import Target

_interpreter = threading.Lock()
"""Triton's is for one thread at a time."""


class InterpretedArray:
    """An array in memory of the target's own."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype) -> None:
        self._array = np.empty(tuple(shape), dtype)
        self._array.view(np.uint8).reshape(-1)[...] = 0xA5
        self.shape, self.dtype = self._array.shape, self._array.dtype

    @property
    def address(self) -> int:
        return self._array.ctypes.data

    @property
    def nbytes(self) -> int:
        return self._array.nbytes

    writeable = True

    def written_on(self, stream: Any) -> None:
        pass

    def numpy(self) -> np.ndarray:
        return self._array.copy()


class InterpretedArena:
    """Poisoned memory for intermediate values, zeros in front of it."""

    def __init__(self, size: int) -> None:
        self._memory = np.full(ZEROED_BYTES + size + 256, 0xA5, np.uint8)
        start = -self._memory.ctypes.data % 256
        self._memory[: start + ZEROED_BYTES] = 0
        self.address, self.nbytes = self._memory.ctypes.data + start + ZEROED_BYTES, size


class InterpretedExecutable(Executable):
    """Runs launch by launch."""

    def __init__(self, schedule: Schedule, arena_bytes: int) -> None:
        self._schedule, self.arena_bytes = schedule, arena_bytes
        self.runs: list[tuple[list[int], list[int]]] = []

    def run(
        self,
        arena: Any,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int,
        profile: np.ndarray | None = None,
        stream: Any = None,
        local: bool = False,
    ) -> None:
        self.runs.append((list(inputs), list(outputs)))
        bases = {ABSOLUTE: 0, ARENA: arena.address}
        bases |= {FIRST_INPUT + i: a for i, a in enumerate((*inputs, *outputs))}
        for scheduled in self._schedule.launches:
            launch = scheduled.launch
            if not isinstance(launch.kernel, Kernel):
                raise AssertionError("a host step ran")
            assert isinstance(launch.kernel, GeneratedKernel)
            for address, touched in zip(scheduled.addresses, scheduled.touches, strict=True):
                assert bases[address.base] or address.base == ABSOLUTE or not touched.end
            addresses = [bases[a.base] + a.offset for a in scheduled.addresses]
            with _interpreter:
                interpret(launch.kernel, addresses, launch.params, launch.tasks)

    @property
    def program(self) -> native.Program:
        return host_program(self, self._schedule, lambda: InterpretedArena(self.arena_bytes))

    def measure(self, *_: Any) -> np.ndarray:
        raise NotImplementedError


class InterpretedTarget(Target):
    """See the module."""

    device = "cuda:0"
    has_own_memory = True
    precisions = H200.precisions
    symmetric_levels = True
    threads = 1
    timing_key = "interpreted"

    def __init__(self) -> None:
        self._families = tuple(family.on(H200) for family in FAMILIES)

    def families(self) -> Sequence[Family]:
        return self._families

    def tactics(self, task: Task, binding: Binding) -> list[Tactic]:
        offered = super().tactics(task, binding)
        return [t for t in offered if not t.family.startswith(("cudnn", "cublas"))]

    def prepare(
        self, kernels: Iterable[Kernel], progress: Callable[[int, int], None] | None = None
    ) -> None:
        pass

    def executable(self, schedule: Schedule) -> InterpretedExecutable:
        return InterpretedExecutable(schedule, schedule.arena_bytes)

    def arena(self, size: int) -> InterpretedArena:
        return InterpretedArena(size)

    def constant_pool(self) -> Any:
        return _Constants()

    def tensor(self, layout: Layout, dtype: np.dtype) -> TensorMemory:
        raise NotImplementedError

    def foreign_array(self, given: Any, stream: Any = None) -> InterpretedArray | None:
        return given if isinstance(given, InterpretedArray) else None

    def new_array(self, shape: Sequence[int], dtype: np.dtype) -> InterpretedArray:
        return InterpretedArray(shape, dtype)

    def write_array(self, target: Any, array: np.ndarray) -> None:
        target._array[...] = array


class _Constants:
    """Memory for constants, aligned as a GPU's."""

    def place(self, array: np.ndarray) -> tuple[int, object]:
        raw = np.empty(array.nbytes + 256, np.uint8)
        start = -raw.ctypes.data % 256
        raw[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        return raw.ctypes.data + start, raw


def interpreted_engine(graph: Graph) -> Engine:
    """An engine whose kernels are interpreted."""
    return build_graph(graph, InterpretedTarget(), tuning_seconds=0)
