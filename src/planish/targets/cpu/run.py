"""Runs one tactic on NumPy arrays, without plan or executor: for tests and for looking at it.

Code for this process's architecture runs in this process; code for another one where
`run_on` was told that it can (an emulator).
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from planish.graph.graph import Value
from planish.targets.base import Binding, Constant, Kernel, Layout, Tactic
from planish.targets.cpu.codegen.compile import Library
from planish.targets.cpu.machine import Machine, host


class Processor(Protocol):
    """Where kernels of one architecture run: memory of its own, and calls."""

    def memory(self, size: int) -> tuple[np.ndarray, int]:
        """Bytes of memory aligned to 64 bytes as an array here, and their address there."""

    def load(self, objects: dict[str, bytes], machine: Machine) -> dict[str, int]:
        """The addresses of functions, from one object file each."""

    def forget(self) -> None:
        """Drops all functions."""

    def call(
        self,
        function: int,
        pointers: Sequence[int],
        params: Sequence[int],
        begin: int,
        end: int,
        scratch: int,
    ) -> None:
        """Calls a kernel; all pointers are addresses there."""


class ThisProcess:
    """Runs kernels by calling them."""

    _signature = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    )

    def __init__(self) -> None:
        self._libraries: list[Library] = []

    def memory(self, size: int) -> tuple[np.ndarray, int]:
        raw = np.empty(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size], raw.ctypes.data + start

    def load(self, objects: dict[str, bytes], machine: Machine) -> dict[str, int]:
        library = Library(objects, machine)
        self._libraries.append(library)
        return library.addresses

    def forget(self) -> None:
        self._libraries.clear()

    def call(
        self,
        function: int,
        pointers: Sequence[int],
        params: Sequence[int],
        begin: int,
        end: int,
        scratch: int,
    ) -> None:
        table = (ctypes.c_void_p * max(len(pointers), 1))(*pointers)
        numbers = (ctypes.c_int64 * max(len(params), 1))(*params)
        self._signature(function)(
            ctypes.addressof(table), ctypes.addressof(numbers), begin, end, scratch
        )


_processors: dict[str, Processor] = {}
_compiled: dict[tuple[str, str], int] = {}


def run_on(architecture: str, processor: Processor) -> None:
    """Lets code for an architecture ("aarch64") run there from now on."""
    _processors[architecture] = processor


def processor_for(machine: Machine) -> Processor:
    """Where code for a machine runs: here, unless `run_on` said otherwise."""
    if machine.architecture not in _processors:
        _processors[machine.architecture] = ThisProcess()
    return _processors[machine.architecture]


def load_kernels(
    kernels: Iterable[Kernel],
    machine: Machine,
    code: Callable[[Kernel], bytes] | None = None,
) -> None:
    """Compiles and loads kernels together, which is faster than one by one.

    `code` gives a kernel's object code; None: it is compiled here.

    Raises
    ------
    DeviceError
        Code for the machine's architecture runs nowhere.
    """
    missing = {k.symbol: k for k in kernels if (k.symbol, machine.code_key) not in _compiled}
    if not missing:
        return
    objects = {s: code(k) if code else k.compile(machine) for s, k in missing.items()}
    addresses = processor_for(machine).load(objects, machine)
    for symbol in missing:
        _compiled[symbol, machine.code_key] = addresses[symbol]


def forget_kernels() -> None:
    """Drops all kernels that `run_tactic` has loaded, so that a long run does not collect them."""
    _compiled.clear()
    for processor in _processors.values():
        processor.forget()


def run_tactic(
    tactic: Tactic,
    binding: Binding,
    arrays: Sequence[np.ndarray],
    machine: Machine | None = None,
    ranges: int = 3,
) -> list[np.ndarray]:
    """The task's outputs by this tactic, for arrays of ``task.inputs``.

    Tasks are run in `ranges` pieces, the last one first. Outputs and workspace are poisoned
    before.
    """
    machine = machine or host()
    task = tactic.task
    processor = processor_for(machine)
    buffers: dict[Value, tuple[np.ndarray, int]] = {}
    for value, array in zip(task.inputs, arrays, strict=True):
        buffers[value] = _laid_out(processor, np.asarray(array), binding.layout(value))
    for value in task.outputs:
        layout = binding.layout(value)
        buffers[value] = _laid_out(processor, _poison(layout.shape, value.dtype.numpy), layout)
    constants = [_copied(processor, c) for c in tactic.constants()]
    workspace = _poisoned(processor, tactic.workspace(binding) + 64)

    def address(pointer: object) -> int:
        if isinstance(pointer, Value):
            return buffers[pointer][1]
        if isinstance(pointer, Constant):
            return constants[pointer.index][1]
        return workspace[1] + pointer.offset  # type: ignore[attr-defined]

    launches = tactic.launches(binding)
    load_kernels([x.kernel for x in launches if isinstance(x.kernel, Kernel)], machine)
    for launch in launches:
        if not isinstance(launch.kernel, Kernel):
            values = [p for p in launch.pointers if isinstance(p, Value)]
            launch.kernel(*(buffers[v][0] for v in values))
            continue
        function = _compiled[launch.kernel.symbol, machine.code_key]
        addresses = [address(p) for p in launch.pointers]
        scratch = _poisoned(processor, launch.scratch + 64)
        edges = [launch.tasks * i // ranges for i in range(ranges + 1)]
        for begin, end in reversed(list(itertools.pairwise(edges))):
            if begin < end:
                processor.call(function, addresses, launch.params, begin, end, scratch[1])
    return [buffers[v][0] for v in task.outputs]


def _poison(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.full(count, 1 if dtype.kind == "b" else 0xA5, np.uint8)
    return raw.view(dtype).reshape(shape)


def _poisoned(processor: Processor, size: int) -> tuple[np.ndarray, int]:
    memory, address = processor.memory(size)
    memory[...] = 0xA5
    return memory, address


def _laid_out(processor: Processor, array: np.ndarray, layout: Layout) -> tuple[np.ndarray, int]:
    """A copy of the array whose elements lie as the layout says, and its address."""
    size = 1 + sum(
        abs(s) * max(n - 1, 0) for s, n in zip(layout.strides, layout.shape, strict=True)
    )
    base, address = _copied(processor, _poison((size,), array.dtype))
    steps = tuple(s * array.itemsize for s in layout.strides)
    view = np.lib.stride_tricks.as_strided(base, layout.shape, steps)
    if all(s or n == 1 for s, n in zip(layout.strides, layout.shape, strict=True)):
        view[...] = array
    return view, address


def _copied(processor: Processor, array: np.ndarray) -> tuple[np.ndarray, int]:
    """A copy of the array that starts at a multiple of 64 bytes, and its address."""
    memory, address = processor.memory(array.nbytes)
    copy = memory.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy, address
