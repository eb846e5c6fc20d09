"""Max and average pooling, channels last, over any number of spatial dimensions.

Vectors run over channels. For each output position the part of the window that lies inside the
image is a box whose bounds are computed; what lies outside is never looked at. A task is one row
of output positions. Elementwise work on the input alone, such as making floats of levels, is done
to each element as it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.types import DType
from planish.ops.pool import AvgPool, MaxPool
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.types import register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import (
    Accesses,
    Operands,
    Span,
    apply,
    bind_window,
    for_spans,
)
from planish.targets.cpu.kernels.reducers import Reducer, make_reducer, wide_dtype
from planish.targets.restoring import Allowed

_WORK = 1 << 15
"""Input elements a thread takes at a time, at least."""
_BLOCK = 256
"""Channels per task, at most."""
_UNROLLED = 32
"""Taps of the largest window that is unrolled where it lies inside the image."""


def taps_inside(
    k: KernelBuilder, window: int, stride: int, dilation: int, index: Any, dim: Any
) -> tuple[Any, Any, Any]:
    """Of the taps of output position `index`: the first inside the image, their end, and where tap
    0 would lie. `dim` are the input's extent, the output's, and the padding before.
    """
    extent, _, before = dim
    origin = k.sub(k.mul(index, stride), before)
    # rounded up, of numbers made non-negative before they are divided
    low, _ = k.divmod(k.i64(k.add(k.max(k.sub(0, origin), 0), dilation - 1)), dilation)
    high, _ = k.divmod(k.i64(k.max(k.add(k.sub(extent, origin), dilation - 1), 0)), dilation)
    return low, k.min(high, window), origin


@dataclass(frozen=True)
class PoolKernel(CpuKernel):
    """One specialisation; extents, padding and outer strides are parameters.

    Parameters: channels, channel blocks, channels per block; for each spatial dimension its input
    and output extent and its padding before; then the strides of source, operands and outputs
    along batch, spatial dimensions and channels.
    """

    family: ClassVar[str] = "pool"
    reduction: str
    dtype: DType
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    count_padding: bool
    vectors: int
    source: Accesses
    prologue: Expression | None
    expression: Expression
    accesses: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        rank = len(self.window)
        channels, blocks, per_block = k.param(0), k.param(1), k.param(2)
        dims = [tuple(k.param(3 + 3 * i + j) for j in range(3)) for i in range(rank)]
        source = Operands(k, self.source, 0, 3 + 3 * rank, rank + 2)
        reads = Operands(k, self.accesses, source.next_pointer, source.next_param, rank + 2)
        writes = Operands(k, self.outputs, reads.next_pointer, reads.next_param, rank + 2)
        lanes = k.lanes * 4 // min(4, wide_dtype(self.reduction, self.dtype).size)
        with k.loop(k.begin, k.end) as tasks:
            rest, block = k.divmod(tasks.index, blocks)
            first = k.mul(block, per_block)
            last = k.min(k.add(first, per_block), channels)
            image, *outer = k.unravel(rest, [extent for _, extent, _ in dims[:-1]])
            bounds = [self._inside(k, axis, index, dims[axis]) for axis, index in enumerate(outer)]
            with k.loop(0, dims[-1][1]) as column:
                place = [image, *outer, column.index]
                box = [*bounds, self._inside(k, rank - 1, column.index, dims[-1])]
                start = source.at([image])
                for axis, (_, _, origin) in enumerate(box):
                    start = source.move(start, 1 + axis, origin)
                read, written = reads.at(place), writes.at(place)

                def pool(
                    spans: list[Span],
                    _: Any,
                    box: Any = box,
                    start: Any = start,
                    read: Any = read,
                    written: Any = written,
                ) -> None:
                    self._pool(k, spans, box, (source, start), (reads, read), (writes, written))

                for_spans(k, first, last, lanes, pool, vectors=self.vectors)

    def _inside(self, k: KernelBuilder, axis: int, index: Any, dim: Any) -> tuple[Any, Any, Any]:
        return taps_inside(
            k, self.window[axis], self.strides[axis], self.dilations[axis], index, dim
        )

    def _pool(
        self, k: KernelBuilder, spans: list[Span], box: Any, source: Any, reads: Any, writes: Any
    ) -> None:
        lanes = spans[0].lanes
        reducer = make_reducer(k, self.reduction, self.dtype, lanes)
        initial = [state for _ in spans for state in reducer.initial()]

        def some_taps() -> list[ir.Value]:
            return self._taps(k, reducer, spans, box, 0, source[0], source[1], initial)

        def all_taps() -> list[ir.Value]:
            whole = [(0, n, None) for n in self.window]
            return self._taps(k, reducer, spans, whole, 0, source[0], source[1], initial)

        if math.prod(self.window) > _UNROLLED:
            states = some_taps()
        else:
            inside: ir.Value | None = None
            for (low, high, _), taps in zip(box, self.window, strict=True):
                all_here = k.b.icmp_signed("==", k.sub(high, low), k.i64(taps))
                inside = all_here if inside is None else k.b.and_(inside, all_here)
            assert inside is not None
            states = k.choose(inside, all_taps, some_taps)
        factor = self._factor(k, box, lanes)
        for state, span in zip(states, spans, strict=True):
            result = reducer.finish([state]) if factor is None else k.b.fmul(state, factor)
            loaded = reads[0].load(reads[1], span)
            results = apply(k, self.expression, loaded, [result], self.accesses, lanes)
            writes[0].store(writes[1], span, results)

    def _factor(self, k: KernelBuilder, box: Any, lanes: int) -> ir.Value | None:
        """What a sum is multiplied by for the mean; None for the maximum."""
        if self.reduction != "mean":
            return None
        wide = wide_dtype(self.reduction, self.dtype)
        if self.count_padding:
            return k.constant(1 / math.prod(self.window), wide, lanes)
        count: Any = 1
        for low, high, _ in box:
            count = k.mul(count, k.max(k.sub(high, low), 0))
        divisor = k.b.sitofp(k.max(count, 1), register_type(wide))
        return k.splat(k.b.fdiv(k.constant(1, wide), divisor), lanes)

    def _taps(
        self,
        k: KernelBuilder,
        reducer: Reducer,
        spans: list[Span],
        box: Any,
        axis: int,
        source: Operands,
        place: Any,
        states: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """Goes over the window along one axis and those after it; known bounds are unrolled."""
        if axis == len(box):
            new: list[ir.Value] = []
            for span, state in zip(spans, states, strict=True):
                (x,) = source.load(place, span)
                assert x is not None
                if self.prologue is not None:
                    leaves = [None if f.constant is not None else x for f in self.prologue.leaves]
                    (x,) = emit(k, self.prologue, leaves, span.lanes)
                new += reducer.step([state], x)
            return new
        low, high, _ = box[axis]
        if isinstance(low, int) and isinstance(high, int):
            new = list(states)
            for number in range(low, high):
                here = source.move(place, 1 + axis, number * self.dilations[axis])
                new = self._taps(k, reducer, spans, box, axis + 1, source, here, new)
            return new
        with k.loop(low, high, carried=states) as tap:
            here = source.move(place, 1 + axis, k.mul(tap.index, self.dilations[axis]))
            tap.next = self._taps(k, reducer, spans, box, axis + 1, source, here, tap.carried)
        return tap.carried


@dataclass(frozen=True)
class Pool(AnchoredTactic):
    """Pooling with `vectors` vectors of channels at a time."""

    family: ClassVar[str] = "pool"
    vectors: int

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, MaxPool | AvgPool)
        shape = self.result_shape(binding)
        if 0 in shape:
            return []
        source = binding.layout(task.inputs[0])
        spatial = len(op.window)
        reads, operands, writes = bind_window(task, binding, shape)
        kernel = PoolKernel(
            reduction="max" if isinstance(op, MaxPool) else "mean",
            dtype=self.anchor.inputs[0].dtype,
            window=op.window,
            strides=op.strides,
            dilations=op.spread if isinstance(op, AvgPool) else op.dilations,
            count_padding=isinstance(op, AvgPool) and op.count_include_pad,
            vectors=self.vectors,
            source=reads.accesses,
            prologue=task.prologue.expression if task.prologue else None,
            expression=task.epilogue.expression,
            accesses=operands.accesses,
            outputs=writes.accesses,
        )
        bound = reads + operands + writes
        channels = shape[-1]
        blocks = -(-channels // _BLOCK)
        per_block = -(-channels // blocks)
        per_block += -per_block % 64  # whole vectors of every dtype
        blocks = -(-channels // per_block)
        before = [int(evaluate(padding, binding.symbols)) for padding, _ in op.padding]
        dims = [
            n
            for axis in range(spatial)
            for n in (source.shape[1 + axis], shape[1 + axis], before[axis])
        ]
        work = shape[-2] * min(per_block, channels) * math.prod(op.window)
        return [
            Launch(
                kernel,
                bound.pointers,
                (channels, blocks, per_block, *dims, *bound.params),
                tasks=math.prod(shape[:-2]) * blocks,
                grain=max(1, _WORK // work),
            )
        ]


class PoolFamily(Family):
    """Max and average pooling."""

    name: ClassVar[str] = "pool"
    tactic: ClassVar[type[Tactic]] = Pool
    allowed: ClassVar[Allowed] = {"vectors": range(1, 9)}

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, MaxPool | AvgPool)
            and len(task.anchor.op.window) > 0
            and (task.prologue is None or set(task.prologue.sources) <= {0, None})
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        channels = Pool(task, 1).result_shape(binding)[-1]
        assert task.anchor is not None
        full = 64 // min(4, wide_dtype("max", task.anchor.inputs[0].dtype).size)
        for vectors in (4, 2, 1):
            if vectors == 1 or channels >= vectors * full:
                yield Pool(task, vectors)


FAMILIES: tuple[Family, ...] = (PoolFamily(),)
