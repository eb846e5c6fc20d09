"""The kernel of non-maximum suppression.

`SuppressKernel` suppresses within each class, sixteen classes of an image at a time: scores become
keys (see `sorting`), 0 where they are below the threshold. Only the best few hundred are looked at:
first the best of sixteen classes together, then the best of each class, then all. The key that
separates them is found bit by bit, for sixteen classes at once. What is kept goes to the workspace
as tickets, from which the kernels in `suppression_outputs` make the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import I1, I8, I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span
from planish.targets.cpu.kernels.overlaps import Overlaps, load_box, wide_float
from planish.targets.cpu.kernels.sorting import (
    define_sort,
    key_bits,
    load_ticket,
    order_key,
    store_ticket,
    ticket,
    ticket_key,
    ticket_position,
)

CLASSES = 16
"""Classes that a task takes."""


@dataclass(frozen=True)
class SuppressKernel(CpuKernel):
    """Suppression within classes; a task is sixteen classes of an image.

    Parameters: boxes, classes, class blocks, the limit per class and for all of them together, how
    many candidates to try first; the strides of boxes and scores along images, boxes, classes and
    coordinates.
    Pointers: boxes, scores, and in the workspace ``[images][classes][limit]`` tickets (0: none)
    and box numbers (int64).
    """

    family: ClassVar[str] = "suppress"
    dtype: DType
    iou_threshold: float
    score_threshold: float
    inputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        _Suppression(self, k).write()


class _Suppression:
    """Writes a `SuppressKernel`."""

    def __init__(self, kernel: SuppressKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        self.wide = wide_float(kernel.dtype)
        self.boxes, self.classes, self.blocks = map(k.param, range(3))
        self.limit, self.total, self.first = map(k.param, range(3, 6))
        self.boxes_in = Operands(k, kernel.inputs[:1], 0, 6, 4)
        self.scores_in = Operands(k, kernel.inputs[1:], 1, 10, 4)
        self.tickets, self.chosen = k.pointer(2), k.pointer(3)
        self.bits = key_bits(kernel.dtype)
        self.key = ir.IntType(self.bits)
        self.vector = ir.VectorType(self.key, CLASSES)
        self.sort = define_sort(k, 2 * self.bits)
        size = self.bits // 8
        # scratch: keys [boxes][16]; per class the pivot, how many candidates there are, how many
        # were gone through and how many are kept; two lists of tickets; kept boxes
        self.keys = k.scratch
        self.pivots = self._after(self.keys, k.mul(self.boxes, CLASSES * size))
        self.counts = self._after(self.pivots, CLASSES * size)
        self.done = self._after(self.counts, CLASSES * size)
        self.kept = self._after(self.done, CLASSES * 8)
        self.list = self._after(self.kept, CLASSES * 8)
        room = k.mul(k.add(self.boxes, 1), 2 * size)
        self.spare = self._after(self.list, room)
        self.overlaps = Overlaps(k, self.wide, self._after(self.spare, room), self.limit)

    def _after(self, place: ir.Value, size: Any) -> ir.Value:
        return self.k.b.gep(place, [self.k.i64(size)], source_etype=I8)

    def _many(self, value: int) -> ir.Constant:
        return self.k.splat(ir.Constant(self.key, value & ((1 << self.bits) - 1)), CLASSES)

    def write(self) -> None:
        k, b = self.k, self.k.b
        with k.loop(k.begin, k.end) as tasks:
            image, block = k.divmod(tasks.index, self.blocks)
            start = k.mul(block, CLASSES)
            counts = self._find_keys(image, start)
            last = k.min(k.add(start, CLASSES), self.classes)
            for lane in range(CLASSES):
                self._store_number(k.i64(0), self.done, k.i64(lane))
                self._store_number(k.i64(0), self.kept, k.i64(lane))

            def unfinished(state: list[ir.Value]) -> ir.Value:
                return b.and_(state[1], b.icmp_signed("<", state[0], I64(3)))

            with k.loop_while([k.i64(0), I1(1)], unfinished) as attempt:
                number = attempt.carried[0]
                joint = b.icmp_signed("==", number, I64(0))
                self._find_pivots(counts, number)
                with k.loop(start, last, carried=[k.i64(0), k.i64(0)]) as label:
                    lane = k.sub(label.index, start)
                    kept, complete = self._one_class(image, label.index, lane)
                    sums = label.carried
                    label.next = [k.add(sums[0], kept), k.add(sums[1], complete)]
                all_kept, all_complete = label.carried
                # what is left has smaller keys than all that was gone through
                enough = b.and_(joint, b.icmp_signed(">=", all_kept, self.total))
                complete = b.icmp_signed("==", all_complete, k.sub(last, start))
                attempt.next = [k.add(number, 1), b.not_(b.or_(enough, complete))]

            with k.loop(start, last) as label:
                row = self._row(image, label.index)
                kept = self._load_number(self.kept, k.sub(label.index, start))
                with k.loop(kept, self.limit) as rest:
                    empty = ir.IntType(2 * self.bits)(0)
                    store_ticket(k, empty, self.tickets, k.add(row, rest.index))

    def _row(self, image: ir.Value, label: ir.Value) -> ir.Value:
        return self.k.mul(self.k.add(self.k.mul(image, self.classes), label), self.limit)

    def _find_keys(self, image: ir.Value, start: ir.Value) -> ir.Value:
        """Computes the keys of all scores; gives how many candidates each class has."""
        k, b = self.k, self.k.b
        f = Floats(k, self.wide, CLASSES)
        left = k.sub(self.classes, start)
        mask = k.tail_mask(left, CLASSES)
        span = Span(start, CLASSES, k.min(left, CLASSES), mask)
        scores = self.scores_in.at([image])
        with k.loop(0, self.boxes, carried=[self._many(0)]) as box:
            (x,) = self.scores_in.load(self.scores_in.move(scores, 1, box.index), span)
            valid = b.and_(f.gt(x, f.c(self.kernel.score_threshold)), mask)
            key = order_key(k, x, self.wide, CLASSES)
            b.store(b.select(valid, key, self._many(0)), self._keys_at(box.index), align=4)
            box.next = [b.add(box.carried[0], b.zext(valid, self.vector))]
        b.store(box.carried[0], self.counts, align=4)
        return box.carried[0]

    def _find_pivots(self, counts: ir.Value, attempt: ir.Value) -> None:
        """Finds the least key that is gone through, for each class.

        In the first attempt, the best candidates of all classes together; in the second, the best
        of each class; in the third, all.
        """
        k, b = self.k, self.k.b
        total = k.splat(k.reduce("add", counts), CLASSES)
        joint = k.splat(b.icmp_signed("==", attempt, I64(0)), CLASSES)
        first = b.trunc(self.first, self.key) if self.bits < 64 else self.first
        wanted = k.splat(first, CLASSES)
        available = b.select(joint, total, counts)
        many = b.icmp_unsigned(">", available, wanted)
        enough = b.select(many, wanted, available)

        def search() -> list[ir.Value]:
            with k.loop(0, self.bits, carried=[self._many(0)]) as bit:
                shift = k.sub(self.bits - 1, bit.index)
                shift = b.trunc(shift, self.key) if self.bits < 64 else shift
                one = k.splat(b.shl(self.key(1), shift), CLASSES)
                trial = b.or_(bit.carried[0], one)
                with k.loop(0, self.boxes, carried=[self._many(0)]) as box:
                    key = b.load(self._keys_at(box.index), typ=self.vector, align=4)
                    reached = b.icmp_unsigned(">=", key, trial)
                    box.next = [b.add(box.carried[0], b.zext(reached, self.vector))]
                each = box.carried[0]
                together = k.splat(k.reduce("add", each), CLASSES)
                reached = b.icmp_unsigned(">=", b.select(joint, together, each), enough)
                bit.next = [b.select(reached, trial, bit.carried[0])]
            return bit.carried

        useful = b.and_(
            Floats(k, self.wide, CLASSES).any(many), b.icmp_signed("<", attempt, I64(2))
        )
        (pivots,) = k.choose(useful, search, lambda: [self._many(1)])
        b.store(pivots, self.pivots, align=4)

    def _keys_at(self, box: ir.Value) -> ir.Value:
        return self.k.b.gep(self.keys, [self.k.mul(box, CLASSES)], source_etype=self.key)

    def _load_key(self, place: ir.Value, index: ir.Value) -> ir.Value:
        return self.k.b.load(self.k.b.gep(place, [index], source_etype=self.key), typ=self.key)

    def _load_number(self, place: ir.Value, index: ir.Value) -> ir.Value:
        return self.k.load(self.k.offset(place, index, DType.INT64), DType.INT64)

    def _store_number(self, value: ir.Value, place: ir.Value, index: ir.Value) -> None:
        self.k.store(value, self.k.offset(place, index, DType.INT64), DType.INT64)

    def _one_class(
        self, image: ir.Value, label: ir.Value, lane: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """Goes on with a class; gives how many boxes it keeps, and 1 if it is complete."""
        k, b = self.k, self.k.b
        row = self._row(image, label)
        total = self._load_key(self.counts, lane)
        total = total if self.bits == 64 else b.zext(total, I64)
        done, kept = self._load_number(self.done, lane), self._load_number(self.kept, lane)

        def incomplete(done: ir.Value, kept: ir.Value) -> ir.Value:
            return b.and_(b.icmp_signed("<", done, total), b.icmp_signed("<", kept, self.limit))

        def go_on() -> list[ir.Value]:
            with k.loop(0, kept) as each:  # another class may have been looked at in between
                at = b.gep(self.chosen, [k.add(row, each.index)], source_etype=I64)
                box = load_box(k, self.boxes_in, image, b.load(at, typ=I64), label)
                self.overlaps.append(self.overlaps.corners(box), each.index)
            count = self._collect(lane, self._load_key(self.pivots, lane))
            ordered = self.sort(self.list, self.spare, count)
            now = self._greedy(image, label, row, ordered, done, count, kept)
            # where keys are equal, a later attempt may list fewer
            farthest = k.max(done, count)
            self._store_number(farthest, self.done, lane)
            self._store_number(now, self.kept, lane)
            return [farthest, now]

        done, kept = k.choose(incomplete(done, kept), go_on, lambda: [done, kept])
        return kept, b.zext(b.not_(incomplete(done, kept)), I64)

    def _collect(self, lane: ir.Value, least: ir.Value) -> ir.Value:
        """Lists the tickets of a class's keys from `least` on; gives their number."""
        k, b = self.k, self.k.b
        with k.loop(0, self.boxes, carried=[k.i64(0)]) as box:
            (count,) = box.carried
            key = self._load_key(self._keys_at(box.index), lane)
            store_ticket(k, ticket(k, key, box.index), self.list, count)
            box.next = [k.add(count, b.zext(b.icmp_unsigned(">=", key, least), I64))]
        return box.carried[0]

    def _greedy(
        self,
        image: ir.Value,
        label: ir.Value,
        row: ir.Value,
        ordered: ir.Value,
        start: ir.Value,
        end: ir.Value,
        kept: ir.Value,
    ) -> ir.Value:
        """Goes through candidates in order; gives how many boxes are kept in the end."""
        k, b = self.k, self.k.b

        def unfinished(state: list[ir.Value]) -> ir.Value:
            return b.and_(
                b.icmp_signed("<", state[0], end), b.icmp_signed("<", state[1], self.limit)
            )

        with k.loop_while([start, kept], unfinished) as loop:
            place, count = loop.carried
            candidate = load_ticket(k, ordered, place, 2 * self.bits)
            box = ticket_position(k, candidate)
            corners = self.overlaps.corners(load_box(k, self.boxes_in, image, box, label))
            dropped = self.overlaps.any_above(corners, count, self.kernel.iou_threshold)

            def keep(candidate: Any = candidate, box: Any = box, count: Any = count) -> list:
                self.overlaps.append(corners, count)
                number = k.add(k.mul(label, self.limit), count)
                mine = ticket(k, ticket_key(k, candidate), number)
                store_ticket(k, mine, self.tickets, k.add(row, count))
                b.store(box, b.gep(self.chosen, [k.add(row, count)], source_etype=I64))
                return [k.add(count, 1)]

            (new,) = k.choose(dropped, lambda count=count: [count], keep)
            loop.next = [k.add(place, 1), new]
        return loop.carried[1]
