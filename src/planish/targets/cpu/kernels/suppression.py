"""The kernels of non-maximum suppression.

`SuppressKernel` suppresses within each class, sixteen classes of an image at a time: scores become
keys (see `sorting`), 0 where they are below the threshold. Only the best few hundred are
looked at: first the best of sixteen classes together, then the best of each class, then all; the
key that separates them is found bit by bit, for sixteen classes at once. What is kept goes to the workspace as tickets;
`CombineKernel` and `ListKernel` make the outputs from them.

Overlaps are computed as the reference does it, operation by operation, so that every decision is
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import I1, I8, I64, KernelBuilder, register_type
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span
from planish.targets.cpu.kernels.reducers import make_reducer
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


def wide_float(dtype: DType) -> DType:
    """The dtype that is computed in."""
    return DType.FLOAT64 if dtype is DType.FLOAT64 else DType.FLOAT32


class Overlaps:
    """Boxes that were kept, as five arrays, and overlaps of another box with them.

    Parameters
    ----------
    k : KernelBuilder
    dtype : DType
        float32 or float64.
    memory : llvmlite.ir.Value
        Where the arrays are.
    capacity : llvmlite.ir.Value
        How many boxes there is room for; overlaps read up to a vector beyond.
    """

    def __init__(
        self, k: KernelBuilder, dtype: DType, memory: ir.Value, capacity: ir.Value
    ) -> None:
        self.k, self.dtype = k, dtype
        room = k.add(capacity, k.lanes)
        self._arrays = [k.offset(memory, k.mul(room, i), dtype) for i in range(5)]

    def corners(self, coordinates: Sequence[ir.Value]) -> list[ir.Value]:
        """Lower corner, upper corner and area of a box given by two opposite corners."""
        f = Floats(self.k, self.dtype, 1)
        a, b = coordinates[:2], coordinates[2:]
        low = [_pick(self.k, "min", self.dtype, x, y, 1) for x, y in zip(a, b, strict=True)]
        high = [_pick(self.k, "max", self.dtype, x, y, 1) for x, y in zip(a, b, strict=True)]
        return [*low, *high, f.mul(f.sub(high[0], low[0]), f.sub(high[1], low[1]))]

    def append(self, box: Sequence[ir.Value], count: ir.Value) -> None:
        """Adds a box (from `corners`) to so many."""
        for array, value in zip(self._arrays, box, strict=True):
            self.k.store(value, self.k.offset(array, count, self.dtype), self.dtype)

    def at(self, box: Sequence[ir.Value], index: ir.Value, lanes: int) -> ir.Value:
        """Intersection over union of a box with kept ones; 0 for boxes without area."""
        k, f = self.k, Floats(self.k, self.dtype, lanes)
        y0, x0, y1, x1, area = (k.splat(v, lanes) for v in box)
        ky0, kx0, ky1, kx1, kept_area = (
            k.load(k.offset(array, index, self.dtype), self.dtype, lanes) for array in self._arrays
        )
        zero = f.c(0)
        sides = []
        for high, kept_high, low, kept_low in ((y1, ky1, y0, ky0), (x1, kx1, x0, kx0)):
            upper = _pick(k, "min", self.dtype, kept_high, high, lanes)
            lower = _pick(k, "max", self.dtype, kept_low, low, lanes)
            sides.append(_pick(k, "max", self.dtype, f.sub(upper, lower), zero, lanes))
        shared = f.mul(sides[0], sides[1])
        overlap = f.div(shared, f.sub(f.add(kept_area, area), shared))
        real = k.b.and_(f.gt(kept_area, zero), f.gt(area, zero))
        return f.select(real, overlap, zero)

    def any_above(self, box: Sequence[ir.Value], count: ir.Value, threshold: float) -> ir.Value:
        """Whether a box overlaps one of the first `count` by more than the threshold."""
        k, lanes = self.k, self.k.lanes
        f = Floats(k, self.dtype, lanes)
        with k.loop(0, count, lanes, [k.zero(DType.BOOL, lanes)]) as loop:
            above = f.gt(self.at(box, loop.index, lanes), f.c(threshold))
            exists = k.tail_mask(k.sub(count, loop.index), lanes)
            loop.next = [k.b.or_(loop.carried[0], k.b.and_(above, exists))]
        return f.any(loop.carried[0])


def _pick(
    k: KernelBuilder, which: str, dtype: DType, a: ir.Value, b: ir.Value, lanes: int
) -> ir.Value:
    """The smaller or larger of two; NaN wins."""
    return make_reducer(k, which, dtype, lanes).merge([a], [b])[0]


@dataclass(frozen=True)
class SuppressKernel(CpuKernel):
    """Suppression within classes; a task is sixteen classes of an image.

    Parameters: boxes, classes, class blocks, the limit per class and for all of them together, how
    many candidates to try first; the strides of boxes and scores along images, boxes, classes and coordinates.
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
            self._store_number(count, self.done, lane)
            self._store_number(now, self.kept, lane)
            return [count, now]

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


def load_box(k: KernelBuilder, boxes: Operands, image: Any, box: Any, label: Any) -> list[ir.Value]:
    """The coordinates of a box in ``[images, boxes, classes, 4]``."""
    place = boxes.at([image, box, label])
    coordinates = []
    for i in range(4):
        (value,) = boxes.load(place, Span(i, 1))
        assert value is not None
        coordinates.append(value)
    return coordinates


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
    return _pick(k, "min", dtype, _pick(k, "max", dtype, x, f.c(0), 1), f.c(1), 1)


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
