"""The matrix kernel: convolutions and matrix products as one generator.

The output is seen as rows of pixels with channels innermost; a matrix product is one long row, and
the batch dimensions of a stack of them are batches and groups. A tile of `pixels` x `vectors` is
accumulated in registers over the whole depth: broadcast elements of the activations against vectors
of weights packed ``[block][tap rows][tap columns x depth][vectors x lanes]``, zero padded. Then the
epilogue runs on the registers and the tile is stored once.

Activations are read where they lie if no padding is needed; otherwise, or where lying elsewhere
makes them cheaper to read (strides that alias in the cache, a prologue), each task first packs the
rows it needs into its scratch memory, zeros around them included, so that the inner loop never
looks at a border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import I64, KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.kernel import CpuKernel

F32 = DType.FLOAT32

PARAMS = (
    "channels",  # output channels of a group
    "blocks",  # channel blocks of a group
    "blocks_per_task",
    "channel_tasks",  # tasks a group's blocks are split into: the fastest part of the task index
    "rows",
    "rows_per_task",
    "row_tasks",
    "columns",
    "columns_per_task",
    "column_tasks",
    "groups",
    "source_batch",  # strides in elements
    "source_group",
    "row_step",  # from an output row to the next, in the source (or in scratch, if packed)
    "tap_row_step",  # from a row of taps to the next, likewise
    "weight_batch",
    "weight_group",
    "weight_block",
)
PACK_PARAMS = (
    "height",
    "width",
    "pad_top",
    "pad_left",
    "stride_rows",
    "stride_columns",
    "row_unit",  # input rows from one scratch row to the next
    "rows_per_row",  # scratch rows from one output row to the next
    "halo_rows",  # scratch rows that one output row needs
    "halo_columns",
    "scratch_row",  # elements from one scratch row to the next
    "source_row",  # elements from one input row to the next
    "source_pixel",
)


@dataclass(frozen=True)
class Operand:
    """An operand of an epilogue or prologue: its dtype, and its stride along channels (0 or 1)."""

    dtype: DType
    channel_stride: int


@dataclass(frozen=True)
class Pack:
    """How a task packs the rows it needs.

    Attributes
    ----------
    depth : int
        Channels per pixel; they lie dense in scratch.
    pitch : int
        Elements from one pixel to the next in scratch.
    column_unit : int
        Input columns from one scratch column to the next.
    columns_per_column : int
        Scratch columns from one output column to the next.
    contiguous : bool
        Whether a row of pixels can be copied as one run.
    prologue : Expression or None
        Applied to every element that is not padding.
    operands : tuple
        For each leaf of the prologue an `Operand`, or None for the element itself and constants.
    dtype : DType
        Of the source; only a prologue makes float32 of another one.
    """

    depth: int
    pitch: int
    column_unit: int
    columns_per_column: int
    contiguous: bool
    prologue: Expression | None = None
    operands: tuple[Operand | None, ...] = ()
    dtype: DType = F32


@dataclass(frozen=True)
class GemmKernel(CpuKernel):
    """One specialisation of the matrix kernel.

    Attributes
    ----------
    pixels, vectors : int
        The register tile.
    tail : int
        Pixels of the last tile of a row; 0: the last tile overlaps the one before.
    tap_rows, tap_columns : int
        How many runs of depth there are, row by row.
    run : int
        Elements of a run: channels, or taps x channels where these lie side by side.
    pixel_step, tap_column_step : int
        Elements from one output pixel, and one tap column, to the next.
    masked : bool
        Whether the last vector of channels may be partial.
    pixels_outer : bool
        Loop order inside a task: pixels outside and channel blocks inside, or the reverse.
    unroll : int
        Steps of depth per round of the inner loop.
    epilogue : Expression
        Its results go to the outputs in order.
    operands : tuple
        For each leaf of the epilogue an `Operand`, or None for the accumulator and constants.
    pack : Pack or None
        None: the activations are read in place.
    prefetch : int
        How many steps of depth ahead weights are asked for; 0: not at all.
    """

    family: ClassVar[str] = "gemm"
    pixels: int
    vectors: int
    tail: int
    tap_rows: int
    tap_columns: int
    run: int
    pixel_step: int
    tap_column_step: int
    masked: bool
    pixels_outer: bool
    unroll: int
    epilogue: Expression
    operands: tuple[Operand | None, ...]
    pack: Pack | None = None
    prefetch: int = 0

    def write(self, k: KernelBuilder) -> None:
        """Pointers: source, weights, outputs, epilogue operands, prologue operands."""
        _Writer(self, k).write()


class _Writer:
    """Writes a `GemmKernel`; one object per kernel, holding what the whole kernel shares."""

    def __init__(self, kernel: GemmKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        names = [*PARAMS, *(PACK_PARAMS if kernel.pack else ())]
        self.p = {name: k.param(i) for i, name in enumerate(names)}
        self._next_param = len(names)
        self._next_pointer = 0
        self.source = self._pointer()
        self.weights = self._pointer()
        self.outputs = [_Place(self._pointer(), *self._strides()) for _ in kernel.epilogue.results]
        self.operands = self._places(kernel.operands)
        self.before = self._places(kernel.pack.operands) if kernel.pack else []

    def _pointer(self) -> ir.Value:
        self._next_pointer += 1
        return self.k.pointer(self._next_pointer - 1)

    def _strides(self) -> list[ir.Value]:
        self._next_param += 4
        return [self.k.param(self._next_param - 4 + i) for i in range(4)]

    def _places(self, operands: Sequence[Operand | None]) -> list[_Place | None]:
        return [_Place(self._pointer(), *self._strides()) if o else None for o in operands]

    # ---- tasks ----------------------------------------------------------------------------

    def write(self) -> None:
        k, p = self.k, self.p
        with k.loop(k.begin, k.end, carried=[I64(-1)]) as loop:
            place, part = k.divmod(loop.index, p["channel_tasks"])
            rest, column_task = k.divmod(place, p["column_tasks"])
            rest, row_task = k.divmod(rest, p["row_tasks"])
            self.batch, self.group = k.divmod(rest, p["groups"])
            self.row0 = k.mul(row_task, p["rows_per_task"])
            self.row1 = k.min(k.add(self.row0, p["rows_per_task"]), p["rows"])
            column = k.mul(column_task, p["columns_per_task"])
            self.column1 = k.min(k.add(column, p["columns_per_task"]), p["columns"])
            # a last task narrower than a tile starts earlier and computes some pixels again
            narrowest = self.kernel.tail or self.kernel.pixels
            self.column0 = k.max(k.min(column, k.sub(p["columns"], narrowest)), 0)
            source = k.offset(
                self.source,
                k.add(k.mul(self.batch, p["source_batch"]), k.mul(self.group, p["source_group"])),
                self.kernel.pack.dtype if self.kernel.pack else F32,
            )
            if self.kernel.pack:
                with k.when(k.b.icmp_signed("!=", place, loop.carried[0])):
                    self._pack_rows(self.kernel.pack, source)
                self.base = k.scratch
            else:
                start = k.add(
                    k.mul(self.row0, p["row_step"]), k.mul(self.column0, self.kernel.pixel_step)
                )
                self.base = k.offset(source, start, F32)
            loop.next = [place]
            block0 = k.mul(part, p["blocks_per_task"])
            block1 = k.min(k.add(block0, p["blocks_per_task"]), p["blocks"])
            if self.kernel.pixels_outer:
                self._over_pixels(lambda *at: self._over_blocks(block0, block1, *at))
            else:
                with k.loop(block0, block1) as blocks:
                    self._over_pixels(lambda *at: self._tile(blocks.index, *at))

    def _over_blocks(self, block0: Any, block1: Any, *at: Any) -> None:
        with self.k.loop(block0, block1) as blocks:
            self._tile(blocks.index, *at)

    def _over_pixels(self, body: Any) -> None:
        """Calls ``body(pixels, row, column)`` so that the task's pixels are covered."""
        k, kernel = self.k, self.kernel
        width = k.sub(self.column1, self.column0)
        with k.loop(self.row0, self.row1) as rows:
            if not kernel.tail:
                last = k.max(k.sub(self.column1, kernel.pixels), self.column0)
                with k.loop(self.column0, self.column1, kernel.pixels) as columns:
                    body(kernel.pixels, rows.index, k.min(columns.index, last))
                return
            whole, rest = k.divmod(width, kernel.pixels)
            end = k.add(self.column0, k.mul(whole, kernel.pixels))
            with k.loop(self.column0, end, kernel.pixels) as columns:
                body(kernel.pixels, rows.index, columns.index)
            with k.when(k.b.icmp_signed(">", rest, I64(0))):
                body(kernel.tail, rows.index, k.max(k.sub(self.column1, kernel.tail), self.column0))

    # ---- a tile ---------------------------------------------------------------------------

    def _tile(self, block: ir.Value, pixels: int, row: ir.Value, column: ir.Value) -> None:
        k, p, kernel = self.k, self.p, self.kernel
        lanes = k.lanes
        down = k.mul(k.sub(row, self.row0), p["row_step"])
        along = k.mul(k.sub(column, self.column0), kernel.pixel_step)
        source = k.offset(self.base, k.add(down, along), F32)
        weight = k.add(
            k.add(k.mul(self.batch, p["weight_batch"]), k.mul(self.group, p["weight_group"])),
            k.mul(block, p["weight_block"]),
        )
        weights = k.offset(self.weights, weight, F32)
        sums = self._accumulate(pixels, source, weights)
        channel = k.mul(block, kernel.vectors * lanes)
        masks: list[ir.Value | None] = [None] * kernel.vectors
        if kernel.masked:
            left = k.sub(p["channels"], channel)
            masks = [k.tail_mask(k.sub(left, v * lanes), lanes) for v in range(kernel.vectors)]
        self._finish(pixels, row, column, channel, sums, masks)

    def _accumulate(self, pixels: int, source: ir.Value, weights: ir.Value) -> list[list[ir.Value]]:
        """The tile's sums over all taps and depth, ``[pixel][vector]``."""
        k, kernel, p = self.k, self.kernel, self.p
        step = kernel.vectors * k.lanes
        zeros = [k.zero(F32, k.lanes)] * (pixels * kernel.vectors)

        def rounds(count: int, sums: list[Any], body: Any) -> list[Any]:
            if count == 1:
                return body(0, sums)
            with k.loop(0, count, carried=sums) as loop:
                loop.next = body(loop.index, loop.carried)
            return loop.carried

        def tap_row(row: Any, sums: list[Any]) -> list[Any]:
            s = k.offset(source, k.mul(row, p["tap_row_step"]) if kernel.tap_rows > 1 else 0, F32)
            w = k.offset(weights, k.mul(row, kernel.tap_columns * kernel.run * step), F32)

            def tap_column(column: Any, sums: list[Any]) -> list[Any]:
                return self._run(
                    pixels,
                    k.offset(s, k.mul(column, kernel.tap_column_step), F32),
                    k.offset(w, k.mul(column, kernel.run * step), F32),
                    sums,
                )

            return rounds(kernel.tap_columns, sums, tap_column)

        flat = rounds(kernel.tap_rows, zeros, tap_row)
        n = kernel.vectors
        return [flat[i * n : (i + 1) * n] for i in range(pixels)]

    def _run(
        self, pixels: int, source: ir.Value, weights: ir.Value, sums: list[ir.Value]
    ) -> list[ir.Value]:
        """Adds one run of depth to the sums."""
        k, kernel = self.k, self.kernel
        whole = kernel.run // kernel.unroll * kernel.unroll

        def steps(first: Any, count: int, sums: list[ir.Value]) -> list[ir.Value]:
            s = k.offset(source, first, F32)
            w = k.offset(weights, k.mul(first, kernel.vectors * k.lanes), F32)
            for depth in range(count):
                vectors = [
                    k.load(
                        k.offset(w, (depth * kernel.vectors + v) * k.lanes, F32),
                        F32,
                        k.lanes,
                        aligned=k.lanes == 16,
                    )
                    for v in range(kernel.vectors)
                ]
                for v in range(kernel.vectors if kernel.prefetch else 0):
                    ahead = (depth + kernel.prefetch) * kernel.vectors + v
                    k.prefetch(k.offset(w, ahead * k.lanes, F32))
                updated = []
                for i in range(pixels):
                    element = k.load(k.offset(s, i * kernel.pixel_step + depth, F32), F32)
                    spread = k.splat(element, k.lanes)
                    for v, vector in enumerate(vectors):
                        updated.append(k.fma(spread, vector, sums[i * kernel.vectors + v]))
                sums = updated
            return sums

        if whole == kernel.unroll:
            sums = steps(0, whole, sums)
        elif whole:
            with k.loop(0, whole, kernel.unroll, carried=sums) as loop:
                loop.next = steps(loop.index, kernel.unroll, loop.carried)
            sums = loop.carried
        return steps(whole, kernel.run - whole, sums)

    def _finish(
        self,
        pixels: int,
        row: ir.Value,
        column: ir.Value,
        channel: ir.Value,
        sums: list[list[ir.Value]],
        masks: Sequence[ir.Value | None],
    ) -> None:
        """Epilogue and stores of a tile."""
        k, kernel = self.k, self.kernel
        lanes = k.lanes
        expression = kernel.epilogue
        starts = [
            place and place.start(k, self.batch, self.group, row, column)
            for place in (*self.operands, *self.outputs)
        ]

        def load(leaf: int, pixel: int, vector: int) -> ir.Value:
            operand, place, start = kernel.operands[leaf], self.operands[leaf], starts[leaf]
            assert operand and place and start is not None
            where = k.add(start, k.mul(place.column, pixel))
            if operand.channel_stride == 0:
                element = k.load(k.offset(place.pointer, where, operand.dtype), operand.dtype)
                return k.splat(element, lanes)
            where = k.add(where, k.add(channel, vector * lanes))
            pointer = k.offset(place.pointer, where, operand.dtype)
            return k.load(pointer, operand.dtype, lanes, mask=masks[vector])

        for pixel in range(pixels):
            for vector in range(kernel.vectors):
                leaves: list[Any] = []
                for index, (leaf, operand) in enumerate(
                    zip(expression.leaves, kernel.operands, strict=True)
                ):
                    if operand is not None:
                        leaves.append(load(index, pixel, vector))
                    elif leaf.constant is not None:
                        leaves.append(None)
                    else:
                        leaves.append(sums[pixel][vector])
                results = emit(k, expression, leaves, lanes)
                for slot, result, place, start in zip(
                    expression.results,
                    results,
                    self.outputs,
                    starts[len(self.operands) :],
                    strict=True,
                ):
                    dtype = expression.dtype(slot)
                    assert start is not None
                    where = k.add(k.add(start, k.mul(place.column, pixel)), channel)
                    pointer = k.offset(place.pointer, k.add(where, vector * lanes), dtype)
                    k.store(result, pointer, dtype, lanes, mask=masks[vector])

    # ---- packing --------------------------------------------------------------------------

    def _pack_rows(self, pack: Pack, source: ir.Value) -> None:
        """Copies the input rows under the task's pixels into scratch, with zeros around them."""
        k, p = self.k, self.p
        rows = k.sub(self.row1, self.row0)
        columns = k.sub(self.column1, self.column0)
        height = k.add(k.mul(k.sub(rows, 1), p["rows_per_row"]), p["halo_rows"])
        width = k.add(k.mul(k.sub(columns, 1), pack.columns_per_column), p["halo_columns"])
        first_row = k.sub(k.mul(self.row0, p["stride_rows"]), p["pad_top"])
        first_column = k.sub(k.mul(self.column0, p["stride_columns"]), p["pad_left"])

        def columns_before(limit: Any) -> ir.Value:
            """Scratch columns that lie left of an input column, at most all."""
            span = k.max(k.sub(limit, first_column), 0)
            count, _ = k.divmod(k.add(span, pack.column_unit - 1), pack.column_unit)
            return k.min(count, width)

        inside0, inside1 = columns_before(0), columns_before(p["width"])
        with k.loop(0, height) as loop:
            y = k.add(first_row, k.mul(loop.index, p["row_unit"]))
            row = k.offset(k.scratch, k.mul(loop.index, p["scratch_row"]), F32)
            valid = k.b.icmp_unsigned("<", y, p["height"])  # unsigned: negative rows fail too
            low = k.b.select(valid, inside0, width)
            high = k.b.select(valid, inside1, width)
            self._zero(row, k.mul(low, pack.pitch))
            start = k.mul(k.add(first_column, k.mul(low, pack.column_unit)), p["source_pixel"])
            start = k.add(start, k.mul(y, p["source_row"]))
            self._copy_pixels(
                pack,
                k.offset(source, start, pack.dtype),
                k.offset(row, k.mul(low, pack.pitch), F32),
                k.sub(high, low),
                y,
                k.add(first_column, k.mul(low, pack.column_unit)),
            )
            end = k.offset(row, k.mul(high, pack.pitch), F32)
            self._zero(end, k.mul(k.sub(width, high), pack.pitch))

    def _zero(self, pointer: ir.Value, count: ir.Value) -> None:
        self._vectors(
            count,
            lambda at, mask: self.k.store(
                self.k.zero(F32, self.k.lanes),
                self.k.offset(pointer, at, F32),
                F32,
                self.k.lanes,
                mask=mask,
            ),
        )

    def _copy_pixels(
        self, pack: Pack, source: Any, target: Any, count: Any, y: Any, x: Any
    ) -> None:
        k, p = self.k, self.p

        def copy(at: ir.Value, mask: ir.Value | None, s: Any = source, t: Any = target) -> None:
            value = k.load(k.offset(s, at, F32), F32, k.lanes, mask=mask)
            k.store(value, k.offset(t, at, F32), F32, k.lanes, mask=mask)

        if pack.contiguous:
            self._vectors(k.mul(count, pack.pitch), copy)
            return
        with k.loop(0, count) as pixels:
            s = k.offset(
                source,
                k.mul(k.mul(pixels.index, pack.column_unit), p["source_pixel"]),
                pack.dtype,
            )
            t = k.offset(target, k.mul(pixels.index, pack.pitch), F32)
            if pack.prologue is None:
                self._vectors(pack.depth, lambda at, mask: copy(at, mask, s, t))
                continue_at = None
            else:
                continue_at = k.add(x, k.mul(pixels.index, pack.column_unit))
                self._vectors(
                    pack.depth,
                    lambda at, mask: self._apply_prologue(pack, at, mask, s, t, y, continue_at),
                )

    def _apply_prologue(
        self, pack: Pack, at: Any, mask: Any, source: Any, target: Any, y: Any, x: Any
    ) -> None:
        k = self.k
        expression = pack.prologue
        assert expression is not None
        leaves: list[Any] = []
        for leaf, operand, place in zip(expression.leaves, pack.operands, self.before, strict=True):
            if leaf.constant is not None:
                leaves.append(None)
            elif operand is None or place is None:
                pointer = k.offset(source, at, pack.dtype)
                leaves.append(k.load(pointer, pack.dtype, k.lanes, mask=mask))
            else:
                where = place.start(k, self.batch, self.group, y, x)
                if operand.channel_stride == 0:
                    pointer = k.offset(place.pointer, where, operand.dtype)
                    leaves.append(k.splat(k.load(pointer, operand.dtype), k.lanes))
                    continue
                pointer = k.offset(place.pointer, k.add(where, at), operand.dtype)
                leaves.append(k.load(pointer, operand.dtype, k.lanes, mask=mask))
        (result,) = emit(k, expression, leaves, k.lanes)
        k.store(result, k.offset(target, at, F32), F32, k.lanes, mask=mask)

    def _vectors(self, count: Any, body: Any) -> None:
        """Calls ``body(at, mask)`` for each vector of `count` elements; the last is masked."""
        k = self.k
        if isinstance(count, int):
            whole: Any = count // k.lanes * k.lanes
            rest: Any = count - whole
        else:
            whole = k.b.and_(count, I64(-k.lanes))
            rest = k.sub(count, whole)
        with k.loop(0, whole, k.lanes) as loop:
            body(loop.index, None)
        if isinstance(rest, int):
            if rest:
                body(k.i64(whole), k.tail_mask(rest, k.lanes))
            return
        with k.when(k.b.icmp_signed(">", rest, I64(0))):
            body(whole, k.tail_mask(rest, k.lanes))


@dataclass(frozen=True)
class _Place:
    """Where an operand or output lies: pointer, and strides of batch, group, row and column."""

    pointer: ir.Value
    batch: ir.Value
    group: ir.Value
    row: ir.Value
    column: ir.Value

    def start(self, k: KernelBuilder, batch: Any, group: Any, row: Any, column: Any) -> ir.Value:
        """The offset of channel 0 of a pixel, in elements."""
        matrix = k.add(k.mul(self.batch, batch), k.mul(self.group, group))
        return k.add(matrix, k.add(k.mul(self.row, row), k.mul(self.column, column)))
