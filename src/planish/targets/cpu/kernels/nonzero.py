"""The indices of the elements that are not zero: counted first, piece by piece, then written.

The elements are cut into pieces, one a task. A first launch counts what is not zero in each; a
second one adds up the counts of the pieces before its own, and so knows where to write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.data_dependent import NonZero
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.axes import unravel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, bind_values, for_spans
from planish.targets.cpu.kernels.sorting import for_bits, mask_bits

BLOCK = 4096
"""Elements of a row that a piece is made of, at most."""

PIECE = 1 << 15
"""Elements that a task has at least, if there are several tasks."""

MOST_PIECES = 64


class _Pieces:
    """Walks the blocks of a task's piece. The first parameters are the extents of the axes, then
    the blocks of a row, all blocks, and the pieces; those of the source's strides follow.
    """

    def __init__(self, k: KernelBuilder, source: Accesses, rank: int) -> None:
        self.k, self.rank = k, rank
        self.extents = [k.param(axis) for axis in range(rank)]
        self.row_blocks, self.blocks, self.pieces = (k.param(rank + i) for i in range(3))
        self.source = Operands(k, source, 0, rank + 3, rank)

    def share(self, piece: ir.Value, whole: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The part of `whole` that belongs to a piece."""
        k = self.k
        first, _ = k.divmod(k.mul(piece, whole), self.pieces)
        last, _ = k.divmod(k.mul(k.add(piece, 1), whole), self.pieces)
        return first, last

    def walk(self, piece: ir.Value, count: ir.Value, body: Any) -> ir.Value:
        """Runs ``body(outer indices, span, bits of what is not zero, count)``; gives the count."""
        k = self.k
        first, last = self.share(piece, self.blocks)
        with k.loop(first, last, carried=[count]) as block:
            row, part = k.divmod(block.index, self.row_blocks)
            outer = unravel(k, row, self.extents[:-1])
            place = self.source.at(outer)
            start = k.mul(part, BLOCK)
            end = k.min(k.add(start, BLOCK), self.extents[-1])

            def step(spans: list[Span], state: list[ir.Value]) -> list[ir.Value]:
                (x,) = self.source.load(place, spans[0])
                assert x is not None
                found = self._not_zero(x)
                if spans[0].mask is not None:
                    found = k.b.and_(found, spans[0].mask)
                return [body(outer, spans[0], mask_bits(k, found, k.lanes), state[0])]

            block.next = for_spans(k, start, end, k.lanes, step, carried=block.carried)
        return block.carried[0]

    def _not_zero(self, x: ir.Value) -> ir.Value:
        access = self.source.accesses[0]
        assert access is not None
        if access.dtype is DType.BOOL:
            return x
        zero = self.k.zero(access.dtype, self.k.lanes)
        if access.dtype.is_float:
            return self.k.b.fcmp_unordered("!=", x, zero)  # a NaN is not zero
        return self.k.b.icmp_unsigned("!=", x, zero)


@dataclass(frozen=True)
class CountKernel(CpuKernel):
    """How many elements of a piece are not zero; a task is a piece. Pointers: source, counts."""

    family: ClassVar[str] = "nonzero_count"
    rank: int
    source: Accesses

    def write(self, k: KernelBuilder) -> None:
        pieces = _Pieces(k, self.source, self.rank)
        counts = k.pointer(1)
        with k.loop(k.begin, k.end) as task:

            def add(_outer: Any, _span: Span, bits: ir.Value, count: ir.Value) -> ir.Value:
                return k.add(count, k.call("llvm.ctpop.i64", I64, [bits]))

            total = pieces.walk(task.index, k.i64(0), add)
            k.store(total, k.offset(counts, task.index, DType.INT64), DType.INT64)


@dataclass(frozen=True)
class IndexKernel(CpuKernel):
    """Writes the indices of a piece, and zeros into its share of the rows that are left; a task is
    a piece. Pointers: source, indices, number, and, if there are `several` pieces, their counts.
    After the source's come the parameters of the indices (rows, strides) and of the number.
    """

    family: ClassVar[str] = "nonzero_index"
    rank: int
    several: bool
    source: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        pieces = _Pieces(k, self.source, self.rank)
        at = pieces.source.next_param
        room = k.param(at)
        indices = Operands(k, self.outputs[:1], 1, at + 1, 2)
        number = Operands(k, self.outputs[1:], 2, at + 3, 1)

        def put(outer: Any, span: Span, bits: ir.Value, count: ir.Value) -> ir.Value:
            def one(lane: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
                row = indices.at([state[0]])
                for axis, index in enumerate([*outer, k.add(span.start, lane)]):
                    indices.store(row, Span(axis, 1), [k.i64(index)])
                return [k.add(state[0], 1)]

            return for_bits(k, bits, [count], one)[0]

        with k.loop(k.begin, k.end) as task:
            if self.several:
                before, total = self._sums(k, pieces, task.index)
                pieces.walk(task.index, before, put)
            else:
                total = pieces.walk(task.index, k.i64(0), put)
            with k.when(k.b.icmp_signed("==", task.index, I64(0))):
                number.store(number.start(), Span(0, 1), [total])
            first, last = pieces.share(task.index, k.sub(room, total))
            with k.loop(k.add(total, first), k.add(total, last)) as rest:
                row = indices.at([rest.index])
                for axis in range(self.rank):
                    indices.store(row, Span(axis, 1), [I64(0)])

    def _sums(
        self, k: KernelBuilder, pieces: _Pieces, piece: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """How many elements there are before a piece, and in all."""
        counts = k.pointer(3)
        with k.loop(0, pieces.pieces, carried=[I64(0), I64(0)]) as other:
            count = k.load(k.offset(counts, other.index, DType.INT64), DType.INT64)
            before, total = other.carried
            earlier = k.b.icmp_signed("<", other.index, piece)
            other.next = [k.b.select(earlier, k.add(before, count), before), k.add(total, count)]
        before, total = other.carried
        return before, total


@dataclass(frozen=True)
class Indices(AnchoredTactic):
    """Indices of what is not zero."""

    family: ClassVar[str] = "nonzero"

    def accepts(self, binding: Binding) -> bool:
        return True

    def workspace(self, binding: Binding) -> int:
        return 8 * MOST_PIECES

    def launches(self, binding: Binding) -> list[Launch]:
        task, shape = self.task, binding.shape(self.task.inputs[0])
        row_blocks = -(-shape[-1] // BLOCK)
        blocks = math.prod(shape[:-1]) * row_blocks
        pieces = max(1, min(math.prod(shape) // PIECE, MOST_PIECES, blocks))
        source = bind_values(task.inputs, binding.strides)
        outputs = bind_values(task.outputs, lambda v: binding.strides(v) or (0,))
        params = (*shape, row_blocks, blocks, pieces, *source.params)
        write = Launch(
            IndexKernel(len(shape), pieces > 1, source.accesses, outputs.accesses),
            (*source.pointers, *outputs.pointers, Workspace()),
            (*params, math.prod(shape), *outputs.params),
            tasks=pieces,
        )
        if pieces == 1:
            return [write]
        count = Launch(
            CountKernel(len(shape), source.accesses),
            (*source.pointers, Workspace()),
            params,
            tasks=pieces,
        )
        return [count, write]


class NonZeroFamily(Family):
    """`NonZero` of any dtype and layout."""

    name: ClassVar[str] = "nonzero"
    tactic: ClassVar[type[Tactic]] = Indices

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None and isinstance(task.anchor.op, NonZero) and len(task.nodes) == 1
        )


FAMILIES: tuple[Family, ...] = (NonZeroFamily(),)
