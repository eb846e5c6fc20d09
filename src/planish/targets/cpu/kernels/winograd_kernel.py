"""Winograd convolution as one kernel: a task is a block of tiles of the image, and all it takes.

A task transforms the patches under its tiles into its scratch memory ``[position][tile][depth]``,
multiplies each position's matrix by the weights of that position (a register tile, as in the matrix
kernel) into ``[position][tile][channel]``, and transforms the products into pixels, which the
epilogue finishes. With few enough tiles all of that stays in the second-level cache: the image is
read once and the result written once. Each position's weights are read once per task.

Where a patch leaves the image it is copied first, with zeros around it; where a tile leaves the
result its pixels are stored one by one. Transforms: see `winograd_transform`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast
from planish.targets.cpu.codegen.dot import HALVES, PAIRS
from planish.targets.cpu.codegen.types import register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.dot_gemm import DotTile
from planish.targets.cpu.kernels.epilogue import Arguments, Epilogue, Lie, Operand
from planish.targets.cpu.kernels.pack_rows import in_pieces, over_vectors
from planish.targets.cpu.kernels.register_tile import Later, RegisterTile
from planish.targets.cpu.kernels.winograd_transform import Matrix, Transform, apply, divide

F32 = DType.FLOAT32

PARAMS = (
    "channels",
    "blocks",  # channel blocks
    "blocks_per_task",
    "channel_tasks",  # tasks the blocks are split into: the fastest part of the task index
    "tiles",  # of all images
    "tiles_per_task",
    "image_tiles",
    "row_tiles",  # tiles side by side
    "height",
    "width",
    "rows",
    "columns",
    "pad_top",
    "pad_left",
    "source_batch",  # strides in elements
    "source_row",
    "source_pixel",
    "patch",  # parts of the scratch memory, in elements from its start: a patch with its border,
    "edge",  # a tile of results,
    "products",  # products; transformed patches lie at 0
    "source_position",  # elements from one position to the next in transformed patches,
    "product_position",  # and in products
    "product_tile",
    "zero",  # the zero point of bytes
)


@dataclass(frozen=True)
class WinogradKernel(CpuKernel):
    """One specialisation.

    Attributes
    ----------
    down, along : Transform
        Of rows, and of columns.
    depth : int
        Input channels.
    pitch : int
        Elements from one transformed tile to the next: whole vectors.
    pixels, vectors : int
        The register tile: tiles, and vectors of channels.
    masked : bool
        Whether the last vector of channels may be partial.
    unroll, prefetch : int
        See `RegisterTile`.
    tiles : int
        Over so many register tiles the weights of the next block are asked for; 0: not at all.
    epilogue : Expression
    operands : tuple
        For each leaf of the epilogue an `Operand`, or None for the accumulator and constants.
    source : DType
        Of the image: FLOAT32, BFLOAT16, UINT8 or INT8. Transforms of bytes are exact, in int16 and
        int32, others float32.
    factor : DType
        Of transformed patches and weights: FLOAT32, BFLOAT16, or INT16 of bytes.
    """

    family: ClassVar[str] = "winograd"
    down: Transform
    along: Transform
    depth: int
    pitch: int
    pixels: int
    vectors: int
    masked: bool
    unroll: int
    prefetch: int
    tiles: int
    epilogue: Expression
    operands: tuple[Operand | None, ...]
    source: DType = F32
    factor: DType = F32

    def write(self, k: KernelBuilder) -> None:
        """Pointers: source, weights, outputs, epilogue operands."""
        _Writer(self, k).write()

    @property
    def sums(self) -> DType:
        """Of products, and of what the epilogue is given."""
        return F32 if self.factor.is_float else DType.INT32


def register_tile(kernel: WinogradKernel) -> RegisterTile:
    """The inner loop of the products."""
    sizes = kernel.pixels, kernel.vectors, kernel.depth, kernel.pitch
    if kernel.factor is F32:
        return RegisterTile(*sizes, kernel.unroll, kernel.prefetch)
    dot = HALVES if kernel.factor.is_float else PAIRS
    return DotTile(*sizes, kernel.unroll, kernel.prefetch, dot)


@dataclass(frozen=True)
class _Tile:
    """Where a tile of results lies: its image, and its first row and column."""

    image: ir.Value
    row: ir.Value
    column: ir.Value


class _Writer:
    """Writes a `WinogradKernel`."""

    def __init__(self, kernel: WinogradKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        arguments = Arguments(k)
        self.p = arguments.params(PARAMS)
        self.source, self.weights = arguments.pointer(), arguments.pointer()
        self.epilogue = Epilogue(k, arguments, kernel.epilogue, kernel.operands)
        self.products = k.offset(k.scratch, self.p["products"], kernel.sums)
        self.positions = kernel.down.size * kernel.along.size

    def write(self) -> None:
        k, p = self.k, self.p
        with k.loop(k.begin, k.end, carried=[k.i64(-1)]) as loop:
            place, part = k.divmod(loop.index, p["channel_tasks"])
            first = k.mul(place, p["tiles_per_task"])
            tiles = k.min(k.sub(p["tiles"], first), p["tiles_per_task"])
            with k.when(k.b.icmp_signed("!=", place, loop.carried[0])), k.loop(0, tiles) as tile:
                self._transform_source(self._tile(k.add(first, tile.index)), tile.index)
            loop.next = [place]
            block0 = k.mul(part, p["blocks_per_task"])
            block1 = k.min(k.add(block0, p["blocks_per_task"]), p["blocks"])
            self._multiply(tiles, block0, block1)
            with k.loop(0, tiles) as tile:
                self._transform_products(
                    self._tile(k.add(first, tile.index)), tile.index, block0, block1
                )

    def _tile(self, index: ir.Value) -> _Tile:
        k, p, kernel = self.k, self.p, self.kernel
        image, rest = k.divmod(index, p["image_tiles"])
        row, column = k.divmod(rest, p["row_tiles"])
        return _Tile(image, k.mul(row, kernel.down.results), k.mul(column, kernel.along.results))

    # ---- source -------------------------------------------------------------------------------

    def _transform_source(self, tile: _Tile, index: ir.Value) -> None:
        """Transforms the patch under a tile."""
        k, p, kernel = self.k, self.p, self.kernel
        y, x = k.sub(tile.row, p["pad_top"]), k.sub(tile.column, p["pad_left"])
        image = k.offset(self.source, k.mul(tile.image, p["source_batch"]), kernel.source)
        inside = k.b.and_(
            self._within(y, kernel.down.size, p["height"]),
            self._within(x, kernel.along.size, p["width"]),
        )
        patch = k.offset(k.scratch, p["patch"], F32)
        with k.when(k.b.not_(inside)):
            self._copy_patch(image, y, x, patch)
        corner = k.add(k.mul(y, p["source_row"]), k.mul(x, p["source_pixel"]))
        start = k.b.select(inside, k.offset(image, corner, kernel.source), patch)
        down = k.b.select(inside, p["source_row"], k.i64(kernel.along.size * kernel.pitch))
        along = k.b.select(inside, p["source_pixel"], k.i64(kernel.pitch))
        factor = kernel.factor
        target = k.offset(k.scratch, k.mul(index, kernel.pitch), factor)

        def transform(at: Any, lanes: int, mask: ir.Value | None = None) -> None:
            def load(i: int, j: int) -> ir.Value:
                where = k.add(at, k.add(k.mul(down, i), k.mul(along, j)))
                place = k.offset(start, where, kernel.source)
                value = k.load(place, kernel.source, lanes, mask=mask)
                return value if factor.is_float else self._centred(value, lanes)

            def store(n: int, value: ir.Value) -> None:
                where = k.add(at, k.mul(p["source_position"], n))
                k.store(value, k.offset(target, where, factor), factor, lanes)

            self._both(kernel.down.source, kernel.along.source, load, store)

        self._along_depth(transform, 2 * k.lanes)

    def _along_depth(self, body: Callable[..., None], widest: int) -> None:
        """Calls ``body(at, lanes, mask)`` along a pixel's channels: bytes without a mask, and up to
        `widest` of them at a time.
        """
        k, kernel = self.k, self.kernel
        if kernel.factor.is_float:
            over_vectors(k, kernel.depth, lambda at, mask: body(at, k.lanes, mask))
        else:
            in_pieces(k, kernel.depth, body, widest)

    def _centred(self, value: ir.Value, lanes: int) -> ir.Value:
        """Bytes less their zero point, int16."""
        k, kernel = self.k, self.kernel
        wide = cast(k, value, kernel.source, kernel.factor, lanes)
        zero = k.b.trunc(self.p["zero"], register_type(kernel.factor))
        return k.b.sub(wide, k.splat(zero, lanes))

    def _within(self, first: ir.Value, count: int, limit: ir.Value) -> ir.Value:
        k = self.k
        return k.b.and_(
            k.b.icmp_signed(">=", first, k.i64(0)),
            k.b.icmp_signed("<=", k.add(first, count), limit),
        )

    def _copy_patch(self, image: ir.Value, y: ir.Value, x: ir.Value, patch: ir.Value) -> None:
        """Copies a patch that leaves the image, zeros (or zero points) for the rest."""
        k, p, kernel = self.k, self.p, self.kernel
        dtype = kernel.source
        with k.loop(0, kernel.down.size) as rows, k.loop(0, kernel.along.size) as columns:
            row, column = k.add(y, rows.index), k.add(x, columns.index)
            place = k.add(k.mul(rows.index, kernel.along.size), columns.index)
            target = k.offset(patch, k.mul(place, kernel.pitch), dtype)
            start = k.add(k.mul(row, p["source_row"]), k.mul(column, p["source_pixel"]))
            source = k.offset(image, start, dtype)
            # unsigned: what lies before the image fails too
            valid = k.b.and_(
                k.b.icmp_unsigned("<", row, p["height"]),
                k.b.icmp_unsigned("<", column, p["width"]),
            )

            def copy(at: Any, lanes: int, mask: ir.Value | None = None) -> None:
                value = k.load(k.offset(source, at, dtype), dtype, lanes, mask=mask)
                k.store(value, k.offset(target, at, dtype), dtype, lanes)

            def clear(at: Any, lanes: int, mask: ir.Value | None = None) -> None:
                nothing = k.zero(dtype, lanes)
                if not dtype.is_float:
                    nothing = k.splat(k.b.trunc(p["zero"], register_type(dtype)), lanes)
                k.store(nothing, k.offset(target, at, dtype), dtype, lanes)

            along = partial(self._along_depth, widest=4 * k.lanes)
            k.choose(valid, partial(along, copy), partial(along, clear))

    # ---- products -----------------------------------------------------------------------------

    def _multiply(self, tiles: ir.Value, block0: ir.Value, block1: ir.Value) -> None:
        """Multiplies every position's tiles by its weights."""
        k, p, kernel = self.k, self.p, self.kernel
        width = kernel.vectors * k.lanes
        tile = register_tile(kernel)
        factor = kernel.factor
        # the last register tile overlaps the one before; scratch has room for one where there is
        # none before
        last = k.max(k.sub(tiles, kernel.pixels), 0)
        with k.loop(0, self.positions) as position, k.loop(block0, block1) as block:
            weights = self._weights(tile, position.index, block.index)
            following = k.add(block.index, 1)
            ends = k.b.icmp_signed("==", following, block1)
            following = self._weights(
                tile,
                k.b.select(ends, k.add(position.index, 1), position.index),
                k.b.select(ends, block0, following),
            )
            column = k.mul(k.sub(block.index, block0), width)
            source = k.offset(k.scratch, k.mul(position.index, p["source_position"]), factor)
            to = k.add(k.mul(position.index, p["product_position"]), column)
            target = k.offset(self.products, to, kernel.sums)
            with k.loop(0, tiles, kernel.pixels) as loop:
                first = k.min(loop.index, last)
                here = k.offset(source, k.mul(first, kernel.pitch), factor)
                later = None
                if kernel.tiles:
                    begin = k.divmod(loop.index, kernel.pixels)[0]
                    later = Later.share(k, tile, following, begin, kernel.tiles)
                sums = tile.add(k, here, weights, tile.zeros(k), later)
                for i in range(kernel.pixels):
                    row = k.mul(k.add(first, i), p["product_tile"])
                    for v in range(kernel.vectors):
                        out = k.offset(target, k.add(row, v * k.lanes), kernel.sums)
                        k.store(sums[i * kernel.vectors + v], out, kernel.sums, k.lanes)

    def _weights(self, tile: RegisterTile, position: ir.Value, block: ir.Value) -> ir.Value:
        k = self.k
        number = k.add(k.mul(position, self.p["blocks"]), block)
        return k.offset(self.weights, k.mul(number, tile.weights_of_run(k)), self.kernel.factor)

    def _transform_products(
        self, tile: _Tile, index: ir.Value, block0: ir.Value, block1: ir.Value
    ) -> None:
        """Transforms the products of a tile into pixels, and finishes them."""
        k, p, kernel = self.k, self.p, self.kernel
        down, along = kernel.down.results, kernel.along.results
        width = kernel.vectors * k.lanes
        first = k.mul(block0, width)
        dtype = kernel.sums
        source = k.offset(self.products, k.mul(index, p["product_tile"]), dtype)
        starts = self.epilogue.at(tile.image, k.i64(0), tile.row, tile.column)
        rows = k.min(k.sub(p["rows"], tile.row), down)
        columns = k.min(k.sub(p["columns"], tile.column), along)
        whole = k.b.and_(
            k.b.icmp_signed("==", rows, k.i64(down)), k.b.icmp_signed("==", columns, k.i64(along))
        )
        edge = k.offset(k.scratch, p["edge"], dtype)

        def transform(at: ir.Value, mask: ir.Value | None) -> None:
            channel = k.add(first, at)
            results: list[ir.Value] = []

            def load(i: int, j: int) -> ir.Value:
                position = k.mul(p["product_position"], i * kernel.along.size + j)
                return k.load(k.offset(source, k.add(at, position), dtype), dtype, k.lanes)

            def result(_: int, value: ir.Value) -> None:
                exact = kernel.factor is DType.INT16
                results.append(divide(k, value, kernel.down, kernel.along) if exact else value)

            def finish() -> None:
                for n, value in enumerate(results):
                    shift = partial(self._away, *divmod(n, along))
                    self.epilogue.apply(starts, shift, channel, value, mask)

            def finish_some() -> None:
                for n, value in enumerate(results):
                    k.store(value, k.offset(edge, n * k.lanes, dtype), dtype, k.lanes)
                with k.loop(0, rows) as row, k.loop(0, columns) as column:
                    place = k.add(k.mul(row.index, along), column.index)
                    value = k.load(k.offset(edge, k.mul(place, k.lanes), dtype), dtype, k.lanes)
                    shift = partial(self._away, row.index, column.index)
                    self.epilogue.apply(starts, shift, channel, value, mask)

            self._both(kernel.down.result, kernel.along.result, load, result)
            k.choose(whole, finish, finish_some)

        count = k.min(k.sub(p["channels"], first), k.mul(k.sub(block1, block0), width))
        over_vectors(k, count, transform, masked=kernel.masked)

    def _away(self, row: Any, column: Any, lie: Lie) -> ir.Value:
        return self.k.add(self.k.mul(lie.row, row), self.k.mul(lie.column, column))

    def _both(self, down: Matrix, along: Matrix, load: Any, store: Any) -> None:
        """Transforms columns, then rows: ``store(n, value)`` for each element of the result."""
        columns = [
            apply(self.k, down, [load(i, j) for i in range(len(down[0]))])
            for j in range(len(along[0]))
        ]
        for i in range(len(down)):
            row = apply(self.k, along, [column[i] for column in columns])
            for j, value in enumerate(row):
                store(i * len(row) + j, value)
