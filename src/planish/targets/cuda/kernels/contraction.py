"""Tactics of the plain contraction kernel: every product and convolution that others decline.

Grouped and transposed convolutions, any number of dimensions, filters that are computed, float64
and integers: correct first. Blocks of depth go through tensor cores where a group has enough of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv, ConvTranspose
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Layout, Tactic
from planish.targets.cuda.kernels.contraction_kernel import (
    ContractionKernel,
    SpatialAxis,
    ordinary_axis,
    spans_groups,
    transposed_axis,
)
from planish.targets.cuda.kernels.fused import (
    Access,
    access,
    bind_work,
    broadcast_strides,
    is_wide,
    pointer_of,
)
from planish.targets.cuda.kernels.patches import bind_source
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import FLAG, Allowed

Window = Conv | ConvTranspose | ConvInteger
Product = MatMul | MatMulInteger
_POWERS = tuple(1 << n for n in range(12))


@dataclass(frozen=True)
class _Problem:
    """A product or convolution in the kernel's terms: see `ContractionKernel`."""

    right: Access
    axes: tuple[SpatialAxis, ...]
    outer: int
    transposed: bool
    groups: int
    depth: int
    filters: int
    row_count: int
    """Rows of each phase, or of each matrix."""
    copies: int
    """Phases, or matrices, or groups that have columns of their own."""

    @property
    def columns(self) -> int:
        """Columns that programs divide among themselves."""
        whole = self.groups > 1 and spans_groups(self.groups, self.filters)
        return self.filters * self.groups if whole else self.filters


@dataclass(frozen=True)
class Contraction(AnchoredTactic):
    """The plain kernel with a block of `rows` x `columns`, `unroll` of depth at a time."""

    family: ClassVar[str] = "contraction"
    rows: int
    columns: int
    unroll: int
    warps: int
    stages: int
    dot: bool

    def accepts(self, binding: Binding) -> bool:
        if not super().accepts(binding) or (self.dot and not _takes_dot(self.task, binding)):
            return False
        return math.prod(self.result_shape(binding)) < 1 << 31

    def launches(self, binding: Binding) -> list[Launch]:
        task, anchor, shape = self.task, self.anchor, self.result_shape(binding)
        if 0 in shape:
            return []
        problem = _problem(task, binding)
        source, reads = bind_source(task, binding)
        axes = range(len(shape))
        work, _, values = bind_work(task, task.epilogue, task.outputs, binding, shape, axes)
        zeros = _zero_points(task)
        accesses = [None if z is None else access(z, binding, shape) for z in zeros]
        kernel = ContractionKernel(
            self.warps,
            self.stages,
            source,
            problem.right,
            (accesses[0], accesses[1]),
            work,
            problem.axes,
            problem.outer,
            problem.transposed,
            problem.groups,
            problem.depth,
            problem.filters,
            anchor.inputs[0].dtype,
            anchor.output.dtype,
            self.rows,
            self.columns,
            self.unroll,
            self.dot,
        )
        pointers = (*reads, anchor.inputs[1], *(z for z in zeros if z is not None), *values)
        blocks = -(-problem.columns // self.columns) * -(-problem.row_count // self.rows)
        return [Launch(kernel, pointers, (problem.row_count,), blocks * problem.copies)]


def _zero_points(task: Task) -> list[Value | None]:
    """The zero points of both factors; None where there is none, or it is known to be 0."""
    assert task.anchor is not None
    given = task.anchor.inputs[2:4]
    found = [None if v.data is not None and not v.data.any() else v for v in given]
    return found or [None, None]


def _problem(task: Task, binding: Binding) -> _Problem:
    assert task.anchor is not None
    op = task.anchor.op
    if isinstance(op, Window):
        return _convolution(task, binding, op)
    assert isinstance(op, Product)
    return _product(task, binding, op)


def _product(task: Task, binding: Binding, op: Product) -> _Problem:
    assert task.anchor is not None
    b = task.anchor.inputs[1]
    shape = task.anchor.output.type.bind(binding.symbols)
    layout = binding.layout(b)
    if op.transpose_b:
        (*outer, columns, depth), (*steps, in_column, in_depth) = layout.shape, layout.strides
    else:
        (*outer, depth, columns), (*steps, in_depth, in_column) = layout.shape, layout.strides
    batches = broadcast_strides(Layout(tuple(outer), tuple(steps)), shape[:-2])
    shared = not any(batches)
    right = Access(
        pointer_of(b, binding),
        (*(() if shared else batches), in_depth, in_column),
        is_wide(layout),
    )
    rows = math.prod(shape[:-1]) if shared else shape[-2]
    copies = 1 if shared else math.prod(shape[:-2])
    outer_axes = 0 if shared else len(shape) - 2
    return _Problem(right, (), outer_axes, op.transpose_a, 1, depth, columns, rows, copies)


def _convolution(task: Task, binding: Binding, op: Window) -> _Problem:
    assert task.anchor is not None
    x, w = task.anchor.inputs[:2]
    extents = x.type.bind(binding.symbols)[1:-1]
    batch, *sizes, filters = task.anchor.output.type.bind(binding.symbols)
    layout = binding.layout(w)
    window = layout.shape[:-2]
    if isinstance(op, ConvTranspose):
        make, befores = transposed_axis, [evaluate(n, binding.symbols) for n in op.before]
    else:
        make = ordinary_axis
        befores = [max(evaluate(before, binding.symbols), 0) for before, _ in op.padding]
    axes = tuple(
        make(*numbers)
        for numbers in zip(extents, sizes, window, op.strides, op.dilations, befores, strict=True)
    )
    right = Access(pointer_of(w, binding), layout.strides, is_wide(layout))
    own = filters // op.groups
    copies = math.prod(a.phases for a in axes)
    if op.groups > 1 and not spans_groups(op.groups, own):
        copies *= op.groups
    rows = batch * math.prod(a.positions for a in axes)
    return _Problem(right, axes, 0, False, op.groups, layout.shape[-2], own, rows, copies)


def _takes_dot(task: Task, binding: Binding) -> bool:
    """Whether blocks of depth may go through `tl.dot`."""
    assert task.anchor is not None
    dtype, problem = task.anchor.inputs[0].dtype, _problem(task, binding)
    bytes_to_int32 = isinstance(task.anchor.op, MatMulInteger | ConvInteger)
    if not bytes_to_int32 and dtype not in (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32):
        return False
    return problem.depth >= 8 and not spans_groups(problem.groups, problem.filters)


@dataclass(frozen=True)
class ContractionFamily(Family):
    """All products and convolutions, unless one of the families `before` takes them."""

    name: ClassVar[str] = "contraction"
    tactic: ClassVar[type[Tactic]] = Contraction
    allowed: ClassVar[Allowed] = {
        "rows": _POWERS,
        "columns": _POWERS[:8],
        "unroll": _POWERS[:8],
        "warps": (1, 2, 4, 8),
        "stages": (1, 2, 3, 4),
        "dot": FLAG,
    }
    before: tuple[Family, ...] = ()
    machine: CudaMachine = H200

    def on(self, machine: CudaMachine) -> ContractionFamily:
        return ContractionFamily(tuple(f.on(machine) for f in self.before), machine)

    def understands(self, task: Task) -> bool:
        if task.anchor is None:
            return False
        op = task.anchor.op
        if isinstance(op, Window):
            return bool(op.strides) and task.anchor.inputs[0].dtype is not DType.BOOL
        return isinstance(op, Product)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if any(_takes(family, task, binding) for family in self.before):
            return
        problem = _problem(task, binding)
        if _takes_dot(task, binding):
            yield from self._dots(task, binding, problem)
        unroll = _power(problem.depth, 4)
        for area, warps in ((2048, 4), (1024, 4), (256, 1)):
            columns = _power(problem.columns, 64)
            rows = min(max(area // columns, 1), max(_power(problem.row_count, 256), 1))
            yield Contraction(task, rows, columns, unroll, warps, 1, False)

    def _dots(self, task: Task, binding: Binding, problem: _Problem) -> Iterable[Tactic]:
        assert task.anchor is not None
        wide = task.anchor.inputs[0].dtype is DType.FLOAT32
        least = 32 if task.anchor.inputs[0].dtype.size == 1 else 16
        deep = 16 if wide else max(least, _power(problem.depth, 64))
        widest = max(16, _power(problem.columns, 64 if wide else 128))
        found = []
        for rows, warps in ((128, 4), (64, 4), (32, 2), (16, 1)):
            for columns in dict.fromkeys((widest, max(16, widest // 2), max(16, widest // 4))):
                tactic = Contraction(task, rows, columns, deep, warps, 3, True)
                if not tactic.accepts(binding):
                    continue
                blocks = -(-problem.columns // columns) * -(-problem.row_count // rows)
                idle = max(1.0, self.machine.multiprocessors / (blocks * problem.copies))
                waste = blocks * rows * columns / (problem.columns * problem.row_count)
                found.append((idle * waste * (1 + 16 / rows + 16 / columns), rows, tactic))
        for *_, tactic in sorted(found, key=lambda entry: entry[:2])[:4]:
            yield tactic


def _takes(family: Family, task: Task, binding: Binding) -> bool:
    """Whether a family offers a tactic that needs no permission to round more."""
    return any(
        tactic.precision == task.precision and tactic.accepts(binding)
        for tactic in family.tactics(task, binding)
    )


def _power(number: int, most: int) -> int:
    """The next power of two, at most `most`."""
    return min(1 << max(number - 1, 0).bit_length(), most)


def fallback(before: Sequence[Family]) -> tuple[Family, ...]:
    """The family that takes what those before it decline."""
    return (ContractionFamily(tuple(before)),)
