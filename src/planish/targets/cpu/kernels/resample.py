"""Resizing with filters of any width and with extrapolation, one dimension after the other.

    source ──▶ innermost dimension ──▶ workspace ──▶ … ──▶ outermost dimension ──▶ outputs

What `resize` does in one pass for few taps is done here in one pass per dimension: an antialiasing
filter has as many taps as elements that an output element covers. Tables of taps are computed when
binding, by the functions that the reference uses too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir
import numpy as np

from planish.fusion.expression import Expression, identity
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.spatial import Resize
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Pointer, Tactic, Workspace, dense_strides
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import F32, F64, I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import (
    Access,
    Accesses,
    Bound,
    Operands,
    Span,
    apply,
    bind_window,
    for_spans,
)
from planish.targets.cpu.kernels.overlaps import wide_float

_WORK = 1 << 13
"""Products a thread computes at a time, at least."""


@dataclass(frozen=True)
class ResampleKernel(CpuKernel):
    """One dimension resampled; a task is a row of positions along the innermost dimension.

    Parameters: channels, taps; the output's spatial extents; the strides of source, operands and
    outputs; for each position along `axis` the offsets of its taps and, if `weighted`, their
    weights as float64 bits; if there is an extrapolation, for each spatial dimension and position
    whether it lies outside.
    """

    family: ClassVar[str] = "resample"
    dtype: DType
    axis: int
    spatial: int
    weighted: bool
    extrapolation: float | None
    source: Accesses
    expression: Expression
    accesses: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        rank = self.spatial
        channels, taps = k.param(0), k.param(1)
        sizes = [k.param(2 + i) for i in range(rank)]
        source = Operands(k, self.source, 0, 2 + rank, rank + 2)
        reads = Operands(k, self.accesses, source.next_pointer, source.next_param, rank + 2)
        writes = Operands(k, self.outputs, reads.next_pointer, reads.next_param, rank + 2)
        entry = k.mul(taps, 2 if self.weighted else 1)
        flags: Any = k.add(writes.next_param, k.mul(sizes[self.axis], entry))
        lanes = max(k.lanes * 4 // max(self.dtype.size, 4), 1)
        with k.loop(k.begin, k.end) as tasks:
            outer = k.unravel(tasks.index, sizes[:-1])
            with k.loop(0, sizes[-1]) as column:
                place = [*outer, column.index]
                others = [0 if a == 1 + self.axis else p for a, p in enumerate(place)]
                start = source.at(others)
                table = k.add(writes.next_param, k.mul(place[1 + self.axis], entry))
                outside = self._outside(k, sizes, flags, place[1:])
                read, written = reads.at(place), writes.at(place)

                def body(
                    spans: list[Span],
                    _: Any,
                    start: Any = start,
                    table: Any = table,
                    outside: Any = outside,
                    read: Any = read,
                    written: Any = written,
                ) -> None:
                    (span,) = spans
                    value = self._sum(k, source, start, table, taps, span)
                    if outside is not None:
                        assert self.extrapolation is not None
                        filler = k.constant(self.extrapolation, self.dtype, span.lanes)
                        value = k.b.select(outside, filler, value)
                    loaded = reads.load(read, span)
                    results = apply(k, self.expression, loaded, [value], self.accesses, span.lanes)
                    writes.store(written, span, results)

                for_spans(k, 0, channels, lanes, body)

    def _outside(
        self, k: KernelBuilder, sizes: Sequence[Any], flags: Any, place: Sequence[Any]
    ) -> ir.Value | None:
        if self.extrapolation is None:
            return None
        found: Any = I64(0)
        for size, index in zip(sizes, place, strict=True):
            found = k.b.or_(found, k.param(k.add(flags, index)))
            flags = k.add(flags, size)
        return k.b.icmp_signed("!=", found, I64(0))

    def _sum(
        self, k: KernelBuilder, source: Operands, start: Any, table: Any, taps: Any, span: Span
    ) -> ir.Value:
        (access,) = self.source
        assert access is not None

        def at(offset: ir.Value) -> ir.Value:
            (x,) = source.load([k.offset(start[0], offset, access.dtype)], span)
            assert x is not None
            return x

        if not self.weighted:
            return at(k.param(table))
        f = Floats(k, self.dtype, span.lanes)
        with k.loop(0, taps, carried=[f.c(0)]) as tap:
            weight = k.b.bitcast(k.param(k.add(k.add(table, taps), tap.index)), F64)
            if f.width == 32:
                weight = k.b.fptrunc(weight, F32)
            x = at(k.param(k.add(table, tap.index)))
            if f.width == 64 and access.dtype.size < 8:
                x = k.b.fpext(x, f.type)
            product = f.mul(x, k.splat(weight, span.lanes))
            tap.next = [f.add(tap.carried[0], product)]
        return tap.carried[0]


@dataclass(frozen=True)
class Resampling(AnchoredTactic):
    """Resizing by one launch for each dimension."""

    family: ClassVar[str] = "resample"

    @property
    def _op(self) -> Resize:
        assert isinstance(self.anchor.op, Resize)
        return self.anchor.op

    def _stages(self, binding: Binding) -> list[tuple[int, ...]]:
        """The shape after each dimension, the innermost first."""
        shape = list(binding.shape(self.task.inputs[0]))
        result = self.result_shape(binding)
        stages = []
        for axis in range(len(result) - 2, 0, -1):
            shape[axis] = result[axis]
            stages.append(tuple(shape))
        return stages

    @property
    def _between(self) -> DType:
        """The dtype of what lies in the workspace."""
        x = self.task.inputs[0].dtype
        return x if self._op.mode == "nearest" else wide_float(x)

    def workspace(self, binding: Binding) -> int:
        return 2 * self._room(binding)

    def _room(self, binding: Binding) -> int:
        """Bytes of the largest shape between two dimensions; there is room for two."""
        sizes = [math.prod(s) * self._between.size for s in self._stages(binding)[:-1]]
        largest = max(sizes, default=0)
        return largest + -largest % 64

    def launches(self, binding: Binding) -> list[Launch]:
        task, result = self.task, self.result_shape(binding)
        if 0 in result:
            return []
        reads, operands, outputs = bind_window(task, binding, result)
        extents = binding.shape(task.inputs[0])
        source, strides = reads, binding.strides(task.inputs[0])
        stages = self._stages(binding)
        launches = []
        for number, shape in enumerate(stages):
            axis = len(shape) - 2 - number
            final = number == len(stages) - 1
            if final:
                launches.append(
                    self._launch(binding, axis, extents, strides, shape, source, operands, outputs)
                )
                break
            place = Workspace(number % 2 * self._room(binding))
            target = _bound(self._between, dense_strides(shape), place)
            launches.append(
                self._launch(binding, axis, extents, strides, shape, source, None, target)
            )
            source, strides = target, dense_strides(shape)
        return launches

    def _launch(
        self,
        binding: Binding,
        axis: int,
        extents: Sequence[int],
        strides: Sequence[int],
        shape: Sequence[int],
        source: Bound,
        operands: Bound | None,
        outputs: Bound,
    ) -> Launch:
        """The launch for one axis; only the last one has an epilogue (`operands`)."""
        op, between = self._op, self._between
        indices, weights = op.taps(axis - 1, extents[axis], shape[axis])
        table = [indices * strides[axis]]
        if weights is not None:
            wide = weights.astype(np.float64)
            if op.mode == "linear" and not op.antialias:
                wide[:, 0] = 1 - wide[:, 1]  # float32 has not all its digits
            table.append(wide.view(np.int64))
        params = np.concatenate(table, 1).ravel().tolist()
        last = operands is not None
        extrapolates = last and op.region is not None
        if extrapolates:
            for a, size in enumerate(shape[1:-1]):
                params += op.outside(a, extents[1 + a], size).astype(int).tolist()
        if operands is None:
            expression, operands = identity(between), Bound((None,), (), ())
        else:
            expression = self.task.epilogue.expression
        kernel = ResampleKernel(
            dtype=between,
            axis=axis - 1,
            spatial=len(shape) - 2,
            weighted=weights is not None,
            extrapolation=op.extrapolation if extrapolates else None,
            source=source.accesses,
            expression=expression,
            accesses=operands.accesses,
            outputs=outputs.accesses,
        )
        bound = source + operands + outputs
        taps = indices.shape[1]
        return Launch(
            kernel,
            bound.pointers,
            (shape[-1], taps, *shape[1:-1], *bound.params, *params),
            tasks=math.prod(shape[:-2]),
            grain=max(1, _WORK // (shape[-2] * shape[-1] * taps)),
        )


def _bound(dtype: DType, strides: tuple[int, ...], pointer: Pointer) -> Bound:
    return Bound((Access(dtype, 1, False),), (pointer,), strides)


class ResampleFamily(Family):
    """Resizing of what `resize` declines."""

    name: ClassVar[str] = "resample"
    tactic: ClassVar[type[Tactic]] = Resampling

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, Resize)
            and task.prologue is None
            and len(task.anchor.op.size) > 0
            and (
                task.anchor.op.antialias
                or task.anchor.op.region is not None
                or len(task.anchor.op.size) > 3
            )
        )


FAMILIES: tuple[Family, ...] = (ResampleFamily(),)
