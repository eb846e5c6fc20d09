"""The kernel of attention: softmax(e(q kᵀ)) v by blocks of keys, the weights never in memory.

A task is some vectors of queries of one head. Queries lie along the lanes: scores and result are
kept transposed, so that softmax needs no sum across lanes, and keys and values are read element by
element as they lie, each spread over a register. For every block of keys

    s = k qᵀ, through the work on scores          m' = max(m, max s)
    p = exp(s - m')                               l = l exp(m - m') + sum p
    o = o exp(m - m') + vᵀ p                      m = m'

and at the end o / l: the online softmax of M. Milakov & N. Gimelshein, "Online normalizer
calculation for softmax" (2018), in the tiles of T. Dao et al., "FlashAttention" (2022). Keys are
added in one order, whatever the threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.attention import MIDDLE
from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.math import exp_falling
from planish.targets.cpu.codegen.types import I32, I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, apply
from planish.targets.cpu.kernels.transposition import transpose_registers

F32 = DType.FLOAT32
PARAMS = ("heads", "blocks", "queries", "keys")
STRIDES = ("batch", "head", "row")
Multiply = Callable[[ir.Value, ir.Value, ir.Value], ir.Value]
"""Adds the product of the second and the third to the first."""

UNROLL = 4
"""Steps of products that are written out; a power of two."""


@dataclass(frozen=True)
class AttentionKernel(CpuKernel):
    """One specialisation; the numbers of batches, queries and keys, and strides, are parameters.

    Pointers: q, k, v, with levels the distances of these, the operands of `scores` and of `after`,
    the result. Parameters: `PARAMS`;
    `STRIDES` of q, k, v and the result; strides of batch, head, key and query of each operand.

    Attributes
    ----------
    depth, values : int
        Columns of q and k, and of v and the result.
    scale : float
        Factor of all scores.
    rows, vectors : int
        The register tile: so many keys (or values) by so many vectors of queries.
    groups : int
        How often `vectors` of queries a task has.
    block : int
        Keys that are done at a time.
    packed : bool
        Whether the keys and values of a block are copied first, so that they lie side by side.
    scores, after : Expression
        Work on the scores, and on the result.
    operands, last : Accesses
        What those read.
    guarded : bool
        Whether queries without any weight give 0.
    dtype, written : DType
        Of q, k and v (FLOAT32, BFLOAT16, UINT8), and of the result. All arithmetic is in float32.
    levels : int
        How many levels weights have where q, k and v are levels, with `MIDDLE` for 0; those are
        `packed`. 0: they are floats.
    """

    family: ClassVar[str] = "attention"

    depth: int
    values: int
    scale: float
    rows: int
    vectors: int
    groups: int
    block: int
    packed: bool
    scores: Expression
    operands: Accesses
    after: Expression
    last: Accesses
    guarded: bool
    dtype: DType = F32
    written: DType = F32
    levels: int = 0

    @property
    def factors(self) -> int:
        """Pointers before those of operands."""
        return 6 if self.levels else 3

    def scratch_elements(self, lanes: int) -> int:
        """Elements of scratch memory, of four bytes, that a thread needs."""
        width = self.vectors * lanes
        own = self.groups * width * (self.depth + self.values + 2) + self.block * width
        return own + (self.block * (self.depth + self.values) if self.packed else 0)

    def write(self, k: KernelBuilder) -> None:
        AttentionWriter(self, k).write()


@dataclass(frozen=True)
class Matrix:
    """Rows of a tensor: where the first one of a head starts, and the stride between them."""

    start: ir.Value
    row: Any
    dtype: DType


class AttentionWriter:
    """Writes an `AttentionKernel`."""

    kernel: AttentionKernel

    def __init__(self, kernel: AttentionKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        self.lanes = k.lanes
        self.width = kernel.vectors * k.lanes
        self.f = Floats(k, F32, k.lanes)
        self.heads, self.blocks, self.queries, self.keys = (k.param(i) for i in range(len(PARAMS)))
        first = len(PARAMS)
        self.strides = [
            [k.param(first + 3 * tensor + axis) for axis in range(3)] for tensor in range(4)
        ]
        first += 4 * len(STRIDES)
        self.operands = Operands(k, kernel.operands, kernel.factors, first, 4)
        self.last = Operands(
            k, kernel.last, self.operands.next_pointer, self.operands.next_param, 4
        )
        self.result = k.pointer(self.last.next_pointer)
        self.steps = [k.load(k.pointer(i), F32) for i in range(3, kernel.factors)]
        self._free = k.scratch
        across = kernel.groups * self.width
        self.q = self._room(across * kernel.depth)
        self.o = self._room(across * kernel.values)
        self.most, self.total = self._room(across), self._room(across)
        self.p = self._room(kernel.block * self.width)
        if kernel.packed:
            self.packed_k = self._room(kernel.block * kernel.depth)
            self.packed_v = self._room(kernel.block * kernel.values)

    def _room(self, elements: int) -> ir.Value:
        """Scratch memory for so many elements of four bytes."""
        here, self._free = self._free, self.k.offset(self._free, elements, F32)
        return here

    def write(self) -> None:
        k, kernel = self.k, self.kernel
        across = kernel.groups * self.width
        with k.loop(k.begin, k.end) as tasks:
            matrix, part = k.divmod(tasks.index, self.blocks)
            batch, head = k.divmod(matrix, self.heads)
            q, keys, values = (
                self._matrix(k.pointer(i), i, batch, head, kernel.dtype) for i in range(3)
            )
            result = self._matrix(self.result, 3, batch, head, kernel.written)
            at = self.operands.at([batch, head]), self.last.at([batch, head])
            query = k.mul(part, across)
            left = k.min(k.sub(self.queries, query), across)
            groups, _ = k.divmod(k.add(left, self.width - 1), self.width)
            with k.loop(0, groups) as loop:
                self._begin(loop.index, q, k.add(query, k.mul(loop.index, self.width)))
            with k.loop(0, self.keys, kernel.block) as blocks:
                key = blocks.index
                count = k.min(k.sub(self.keys, key), kernel.block)
                near_k, near_v = self._block(keys, values, key, count)
                with k.loop(0, groups) as loop:
                    here = k.add(query, k.mul(loop.index, self.width))
                    most = self._score(loop.index, near_k, key, count, at[0], here)
                    faded = self._weigh(loop.index, most, count)
                    self._mix(loop.index, near_v, count, faded)
            with k.loop(0, groups) as loop:
                here = k.add(query, k.mul(loop.index, self.width))
                self._end(loop.index, result, here, at[1])

    def _matrix(
        self, pointer: ir.Value, number: int, batch: Any, head: Any, dtype: DType
    ) -> Matrix:
        k = self.k
        by_batch, by_head, by_row = self.strides[number]
        start = k.add(k.mul(batch, by_batch), k.mul(head, by_head))
        return Matrix(k.offset(pointer, start, dtype), by_row, dtype)

    # ---- queries in, once a task ----------------------------------------------------------------

    def _begin(self, group: ir.Value, q: Matrix, query: ir.Value) -> None:
        """Queries of a group, transposed; the beginnings of maxima, sums and result."""
        k, kernel, lanes = self.k, self.kernel, self.lanes
        self._turn_queries(group, q, query)
        zero = k.zero(F32, lanes)
        for v in range(kernel.vectors):
            at = k.add(k.mul(group, self.width), v * lanes)
            k.store(self.f.c(-math.inf), k.offset(self.most, at, F32), F32, lanes)
            k.store(zero, k.offset(self.total, at, F32), F32, lanes)
        o = k.offset(self.o, k.mul(group, kernel.values * self.width), F32)
        with k.loop(0, kernel.values * self.width, lanes) as loop:
            k.store(zero, k.offset(o, loop.index, F32), F32, lanes)

    def _turn_queries(self, group: ir.Value, q: Matrix, query: ir.Value) -> None:
        """Writes the queries of a group as `_scores` reads them."""
        k, kernel, lanes = self.k, self.kernel, self.lanes
        out = k.offset(self.q, k.mul(group, kernel.depth * self.width), F32)
        scale = self._score_scale()
        last = k.sub(self.queries, 1)
        for v in range(kernel.vectors):
            rows = [
                k.offset(q.start, k.mul(k.min(k.add(query, v * lanes + i), last), q.row), q.dtype)
                for i in range(lanes)
            ]

            def turn(column: Any, width: int, rows: Any = rows, v: int = v) -> None:
                mask = k.tail_mask(width, lanes) if width < lanes else None
                lines = [self._line(r, column, q.dtype, mask) for r in rows]
                for i, line in enumerate(transpose_registers(k, lines)[:width]):
                    if scale is not None:
                        line = self.f.mul(line, scale)
                    at = k.add(k.mul(k.add(column, i), self.width), v * lanes)
                    k.store(line, k.offset(out, at, F32), F32, lanes)

            whole = kernel.depth // lanes * lanes
            with k.loop(0, whole, lanes) as loop:
                turn(loop.index, lanes)
            if kernel.depth > whole:
                turn(whole, kernel.depth - whole)

    def _line(self, row: ir.Value, column: Any, dtype: DType, mask: ir.Value | None) -> ir.Value:
        """Elements side by side, or what they are the levels of, by the distance of these."""
        k, lanes = self.k, self.lanes
        line = k.load(k.offset(row, column, dtype), dtype, lanes, mask=mask)
        if not self.kernel.levels:
            return line
        return self.f.sub(cast(k, line, dtype, F32, lanes), self.f.c(MIDDLE))

    def _score_scale(self) -> ir.Value | None:
        """What products of queries and keys are multiplied by; None: by nothing."""
        scale = self.f.c(self.kernel.scale)
        if self.steps:
            by_levels = self.f.mul(self.steps[0], self.steps[1])
            return self.f.mul(scale, self.k.splat(by_levels, self.lanes))
        return scale if self.kernel.scale != 1.0 else None

    # ---- a block of keys ------------------------------------------------------------------------

    def _block(
        self, keys: Matrix, values: Matrix, key: ir.Value, count: ir.Value
    ) -> tuple[Matrix, Matrix]:
        """The keys and values of a block, copied if the kernel packs them."""
        k, kernel = self.k, self.kernel
        near = [
            replace(m, start=k.offset(m.start, k.mul(key, m.row), m.dtype)) for m in (keys, values)
        ]
        if not kernel.packed:
            return near[0], near[1]
        rooms = (self.packed_k, kernel.depth), (self.packed_v, kernel.values)
        for matrix, (room, columns) in zip(near, rooms, strict=True):
            with k.loop(0, count) as loop:
                dtype = matrix.dtype
                source = k.offset(matrix.start, k.mul(loop.index, matrix.row), dtype)
                target = k.offset(room, k.mul(loop.index, columns), F32)
                for at in range(0, columns, self.lanes):
                    short = columns - at < self.lanes
                    mask = k.tail_mask(columns - at, self.lanes) if short else None
                    line = self._line(source, at, dtype, mask)
                    k.store(line, k.offset(target, at, F32), F32, self.lanes, mask=mask)
        packed = (self.packed_k, kernel.depth), (self.packed_v, kernel.values)
        near_k, near_v = (Matrix(room, columns, F32) for room, columns in packed)
        return near_k, near_v

    def _score(
        self, group: ir.Value, keys: Matrix, key: ir.Value, count: ir.Value, at: Any, query: Any
    ) -> list[ir.Value]:
        """The scores of a group and a block, written to `p`; gives their maxima."""
        k, kernel = self.k, self.kernel
        spans = self._spans(query)

        def tile(rows: int, first: Any, most: list[ir.Value]) -> list[ir.Value]:
            starts = [
                k.offset(keys.start, k.mul(k.add(first, i), keys.row), keys.dtype)
                for i in range(rows)
            ]
            sums = self._scores(group, keys, starts)
            for i in range(rows):
                number = k.add(first, i)
                places = self.operands.move(at, 2, k.add(key, number))
                for v, span in enumerate(spans):
                    loaded = self.operands.load(places, span)
                    own = sums[i * kernel.vectors + v]
                    (score,) = apply(k, kernel.scores, loaded, [own], kernel.operands, self.lanes)
                    most[v] = self.f.max(most[v], score)
                    where = k.add(k.mul(number, self.width), v * self.lanes)
                    k.store(score, k.offset(self.p, where, F32), F32, self.lanes)
            return most

        return self._cover(count, tile, [self.f.c(-math.inf)] * kernel.vectors)

    def _scores(self, group: ir.Value, keys: Matrix, starts: list[ir.Value]) -> list[ir.Value]:
        """The products of some keys and the queries of a group, key by key."""
        k, kernel = self.k, self.kernel
        q = k.offset(self.q, k.mul(group, kernel.depth * self.width), F32)
        return self._products(
            kernel.depth,
            q,
            lambda i, d: k.load(k.offset(starts[i], d, keys.dtype), keys.dtype),
            [k.zero(F32, self.lanes)] * (len(starts) * kernel.vectors),
        )

    def _cover(
        self,
        count: ir.Value,
        tile: Callable[[int, Any, list[ir.Value]], list[ir.Value]],
        carried: list[ir.Value],
    ) -> list[ir.Value]:
        """Covers `count` rows with whole tiles, then with smaller ones."""
        k, rows = self.k, self.kernel.rows
        quotient, rest = k.divmod(count, rows)
        done = k.mul(quotient, rows)
        with k.loop(0, done, rows, carried) as loop:
            loop.next = tile(rows, loop.index, list(loop.carried))
        carried = loop.carried
        size = 1 << (rows - 1).bit_length() >> 1
        while size:
            here = done
            more = k.b.icmp_unsigned("!=", k.b.and_(rest, I64(size)), I64(0))
            before = carried

            def some(size: int = size, here: Any = here, before: Any = before) -> list[ir.Value]:
                return tile(size, here, list(before))

            carried = k.choose(more, some, lambda before=before: list(before))
            done = k.add(done, k.b.and_(rest, I64(size)))
            size //= 2
        return carried

    def _products(
        self,
        depth: int | ir.Value,
        right: ir.Value,
        left: Callable[[int, Any], ir.Value],
        sums: Sequence[ir.Value],
        element: DType = F32,
        multiply: Multiply | None = None,
    ) -> list[ir.Value]:
        """Adds products over the depth: single elements ``left(row, depth)`` by the vectors of a
        group at `right`.
        """
        k, kernel = self.k, self.kernel
        rows = len(sums) // kernel.vectors
        multiply = multiply or (lambda added, a, b: k.fma(a, b, added))

        def step(number: Any, sums: Sequence[ir.Value]) -> list[ir.Value]:
            at = k.mul(number, self.width)
            vectors = [
                k.load(k.offset(right, k.add(at, v * self.lanes), element), element, self.lanes)
                for v in range(kernel.vectors)
            ]
            added = []
            for i in range(rows):
                spread = k.splat(left(i, number), self.lanes)
                for v, vector in enumerate(vectors):
                    added.append(multiply(sums[i * kernel.vectors + v], spread, vector))
            return added

        def steps(first: Any, count: int, sums: Sequence[ir.Value]) -> list[ir.Value]:
            sums = list(sums)
            for n in range(count):
                sums = step(k.add(first, n), sums)
            return sums

        if isinstance(depth, int):
            whole = depth // UNROLL * UNROLL
            with k.loop(0, whole, UNROLL, list(sums)) as loop:
                loop.next = steps(loop.index, UNROLL, loop.carried)
            return steps(whole, depth - whole, loop.carried)
        end = k.b.and_(depth, I64(-UNROLL))
        with k.loop(0, end, UNROLL, list(sums)) as loop:
            loop.next = steps(loop.index, UNROLL, loop.carried)
        with k.loop(end, depth, 1, loop.carried) as rest:
            rest.next = step(rest.index, rest.carried)
        return rest.carried

    def _weigh(self, group: ir.Value, most: list[ir.Value], count: ir.Value) -> list[ir.Value]:
        """Turns scores into weights; gives by what earlier results fade."""
        k, f, lanes = self.k, self.f, self.lanes
        faded, shift = [], []
        for v, now in enumerate(most):
            at = k.add(k.mul(group, self.width), v * lanes)
            place = k.offset(self.most, at, F32)
            before = k.load(place, F32, lanes)
            now = f.max(before, now)
            k.store(now, place, F32, lanes)
            # where all scores are -inf, no weight may become NaN: later keys may have finite ones
            safe = f.select(f.gt(now, f.c(-math.inf)), now, f.c(0.0))
            shift.append(f.select(f.is_nan(now), now, safe))
            faded.append(exp_falling(f, f.sub(before, shift[-1])))
        for v, own in enumerate(self._weights(shift, count)):
            at = k.add(k.mul(group, self.width), v * lanes)
            place = k.offset(self.total, at, F32)
            before = k.load(place, F32, lanes)
            k.store(f.fma(before, faded[v], own), place, F32, lanes)
        return faded

    def _weights(self, shift: list[ir.Value], count: ir.Value) -> list[ir.Value]:
        """Writes the weights of a block in the place of scores; gives their sums."""
        k, f, lanes = self.k, self.f, self.lanes

        def weigh(number: Any, sums: Sequence[ir.Value]) -> list[ir.Value]:
            added = []
            for v in range(len(shift)):
                at = k.add(k.mul(number, self.width), v * lanes)
                place = k.offset(self.p, at, F32)
                weight = exp_falling(f, f.sub(k.load(place, F32, lanes), shift[v]))
                if self.kernel.levels:
                    weight = f.rint(f.mul(weight, f.c(self.kernel.levels)))
                k.store(weight, place, F32, lanes)
                added.append(f.add(sums[v], weight))
            return added

        end = k.b.and_(count, I64(-2))
        zeros = [k.zero(F32, lanes)] * len(shift)
        with k.loop(0, end, 2, zeros) as loop:
            loop.next = weigh(k.add(loop.index, 1), weigh(loop.index, loop.carried))
        with k.loop(end, count, 1, loop.carried) as rest:
            rest.next = weigh(rest.index, rest.carried)
        return rest.carried

    def _mix(self, group: ir.Value, values: Matrix, count: ir.Value, faded: list[ir.Value]) -> None:
        """Adds the weighted values of a block to the result."""
        k, kernel, lanes = self.k, self.kernel, self.lanes
        o = k.offset(self.o, k.mul(group, kernel.values * self.width), F32)

        def tile(rows: int, first: Any) -> None:
            places = [
                k.offset(o, k.add(k.mul(k.add(first, i), self.width), v * lanes), F32)
                for i in range(rows)
                for v in range(kernel.vectors)
            ]
            sums = [
                self.f.mul(k.load(place, F32, lanes), faded[n % kernel.vectors])
                for n, place in enumerate(places)
            ]
            mixed = self._weighted(values, first, count, sums)
            for value, place in zip(mixed, places, strict=True):
                k.store(value, place, F32, lanes)

        # tiles as even as can be: their number, and how many are one row higher
        tiles = -(-kernel.values // kernel.rows)
        low, higher = divmod(kernel.values, tiles)
        edge = higher * (low + 1)
        for rows, begin, end in ((low + 1, 0, edge), (low, edge, kernel.values)):
            if begin < end:
                with k.loop(begin, end, rows) as loop:
                    tile(rows, loop.index)

    def _weighted(
        self, values: Matrix, first: Any, count: ir.Value, sums: list[ir.Value]
    ) -> list[ir.Value]:
        """Adds to sums, of some columns of the result, the values of a block by their weights."""
        k = self.k
        start = k.offset(values.start, first, values.dtype)

        def left(i: int, key: Any) -> ir.Value:
            place = k.offset(start, k.add(k.mul(key, values.row), i), values.dtype)
            return k.load(place, values.dtype)

        return self._products(count, self.p, left, sums)

    # ---- the result out, once a task ------------------------------------------------------------

    def _end(self, group: ir.Value, result: Matrix, query: ir.Value, at: Any) -> None:
        """Divides by the sums of weights and writes the result as it lies in memory."""
        k, kernel, f, lanes = self.k, self.kernel, self.f, self.lanes
        o = k.offset(self.o, k.mul(group, kernel.values * self.width), F32)
        for v, span in enumerate(self._spans(query)):
            place = k.offset(self.total, k.add(k.mul(group, self.width), v * lanes), F32)
            total = k.load(place, F32, lanes)
            factor = f.div(self._value_step(), total)
            loaded = self.last.load(at, span)
            left = k.sub(self.queries, k.add(query, v * lanes))

            def turn(
                column: Any,
                width: int,
                v: int = v,
                total: Any = total,
                factor: Any = factor,
                loaded: Any = loaded,
                left: Any = left,
            ) -> None:
                lines = []
                for i in range(lanes):
                    row = k.add(column, min(i, width - 1))
                    where = k.add(k.mul(row, self.width), v * lanes)
                    value = f.mul(k.load(k.offset(o, where, F32), F32, lanes), factor)
                    if kernel.guarded:
                        value = f.select(f.gt(total, f.c(0.0)), value, f.c(0.0))
                    lines += apply(k, kernel.after, loaded, [value], kernel.last, lanes)
                mask = k.tail_mask(width, lanes) if width < lanes else None
                for i, line in enumerate(self._turned(lines)):
                    with k.when(k.b.icmp_signed(">", k.i64(left), I64(i))):
                        number = k.add(query, v * lanes + i)
                        dtype = result.dtype
                        row = k.offset(result.start, k.mul(number, result.row), dtype)
                        k.store(line, k.offset(row, column, dtype), dtype, lanes, mask=mask)

            whole = kernel.values // lanes * lanes
            with k.loop(0, whole, lanes) as loop:
                turn(loop.index, lanes)
            if kernel.values > whole:
                turn(whole, kernel.values - whole)

    def _turned(self, lines: list[ir.Value]) -> list[ir.Value]:
        """Results, transposed: short integers as wide ones, which is faster."""
        k, kind = self.k, lines[0].type
        if self.kernel.written.size > 1:
            return transpose_registers(k, lines)
        wide = [k.b.zext(line, ir.VectorType(I32, self.lanes)) for line in lines]
        return [k.b.trunc(line, kind) for line in transpose_registers(k, wide)]

    def _value_step(self) -> ir.Value:
        """What the sums are multiplied by, beside the sum of weights."""
        return self.k.splat(self.steps[2], self.lanes) if self.steps else self.f.c(1.0)

    def _spans(self, query: ir.Value) -> list[Span]:
        """The queries of a group as places of operands; past the last one it is read again."""
        k = self.k
        spans = []
        for v in range(self.kernel.vectors):
            start = k.add(query, v * self.lanes)
            left = k.sub(self.queries, start)
            spans.append(
                Span(
                    k.min(start, k.sub(self.queries, 1)),
                    self.lanes,
                    k.max(left, 1),
                    k.tail_mask(left, self.lanes),
                )
            )
        return spans
