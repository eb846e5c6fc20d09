"""The CPU as a target."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from planish import native
from planish.targets.base import Family, Kernel, Layout
from planish.targets.cache import KernelCache, generator_version
from planish.targets.compiling import Compiling
from planish.targets.cpu.codegen.compile import Library
from planish.targets.cpu.kernels import FAMILIES
from planish.targets.cpu.machine import Machine, host
from planish.targets.cpu.pool import ConstantPool, HostTensor
from planish.targets.execution import Executable, Schedule, ScheduledLaunch
from planish.targets.target import Target
from planish.targets.workers import CompilerPool

EMULATED_BF16 = "PLANISH_EMULATE_BF16"
"""The environment variable that has CPUs without products of bfloat16 compute in it all the same:
slowly, to see what BF16 would cost in accuracy elsewhere."""


class CpuTarget(Target):
    """Kernels generated as LLVM IR, run by the C executor on a pool of threads."""

    precisions = frozenset({"fp32", "int8"})

    def __init__(self, machine: Machine | None = None) -> None:
        self.machine = machine or host()
        self.device = "cpu"
        if self.machine.has_bf16 or os.environ.get(EMULATED_BF16):
            self.precisions |= {"bf16"}
        self.attends_to_levels = self.machine.has_vnni
        self.adds_short = not self.machine.has_vnni and self.machine.isa != "neon"
        self.threads = self.machine.cores
        self.cached_bytes = self.machine.l3 + self.machine.cores * self.machine.l2
        version = generator_version("cpu", _compiler_version())
        self.timing_key = f"{self.machine.timing_key} {version}"
        self._cache = KernelCache(f"{self.machine.code_key} {version}")
        self._families = tuple(family.on(self.machine) for family in FAMILIES)
        self._loaded: WeakValueDictionary[str, Library] = WeakValueDictionary()
        self.renew_locks()
        native.renew_after_fork(self)

    def renew_locks(self) -> None:
        """See `planish.native.renew_after_fork`."""
        self._lock = threading.Lock()
        compilers = CompilerPool(self.machine, self.machine.cores)
        self._compiling = Compiling(self._cache, compilers)

    def families(self) -> Sequence[Family]:
        return self._families

    def compiling(self) -> AbstractContextManager[None]:
        return self._compiling.held()

    def prepare(
        self, kernels: Iterable[Kernel], progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._compiling.prepare(kernels, progress)

    def executable(self, schedule: Schedule) -> Executable:
        kernels = {
            s.launch.kernel.symbol: s.launch.kernel
            for s in schedule.launches
            if isinstance(s.launch.kernel, Kernel)
        }
        return CpuExecutable(schedule, self._load(kernels))

    def _load(self, kernels: Mapping[str, Kernel]) -> dict[str, Library]:
        """For each kernel a library that holds it: one that is in use, else one for all the rest.

        Programs for other shapes of a network run mostly the same kernels, and loading code is most
        of what binding shapes costs.
        """
        with self._lock:
            found = {s: library for s in kernels if (library := self._loaded.get(s)) is not None}
        missing = {symbol: kernel for symbol, kernel in kernels.items() if symbol not in found}
        if missing:
            self.prepare(missing.values())
            code = {symbol: self._code(kernel) for symbol, kernel in missing.items()}
            found.update(dict.fromkeys(missing, Library(code, self.machine)))
            with self._lock:
                self._loaded.update({symbol: found[symbol] for symbol in missing})
        return found

    def _code(self, kernel: Kernel) -> bytes:
        """The object code of a kernel, compiled here if the cache has lost it."""
        code = self._cache.get(kernel.symbol)
        if code is None:
            code = kernel.compile(self.machine)
            self._cache.put(kernel.symbol, code)
        return code

    def arena(self, size: int) -> native.Arena:
        return native.Arena(max(size, 64))

    def constant_pool(self) -> ConstantPool:
        return ConstantPool()

    def tensor(self, layout: Layout, dtype: np.dtype) -> HostTensor:
        return HostTensor(layout, dtype)


class CpuExecutable(Executable):
    """A program of the C executor."""

    def __init__(self, schedule: Schedule, libraries: Mapping[str, Library]) -> None:
        hosts: list[native.HostKernel] = []
        steps: list[native.Step] = []
        scratch = 0
        for scheduled in schedule.launches:
            launch = scheduled.launch
            pointers = [(a.base, a.offset) for a in scheduled.addresses]
            if isinstance(launch.kernel, Kernel):
                scratch = max(scratch, launch.scratch)
                steps.append(
                    native.Step(
                        libraries[launch.kernel.symbol].addresses[launch.kernel.symbol],
                        launch.tasks,
                        launch.grain,
                        pointers,
                        launch.params,
                    )
                )
                continue
            host_kernel = native.HostKernel(_host_function(scheduled))
            hosts.append(host_kernel)
            steps.append(native.Step(host_kernel.address, 1, 1, pointers, (), native.HOST))
        self.arena_bytes = schedule.arena_bytes
        self._program = native.Program(
            steps,
            input_count=len(schedule.input_bytes),
            output_count=len(schedule.output_bytes),
            arena_bytes=schedule.arena_bytes,
            scratch_bytes=scratch + 64,
            keep=(schedule.keep, set(libraries.values()), hosts),
        )

    @property
    def program(self) -> native.Program:
        return self._program

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
        self._program.execute(arena, inputs, outputs, threads, profile)

    def measure(
        self,
        arena: Any,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int,
        repeats: int,
        touched: Sequence[native.Memory] = (),
    ) -> np.ndarray:
        return self._program.measure(arena, inputs, outputs, threads, repeats, touched)


def _host_function(scheduled: ScheduledLaunch) -> Callable[[Any, Any, int, int], None]:
    """Calls a host step with NumPy views of the memory behind its pointers."""
    function = scheduled.launch.kernel
    assert not isinstance(function, Kernel)
    views = []
    for described in scheduled.layouts:
        assert described is not None
        layout, dtype = described
        reach = 1 + sum(s * (n - 1) for s, n in zip(layout.strides, layout.shape, strict=True) if n)
        size = 0 if 0 in layout.shape else reach * dtype.itemsize
        steps = tuple(s * dtype.itemsize for s in layout.strides)
        views.append((layout.shape, steps, dtype, size))

    def call(pointers: Any, _params: Any, _begin: int, _end: int) -> None:
        import ctypes

        arrays = []
        for i, (shape, steps, dtype, size) in enumerate(views):
            if size == 0:
                arrays.append(np.empty(shape, dtype))
                continue
            raw = memoryview((ctypes.c_uint8 * size).from_address(pointers[i]))
            arrays.append(np.ndarray(shape, dtype, raw, strides=steps))
        function(*arrays)

    return call


def _compiler_version() -> str:
    import llvmlite

    return str(llvmlite.__version__)


@cache
def cpu() -> CpuTarget:
    """The CPU of this process."""
    return CpuTarget()
