"""The depthwise convolution kernel, channels last: every channel is filtered by itself.

Vectors run over channels. A register tile holds a few output columns (and rows) of one or two
vectors; each input vector is loaded once per tile and multiplied into every output it contributes
to. Weights are packed ``[channel block][tap][16]``, so that a tile finds them side by side.

    for each task: an image, a block of rows, a block of channels
        for each vector of channels                (or innermost: `channels_inner`)
            for each tile of rows x columns
                for each input row and column: load, multiply-add;  epilogue, store

Borders: an input row outside the image is jumped over. Which columns lie outside is known when
generating, if the width is (`Edges`): the first and the last tile of a row get code of their own
without any check. Otherwise tiles at the border select a pointer to zeros for such columns.

Bytes are multiplied as float32, their zero point taken out: sums of fewer than `EXACT_TAPS`
products of bytes are exact. What a depthwise convolution costs is its memory, of which bytes need a
quarter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import llvmlite.ir as ir

from planish.fusion.expression import Expression, Leaf
from planish.graph.types import DType
from planish.ops.elementwise import Cast
from planish.ops.quantization import Dequantize
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast
from planish.targets.cpu.codegen.types import I32, register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, apply, for_spans

BLOCK = 16
"""Channels per block of packed weights: a multiple of the lanes of every machine."""
EXACT_TAPS = 258
"""So many products of numbers up to 255 are below 2 ** 24, and exact in float32."""
_BYTES = (DType.INT8, DType.UINT8)
_UNROLLED = 512
"""Multiply-adds a tile may have before the loop over window rows is a real one."""

PARAMS = (
    "height",
    "width",
    "rows",
    "columns",
    "channels",
    "source_batch",
    "source_row",
    "pad_top",
    "pad_left",
    "row_blocks",
    "rows_per_block",
    "channel_blocks",
    "channels_per_block",
    "zero",  # the zero point of bytes
)


@dataclass(frozen=True)
class Edges:
    """Which columns of a row of tiles lie outside the image, where the width is known.

    Attributes
    ----------
    tiles : int
        1, 2, or 3 for any number from 3.
    first : int
        The first tile's input columns before this one lie outside.
    last : int
        The last tile's input columns after this one lie outside.
    columns : int
        Output columns of the last tile.
    """

    tiles: int
    first: int
    last: int
    columns: int


@dataclass(frozen=True)
class DepthwiseKernel(CpuKernel):
    """One specialisation; extents and outer strides are parameters."""

    family: ClassVar[str] = "depthwise"
    dtype: DType
    window: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    multiplier: int
    pitch: int
    columns: int
    rows: int
    vectors: int
    channels_inner: bool
    tail: int
    row_checks: bool
    edges: Edges | None
    expression: Expression
    accesses: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        _Writer(self, k).write()


Flag: TypeAlias = "bool | ir.Value"
"""A condition that is known when generating, or only when running."""


class _Writer:
    """Writes a `DepthwiseKernel`."""

    def __init__(self, kernel: DepthwiseKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        self.p = {name: k.param(i) for i, name in enumerate(PARAMS)}
        self.wide = DType.FLOAT64 if kernel.dtype is DType.FLOAT64 else DType.FLOAT32
        self.source, self.weights = k.pointer(0), k.pointer(1)
        self.reads = Operands(k, kernel.accesses, 2, len(PARAMS), 4)
        self.writes = Operands(k, kernel.outputs, self.reads.next_pointer, self.reads.next_param, 4)
        self.input_columns = _taps(
            kernel.columns, kernel.strides[1], kernel.window[1], kernel.dilations[1]
        )
        self.input_rows = _taps(
            kernel.rows, kernel.strides[0], kernel.window[0], kernel.dilations[0]
        )
        area = kernel.window[0] * kernel.window[1]
        self.rolled = area * kernel.columns * kernel.vectors > _UNROLLED and kernel.rows == 1
        self.bytes = kernel.dtype in _BYTES
        self.zero = k.b.sitofp(self.p["zero"], register_type(self.wide))
        self.expression = _of_floats(kernel.expression) if self.bytes else kernel.expression
        pairs = k.b.udiv(k.add(self.p["channels"], 2 * BLOCK - 1), k.i64(2 * BLOCK))
        self.zeros = k.offset(self.weights, k.mul(pairs, 2 * BLOCK * area), self.wide)

    def write(self) -> None:
        k, p = self.k, self.p
        with k.loop(k.begin, k.end) as tasks:
            rest, channel_block = k.divmod(tasks.index, p["channel_blocks"])
            image, row_block = k.divmod(rest, p["row_blocks"])
            first_row = k.mul(row_block, p["rows_per_block"])
            last_row = k.min(k.add(first_row, p["rows_per_block"]), p["rows"])
            first = k.mul(channel_block, p["channels_per_block"])
            last = k.min(k.add(first, p["channels_per_block"]), p["channels"])
            if self.kernel.channels_inner:

                def tile_inner(*place: Any) -> None:
                    self._over_channels(
                        first,
                        last,
                        lambda spans: self._tile(
                            spans, self._load_weights(spans), self._fixed(spans), *place
                        ),
                    )

                self._over_tiles(image, first_row, last_row, tile_inner)
            else:

                def channels(spans: list[Span]) -> None:
                    weights, fixed = self._load_weights(spans), self._fixed(spans)
                    self._over_tiles(
                        image,
                        first_row,
                        last_row,
                        lambda *place: self._tile(spans, weights, fixed, *place),
                    )

                self._over_channels(first, last, channels)

    def _over_channels(self, first: ir.Value, last: ir.Value, body: Any) -> None:
        step = self.k.lanes * self.kernel.vectors
        for_spans(
            self.k,
            first,
            last,
            self.k.lanes,
            lambda spans, _: body(spans),
            vectors=self.kernel.vectors,
            whole=self.kernel.tail % step == 0,
        )

    def _over_tiles(self, image: Any, first_row: Any, last_row: Any, tile: Any) -> None:
        k, kernel = self.k, self.kernel
        places = self.reads.at([image]), self.writes.at([image])
        with k.loop(first_row, last_row, kernel.rows) as row:
            here = (
                image,
                row.index,
                self.reads.move(places[0], 1, row.index),
                self.writes.move(places[1], 1, row.index),
            )
            if kernel.edges is None:
                with k.loop(0, self.p["columns"], kernel.columns) as column:
                    self._checked_tile(here, column.index, tile)
            else:
                self._static_tiles(here, kernel.edges, tile)

    def _static_tiles(self, here: Any, edges: Edges, tile: Any) -> None:
        """Tiles whose columns are known to lie inside or outside."""
        k, width = self.k, self.kernel.columns
        inside = dict.fromkeys(self.input_columns, True)
        before = {c: c >= edges.first for c in inside}
        after = {c: c <= edges.last for c in inside}
        everything = [True] * width
        final = [t < edges.columns for t in range(width)]
        if edges.tiles == 1:
            tile(*here, k.i64(0), {c: before[c] and after[c] for c in inside}, final)
            return
        tile(*here, k.i64(0), before, everything)
        start = k.sub(self.p["columns"], edges.columns)
        if edges.tiles > 2:
            with k.loop(width, start, width) as column:
                tile(*here, column.index, inside, everything)
        tile(*here, start, after, final)

    def _checked_tile(self, here: Any, column: ir.Value, tile: Any) -> None:
        """A tile that looks, when running, whether it is at the border."""
        k, kernel = self.k, self.kernel
        start = k.sub(k.mul(column, kernel.strides[1]), self.p["pad_left"])
        end = k.add(start, max(self.input_columns))
        free = k.b.and_(
            k.b.icmp_signed(">=", start, k.i64(0)),
            k.b.and_(
                k.b.icmp_signed("<", end, self.p["width"]),
                k.b.icmp_signed("<=", k.add(column, kernel.columns), self.p["columns"]),
            ),
        )

        def fast() -> None:
            tile(*here, column, dict.fromkeys(self.input_columns, True), [True] * kernel.columns)

        def border() -> None:
            inside = {
                c: k.b.icmp_unsigned("<", k.add(start, c), self.p["width"])
                for c in self.input_columns
            }
            exists = [
                k.b.icmp_signed("<", k.add(column, t), self.p["columns"])
                for t in range(kernel.columns)
            ]
            tile(*here, column, inside, exists)

        k.choose(free, fast, border)

    # ---- one tile -------------------------------------------------------------------------

    def _load_weights(self, spans: Sequence[Span]) -> list[list[ir.Value]]:
        """The weights of all taps for some vectors, by tap and vector."""
        if self.rolled:
            return []
        taps = range(self.kernel.window[0] * self.kernel.window[1])
        return [[self._weight(span, tap) for span in spans] for tap in taps]

    def _weight(self, span: Span, tap: int | ir.Value) -> ir.Value:
        k = self.k
        area = self.kernel.window[0] * self.kernel.window[1]
        block, within = k.divmod(k.i64(span.start), BLOCK)
        at = k.add(k.mul(k.add(k.mul(block, area), tap), BLOCK), within)
        return k.load(k.offset(self.weights, at, self.wide), self.wide, k.lanes)

    def _fixed(self, spans: Sequence[Span]) -> list[list[ir.Value | None]]:
        return [self.reads.load_fixed(span) for span in spans]

    def _tile(
        self,
        spans: list[Span],
        weights: list[list[ir.Value]],
        fixed: list[list[ir.Value | None]],
        image: ir.Value,
        row: ir.Value,
        reads: Any,
        writes: Any,
        column: ir.Value,
        inside: Mapping[int, Flag],
        exists: Sequence[Flag],
    ) -> None:
        k, kernel = self.k, self.kernel
        self.spans = spans
        zero = k.zero(self.wide, k.lanes)
        sums = [zero] * (kernel.rows * kernel.columns * len(spans))
        top = k.sub(k.mul(row, kernel.strides[0]), self.p["pad_top"])
        left = k.sub(k.mul(column, kernel.strides[1]), self.p["pad_left"])
        origin = k.add(k.mul(image, self.p["source_batch"]), k.mul(left, kernel.pitch))
        base = k.offset(self.source, origin, kernel.dtype)

        if self.rolled:
            with k.loop(0, kernel.window[0], carried=sums) as tap_row:
                at = k.add(top, k.mul(tap_row.index, kernel.dilations[0]))
                first = k.mul(tap_row.index, kernel.window[1])
                taps = [
                    [self._weight(s, k.add(first, tap)) for s in spans]
                    for tap in range(kernel.window[1])
                ]
                tap_row.next = self._input_row(base, at, {0: taps}, inside, exists, tap_row.carried)
            sums = tap_row.carried
        else:
            width = kernel.window[1]
            for offset, pairs in self.input_rows.items():
                by_row = {r: weights[ky * width : (ky + 1) * width] for r, ky in pairs}
                sums = self._input_row(base, k.add(top, offset), by_row, inside, exists, sums)

        for r in range(kernel.rows):
            below: Flag = True
            if kernel.row_checks and r:
                below = k.b.icmp_signed("<", k.add(row, r), self.p["rows"])
            read_row = self.reads.move(self.reads.move(reads, 1, r), 2, column)
            write_row = self.writes.move(self.writes.move(writes, 1, r), 2, column)
            for t in range(kernel.columns):
                if exists[t] is False:
                    continue
                mine = [sums[self._number(r, t, v)] for v in range(len(spans))]
                at_column = self.reads.move(read_row, 2, t), self.writes.move(write_row, 2, t)
                condition = _both(k, below, exists[t])
                if condition is True:
                    self._store(mine, fixed, *at_column)
                else:
                    with k.when(condition):
                        self._store(mine, fixed, *at_column)

    def _number(self, row: int, column: int, vector: int) -> int:
        return (row * self.kernel.columns + column) * len(self.spans) + vector

    def _input_row(
        self,
        base: ir.Value,
        row: ir.Value,
        weights: Mapping[int, list[list[ir.Value]]],
        inside: Mapping[int, Flag],
        exists: Sequence[Flag],
        sums: Sequence[ir.Value],
    ) -> list[ir.Value]:
        """Adds what one input row contributes, if it is inside the image.

        `weights` holds, for each of the tile's rows that the input row contributes to, the weights
        of a row of taps.
        """
        k, kernel = self.k, self.kernel

        def add() -> list[ir.Value]:
            new = list(sums)
            start = k.offset(base, k.mul(row, self.p["source_row"]), kernel.dtype)
            for column, pairs in self.input_columns.items():
                pairs = [(t, kx) for t, kx in pairs if exists[t] is not False]
                if inside[column] is False or not pairs:
                    continue
                for v, span in enumerate(self.spans):
                    x = self._load(start, column, span, inside[column])
                    for r, taps in weights.items():
                        for t, kx in pairs:
                            i = self._number(r, t, v)
                            new[i] = k.fma(x, taps[kx][v], new[i])
            return new

        if not kernel.row_checks:
            return add()
        return k.choose(k.b.icmp_unsigned("<", row, self.p["height"]), add, lambda: list(sums))

    def _load(self, row: ir.Value, column: int, span: Span, inside: Flag) -> ir.Value:
        """The input vector of a column, or zeros."""
        k, kernel = self.k, self.kernel
        place = k.offset(row, column * kernel.pitch, kernel.dtype)
        if kernel.multiplier > 1:
            return self._load_repeated(place, span, inside)
        place = k.offset(place, span.start, kernel.dtype)
        if inside is not True:
            place = k.b.select(inside, place, self.zeros)
        return self._widened(k.load(place, kernel.dtype, k.lanes, mask=span.mask), k.lanes, inside)

    def _widened(self, x: ir.Value, lanes: int, inside: Flag) -> ir.Value:
        """An input vector as it is multiplied; zeros where it is outside the image."""
        if not self.bytes:
            return x
        k = self.k
        wide = cast(k, x, self.kernel.dtype, self.wide, lanes)
        wide = k.b.fsub(wide, k.splat(self.zero, lanes))
        return wide if inside is True else k.b.select(inside, wide, k.zero(self.wide, lanes))

    def _load_repeated(self, row: ir.Value, span: Span, inside: Flag) -> ir.Value:
        """The inputs of consecutive output channels: each channel as often as it has outputs."""
        k, kernel = self.k, self.kernel
        many, lanes = kernel.multiplier, k.lanes
        if lanes % many == 0 and span.mask is None:
            place = k.offset(row, k.b.udiv(k.i64(span.start), k.i64(many)), kernel.dtype)
            if inside is not True:
                place = k.b.select(inside, place, self.zeros)
            few = lanes // many
            if few == 1:
                return k.splat(self._widened(k.load(place, kernel.dtype), 1, inside), lanes)
            x = self._widened(k.load(place, kernel.dtype, few), few, inside)
            order = ir.Constant(
                ir.VectorType(I32, lanes), [I32(lane // many) for lane in range(lanes)]
            )
            return k.b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), order)
        x = k.zero(self.wide, lanes)
        last = k.sub(self.p["channels"], 1)
        for lane in range(lanes):
            channel = k.min(k.add(span.start, lane), last)
            place = k.offset(row, k.b.udiv(k.i64(channel), k.i64(many)), kernel.dtype)
            if inside is not True:
                place = k.b.select(inside, place, self.zeros)
            element = self._widened(k.load(place, kernel.dtype), 1, inside)
            x = k.b.insert_element(x, element, I32(lane))
        return x

    def _store(
        self, sums: Sequence[ir.Value], fixed: Sequence[Sequence[Any]], reads: Any, writes: Any
    ) -> None:
        k, kernel = self.k, self.kernel
        for v, span in enumerate(self.spans):
            loaded = self.reads.load(reads, span, fixed[v])
            total = sums[v]
            if self.bytes and self.expression is kernel.expression:
                total = k.b.fptosi(total, register_type(DType.INT32, k.lanes))
            results = apply(k, self.expression, loaded, [total], kernel.accesses, k.lanes)
            self.writes.store(writes, span, results)


def _of_floats(expression: Expression) -> Expression:
    """The expression for sums that are floats already, where all it does with integer ones is to
    make floats of them.
    """
    leaves = enumerate(expression.leaves)
    slot = next(i for i, x in leaves if x.dtype is DType.INT32 and x.constant is None)
    readers = [step.op for step in expression.instructions if slot in step.args]
    conversions = (Cast(DType.FLOAT32), Dequantize())
    if slot in expression.results or not all(op in conversions for op in readers):
        return expression
    new = list(expression.leaves)
    new[slot] = Leaf(DType.FLOAT32)
    return replace(expression, leaves=tuple(new))


def _taps(
    outputs: int, stride: int, window: int, dilation: int
) -> dict[int, list[tuple[int, int]]]:
    """For each input position of a tile, the (output, tap) pairs it contributes to."""
    positions: dict[int, list[tuple[int, int]]] = {}
    for output in range(outputs):
        for tap in range(window):
            positions.setdefault(output * stride + tap * dilation, []).append((output, tap))
    return dict(sorted(positions.items()))


def _both(k: KernelBuilder, a: Flag, b: Flag) -> Flag:
    if a is True or b is True:
        return b if a is True else a
    return k.b.and_(a, b)
