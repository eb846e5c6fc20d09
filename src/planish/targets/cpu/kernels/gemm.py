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
from functools import partial
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.epilogue import Arguments, Epilogue, Lie, Operand
from planish.targets.cpu.kernels.pack_rows import PACK_PARAMS, Pack, Region, RowPacker
from planish.targets.cpu.kernels.register_tile import Later, RegisterTile

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
    columns_apart : tuple of int
        Elements from a pixel to the next, in each output and in each operand in memory.
    pack : Pack or None
        None: the activations are read in place.
    prefetch : int
        How many steps of depth ahead weights are asked for; 0: not at all.
    tiles : int
        Over so many tiles the weights of the next block are asked for; 0: not at all.
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
    columns_apart: tuple[int, ...] = ()
    pack: Pack | None = None
    prefetch: int = 0
    tiles: int = 0

    def write(self, k: KernelBuilder) -> None:
        """Pointers: source, weights, outputs, epilogue operands, prologue operands."""
        GemmWriter(self, k).write()


class GemmWriter:
    """Writes a `GemmKernel`; one object per kernel, holding what the whole kernel shares.

    Attributes
    ----------
    element, weight : DType
        What the inner loop reads: activations, where they lie or packed, and weights.
    pack_params : tuple of str
        What the packer takes.
    """

    element, weight = F32, F32
    pack_params: tuple[str, ...] = PACK_PARAMS

    def __init__(self, kernel: GemmKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        arguments = Arguments(k)
        self.p = arguments.params(PARAMS)
        pack_params = arguments.params(self.pack_params) if kernel.pack else {}
        self.source = arguments.pointer()
        self.weights = arguments.pointer()
        self.epilogue = Epilogue(
            k, arguments, kernel.epilogue, kernel.operands, kernel.columns_apart
        )
        self.packer = self._packer(pack_params, arguments)

    def _packer(self, params: dict[str, ir.Value], arguments: Arguments) -> RowPacker | None:
        pack = self.kernel.pack
        return RowPacker(self.k, pack, params, arguments) if pack else None

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
                self.kernel.pack.dtype if self.kernel.pack else self.element,
            )
            if self.packer:
                region = Region(
                    self.batch, self.group, self.row0, self.row1, self.column0, self.column1
                )
                with k.when(k.b.icmp_signed("!=", place, loop.carried[0])):
                    self.packer.write(source, region)
                self.base = k.scratch
            else:
                start = k.add(
                    k.mul(self.row0, p["row_step"]), k.mul(self.column0, self.kernel.pixel_step)
                )
                self.base = k.offset(source, start, self.element)
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
        source = k.offset(self.base, k.add(down, along), self.element)
        weight = k.add(
            k.add(k.mul(self.batch, p["weight_batch"]), k.mul(self.group, p["weight_group"])),
            k.mul(block, p["weight_block"]),
        )
        weights = k.offset(self.weights, weight, self.weight)
        channel = k.mul(block, kernel.vectors * lanes)
        starts = self.epilogue.at(self.batch, self.group, row, column)
        for pixel in range(pixels):
            self.epilogue.ask(starts, partial(_along, k, pixel), channel, kernel.vectors)
        sums = self._accumulate(pixels, source, weights, self._later(column, weights))
        masks: list[ir.Value | None] = [None] * kernel.vectors
        if kernel.masked:
            left = k.sub(p["channels"], channel)
            masks = [k.tail_mask(k.sub(left, v * lanes), lanes) for v in range(kernel.vectors)]
        self._finish(pixels, row, column, channel, sums, masks)

    def _later(self, column: ir.Value, weights: ir.Value) -> Later | None:
        """The share of the next block's weights that a tile of this one asks for."""
        k, kernel = self.k, self.kernel
        if not kernel.tiles:
            return None
        number, _ = k.divmod(k.sub(column, self.column0), kernel.pixels)
        following = k.offset(weights, self.p["weight_block"], self.weight)
        tile = self._register_tile(kernel.pixels)
        return Later.share(k, tile, following, number, kernel.tiles)

    def _register_tile(self, pixels: int) -> RegisterTile:
        kernel = self.kernel
        return RegisterTile(
            pixels, kernel.vectors, kernel.run, kernel.pixel_step, kernel.unroll, kernel.prefetch
        )

    def _begin(self, tile: RegisterTile, weights: ir.Value) -> tuple[list[ir.Value], ir.Value]:
        """What sums begin with, ``[pixel x vectors]``, and where a block's weights begin."""
        return tile.zeros(self.k), weights

    def _accumulate(
        self, pixels: int, source: ir.Value, weights: ir.Value, later: Later | None
    ) -> list[list[ir.Value]]:
        """The tile's sums over all taps and depth, ``[pixel][vector]``."""
        k, kernel, p = self.k, self.kernel, self.p
        tile = self._register_tile(pixels)
        run = tile.weights_of_run(k)
        before, weights = self._begin(tile, weights)

        def rounds(count: int, sums: list[Any], body: Any) -> list[Any]:
            if count == 1:
                return body(0, sums)
            with k.loop(0, count, carried=sums) as loop:
                loop.next = body(loop.index, loop.carried)
            return loop.carried

        def tap_row(row: Any, sums: list[Any]) -> list[Any]:
            down = k.mul(row, p["tap_row_step"]) if kernel.tap_rows > 1 else 0
            s = k.offset(source, down, self.element)
            w = k.offset(weights, k.mul(row, kernel.tap_columns * run), self.weight)

            def tap_column(column: Any, sums: list[Any]) -> list[Any]:
                return tile.add(
                    k,
                    k.offset(s, k.mul(column, kernel.tap_column_step), self.element),
                    k.offset(w, k.mul(column, run), self.weight),
                    sums,
                    later,
                )

            return rounds(kernel.tap_columns, sums, tap_column)

        flat = rounds(kernel.tap_rows, before, tap_row)
        n = kernel.vectors
        return [flat[i * n : (i + 1) * n] for i in range(pixels)]

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
        k = self.k
        starts = self.epilogue.at(self.batch, self.group, row, column)
        for pixel in range(pixels):
            for vector, mask in enumerate(masks):
                self.epilogue.apply(
                    starts,
                    partial(_along, k, pixel),
                    k.add(channel, vector * k.lanes),
                    sums[pixel][vector],
                    mask,
                )


def _along(k: KernelBuilder, pixels: int, lie: Lie) -> ir.Value | int:
    return k.mul(lie.column, pixels)
