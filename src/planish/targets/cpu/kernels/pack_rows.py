"""Copies the input rows under a task's pixels into its scratch memory, zeros around them included.

What the matrix kernel does where its activations cannot be read in place; a prologue is applied on
the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernels.epilogue import Arguments, Operand

F32 = DType.FLOAT32

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
class Region:
    """The pixels of a task: a batch, a group, and from which row and column to which."""

    batch: ir.Value
    group: ir.Value
    row0: ir.Value
    row1: ir.Value
    column0: ir.Value
    column1: ir.Value


class RowPacker:
    """Writes the copy. `params` are those named in `PACK_PARAMS`."""

    element = F32
    """What scratch holds."""

    def __init__(
        self, k: KernelBuilder, pack: Pack, params: dict[str, ir.Value], arguments: Arguments
    ) -> None:
        self.k, self.kind, self.p = k, pack, params
        self.before = arguments.lies(pack.operands)

    def write(self, source: ir.Value, at: Region) -> None:
        """Copies the input rows under the task's pixels into scratch, with zeros around them."""
        k, p, pack = self.k, self.p, self.kind
        rows = k.sub(at.row1, at.row0)
        columns = k.sub(at.column1, at.column0)
        height = k.add(k.mul(k.sub(rows, 1), p["rows_per_row"]), p["halo_rows"])
        width = k.add(k.mul(k.sub(columns, 1), pack.columns_per_column), p["halo_columns"])
        first_row = k.sub(k.mul(at.row0, p["stride_rows"]), p["pad_top"])
        first_column = k.sub(k.mul(at.column0, p["stride_columns"]), p["pad_left"])

        def columns_before(limit: Any) -> ir.Value:
            """Scratch columns that lie left of an input column, at most all."""
            span = k.max(k.sub(limit, first_column), 0)
            count, _ = k.divmod(k.add(span, pack.column_unit - 1), pack.column_unit)
            return k.min(count, width)

        inside0, inside1 = columns_before(0), columns_before(p["width"])
        with k.loop(0, height) as loop:
            y = k.add(first_row, k.mul(loop.index, p["row_unit"]))
            row = k.offset(k.scratch, k.mul(loop.index, p["scratch_row"]), self.element)
            valid = k.b.icmp_unsigned("<", y, p["height"])  # unsigned: negative rows fail too
            low = k.b.select(valid, inside0, width)
            high = k.b.select(valid, inside1, width)
            self._zero(row, k.mul(low, pack.pitch))
            start = k.mul(k.add(first_column, k.mul(low, pack.column_unit)), p["source_pixel"])
            start = k.add(start, k.mul(y, p["source_row"]))
            self._copy_pixels(
                k.offset(source, start, pack.dtype),
                k.offset(row, k.mul(low, pack.pitch), self.element),
                k.sub(high, low),
                y,
                k.add(first_column, k.mul(low, pack.column_unit)),
                at,
            )
            end = k.offset(row, k.mul(high, pack.pitch), self.element)
            self._zero(end, k.mul(k.sub(width, high), pack.pitch))

    def _zero(self, pointer: ir.Value, count: ir.Value) -> None:
        over_vectors(
            self.k,
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
        self, source: Any, target: Any, count: Any, y: Any, x: Any, region: Region
    ) -> None:
        k, p, pack = self.k, self.p, self.kind

        def copy(at: ir.Value, mask: ir.Value | None, s: Any = source, t: Any = target) -> None:
            value = k.load(k.offset(s, at, F32), F32, k.lanes, mask=mask)
            k.store(value, k.offset(t, at, F32), F32, k.lanes, mask=mask)

        if pack.contiguous:
            over_vectors(k, k.mul(count, pack.pitch), copy)
            return
        with k.loop(0, count) as pixels:
            away = k.mul(k.mul(pixels.index, pack.column_unit), p["source_pixel"])
            s = k.offset(source, away, pack.dtype)
            t = k.offset(target, k.mul(pixels.index, pack.pitch), F32)
            if pack.prologue is None:
                over_vectors(k, pack.depth, lambda at, mask: copy(at, mask, s, t))
            else:
                column = k.add(x, k.mul(pixels.index, pack.column_unit))
                self._apply(pack.prologue, s, t, y, column, region)

    def _apply(
        self, prologue: Expression, source: Any, target: Any, y: Any, x: Any, region: Region
    ) -> None:
        """Applies the prologue to the channels of a pixel."""
        k, pack = self.k, self.kind

        def leaf_at(index: int, at: Any, mask: ir.Value | None) -> ir.Value | None:
            operand, lie = pack.operands[index], self.before[index]
            if prologue.leaves[index].constant is not None:
                return None
            if operand is None or lie is None:
                return k.load(k.offset(source, at, pack.dtype), pack.dtype, k.lanes, mask=mask)
            where = lie.start(k, region.batch, region.group, y, x)
            if operand.channel_stride == 0:
                element = k.load(k.offset(lie.pointer, where, operand.dtype), operand.dtype)
                return k.splat(element, k.lanes)
            pointer = k.offset(lie.pointer, k.add(where, at), operand.dtype)
            return k.load(pointer, operand.dtype, k.lanes, mask=mask)

        def apply(at: Any, mask: ir.Value | None) -> None:
            leaves = [leaf_at(index, at, mask) for index in range(len(prologue.leaves))]
            (result,) = emit(k, prologue, leaves, k.lanes)
            k.store(result, k.offset(target, at, F32), F32, k.lanes, mask=mask)

        over_vectors(k, pack.depth, apply)


def over_vectors(
    k: KernelBuilder, count: int | ir.Value, body: Callable[..., None], masked: bool = True
) -> None:
    """Calls ``body(at, mask)`` for each vector of `count` elements; the last is masked, unless
    there are whole vectors only.
    """
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
    elif masked:
        with k.when(k.b.icmp_signed(">", rest, I64(0))):
            body(whole, k.tail_mask(rest, k.lanes))


def in_pieces(
    k: KernelBuilder, count: int | ir.Value, body: Callable[[Any, int], None], widest: int
) -> None:
    """Calls ``body(at, lanes)`` so that `count` elements are covered, none beyond touched; of up to
    `widest` lanes at a time.

    Masked loads and stores of bytes are slow where there is no AVX-512.
    """
    if isinstance(count, int):
        whole: Any = count // widest * widest
    else:
        whole = k.b.and_(count, k.i64(-widest))
    with k.loop(0, whole, widest) as loop:
        body(loop.index, widest)
    if not isinstance(count, int):
        with k.loop(whole, count) as rest:
            body(rest.index, 1)
        return
    lanes = widest
    while whole < count:
        lanes //= 2
        if whole + lanes <= count:
            body(k.i64(whole), lanes)
            whole += lanes
