"""The kernels that make outputs from the tickets of `suppression`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import I8, I64, register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span
from planish.targets.cpu.kernels.overlaps import load_box, pick, wide_float
from planish.targets.cpu.kernels.sorting import (
    define_sort,
    key_bits,
    load_ticket,
    store_ticket,
    ticket_position,
)


@dataclass(frozen=True)
class CombineKernel(CpuKernel):
    """The best boxes over all classes of an image; a task is an image.

    Parameters: classes, the limit per class, the limit in all; the strides of boxes and scores as
    in `SuppressKernel`; those of boxes, scores, classes and numbers that come out, along images,
    places and coordinates. Pointers in this order, after boxes and scores the tickets and box
    numbers.
    """

    family: ClassVar[str] = "combine"
    dtype: DType
    clip: bool
    inputs: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        b = k.b
        wide, bits = wide_float(self.dtype), 2 * key_bits(self.dtype)
        f = Floats(k, wide, 1)
        classes, limit, total = (k.param(i) for i in range(3))
        boxes_in = Operands(k, self.inputs[:1], 0, 3, 4)
        scores_in = Operands(k, self.inputs[1:], 1, 7, 4)
        tickets, chosen = k.pointer(2), k.pointer(3)
        boxes, scores, labels, valid = (
            Operands(k, (access,), 4 + i, 11 + 3 * i, 3) for i, access in enumerate(self.outputs)
        )
        sort = define_sort(k, bits)
        candidates = k.mul(classes, limit)
        with k.loop(k.begin, k.end) as tasks:
            image = tasks.index
            row = k.mul(image, candidates)
            ordered, found = self._best(k, tickets, row, (classes, limit, total), sort)
            kept = k.min(found, total)
            with k.loop(0, total) as rank:

                def fill(ordered: Any = ordered, rank: Any = rank, row: Any = row) -> list:
                    number = ticket_position(k, load_ticket(k, ordered, rank.index, bits))
                    label, _ = k.divmod(number, limit)
                    at = b.gep(chosen, [k.add(row, number)], source_etype=I64)
                    box = b.load(at, typ=I64)
                    (score,) = scores_in.load(scores_in.at([image, box]), Span(label, 1))
                    corners = load_box(k, boxes_in, image, box, label)
                    if self.clip:
                        corners = [_clipped(k, wide, x) for x in corners]
                    return [*corners, score, b.sitofp(label, register_type(wide))]

                exists = b.icmp_signed("<", rank.index, kept)
                results = k.choose(exists, fill, lambda: [f.c(0)] * 6)
                place = boxes.at([image, rank.index])
                for i in range(4):
                    boxes.store(place, Span(i, 1), [results[i]])
                scores.store(scores.at([image, rank.index]), Span(0, 1), [results[4]])
                labels.store(labels.at([image, rank.index]), Span(0, 1), [results[5]])
            number = b.trunc(kept, register_type(DType.INT32))
            valid.store(valid.at([image]), Span(0, 1), [number])

    def _best(
        self, k: KernelBuilder, tickets: ir.Value, row: ir.Value, limits: Any, sort: Any
    ) -> tuple[ir.Value, ir.Value]:
        """The best tickets of an image in order, and how many there are.

        Each class has its tickets in order, so it is left at the first that is not good enough.
        """
        b, (classes, limit, total) = k.b, limits
        bits = 2 * key_bits(self.dtype)
        capacity = k.mul(total, 2)
        spare = b.gep(k.scratch, [k.mul(k.add(capacity, 1), bits // 8)], source_etype=I8)
        empty = [k.scratch, spare, k.i64(0), ir.IntType(bits)(0)]

        def put(found: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
            data, other, count, worst = state
            store_ticket(k, found, data, count)
            count = k.add(count, 1)

            def shrink() -> list[ir.Value]:
                ordered = sort(data, other, count)
                rest = b.select(b.icmp_unsigned("==", ordered, data), other, data)
                return [ordered, rest, total, load_ticket(k, ordered, k.sub(total, 1), bits)]

            full = b.icmp_signed("==", count, capacity)
            return k.choose(full, shrink, lambda: [data, other, count, worst])

        with k.loop(0, classes, carried=empty) as label:
            start = k.add(row, k.mul(label.index, limit))
            first = load_ticket(k, tickets, start, bits)

            def good(state: list[ir.Value]) -> ir.Value:
                better = b.icmp_unsigned(">", state[1], state[5])
                return b.and_(b.icmp_signed("<", state[0], limit), better)

            with k.loop_while([k.i64(0), first, *label.carried], good) as each:
                rank, found, *state = each.carried
                following = k.add(rank, 1)
                # at the end of a class its last ticket is read once more, and not used
                at = k.add(start, k.min(following, k.sub(limit, 1)))
                each.next = [following, load_ticket(k, tickets, at, bits), *put(found, state)]
            label.next = each.carried[2:]
        data, other, count, _ = label.carried
        return sort(data, other, count), count


def _clipped(k: KernelBuilder, dtype: DType, x: ir.Value) -> ir.Value:
    f = Floats(k, dtype, 1)
    return pick(k, "min", dtype, pick(k, "max", dtype, x, f.c(0), 1), f.c(1), 1)


@dataclass(frozen=True)
class ListKernel(CpuKernel):
    """The boxes that are kept, in order, for a single class of a single image; one task.

    Parameters: the limit; the stride of scores; those of the three outputs. Pointers: scores,
    tickets, box numbers, indices, scores, how many are valid.
    """

    family: ClassVar[str] = "suppress_list"
    dtype: DType
    scores: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        bits = 2 * key_bits(self.dtype)
        limit = k.param(0)
        scores_in = Operands(k, self.scores, 0, 1, 1)
        tickets, chosen = k.pointer(1), k.pointer(2)
        indices, scores, valid = (
            Operands(k, (access,), 3 + i, 2 + i, 1) for i, access in enumerate(self.outputs)
        )
        b = k.b

        def take(rank: ir.Value, count: ir.Value) -> list[ir.Value]:
            found = load_ticket(k, tickets, rank, bits)

            def fill() -> list[ir.Value]:
                box = b.load(b.gep(chosen, [rank], source_etype=I64), typ=I64)
                (score,) = scores_in.load(scores_in.start(), Span(box, 1))
                return [b.trunc(box, register_type(DType.INT32)), score, k.add(count, 1)]

            nothing = [k.zero(DType.INT32), k.zero(wide_float(self.dtype)), count]
            return k.choose(b.icmp_unsigned("!=", found, found.type(0)), fill, lambda: nothing)

        with k.loop(k.begin, k.end):
            with k.loop(0, limit, carried=[k.i64(0)]) as each:
                index, score, count = take(each.index, each.carried[0])
                indices.store(indices.start(), Span(each.index, 1), [index])
                scores.store(scores.start(), Span(each.index, 1), [score])
                each.next = [count]
            number = b.trunc(each.carried[0], register_type(DType.INT32))
            valid.store(valid.start(), Span(0, 1), [number])
