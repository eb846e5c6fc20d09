"""Resizing by nearest neighbour, linear or cubic interpolation; channels last, vectors along them.

Which elements an output position is made from, and with what weights, is computed when binding, by
the functions that the reference uses too, and passed as integer parameters: a table per spatial
dimension. The arithmetic follows the reference operation by operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir
import numpy as np

from planish.fusion.expression import Expression
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.spatial import Resize
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import F32, F64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import (
    Accesses,
    Operands,
    Span,
    apply,
    bind_window,
    for_spans,
)
from planish.targets.restoring import Allowed

_TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
_BLOCK = 256
"""Channels per task, at most."""
_WORK = 1 << 13
"""Output elements a thread takes at a time, at least."""


@dataclass(frozen=True)
class ResizeKernel(CpuKernel):
    """One specialisation; extents, strides and tables are parameters.

    Parameters: channels, channel blocks, channels per block; the output's spatial extents; the
    strides of source, operands and outputs; then for each spatial dimension and position the
    offsets of the taps in elements and, if there are several, their weights as float64 bits.
    """

    family: ClassVar[str] = "resize"
    mode: str
    spatial: int
    dtype: DType
    vectors: int
    source: Accesses
    expression: Expression
    accesses: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        rank = self.spatial
        channels, blocks, per_block = k.param(0), k.param(1), k.param(2)
        sizes = [k.param(3 + i) for i in range(rank)]
        source = Operands(k, self.source, 0, 3 + rank, rank + 2)
        reads = Operands(k, self.accesses, source.next_pointer, source.next_param, rank + 2)
        writes = Operands(k, self.outputs, reads.next_pointer, reads.next_param, rank + 2)
        tables: list[Any] = [writes.next_param]
        for size in sizes[:-1]:
            tables.append(k.add(tables[-1], k.mul(size, self._entry)))
        with k.loop(k.begin, k.end) as tasks:
            rest, block = k.divmod(tasks.index, blocks)
            first = k.mul(block, per_block)
            last = k.min(k.add(first, per_block), channels)
            image, *outer = k.unravel(rest, sizes[:-1])
            (start,) = source.at([image])
            taps = [self._taps(k, tables[i], index) for i, index in enumerate(outer)]
            with k.loop(0, sizes[-1]) as column:
                place = [image, *outer, column.index]
                all_taps = [*taps, self._taps(k, tables[-1], column.index)]
                read, written = reads.at(place), writes.at(place)

                def channel_vectors(
                    spans: list[Span],
                    _: Any,
                    all_taps: Any = all_taps,
                    start: Any = start,
                    read: Any = read,
                    written: Any = written,
                ) -> None:
                    for span in spans:
                        value = self._sample(k, source, start, all_taps, span)
                        loaded = reads.load(read, span)
                        results = apply(
                            k, self.expression, loaded, [value], self.accesses, span.lanes
                        )
                        writes.store(written, span, results)

                for_spans(k, first, last, k.lanes, channel_vectors, vectors=self.vectors)

    @property
    def _entry(self) -> int:
        """Parameters per position in a table."""
        taps = _TAPS[self.mode]
        return taps if taps == 1 else 2 * taps

    def _taps(
        self, k: KernelBuilder, table: Any, index: ir.Value
    ) -> list[tuple[ir.Value, ir.Value | None]]:
        """The offset and weight of each tap of one position in one dimension."""
        entry = k.add(table, k.mul(index, self._entry))
        taps = _TAPS[self.mode]
        offsets = [k.param(k.add(entry, tap)) for tap in range(taps)]
        if taps == 1:
            return [(offsets[0], None)]
        weights = []
        for tap in range(taps):
            weight = k.b.bitcast(k.param(k.add(entry, taps + tap)), F64)
            weights.append(weight if self.dtype is DType.FLOAT64 else k.b.fptrunc(weight, F32))
        return list(zip(offsets, weights, strict=True))

    def _sample(
        self, k: KernelBuilder, source: Operands, place: Any, taps: Any, span: Span
    ) -> ir.Value:
        """The value at a position; the innermost dimension is interpolated first."""
        if not taps:
            (x,) = source.load([place], span)
            assert x is not None
            return x
        (access,) = self.source
        assert access is not None
        values = [
            self._sample(k, source, k.offset(place, offset, access.dtype), taps[1:], span)
            for offset, _ in taps[0]
        ]
        if len(values) == 1:
            return values[0]
        f = Floats(k, self.dtype, span.lanes)
        weights = [k.splat(weight, span.lanes) for _, weight in taps[0]]
        if len(values) == 2:
            low, high = values
            return f.add(low, f.mul(f.sub(high, low), weights[1]))
        total = f.mul(values[0], weights[0])
        for value, weight in zip(values[1:], weights[1:], strict=True):
            total = f.add(total, f.mul(value, weight))
        return total


@dataclass(frozen=True)
class Resizing(AnchoredTactic):
    """Resizing with `vectors` vectors of channels at a time."""

    family: ClassVar[str] = "resize"
    vectors: int

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, Resize)
        shape = self.result_shape(binding)
        if 0 in shape:
            return []
        source = binding.layout(task.inputs[0])
        reads, operands, writes = bind_window(task, binding, shape)
        kernel = ResizeKernel(
            mode=op.mode,
            spatial=len(op.size),
            dtype=task.inputs[0].dtype,
            vectors=self.vectors,
            source=reads.accesses,
            expression=task.epilogue.expression,
            accesses=operands.accesses,
            outputs=writes.accesses,
        )
        bound = reads + operands + writes
        channels = shape[-1]
        per_block = min(_BLOCK, channels)
        blocks = -(-channels // per_block)
        tables: list[int] = []
        for axis in range(len(op.size)):
            tables += _table(
                op, axis, source.shape[1 + axis], shape[1 + axis], source.strides[1 + axis]
            )
        return [
            Launch(
                kernel,
                bound.pointers,
                (channels, blocks, per_block, *shape[1:-1], *bound.params, *tables),
                tasks=math.prod(shape[:-2]) * blocks,
                grain=max(1, _WORK // (shape[-2] * per_block)),
            )
        ]


def _table(op: Resize, axis: int, extent: int, size: int, stride: int) -> list[int]:
    """Offsets (and weights) of the taps of every position along one dimension."""
    indices, weights = op.taps(axis, extent, size)
    if weights is None:
        return (indices[:, 0] * stride).tolist()
    bits = weights.astype(np.float64).view(np.int64)
    return np.concatenate([indices * stride, bits], 1).ravel().tolist()


class ResizeFamily(Family):
    """Resizing of spatial data."""

    name: ClassVar[str] = "resize"
    tactic: ClassVar[type[Tactic]] = Resizing
    allowed: ClassVar[Allowed] = {"vectors": range(1, 5)}

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, Resize)
            and task.prologue is None
            and 1 <= len(task.anchor.op.size) <= 3
            and not task.anchor.op.antialias
            and task.anchor.op.region is None
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        narrow = Resizing(task, 1)
        if narrow.result_shape(binding)[-1] > 16:
            yield Resizing(task, 2)
        yield narrow


FAMILIES: tuple[Family, ...] = (ResizeFamily(),)
