"""Tactics of `kernel`: convolutions of images of few channels, pooled or not."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.pooled import pooled_of
from planish.fusion.task import Task, make_task
from planish.graph.dims import evaluate
from planish.graph.types import DType
from planish.ops.pool import MaxPool
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Tactic
from planish.targets.base import Pointer as Place
from planish.targets.cuda.kernels.family import HopperFamily
from planish.targets.cuda.kernels.fused import Work, bind_work
from planish.targets.cuda.kernels.matrix_problem import (
    Convolution,
    Problem,
    filters,
    problem_of,
    understood,
)
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.first_conv.kernel import (
    CHANNELS,
    CHUNK,
    FirstConvKernel,
    Pooling,
    packed,
)
from planish.targets.cuda.kernels.ptx.first_conv.loading import SOURCES, is_expressible
from planish.targets.cuda.kernels.ptx.specialized.results import is_expressible as is_epilogue
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.INT8)
RINGS = (4, 6, 8, 12, 16)
HALVES = (1, 2)
AHEAD = (1, 2, 3, 4)
HIGHEST = 1024
WIDEST = 256
"""Columns of an instruction."""
MOST_REGISTERS = 208
"""Of a thread, for weights and sums."""
MOST_CHUNKS = 9
"""Of a row of taps: blocks of eight results reach into the next one only."""
MOST_ITEMS = 3
"""Groups of four pixels of a unit for each thread that loads."""
HIGHS = 3
"""Heights of strips that are offered."""
SLACK = 2
"""Units of the ring beside those that a row of the convolution reads."""
RESERVED = 1024
"""Bytes of shared memory that every block takes besides."""

_PRODUCTS = 4096
"""Of bytes, per cycle and multiprocessor; of halves half as many."""
_EACH = 9.0
"""Cycles for each of a thread's sums of a row, beside products."""
_START = 3500
_ROW = 250
"""Cycles of a block, and of a row."""


class Parts(NamedTuple):
    """The convolution as a problem, and what happens to its (pooled) result."""

    problem: Problem
    pool: Pooling | None
    result: Work
    result_values: tuple[Any, ...]


def parts_of(task: Task, binding: Binding) -> Parts | None:
    """The parts of a task; None if the kernel does not compute it."""
    return binding.derived(_parts, task)


def _parts(task: Task, binding: Binding) -> Parts | None:
    if not _is_understood(task):
        return None
    found = pooled_of(task.nodes) if task.pooled else None
    unpooled = make_task(found.unpooled, found.conv) if found else task
    problem = problem_of(unpooled, binding)
    if problem is None or problem.dtype not in DTYPES or problem.zero:
        return None
    if problem.window is None or not _is_image(problem):
        return None
    if found is None:
        parts = Parts(problem, None, problem.result, problem.result_values)
    else:
        assert isinstance(found.pool.op, MaxPool)
        shape = binding.shape(task.output)
        result, _, values = bind_work(
            task, task.epilogue, task.outputs, binding, shape, (len(shape) - 1,)
        )
        (above, _), (left, _) = found.pool.op.padding
        pads = evaluate(above, binding.symbols), evaluate(left, binding.symbols)
        pool = Pooling(found.pool.op.window[0], pads, (shape[1], shape[2]))
        parts = Parts(problem, pool, result, values)
    sums = "int32" if problem.dtype is DType.INT8 else "float32"
    if not _is_stored(parts.result, problem.columns, sums):
        return None
    return parts if _has_room(_kernel(parts, 1, RINGS[-1])) else None


def _is_understood(task: Task) -> bool:
    """Whether it is a convolution of few channels, whose weights can be laid out now."""
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, Convolution) or len(anchor.op.strides) != 2:
        return False
    channels = anchor.inputs[1].shape[-2]
    few = isinstance(channels, int) and channels <= CHANNELS
    return few and isinstance(anchor.op.padding[1][0], int) and understood(task)


def _is_image(problem: Problem) -> bool:
    """Whether the kernel can read the image."""
    window, left = problem.window, problem.left
    assert window is not None
    leaves = [leaf for leaf in left.leaves if leaf is not None]
    if problem.channels > CHANNELS or window.dilations != (1, 1) or len(leaves) != 1:
        return False
    (leaf,) = leaves
    if leaf.pointer.dtype not in SOURCES or len(leaf.strides) != 4:
        return False
    if any(s < 0 or s * leaf.pointer.dtype.size >= 1 << 31 for s in leaf.strides):
        return False
    spacing = window.strides[1] * CHANNELS * problem.dtype.size
    return CHUNK % spacing == 0 and is_expressible(left, problem.dtype)


def _is_stored(work: Work, columns: int, sums: str) -> bool:
    """Whether the kernel can read what it adds, and store the result: two filters at a time."""
    if len(work.outputs) != 1 or len(work.shape) != 2 or columns % 2:
        return False
    (output,) = work.outputs
    size = output.pointer.dtype.size
    if size not in (1, 2, 4) or output.strides[-1] != 1 or output.strides[0] % 2:
        return False
    for item in (*work.leaves, output):
        if item is None or not any(item.strides):
            continue
        if not item.pointer.aligned or item.strides[-1] != 1 or item.offset:
            return False
        vector = item.strides[0] == 0 and item.pointer.dtype.size > 1
        if item is not output and not vector:
            return False
    return is_epilogue(work, sums)


def _has_room(kernel: FirstConvKernel) -> bool:
    if kernel.across > WIDEST or kernel.registers > MOST_REGISTERS or kernel.chunks > MOST_CHUNKS:
        return False
    pool = kernel.pool
    if pool is not None:
        # all rows of windows but the last of three exist
        last = 2 * (pool.size[0] - 1) - pool.pads[0] + 1
        if last >= kernel.positions[0]:
            return False
    return kernel.items <= MOST_ITEMS


def _kernel(parts: Parts, high: int, ring: int, halves: int = 1, ahead: int = 1) -> FirstConvKernel:
    problem = parts.problem
    assert problem.window is not None
    return FirstConvKernel(
        cluster=1,
        high=high,
        ring=ring,
        halves=halves,
        ahead=ahead,
        dtype=problem.dtype,
        image=problem.left,
        size=(*problem.window.size, problem.channels),
        taps=problem.window.taps,
        strides=problem.window.strides,
        pads=problem.window.pads,
        positions=(problem.axes[1], problem.axes[2]),
        columns=problem.columns,
        result=parts.result,
        pool=parts.pool,
    )


@dataclass(frozen=True)
class FirstConvTactic(AnchoredTactic):
    """So many rows of the result a block; the other parameters are those of the kernel."""

    family: ClassVar[str] = "first_conv"

    high: int
    ring: int
    halves: int = 2
    ahead: int = 2
    machine: CudaMachine = field(default=H200, compare=False)

    def result_shape(self, binding: Binding) -> tuple[int, ...]:
        return self.task.output.type.bind(binding.symbols)

    def accepts(self, binding: Binding) -> bool:
        parts = parts_of(self.task, binding)
        if parts is None or not super().accepts(binding):
            return False
        kernel = _kernel(parts, self.high, self.ring, self.halves, self.ahead)
        room = self.machine.shared_per_multiprocessor // kernel.at_once - RESERVED
        if kernel.ring <= kernel.seen or self.ahead > kernel.most_ahead:
            return False
        return kernel.shared <= min(room, self.machine.shared)

    def constants(self) -> list[np.ndarray]:
        op = self.anchor.op
        assert isinstance(op, Convolution)
        pad = op.padding[1][0]
        assert isinstance(pad, int)
        return [packed(filters(self.task), pad)]

    def launches(self, binding: Binding) -> list[Launch]:
        parts = parts_of(self.task, binding)
        assert parts is not None, "the tactic accepts the binding"
        kernel = _kernel(parts, self.high, self.ring, self.halves, self.ahead)
        images = parts.problem.rows // math.prod(kernel.positions)
        pointers: tuple[Place, ...] = (
            *parts.problem.left_values,
            Constant(0),
            *parts.result_values,
        )
        return [Launch(kernel, pointers, (images,), images * kernel.strips * kernel.parts)]


@dataclass(frozen=True)
class FirstConvFamily(HopperFamily):
    """Convolutions of images of few channels, for this or another machine."""

    name: ClassVar[str] = "first_conv"
    tactic: ClassVar[type[Tactic]] = FirstConvTactic
    allowed: ClassVar[Allowed] = {
        "high": range(1, HIGHEST + 1),
        "ring": RINGS,
        "halves": HALVES,
        "ahead": AHEAD,
    }

    def understands(self, task: Task) -> bool:
        return _is_understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        parts = parts_of(task, binding)
        if parts is None:
            return
        kernel = _kernel(parts, 1, RINGS[-1])
        images = parts.problem.rows // math.prod(kernel.positions)
        rows = kernel.outputs[0]
        heights = {min(ceil(rows, n), HIGHEST) for n in range(1, rows + 1)}
        order = sorted(heights, key=lambda h: (self._cycles(parts, images, h), h))
        ring = next((r for r in RINGS if r >= kernel.seen + SLACK), RINGS[-1])
        most = min(kernel.most_ahead, AHEAD[-1])
        for high in order[:HIGHS]:
            for halves in reversed(HALVES):
                yield FirstConvTactic(task, high, ring, halves, most, self.machine)

    def _cycles(self, parts: Parts, images: int, high: int) -> float:
        """How long strips of so many rows take, by a model."""
        kernel = _kernel(parts, high, RINGS[-1])
        rows = high
        if kernel.pool:
            rows = 2 * high + kernel.pool.window - 2
        step = kernel.taps[0] * kernel.steps * 32 * 64 * kernel.across / _PRODUCTS
        alone = step + _EACH * kernel.across / 2 + _ROW
        blocks = images * kernel.strips * kernel.parts
        waves = ceil(blocks, self.machine.multiprocessors * kernel.at_once)
        together = min(kernel.at_once, ceil(blocks, self.machine.multiprocessors))
        return waves * (_START + rows * max(together * step, alone))


@dataclass(frozen=True)
class FirstConvImageFamily(FirstConvFamily):
    """The same of images whose axes lie in another order."""

    pattern: ClassVar[str] = "image"


@dataclass(frozen=True)
class FirstConvPooledFamily(FirstConvFamily):
    """The same with a pooling."""

    pattern: ClassVar[str] = "pooled"


FAMILIES = (FirstConvFamily(), FirstConvImageFamily(), FirstConvPooledFamily())
