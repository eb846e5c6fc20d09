"""An NVIDIA GPU as a target."""

from __future__ import annotations

import copy
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from typing import Any

import numpy as np

from planish.errors import DeviceError, PlanError, PlanishError
from planish.fusion.task import Task
from planish.targets.base import Binding, Family, Kernel, Layout, Tactic
from planish.targets.cache import KernelCache, generator_version
from planish.targets.compiling import Compiling
from planish.targets.cuda import foreign
from planish.targets.cuda.codegen.compile import DeviceCode
from planish.targets.cuda.driver import Gpu, gpu
from planish.targets.cuda.executable import CudaExecutable
from planish.targets.cuda.kernel import LibraryKernel
from planish.targets.cuda.kernels import FAMILIES
from planish.targets.cuda.machine import CudaMachine
from planish.targets.cuda.memory import ConstantPool, CudaArena, CudaTensor, DeviceArray
from planish.targets.cuda.tensor_cores import why_not
from planish.targets.cuda.torch_tensors import Tensors
from planish.targets.execution import Executable, ForeignArray, Schedule
from planish.targets.target import Rates, Target
from planish.targets.workers import CompilerPool

log = logging.getLogger("planish")

LIBRARY = "library "
"""What names of code begin with that a vendor's library wrote, and reads again."""

PLANNERS = 4
"""Processes that make cuDNN's kernels; each takes half a gigabyte of the GPU's memory, and there is
one for 8 GB at most.
"""

TRITON = "3.6.0"
"""The version of Triton that Planish is made with."""


class CudaTarget(Target):
    """Kernels generated with Triton, and those of NVIDIA's libraries, captured in CUDA graphs."""

    symmetric_levels = True
    has_streams = True
    has_own_memory = True
    rates = Rates(3e14, 3e12, 1.5e-6)
    tactics_per_task = 50  # of five sources, and each is measured in milliseconds
    ceiling_sizes = (4096, 1 << 28)

    def __init__(self, device: Gpu) -> None:
        self.gpu = device
        self.machine: CudaMachine = device.machine()
        self.device = f"cuda:{device.ordinal}"
        self.precisions = self.machine.precisions
        self.threads = 1
        generators = generator_version("cuda", f"triton {_triton_version()}")
        self.timing_key = f"{self.machine.timing_key} {generators}"
        self.code_key = f"{self.machine.code_key} {generator_version('cuda', '')}"
        self._cache = KernelCache(f"{self.machine.code_key} {generators}")
        self._given: dict[str, DeviceCode] = {}
        self._families = tuple(family.on(self.machine) for family in FAMILIES)
        self._lock = threading.Lock()
        self._libraries: dict[str, Any] = {}
        self._tensors = Tensors(device)
        # Triton's LLVM and TensorFlow's end a process in which both are loaded
        self.compilers_beside = len(os.sched_getaffinity(0))
        compilers = CompilerPool(self.machine, self.compilers_beside, apart=True)
        planners = min(PLANNERS, self.compilers_beside, max(self.machine.memory >> 33, 1))
        self._planners = CompilerPool(self.machine, planners, apart=True)
        self._compiling = Compiling(self._cache, compilers, self._planners)

    def families(self) -> Sequence[Family]:
        return self._families

    def tactics(self, task: Task, binding: Binding) -> list[Tactic]:
        """All tactics offered, first every family's first one: tuning measures only so many, and
        generated kernels and those of libraries are to compete.
        """
        if binding.has_empty(task):
            return []
        families = (family for family in self._families if family.pattern == task.pattern)
        offered = [list(family.tactics(task, binding)) for family in families]
        return [t for rank in zip_longest(*offered) for t in rank if t is not None]

    def compiling(self) -> AbstractContextManager[None]:
        return self._compiling.held()

    def prepare(
        self, kernels: Iterable[Kernel], progress: Callable[[int, int], None] | None = None
    ) -> None:
        kernels = list(kernels)
        generated = [k for k in kernels if not isinstance(k, LibraryKernel)]
        self._compiling.prepare([k for k in generated if k.symbol not in self._given], progress)
        if self._compiling.is_held:  # for the few of a plan that is loaded it does not pay
            self._plan([k for k in kernels if isinstance(k, LibraryKernel) and k.is_planned])

    def _plan(self, kernels: Sequence[LibraryKernel]) -> None:
        """Has kernels of libraries planned in other processes."""
        missing = {k.symbol: k for k in kernels if k.stored(self.gpu) is None}

        def done(kernel: Kernel, code: bytes) -> None:
            missing[kernel.symbol].keep(self.gpu, code)

        self._planners.compile(list(missing.values()), done)

    def executable(self, schedule: Schedule) -> Executable:
        kernels = [
            s.launch.kernel for s in schedule.launches if isinstance(s.launch.kernel, Kernel)
        ]
        self.prepare(kernels)
        return CudaExecutable(schedule, self.gpu, self._load)

    def _load(self, kernel: Kernel) -> Any:
        """What `CudaExecutable` queues: a function of the device, or a library's call."""
        if isinstance(kernel, LibraryKernel):
            with self._lock:
                if kernel.symbol not in self._libraries:
                    self._libraries[kernel.symbol] = kernel.load(self.gpu)
                return self._libraries[kernel.symbol]
        given = self._given.get(kernel.symbol)
        if given is not None:  # no other engine gets what this plan holds
            return self.gpu.load(f"{kernel.symbol} {given.digest}", lambda: given)
        return self.gpu.load(kernel.symbol, lambda: self.code(kernel))

    def code(self, kernel: Kernel) -> DeviceCode:
        """The code of a generated kernel: the plan's own, or as it was compiled here."""
        if kernel.symbol in self._given:
            return self._given[kernel.symbol]
        data = self._cache.get(kernel.symbol)
        if data is None:
            self.prepare([kernel])
            data = self._cache.get(kernel.symbol)
            assert data is not None
        return DeviceCode.from_bytes(data)

    def matrix_units(
        self, tactic: Tactic, binding: Binding, permitted: Collection[str]
    ) -> tuple[bool | None, str]:
        for launch in tactic.launches(binding):
            kernel = launch.kernel
            if isinstance(kernel, LibraryKernel):
                used = tactic.precision != "fp32"  # for these the libraries have nothing else
            else:
                used = isinstance(kernel, Kernel) and self.code(kernel).tensor_cores
            if used:
                return True, ""
        return False, why_not(tactic, binding, permitted)

    def device_code(self, kernels: Iterable[Kernel]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for kernel in kernels:
            if isinstance(kernel, LibraryKernel):
                stored = kernel.stored(self.gpu)
                if stored is not None:
                    found[LIBRARY + kernel.symbol] = stored
                continue
            try:
                found[kernel.symbol] = self.code(kernel).to_bytes()
            except PlanishError as error:  # of a size at which nothing has run yet
                log.debug("a plan is saved without the code of %s: %s", kernel.symbol, error.what)
        return found

    def with_code(self, code: Mapping[str, bytes]) -> CudaTarget:
        given: dict[str, DeviceCode] = {}
        other: set[str] = set()
        for name, data in code.items():
            if name.startswith(LIBRARY):
                self.gpu.library_code.setdefault(name.removeprefix(LIBRARY), data)
                continue
            try:
                kernel = DeviceCode.from_bytes(data)
            except ValueError as error:
                raise PlanError(
                    "Device code of the plan is damaged",
                    where=name,
                    why=str(error),
                    cure="load it without allow_device_code=True, or build the plan again",
                ) from error
            if kernel.arch == self.machine.arch:
                given[name] = kernel
            else:
                other.add(kernel.arch)
        if other:
            log.warning(
                "device code for %s is not used: %s is %s",
                ", ".join(sorted(other)),
                self.device,
                self.machine.arch,
            )
        target = copy.copy(self)  # caches, locks and compilers are shared
        target._given = given
        return target

    def arena(self, size: int) -> CudaArena:
        return CudaArena(self.gpu, max(size, 64))

    def constant_pool(self) -> ConstantPool:
        return ConstantPool(self.gpu)

    def tensor(self, layout: Layout, dtype: np.dtype) -> CudaTensor:
        return CudaTensor(self.gpu, layout, dtype)

    def foreign_array(self, given: Any, stream: Any = None) -> DeviceArray | None:
        return foreign.read(self._tensors, given, stream)

    def new_array(self, shape: Sequence[int], dtype: np.dtype) -> DeviceArray:
        shape = tuple(shape)
        memory = self.gpu.allocate(math.prod(shape) * dtype.itemsize, "an output")
        return DeviceArray(self.gpu, shape, dtype, memory.address, memory)

    def write_array(self, target: ForeignArray, array: np.ndarray) -> None:
        self.gpu.upload(target.address, array)

    def stream(self, given: Any) -> Any:
        return self.gpu.wrap_stream(given)


def _triton_version() -> str:
    """Triton's, without importing it. Where it is not installed, the version that plans and the
    kernel cache are likely to be from: what is compiled already runs without Triton.
    """
    try:
        return version("triton")
    except PackageNotFoundError:
        return TRITON


@cache
def cuda(device: str) -> CudaTarget:
    """The GPU of a device name: "cuda:0", or "cuda" for the first one.

    Raises
    ------
    DeviceError
        There is no such GPU, no driver, or a package is missing.
    """
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if match is None:
        raise DeviceError(
            f"There is no device {device!r}",
            where="device=",
            why="GPUs are named cuda:0, cuda:1, …",
            cure='pass one of these names, or "cpu"',
        )
    return CudaTarget(gpu(int(match.group(1) or 0)))
