"""Runs one tactic on NumPy arrays, without plan or executor: for tests and for looking at it."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np

from planish.graph.graph import Value
from planish.targets.base import Binding, Constant, Kernel, Layout, Tactic
from planish.targets.cpu.codegen.compile import Library, compile_assembly
from planish.targets.cpu.machine import Machine, host

_SIGNATURE = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)
_compiled: dict[tuple[str, str], Library] = {}


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
    buffers: dict[Value, np.ndarray] = {}
    for value, array in zip(task.inputs, arrays, strict=True):
        buffers[value] = _laid_out(np.asarray(array), binding.layout(value))
    for value in task.outputs:
        layout = binding.layout(value)
        buffers[value] = _laid_out(_poison(layout.shape, value.dtype.numpy), layout)
    constants = [_aligned(c) for c in tactic.constants()]
    workspace = _aligned(_poison((tactic.workspace(binding) + 64,), np.dtype(np.uint8)))

    for launch in tactic.launches(binding):
        if not isinstance(launch.kernel, Kernel):
            values = [p for p in launch.pointers if isinstance(p, Value)]
            launch.kernel(*(buffers[v] for v in values))
            continue
        key = (launch.kernel.symbol, machine.code_key)
        if key not in _compiled:
            code = compile_assembly(launch.kernel.assembly(machine), machine)
            _compiled[key] = Library({launch.kernel.symbol: code}, machine)
        call = _SIGNATURE(_compiled[key].addresses[launch.kernel.symbol])
        addresses = []
        for pointer in launch.pointers:
            if isinstance(pointer, Value):
                addresses.append(buffers[pointer].ctypes.data)
            elif isinstance(pointer, Constant):
                addresses.append(constants[pointer.index].ctypes.data)
            else:
                addresses.append(workspace.ctypes.data + pointer.offset)
        pointers = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
        params = (ctypes.c_int64 * max(len(launch.params), 1))(*launch.params)
        scratch = _aligned(_poison((launch.scratch + 64,), np.dtype(np.uint8)))
        edges = [launch.tasks * i // ranges for i in range(ranges + 1)]
        for begin, end in reversed(list(itertools.pairwise(edges))):
            if begin < end:
                call(
                    ctypes.addressof(pointers),
                    ctypes.addressof(params),
                    begin,
                    end,
                    scratch.ctypes.data,
                )
    return [buffers[v] for v in task.outputs]


def _poison(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.full(count, 1 if dtype.kind == "b" else 0xA5, np.uint8)
    return raw.view(dtype).reshape(shape)


def _laid_out(array: np.ndarray, layout: Layout) -> np.ndarray:
    """A copy of the array whose elements lie as the layout says."""
    size = 1 + sum(
        abs(s) * max(n - 1, 0) for s, n in zip(layout.strides, layout.shape, strict=True)
    )
    base = _aligned(_poison((size,), array.dtype))
    steps = tuple(s * array.itemsize for s in layout.strides)
    view = np.lib.stride_tricks.as_strided(base, layout.shape, steps)
    if all(s or n == 1 for s, n in zip(layout.strides, layout.shape, strict=True)):
        view[...] = array
    return view


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy of the array that starts at a multiple of 64 bytes."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
