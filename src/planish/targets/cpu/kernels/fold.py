"""Sliding windows put back where they were taken from; channels last, vectors along them.

Each output position gathers the taps that reach it, so that tasks write different elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.conv import Fold
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import (
    Accesses,
    Operands,
    Span,
    apply,
    bind_window,
    for_spans,
)

_WORK = 1 << 14
"""Elements a thread adds at a time, at least."""


@dataclass(frozen=True)
class FoldKernel(CpuKernel):
    """A task is one row of output positions.

    Parameters: channels; for each dimension its positions and its extent; the strides of windows,
    operands and outputs.
    """

    family: ClassVar[str] = "fold"
    dtype: DType
    window: tuple[int, ...]
    strides: tuple[int, ...]
    before: tuple[int, ...]
    dilations: tuple[int, ...]
    source: Accesses
    expression: Expression
    accesses: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        rank = len(self.window)
        channels = k.param(0)
        dims = [(k.param(1 + 2 * i), k.param(2 + 2 * i)) for i in range(rank)]
        source = Operands(k, self.source, 0, 1 + 2 * rank, rank + 3)
        reads = Operands(k, self.accesses, source.next_pointer, source.next_param, rank + 2)
        writes = Operands(k, self.outputs, reads.next_pointer, reads.next_param, rank + 2)
        lanes = max(k.lanes * 4 // max(self.dtype.size, 4), 1)
        with k.loop(k.begin, k.end) as tasks:
            image, *outer = k.unravel(tasks.index, [extent for _, extent in dims[:-1]])
            start = source.at([image])
            with k.loop(0, dims[-1][1]) as column:
                place = [*outer, column.index]
                read, written = reads.at([image, *place]), writes.at([image, *place])

                def body(
                    spans: list[Span],
                    _: Any,
                    place: Any = place,
                    start: Any = start,
                    read: Any = read,
                    written: Any = written,
                ) -> None:
                    (span,) = spans
                    zero = k.zero(self.dtype, span.lanes)
                    total = self._taps(k, source, start, dims, place, 0, 0, zero, span)
                    loaded = reads.load(read, span)
                    results = apply(k, self.expression, loaded, [total], self.accesses, span.lanes)
                    writes.store(written, span, results)

                for_spans(k, 0, channels, lanes, body)

    def _taps(
        self,
        k: KernelBuilder,
        source: Operands,
        windows: Any,
        dims: Any,
        place: Any,
        axis: int,
        number: Any,
        total: ir.Value,
        span: Span,
    ) -> ir.Value:
        """Adds the taps that reach a position; `number` counts those of the axes before."""
        if axis == len(self.window):
            (x,) = source.load(source.move(windows, 1 + axis, number), span)
            assert x is not None
            return k.b.fadd(total, x) if self.dtype.is_float else k.b.add(total, x)
        stride = k.i64(self.strides[axis])
        with k.loop(0, self.window[axis], carried=[total]) as tap:
            at = k.sub(
                k.add(place[axis], self.before[axis]), k.mul(tap.index, self.dilations[axis])
            )
            position = k.b.sdiv(k.i64(at), stride)
            hit = k.b.icmp_signed("==", k.b.srem(k.i64(at), stride), I64(0))
            inside = k.b.icmp_unsigned("<", position, dims[axis][0])
            inside = k.b.and_(k.b.icmp_signed(">=", k.i64(at), I64(0)), inside)

            def more(position: Any = position, tap: Any = tap) -> list[ir.Value]:
                here = source.move(windows, 1 + axis, position)
                count = k.add(k.mul(number, self.window[axis]), tap.index)
                return [
                    self._taps(k, source, here, dims, place, axis + 1, count, tap.carried[0], span)
                ]

            tap.next = k.choose(k.b.and_(hit, inside), more, lambda tap=tap: [tap.carried[0]])
        return tap.carried[0]


@dataclass(frozen=True)
class Folding(AnchoredTactic):
    """Windows put back, position by position."""

    family: ClassVar[str] = "fold"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, Fold)
        shape = self.result_shape(binding)
        if 0 in shape:
            return []
        reads, operands, outputs = bind_window(task, binding, shape)
        positions = binding.shape(task.inputs[0])[1:-2]
        kernel = FoldKernel(
            dtype=task.inputs[0].dtype,
            window=op.window,
            strides=op.strides,
            before=op.before,
            dilations=op.dilations,
            source=reads.accesses,
            expression=task.epilogue.expression,
            accesses=operands.accesses,
            outputs=outputs.accesses,
        )
        dims = [n for pair in zip(positions, shape[1:-1], strict=True) for n in pair]
        bound = reads + operands + outputs
        return [
            Launch(
                kernel,
                bound.pointers,
                (shape[-1], *dims, *bound.params),
                tasks=math.prod(shape[:-2]),
                grain=max(1, _WORK // (shape[-2] * shape[-1] * math.prod(op.window))),
            )
        ]


class FoldFamily(Family):
    """Windows put back where they were taken from."""

    name: ClassVar[str] = "fold"
    tactic: ClassVar[type[Tactic]] = Folding

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, Fold)
            and len(task.anchor.op.window) > 0
            and task.prologue is None
        )


FAMILIES: tuple[Family, ...] = (FoldFamily(),)
