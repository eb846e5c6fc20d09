"""Top k and running sums. (Arg max is a reduction.)

Top k goes over a row once: elements that may be among the best so far are put as tickets (see
`sorting`) into a buffer of twice k; when it is full, it is sorted and all but k are dropped, and
the worst of these is what an element must beat from then on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.base import normalize_axis
from planish.ops.reduce import CumSum, TopK
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.types import I64, register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.axes import prologue_of, task_box, unravel
from planish.targets.cpu.kernels.fused import (
    Accesses,
    Operands,
    Span,
    apply,
    bind_values,
    for_spans,
)
from planish.targets.cpu.kernels.reducers import make_reducer
from planish.targets.cpu.kernels.sorting import (
    define_sort,
    for_bits,
    key_bits,
    load_ticket,
    mask_bits,
    order_key,
    store_ticket,
    ticket,
    ticket_key,
    ticket_position,
)

_GRAIN = 1 << 12
"""Elements a thread takes at a time, at least."""
_COLUMNS = 64
"""Elements of a kept vector axis that a task takes."""
_SPARE = 64
"""Places in a buffer of candidates besides the k that stay."""


@dataclass(frozen=True)
class TopKKernel(CpuKernel):
    """Top k of rows; a task is a row.

    Parameters: the extents of the outer axes, elements of a row, k, the buffer's capacity; the
    strides of source, values and indices along the outer axes and the row.
    """

    family: ClassVar[str] = "topk"
    dtype: DType
    index_dtype: DType
    largest: bool
    outer: int
    source: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        outer = [k.param(i) for i in range(self.outer)]
        extent, best, capacity = (k.param(self.outer + i) for i in range(3))
        source = Operands(k, self.source, 0, self.outer + 3, self.outer + 1)
        writes = Operands(k, self.outputs, source.next_pointer, source.next_param, self.outer + 1)
        bits = 2 * key_bits(self.dtype)
        sort = define_sort(k, bits)
        room = k.mul(k.add(capacity, 1), bits // 8)
        keys = k.scratch  # one vector
        first = k.b.gep(keys, [I64(k.lanes * bits // 16)], source_etype=ir.IntType(8))
        second = k.b.gep(first, [room], source_etype=ir.IntType(8))
        with k.loop(k.begin, k.end) as tasks:
            place = unravel(k, tasks.index, outer)
            row = source.at(place)
            empty = [first, second, k.i64(0), ir.IntType(bits)(0)]

            def scan(spans: list[Span], state: list[ir.Value], row: Any = row) -> list[ir.Value]:
                (x,) = source.load(row, spans[0])
                return self._take(k, x, spans[0], state, keys, best, capacity, sort)

            data, spare, count, _ = for_spans(k, 0, extent, k.lanes, scan, carried=empty)
            data = sort(data, spare, count)
            self._write(k, data, best, bits, (source, row), (writes, writes.at(place)))

    def _take(
        self,
        k: KernelBuilder,
        x: Any,
        span: Span,
        state: list[ir.Value],
        keys: ir.Value,
        best: ir.Value,
        capacity: ir.Value,
        sort: Any,
    ) -> list[ir.Value]:
        """Puts what may be among the best of a vector into the buffer."""
        b = k.b
        key = order_key(k, x, self.dtype, k.lanes, self.largest)
        threshold = state[3]
        hopeful = b.icmp_unsigned(">", key, k.splat(ticket_key(k, threshold), k.lanes))
        anything = b.icmp_unsigned("==", threshold, threshold.type(0))  # there is no threshold yet
        hopeful = b.or_(hopeful, k.splat(anything, k.lanes))
        if span.mask is not None:
            hopeful = b.and_(hopeful, span.mask)
        found = mask_bits(k, hopeful, k.lanes)

        def several() -> list[ir.Value]:
            b.store(key, keys, align=8)
            return for_bits(k, found, state, put)

        def put(lane: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
            data, spare, count, limit = now
            element = key.type.element
            one = b.load(b.gep(keys, [lane], source_etype=element), typ=element)
            store_ticket(k, ticket(k, one, k.add(span.start, lane)), data, count)
            count = k.add(count, 1)
            full = b.icmp_signed("==", count, capacity)
            return k.choose(
                full, lambda: shrink(data, spare, count), lambda: [data, spare, count, limit]
            )

        def shrink(data: ir.Value, spare: ir.Value, count: ir.Value) -> list[ir.Value]:
            ordered = sort(data, spare, count)
            moved = b.icmp_unsigned("==", ordered, data)
            other = b.select(moved, spare, data)
            worst = load_ticket(k, ordered, k.sub(best, 1), 2 * key_bits(self.dtype))
            return [ordered, other, best, worst]

        return k.choose(b.icmp_unsigned("!=", found, I64(0)), several, lambda: list(state))

    def _write(
        self, k: KernelBuilder, data: ir.Value, best: ir.Value, bits: int, source: Any, writes: Any
    ) -> None:
        with k.loop(0, best) as rank:
            index = ticket_position(k, load_ticket(k, data, rank.index, bits))
            (value,) = source[0].load(source[1], Span(index, 1))
            kind = register_type(self.index_dtype)
            narrow = index if kind == I64 else k.b.trunc(index, kind)
            writes[0].store(writes[1], Span(rank.index, 1), [value, narrow])


@dataclass(frozen=True)
class CumSumKernel(CpuKernel):
    """Running sums along one axis.

    Either vectors run along another axis, or elements are taken one by one (`vector_reduced`).
    Parameters: the extents of all axes; the strides of leaves, operands and outputs.
    """

    family: ClassVar[str] = "cumsum"
    dtype: DType
    exclusive: bool
    reverse: bool
    kept: int
    reduced: int
    vector_reduced: bool
    prologue: Expression
    leaves: Accesses
    epilogue: Expression
    operands: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        axes = self.kept + self.reduced + 1
        extents = [k.param(i) for i in range(axes)]
        source = Operands(k, self.leaves, 0, axes, axes)
        reads = Operands(k, self.operands, source.next_pointer, source.next_param, axes)
        writes = Operands(k, self.outputs, reads.next_pointer, reads.next_param, axes)
        tensors = (source, reads, writes)
        with k.loop(k.begin, k.end) as tasks:
            outer: ir.Value = tasks.index
            block: Any = 0
            if not self.vector_reduced:
                blocks = k.b.sdiv(k.add(extents[-1], _COLUMNS - 1), k.i64(_COLUMNS))
                outer, block = k.divmod(outer, blocks)
            place = unravel(k, outer, extents[: self.kept])
            places = [t.at(place) for t in tensors]
            if self.vector_reduced:
                self._scan(k, tensors, places, extents[-1], None)
            else:
                first = k.mul(block, _COLUMNS)
                last = k.min(k.add(first, _COLUMNS), extents[-1])
                rows = extents[self.kept] if self.reduced else k.i64(1)

                def columns(
                    spans: list[Span], _: Any, places: Any = places, rows: Any = rows
                ) -> None:
                    self._scan(k, tensors, places, rows, spans[0])

                for_spans(k, first, last, k.lanes, columns)

    def _scan(
        self, k: KernelBuilder, tensors: Any, places: Any, extent: ir.Value, span: Span | None
    ) -> None:
        """Goes along the axis, which is the vector axis if there is no span."""
        lanes = span.lanes if span else 1
        reducer = make_reducer(k, "sum", self.dtype, lanes)
        with k.loop(0, extent, carried=reducer.initial()) as row:
            index = row.index
            if self.reverse:
                index = k.sub(k.sub(extent, 1), index)
            here = places
            if span and self.reduced:
                here = [t.move(p, self.kept, index) for t, p in zip(tensors, places, strict=True)]
            at = span or Span(index, 1)
            (x,) = emit(k, self.prologue, tensors[0].load(here[0], at), lanes)
            row.next = reducer.step(row.carried, x)
            total = reducer.finish(row.carried if self.exclusive else row.next)
            loaded = tensors[1].load(here[1], at)
            results = apply(k, self.epilogue, loaded, [total], self.operands, lanes)
            tensors[2].store(here[2], at, results)


@dataclass(frozen=True)
class BestOfRows(AnchoredTactic):
    """Top k, one row at a time."""

    family: ClassVar[str] = "topk"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, TopK)
        source = binding.layout(task.inputs[0])
        shape = binding.shape(task.outputs[0])
        if 0 in shape:
            return []
        axis = normalize_axis(op.axis, len(shape))
        order = [a for a in range(len(shape)) if a != axis] + [axis]

        def strides_of(value: Any) -> tuple[int, ...]:
            found = binding.strides(value)
            return tuple(found[a] for a in order)

        reads = bind_values(task.inputs[:1], strides_of)
        writes = bind_values(task.outputs, strides_of)
        extent, best = source.shape[axis], shape[axis]
        dtype = task.inputs[0].dtype
        kernel = TopKKernel(
            dtype=dtype,
            index_dtype=op.index_dtype,
            largest=op.largest,
            outer=len(shape) - 1,
            source=reads.accesses,
            outputs=writes.accesses,
        )
        bound = reads + writes
        outer = [shape[a] for a in order[:-1]]
        capacity = min(extent + 1, max(2 * best, best + _SPARE))
        size = key_bits(dtype) // 4
        return [
            Launch(
                kernel,
                bound.pointers,
                (*outer, extent, best, capacity, *bound.params),
                tasks=math.prod(outer),
                grain=max(1, _GRAIN // extent),
                scratch=16 * size + 2 * (capacity + 1) * size,
            )
        ]


@dataclass(frozen=True)
class RunningSum(AnchoredTactic):
    """Running sums, with vectors along another axis where elements lie side by side there."""

    family: ClassVar[str] = "cumsum"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, fed = self.task, self.anchor.op, self.anchor.inputs[0]
        assert isinstance(op, CumSum)
        shape = fed.type.bind(binding.symbols)
        if 0 in shape:
            return []
        axis = normalize_axis(op.axis, len(shape))
        box, kept, reduced, vector_reduced = task_box(task, binding, [axis]).simplified().ordered()
        leaves, operands, outputs = box.bound()
        bound = leaves + operands + outputs
        kernel = CumSumKernel(
            dtype=fed.dtype,
            exclusive=op.exclusive,
            reverse=op.reverse,
            kept=kept,
            reduced=reduced,
            vector_reduced=vector_reduced,
            prologue=prologue_of(task).expression,
            leaves=leaves.accesses,
            epilogue=task.epilogue.expression,
            operands=operands.accesses,
            outputs=outputs.accesses,
        )
        tasks = math.prod(box.extents[:kept])
        if not vector_reduced:
            tasks *= -(-box.extents[-1] // _COLUMNS)
        return [
            Launch(
                kernel,
                bound.pointers,
                (*box.extents, *bound.params),
                tasks=tasks,
                grain=max(1, _GRAIN // max(1, math.prod(shape) // tasks)),
            )
        ]


class TopKFamily(Family):
    """Top k along an axis."""

    name: ClassVar[str] = "topk"
    tactic: ClassVar[type[Tactic]] = BestOfRows

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None and isinstance(task.anchor.op, TopK) and task.prologue is None
        )


class CumSumFamily(Family):
    """Running sums along an axis."""

    name: ClassVar[str] = "cumsum"
    tactic: ClassVar[type[Tactic]] = RunningSum

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(task.anchor.op, CumSum)


FAMILIES: tuple[Family, ...] = (TopKFamily(), CumSumFamily())
