"""Runs one tactic on NumPy arrays, without plan or executor: for tests and for looking at it.

Without a GPU that is done by Triton's interpreter, which runs a kernel's programs one after the
other, in NumPy; kernels in PTX have an interpreter of ours (`ptx_interpreter`). What the first
cannot show is what only a GPU has: races, wrong barriers, speed. After `run_on` the same calls run
on that GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from planish.graph.graph import Value
from planish.targets.base import Binding, Constant, Launch, Layout, Tactic, Workspace, Zeroed
from planish.targets.cuda import ptx_interpreter
from planish.targets.cuda.codegen.compile import DeviceCode, load_function, triton
from planish.targets.cuda.driver import Gpu
from planish.targets.cuda.interpreter import corrected_interpreter, libdevice
from planish.targets.cuda.kernel import (
    GeneratedKernel,
    LibraryKernel,
    Pointer,
    PtxKernel,
    TritonKernel,
)

GUARD = 256
"""Poisoned bytes on both sides of every tensor that is written."""

_gpu: list[Gpu] = []


def run_on(gpu: Gpu) -> None:
    """Lets `run_tactic` use a GPU from now on."""
    _gpu[:] = [gpu]


def is_on_gpu() -> bool:
    """Whether `run_tactic` uses a GPU."""
    return bool(_gpu)


def run_tactic(tactic: Tactic, binding: Binding, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The task's outputs by this tactic, for arrays of ``task.inputs``.

    Outputs and workspace are poisoned before; memory that must stay zero is checked after.

    Raises
    ------
    AssertionError
        A kernel wrote outside its outputs, or left memory changed that must stay zero.
    """
    task = tactic.task
    memory: dict[Value, _Memory] = {}
    for value, array in zip(task.inputs, arrays, strict=True):
        memory[value] = _Memory(binding.layout(value), value.dtype.numpy)
        memory[value].view[...] = array
    for value in task.outputs:
        memory[value] = _Memory(binding.layout(value), value.dtype.numpy)
    constants = [_aligned(np.ascontiguousarray(c)) for c in tactic.constants()]
    workspace = _aligned(np.full(tactic.workspace(binding) + 64, 0xA5, np.uint8))
    zeroed = _aligned(np.zeros(tactic.zeroed(binding) + 64, np.uint8))

    def address(pointer: object) -> int:
        if isinstance(pointer, Value):
            return memory[pointer].view.ctypes.data
        if isinstance(pointer, Constant):
            return constants[pointer.index].ctypes.data
        if isinstance(pointer, Zeroed):
            return zeroed.ctypes.data + pointer.offset
        assert isinstance(pointer, Workspace)
        return workspace.ctypes.data + pointer.offset

    launches = [(x, [address(p) for p in x.pointers]) for x in tactic.launches(binding)]
    if _gpu:
        buffers = [*(m.raw for m in memory.values()), *constants, workspace, zeroed]
        _run_on_gpu(_gpu[0], launches, buffers)
    else:
        for launch, addresses in launches:
            assert isinstance(launch.kernel, GeneratedKernel), "only generated kernels need no GPU"
            interpret(launch.kernel, addresses, launch.params, launch.tasks)
    assert not zeroed.any(), "memory that must stay zero was left changed"
    for value in task.outputs:
        memory[value].check()
    return [memory[v].view for v in task.outputs]


def _run_on_gpu(
    gpu: Gpu, launches: Sequence[tuple[Launch, list[int]]], buffers: Sequence[np.ndarray]
) -> None:
    """Runs launches on copies of the buffers, into which their addresses point, and copies back."""
    machine = gpu.machine()
    copies = [(b, gpu.allocate(b.nbytes, "a test")) for b in buffers if b.nbytes]
    for buffer, memory in copies:
        gpu.upload(memory.address, buffer)

    def translated(address: int) -> int:
        for buffer, memory in copies:
            start = buffer.ctypes.data
            if start <= address < start + buffer.nbytes:
                return memory.address + address - start
        return copies[0][1].address  # of an empty array: never read

    for launch, addresses in launches:
        kernel, there = launch.kernel, [translated(a) for a in addresses]
        if isinstance(kernel, LibraryKernel):
            kernel.load(gpu).queue(there, launch.params, gpu.stream)
            continue
        assert isinstance(kernel, GeneratedKernel)
        code = partial(DeviceCode.from_bytes, kernel.compile(machine))
        loaded = gpu.load(kernel.symbol, code)
        gpu.launch(loaded, launch.tasks, there, launch.params, gpu.stream)
    for buffer, memory in copies:
        gpu.download(buffer, memory.address)


def interpret(
    kernel: GeneratedKernel, addresses: Sequence[int], params: Sequence[int], programs: int
) -> None:
    """Runs a kernel's programs in this process, on host addresses."""
    if isinstance(kernel, PtxKernel):
        maps = [p.map for p in kernel.pointers]
        dtypes = [p.dtype.numpy for p in kernel.pointers]
        ptx_interpreter.interpret(
            kernel.text(), maps, dtypes, addresses, params, programs, kernel.cluster
        )
        return
    assert isinstance(kernel, TritonKernel)
    module = triton()
    from triton.runtime.interpreter import GridExecutor

    before = module.knobs.runtime.interpret
    module.knobs.runtime.interpret = True
    try:
        function: Any = load_function(kernel.source(), kernel.symbol)
        function.fn.__globals__["libdevice"] = libdevice()
        pointers = [
            _argument(a, p, params) for a, p in zip(addresses, kernel.pointers, strict=True)
        ]
        assert len(params) == len(kernel.params)

        class Executor(GridExecutor):
            """Takes addresses of host memory as they are."""

            def _init_args_hst(self, args_dev: Any, kwargs: Any) -> Any:
                return args_dev, kwargs

            def _restore_args_dev(self, *_: Any) -> None:
                pass

        with np.errstate(all="ignore"), corrected_interpreter():
            Executor(function.rewrite(), function.arg_names, (programs,))(*pointers, *params)
    finally:
        module.knobs.runtime.interpret = before


class _Argument:
    """A pointer as the interpreter takes it."""

    def __init__(self, address: int, dtype: str) -> None:
        self._address = address
        self.dtype = dtype

    def data_ptr(self) -> int:
        return self._address


def _argument(address: int, pointer: Pointer, params: Sequence[int]) -> Any:
    """A pointer, or the tensor map of what it points to, as the interpreter takes it."""
    plain = _Argument(address, pointer.dtype.numpy.name)
    mapped = pointer.map
    if mapped is None:
        return plain
    from triton.runtime.interpreter import TensorDescriptor

    class Mapped(TensorDescriptor):  # type: ignore[misc, valid-type]
        """Asks nothing of an array."""

        def __post_init__(self) -> None:
            pass

    shape = list(mapped.extents(params))
    return Mapped(plain, shape, list(mapped.strides), list(mapped.block))


class _Memory:
    """A tensor's memory, poisoned, with guards around it."""

    def __init__(self, layout: Layout, dtype: np.dtype) -> None:
        reach = 1 + sum(
            s * max(n - 1, 0) for s, n in zip(layout.strides, layout.shape, strict=True)
        )
        size = reach * dtype.itemsize
        poison = 1 if dtype.kind == "b" else 0xA5
        self.raw = _aligned(np.full(size + 2 * GUARD, poison, np.uint8))
        steps = tuple(s * dtype.itemsize for s in layout.strides)
        self.view = np.ndarray(layout.shape, dtype, self.raw.data, GUARD, steps)
        self._poison, self._size = poison, size

    def check(self) -> None:
        outside = np.concatenate([self.raw[:GUARD], self.raw[GUARD + self._size :]])
        assert (outside == self._poison).all(), "a kernel wrote outside its output"


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that starts at a multiple of 256 bytes."""
    raw = np.empty(array.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
