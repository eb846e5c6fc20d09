"""Loop nests whose operands lie in memory along different axes: transposes in registers.

Two kernels read and write whole vectors on both sides. `TileKernel` transposes square tiles by
shuffles. `InterleaveKernel` serves two to four rows, as in images of three channels: it takes the
channels of several pixels apart, or puts them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.kernels.nest import (
    INTERLEAVED,
    RUN_TIME,
    TRANSPOSED,
    Access,
    Block,
    NestKernel,
    Operand,
    Place,
    can_mask,
)
from planish.targets.cpu.kernels.space import TASK_BYTES, Space, even_block, register_bytes

_NARROW = (2, 3, 4)
"""Row counts that `InterleaveKernel` serves."""


def choose_kernel(
    expression: Expression, space: Space
) -> tuple[NestKernel, Space, int, int] | None:
    """The kernel for a space, with its axes as the kernel wants them, and its blocks of rows and
    columns; None where the plain loop is right.
    """
    if any(o.terms or o.pointer is None for o in space.operands()):
        return None
    return _choose_interleave(expression, space) or _choose_tile(expression, space)


# ---- tiles ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class TileKernel(NestKernel):
    """Tiles of as many rows as columns; some inputs lie along the rows."""

    family = "tile"

    def block(
        self, k: KernelBuilder, block: Block, inputs: list[Place | None], outputs: list[Place]
    ) -> None:
        size = self._size(k)
        with k.loop(block.column, block.column_end, size) as columns:  # noqa: SIM117
            with k.loop(block.row, block.row_end, size) as rows:
                rest_rows = k.sub(block.row_end, rows.index)
                rest_columns = k.sub(block.column_end, columns.index)
                inside = k.b.and_(
                    k.b.icmp_signed("<=", k.i64(size), rest_rows),
                    k.b.icmp_signed("<=", k.i64(size), rest_columns),
                )
                tile = Block(rows.index, rest_rows, columns.index, rest_columns)
                k.choose(
                    inside,
                    lambda: self._tile(k, tile, inputs, outputs, size, False),
                    lambda: self._edge(k, tile, inputs, outputs, size),
                )

    def _size(self, k: KernelBuilder) -> int:
        """Lanes of a tile: what a register holds, and at most 16, for as many registers."""
        element = max(a.dtype.size for a in (*self.inputs, *self.outputs) if a)
        return min(4 * k.lanes // element, 16)

    def _edge(
        self,
        k: KernelBuilder,
        tile: Block,
        inputs: list[Place | None],
        outputs: list[Place],
        size: int,
    ) -> list[ir.Value]:
        """A tile that is cut off: masked, or element by element."""
        if can_mask(k, (*self.inputs, *self.outputs)):
            return self._tile(k, tile, inputs, outputs, size, True)
        rows = k.min(tile.row_end, size)
        columns = k.min(tile.column_end, size)
        with k.loop(0, rows) as row:
            index = k.add(tile.row, row.index)
            sources = [p and p.row(index) for p in inputs]
            targets = [p.row(index) for p in outputs]
            with k.loop(0, columns) as column:
                at = k.add(tile.column, column.index)
                leaves = [p and p.load(at, 1) for p in sources]
                for value, target in zip(emit(k, self.expression, leaves, 1), targets, strict=True):
                    target.store(value, at, 1)
        return []

    def _tile(
        self,
        k: KernelBuilder,
        tile: Block,
        inputs: list[Place | None],
        outputs: list[Place],
        size: int,
        masked: bool,
    ) -> list[ir.Value]:
        """A tile; `row_end` and `column_end` count its rows and columns."""
        row_mask = k.tail_mask(tile.row_end, size) if masked else None
        column_mask = k.tail_mask(tile.column_end, size) if masked else None
        count = tile.column_end if masked else None
        turned: list[list[ir.Value] | None] = []
        for place in inputs:
            if place is None or place.access.step != TRANSPOSED:
                turned.append(None)
                continue
            lines = []
            for i in range(size):
                # beyond the edge the last column is read again
                step = k.min(i, k.sub(tile.column_end, 1)) if masked else i
                lines.append(_along_rows(place, tile.row, k.add(tile.column, step), size, row_mask))
            turned.append(transpose_registers(k, lines))

        def one_row(i: int) -> None:
            index = k.add(tile.row, i)
            leaves: list[ir.Value | None] = []
            for place, lines in zip(inputs, turned, strict=True):
                if place is None:
                    leaves.append(None)
                elif lines is not None:
                    leaves.append(k.from_memory(lines[i], place.access.dtype, size))
                else:
                    leaves.append(place.row(index).load(tile.column, size, column_mask, count))
            for value, target in zip(emit(k, self.expression, leaves, size), outputs, strict=True):
                target.row(index).store(value, tile.column, size, column_mask)

        for i in range(size):
            if masked and i:
                with k.when(k.b.icmp_signed("<", k.i64(i), tile.row_end)):
                    one_row(i)
            else:
                one_row(i)
        return []


def _along_rows(
    place: Place, row: ir.Value, column: ir.Value, lanes: int, mask: ir.Value | None
) -> ir.Value:
    """A vector along the rows of a transposed operand, in memory's form."""
    tensor = place.tensor
    k, dtype = tensor.k, place.access.dtype
    offset = k.add(place.offset, k.add(row, k.mul(column, tensor.strides[-1])))
    assert tensor.pointer is not None
    return k.load_raw(k.offset(tensor.pointer, offset, dtype), dtype, lanes, mask=mask)


def transpose_registers(k: KernelBuilder, lines: Sequence[ir.Value]) -> list[ir.Value]:
    """As many vectors as they have lanes, transposed.

    Blocks off the diagonal change places, first single elements, then pairs, and so on (J. O.
    Eklundh, "A fast computer method for matrix transposing", IEEE Trans. Computers C-21, 1972).
    """
    lines, size, block = list(lines), len(lines), 1
    while block < size:
        turned = list(lines)
        for i in range(size):
            if i & block:
                continue
            upper, lower = lines[i], lines[i + block]
            first = [n if not n & block else size + n - block for n in range(size)]
            second = [size + n if n & block else n + block for n in range(size)]
            turned[i] = k.shuffle(upper, lower, first)
            turned[i + block] = k.shuffle(upper, lower, second)
        lines, block = turned, 2 * block
    return lines


def _choose_tile(expression: Expression, space: Space) -> tuple[NestKernel, Space, int, int] | None:
    """Tiles, if an input lies along another axis than the outputs."""
    rank = len(space.shape)
    if any(o.strides[-1] != 1 for o in space.outputs) or space.shape[-1] < 2:
        return None
    across = [o for o in space.inputs if o and o.strides[-1] not in (0, 1)]
    for operand in across:
        for axis in range(rank - 1):
            if operand.strides[axis] == 1 and space.shape[axis] > 1:
                axes = [a for a in range(rank - 1) if a != axis] + [axis, rank - 1]
                turned = space.map_axes(axes)
                accesses = [None if o is None else _tile_access(o) for o in turned.inputs]
                outputs = tuple(Access(o.dtype, 1) for o in turned.outputs)
                kernel = TileKernel(expression, rank, tuple(accesses), outputs)
                rows, columns = turned.shape[-2:]
                row_block = even_block(rows, 128, 16)
                points = TASK_BYTES // space.bytes_per_point
                return kernel, turned, row_block, even_block(columns, points // row_block, 16)
    return None


def _tile_access(operand: Operand) -> Access:
    row, column = operand.strides[-2:]
    if column in (0, 1):
        return Access(operand.dtype, column)
    return Access(operand.dtype, TRANSPOSED if row == 1 else RUN_TIME)


# ---- few rows ------------------------------------------------------------------------------


@dataclass(frozen=True)
class InterleaveKernel(NestKernel):
    """All of two to four rows at once, columns in vectors."""

    family = "interleave"

    count: int = 3

    def block(
        self, k: KernelBuilder, block: Block, inputs: list[Place | None], outputs: list[Place]
    ) -> None:
        lanes = self._lanes(k)
        with k.loop(block.column, self._full(k, block, lanes), lanes) as loop:
            self._columns(k, loop.index, inputs, outputs, lanes)
        with k.loop(self._full(k, block, lanes), block.column_end) as loop:
            for row in range(self.count):
                leaves = [p and p.row(row).load(loop.index, 1) for p in inputs]
                values = emit(k, self.expression, leaves, 1)
                for value, place in zip(values, outputs, strict=True):
                    place.row(row).store(value, loop.index, 1)

    def _full(self, k: KernelBuilder, block: Block, lanes: int) -> ir.Value:
        extent = k.sub(block.column_end, block.column)
        return k.add(block.column, k.sub(extent, k.b.urem(extent, k.i64(lanes))))

    def _lanes(self, k: KernelBuilder) -> int:
        sizes = [register_bytes(leaf.dtype) for leaf in self.expression.leaves]
        sizes += [register_bytes(step.dtype) for step in self.expression.instructions]
        return max(4 * k.lanes // max(sizes), 1)

    def _columns(
        self,
        k: KernelBuilder,
        column: ir.Value,
        inputs: list[Place | None],
        outputs: list[Place],
        lanes: int,
    ) -> None:
        apart = [
            self._take_apart(k, p, column, lanes) if p and p.access.step == INTERLEAVED else None
            for p in inputs
        ]
        results: list[list[ir.Value]] = []
        for row in range(self.count):
            leaves = [
                rows[row] if rows else p and p.row(row).load(column, lanes)
                for p, rows in zip(inputs, apart, strict=True)
            ]
            results.append(emit(k, self.expression, leaves, lanes))
        for number, place in enumerate(outputs):
            values = [r[number] for r in results]
            if place.access.step == INTERLEAVED:
                self._put_together(k, place, column, values, lanes)
            else:
                for row, value in enumerate(values):
                    place.row(row).store(value, column, lanes)

    def _take_apart(
        self, k: KernelBuilder, place: Place, column: ir.Value, lanes: int
    ) -> list[ir.Value]:
        dtype, n = place.access.dtype, self.count
        start = self._start(k, place, column)
        parts = [k.load_raw(k.offset(start, lanes * i, dtype), dtype, lanes) for i in range(n)]
        rows = []
        for row in range(n):
            wanted = [lane * n + row for lane in range(lanes)]
            rows.append(k.from_memory(_pick(k, parts, wanted, lanes), dtype, lanes))
        return rows

    def _put_together(
        self, k: KernelBuilder, place: Place, column: ir.Value, values: list[ir.Value], lanes: int
    ) -> None:
        dtype, n = place.access.dtype, self.count
        start = self._start(k, place, column)
        raw = [k.to_memory(v, dtype, lanes) for v in values]
        for i in range(n):
            places = range(i * lanes, (i + 1) * lanes)
            mixed = _pick(k, raw, [p % n * lanes + p // n for p in places], lanes)
            k.store_raw(mixed, k.offset(start, lanes * i, dtype), dtype)

    def _start(self, k: KernelBuilder, place: Place, column: ir.Value) -> ir.Value:
        assert place.tensor.pointer is not None
        offset = k.add(place.offset, k.mul(column, self.count))
        return k.offset(place.tensor.pointer, offset, place.access.dtype)


def _pick(k: KernelBuilder, parts: Sequence[ir.Value], wanted: Sequence[int], lanes: int):
    """The wanted elements of several vectors, as if these were one."""
    result = parts[0]
    for number in range(1, len(parts)):
        mask = []
        for lane, source in enumerate(wanted):
            part, element = divmod(source, lanes)
            if part == number:
                mask.append(lanes + element)
            elif number == 1:
                mask.append(element)  # right for part 0, anything for later parts
            else:
                mask.append(lane)
        result = k.shuffle(result, parts[number], mask)
    return result


def _choose_interleave(
    expression: Expression, space: Space
) -> tuple[NestKernel, Space, int, int] | None:
    """The interleaving kernel, if two axes are the few rows and the columns of an operand."""
    rank = len(space.shape)
    operands = space.operands()
    for axis in range(rank):
        count = space.shape[axis]
        if count not in _NARROW:
            continue
        for column in range(rank):
            if column == axis or space.shape[column] < 16:
                continue
            steps = [_interleave_step(o, axis, column, count) for o in operands]
            if INTERLEAVED not in steps or None in steps:
                continue
            if any(_interleave_step(o, axis, column, count) == 0 for o in space.outputs):
                continue
            axes = [a for a in range(rank) if a not in (axis, column)] + [axis, column]
            turned = space.map_axes(axes)

            def access(operand: Operand) -> Access:
                step = _interleave_step(operand, rank - 2, rank - 1, count)  # noqa: B023
                assert step is not None
                return Access(operand.dtype, step)

            kernel = InterleaveKernel(
                expression,
                rank,
                tuple(None if o is None else access(o) for o in turned.inputs),
                tuple(access(o) for o in turned.outputs),
                count,
            )
            points = TASK_BYTES // space.bytes_per_point // count
            return kernel, turned, count, even_block(turned.shape[-1], points, 64)
    return None


def _interleave_step(operand: Operand, axis: int, column: int, count: int) -> int | None:
    """How an operand lies with regard to rows and columns; None if in no way that is served."""
    row, step = operand.strides[axis], operand.strides[column]
    if step in (0, 1):
        return step
    return INTERLEAVED if (row, step) == (1, count) else None
