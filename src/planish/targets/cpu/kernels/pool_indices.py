"""Max pooling that also says where each maximum stands; channels last, vectors along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir
import numpy as np

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.types import DType
from planish.ops.pool import MaxPoolIndices
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, bind_values, for_spans
from planish.targets.cpu.kernels.pool import taps_inside

_WORK = 1 << 14
"""Input elements a thread takes at a time, at least."""


@dataclass(frozen=True)
class PoolIndicesKernel(CpuKernel):
    """A task is one row of output positions.

    Parameters: channels; for each spatial dimension its input and output extent and its padding
    before; then the strides of source, maxima and indices.
    """

    family: ClassVar[str] = "pool_indices"
    dtype: DType
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    source: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        rank = len(self.window)
        channels = k.param(0)
        dims = [tuple(k.param(1 + 3 * i + j) for j in range(3)) for i in range(rank)]
        source = Operands(k, self.source, 0, 1 + 3 * rank, rank + 2)
        writes = Operands(k, self.outputs, source.next_pointer, source.next_param, rank + 2)
        lanes = max(k.lanes // 2, 1)  # an index takes eight bytes
        with k.loop(k.begin, k.end) as tasks:
            image, *outer = k.unravel(tasks.index, [extent for _, extent, _ in dims[:-1]])
            (start,) = source.at([image])
            with k.loop(0, dims[-1][1]) as column:
                place = [*outer, column.index]
                box = [
                    taps_inside(k, *taps, index, dim)
                    for taps, index, dim in zip(
                        zip(self.window, self.strides, self.dilations, strict=True),
                        place,
                        dims,
                        strict=True,
                    )
                ]
                written = writes.at([image, *place])

                def body(
                    spans: list[Span],
                    _: Any,
                    box: Any = box,
                    start: Any = start,
                    written: Any = written,
                ) -> None:
                    (span,) = spans
                    writes.store(written, span, self._pool(k, span, box, dims, source, start))

                for_spans(k, 0, channels, lanes, body)

    def _pool(
        self, k: KernelBuilder, span: Span, box: Any, dims: Any, source: Operands, start: Any
    ) -> list[ir.Value]:
        flat: Any = 0
        some: ir.Value | None = None
        for (low, high, origin), (extent, _, _), dilation in zip(
            box, dims, self.dilations, strict=True
        ):
            flat = k.add(k.mul(flat, extent), k.add(origin, k.mul(low, dilation)))
            here = k.b.icmp_signed("<", k.i64(low), k.i64(high))
            some = here if some is None else k.b.and_(some, here)
        first = k.b.select(some, k.i64(flat), I64(0))
        state = [
            k.constant(_lowest(self.dtype), self.dtype, span.lanes),
            k.splat(first, span.lanes),
        ]
        return list(self._taps(k, span, box, dims, source, start, 0, 0, state))

    def _taps(
        self,
        k: KernelBuilder,
        span: Span,
        box: Any,
        dims: Any,
        source: Operands,
        place: Any,
        axis: int,
        flat: Any,
        state: Sequence[ir.Value],
    ) -> Sequence[ir.Value]:
        if axis == len(box):
            value, index = state
            (x,) = source.load([place], span)
            assert x is not None
            better = self._greater(k, x, value)
            here = k.splat(k.i64(flat), span.lanes)
            return [k.b.select(better, x, value), k.b.select(better, here, index)]
        low, high, origin = box[axis]
        with k.loop(low, high, carried=state) as tap:
            at = k.add(origin, k.mul(tap.index, self.dilations[axis]))
            (here,) = source.move([place], 1 + axis, at)
            number = k.add(k.mul(flat, dims[axis][0]), at)
            tap.next = list(
                self._taps(k, span, box, dims, source, here, axis + 1, number, tap.carried)
            )
        return tap.carried

    def _greater(self, k: KernelBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        if self.dtype.is_float:
            return k.b.fcmp_ordered(">", a, b)
        if self.dtype.value[0] == "u":
            return k.b.icmp_unsigned(">", a, b)
        return k.b.icmp_signed(">", a, b)


def _lowest(dtype: DType) -> float | int:
    return -math.inf if dtype.is_float else int(np.iinfo(dtype.numpy).min)


@dataclass(frozen=True)
class PoolIndices(AnchoredTactic):
    """Max pooling with indices."""

    family: ClassVar[str] = "pool_indices"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, MaxPoolIndices)
        shape = self.result_shape(binding)
        if 0 in shape:
            return []
        source = binding.layout(task.inputs[0])
        reads = bind_values(task.inputs[:1], binding.strides)
        writes = bind_values(task.outputs, binding.strides)
        kernel = PoolIndicesKernel(
            dtype=task.inputs[0].dtype,
            window=op.window,
            strides=op.strides,
            dilations=op.dilations,
            source=reads.accesses,
            outputs=writes.accesses,
        )
        dims = [
            n
            for axis, (before, _) in enumerate(op.padding)
            for n in (source.shape[1 + axis], shape[1 + axis], evaluate(before, binding.symbols))
        ]
        bound = reads + writes
        work = shape[-2] * shape[-1] * math.prod(op.window)
        return [
            Launch(
                kernel,
                bound.pointers,
                (shape[-1], *dims, *bound.params),
                tasks=math.prod(shape[:-2]),
                grain=max(1, _WORK // work),
            )
        ]


class PoolIndicesFamily(Family):
    """Max pooling with indices."""

    name: ClassVar[str] = "pool_indices"
    tactic: ClassVar[type[Tactic]] = PoolIndices

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, MaxPoolIndices)
            and len(task.anchor.op.window) > 0
            and task.prologue is None
        )


FAMILIES: tuple[Family, ...] = (PoolIndicesFamily(),)
