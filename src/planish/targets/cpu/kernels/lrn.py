"""Local response normalization over the last axis.

The squares of a row go to scratch memory, zeros around them, so that every window is a sum of
vectors read from there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.normalization import Lrn
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.codegen import math as functions
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.axes import prologue_of, task_box, unravel
from planish.targets.cpu.kernels.fused import (
    Accesses,
    Operands,
    Span,
    apply,
    for_spans,
)

_GRAIN = 1 << 11
"""Elements a thread takes at a time, at least."""
_MARGIN = 64
"""Elements of scratch that the last vector may read beyond a row."""


@dataclass(frozen=True)
class LrnKernel(CpuKernel):
    """One specialisation; a task is a row.

    Parameters: the extents of the outer axes and of the row; the strides of leaves, operands and
    outputs.
    """

    family: ClassVar[str] = "lrn"
    op: Lrn
    dtype: DType
    outer: int
    prologue: Expression
    leaves: Accesses
    epilogue: Expression
    operands: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        axes = self.outer + 1
        extents = [k.param(i) for i in range(axes)]
        source = Operands(k, self.leaves, 0, axes, axes)
        reads = Operands(k, self.operands, source.next_pointer, source.next_param, axes)
        writes = Operands(k, self.outputs, reads.next_pointer, reads.next_param, axes)
        wide = DType.FLOAT64 if self.dtype is DType.FLOAT64 else DType.FLOAT32
        f = Floats(k, wide, k.lanes)
        radius = self.op.radius
        squares = k.offset(k.scratch, radius, wide)
        end = k.offset(squares, extents[-1], wide)
        for margin in (k.scratch, end):
            with k.loop(0, radius) as zero:
                k.store(k.zero(wide), k.offset(margin, zero.index, wide), wide)

        with k.loop(k.begin, k.end) as tasks:
            place = unravel(k, tasks.index, extents[:-1])
            start, read, written = source.at(place), reads.at(place), writes.at(place)

            def element(span: Span, start: Any = start) -> ir.Value:
                return emit(k, self.prologue, source.load(start, span), span.lanes)[0]

            def square(spans: list[Span], _: Any, element: Any = element) -> None:
                x = element(spans[0])
                to = k.offset(squares, spans[0].start, wide)
                k.store(f.mul(x, x), to, wide, k.lanes, mask=spans[0].mask)

            def normalize(
                spans: list[Span],
                _: Any,
                element: Any = element,
                read: Any = read,
                written: Any = written,
            ) -> None:
                (span,) = spans
                total: ir.Value | None = None
                for shift in range(2 * radius + 1):
                    at = k.offset(k.scratch, k.add(span.start, shift), wide)
                    term = k.load(at, wide, k.lanes)
                    total = term if total is None else f.add(total, term)
                assert total is not None
                base = f.fma(total, f.c(self.op.alpha), f.c(self.op.bias))
                y = f.div(element(span), self._power(f, base))
                loaded = reads.load(read, span)
                results = apply(k, self.epilogue, loaded, [y], self.operands, k.lanes)
                writes.store(written, span, results)

            for_spans(k, 0, extents[-1], k.lanes, square)
            for_spans(k, 0, extents[-1], k.lanes, normalize)

    def _power(self, f: Floats, base: ir.Value) -> ir.Value:
        """``base ** beta``; the usual exponents by square roots."""
        if self.op.beta == 1:
            return base
        if self.op.beta == 0.5:
            return f.sqrt(base)
        if self.op.beta == 0.75:
            root = f.sqrt(base)
            return f.mul(root, f.sqrt(root))
        return functions.pow(f, base, f.c(self.op.beta))


@dataclass(frozen=True)
class LocalResponse(AnchoredTactic):
    """Local response normalization, row by row."""

    family: ClassVar[str] = "lrn"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, fed = self.task, self.anchor.op, self.anchor.inputs[0]
        assert isinstance(op, Lrn)
        shape = fed.type.bind(binding.symbols)
        if 0 in shape:
            return []
        box = task_box(task, binding, [len(shape) - 1])
        if shape[-1] > 1:  # the row itself must stay an axis
            box = box.simplified()
        leaves, operands, outputs = box.bound()
        bound = leaves + operands + outputs
        kernel = LrnKernel(
            op=op,
            dtype=fed.dtype,
            outer=len(box.extents) - 1,
            prologue=prologue_of(task).expression,
            leaves=leaves.accesses,
            epilogue=task.epilogue.expression,
            operands=operands.accesses,
            outputs=outputs.accesses,
        )
        return [
            Launch(
                kernel,
                bound.pointers,
                (*box.extents, *bound.params),
                tasks=math.prod(box.extents[:-1]),
                grain=max(1, _GRAIN // box.extents[-1]),
                scratch=(box.extents[-1] + 2 * op.radius + _MARGIN) * max(4, fed.dtype.size),
            )
        ]


class LrnFamily(Family):
    """Local response normalization."""

    name: ClassVar[str] = "lrn"
    tactic: ClassVar[type[Tactic]] = LocalResponse

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(task.anchor.op, Lrn)


FAMILIES: tuple[Family, ...] = (LrnFamily(),)
