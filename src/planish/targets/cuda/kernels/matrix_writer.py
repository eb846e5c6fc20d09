"""Writes the matrix kernel's text: which tiles a program computes, and what becomes of the sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planish.graph.types import DType
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import finish
from planish.targets.cuda.kernels.matrix_pieces import Piece, finish_pieces, taken_apart
from planish.targets.cuda.kernels.matrix_problem import BYTES
from planish.targets.cuda.kernels.matrix_product import Pointers, ProductWriter, matrix_index

if TYPE_CHECKING:
    from planish.targets.cuda.kernels.matrix_kernel import MatrixKernel, SumKernel

_NAMES = (
    *("pid", "part", "z", "place", "row_tiles", "row_tile", "column_tile", "first_tile", "inside"),
    *("height", "row", "column", "depth", "step", "total", "local", "arrived", "whole", "other"),
    *("lane", "lanes", "early"),
)
"""Variables that every kernel has."""

GROUP = 8
"""Tiles of rows that are done together: their programs share columns in the second-level cache."""


class MatrixWriter:
    """Writes a `MatrixKernel`; one object per kernel, holding what the whole kernel shares.

    Of a `whole` it writes both products, its own one behind the other.
    """

    def __init__(
        self,
        kernel: MatrixKernel,
        k: Source,
        whole: SumKernel | None = None,
        writer: type[ProductWriter] = ProductWriter,
    ) -> None:
        self.kernel, self.k, self.tile, self.whole = kernel, k, kernel.tile, whole
        k.packs = self.tile.rows * self.tile.columns >= 4
        for name in _NAMES:
            k.name(name)
        kernels = (whole.first, kernel) if whole else (kernel,)
        self.is_apart = whole is not None and kernel.dtype in BYTES
        """Whether both products have sums of their own."""
        totals = ("early" if self.is_apart else "total", "total")
        pitch = sum(each.steps * each.tile.depth for each in kernels)
        self.right_pointer = sum(len(each.left_pointers) for each in kernels)
        self.products: list[ProductWriter] = []
        left = start = 0
        for each, total in zip(kernels, totals[-len(kernels) :], strict=True):
            pointers = Pointers(left, self.right_pointer, start, pitch)
            self.products.append(writer(each, k, total, pointers))
            left += len(each.left_pointers)
            start += each.steps * each.tile.depth
        self.result_pointer = self.right_pointer + 1 + kernel.is_corrected
        self.shared_pointer = self.result_pointer + len(kernel.result.pointers)

    def write(self) -> None:
        if self.kernel.codes:
            first = self.products[-1].pointers.left
            if self.kernel.is_left_computed:
                first = self.right_pointer
            for number in range(first, self.right_pointer + 1):
                cast = f"p{number}.to(tl.pointer_type(tl.float8e4nv), bitcast=True)"
                self.k.line(f"p{number} = {cast}")
        if self.tile.is_persistent:
            self._write_persistent()
        else:
            self._write_tile()

    def _write_persistent(self) -> None:
        """A loop over tiles of rows, each of one step of the depth."""
        k, tile, columns = self.k, self.tile, self.kernel.column_tiles
        k.line("pid = tl.program_id(0)")
        k.line(f"row_tiles = (n0 + {tile.rows - 1}) // {tile.rows}")
        k.line("column_tile = 0" if columns == 1 else f"column_tile = pid % {columns}")
        k.line("lane = pid" if columns == 1 else f"lane = pid // {columns}")
        k.line("lanes = tl.num_programs(0)" + ("" if columns == 1 else f" // {columns}"))
        k.line(f"column = column_tile * {tile.columns} + tl.arange(0, {tile.columns})")
        k.line(f"depth = tl.arange(0, {tile.depth})")
        k.line("step = 0")
        steps = [each.step(1) for each in self.products]
        kept = [
            each.load_right(step, each.right_columns())
            for each, step in zip(self.products, steps, strict=True)
        ]
        shared = self._kept_pieces()
        stages = f"num_stages={self.kernel.stages}"
        with k.block(f"for row_tile in tl.range(lane, row_tiles, lanes, {stages}):"):
            k.line(f"row = row_tile * {tile.rows} + tl.arange(0, {tile.rows})")
            pieces = self._pieces(shared)
            left = [
                each.load_left(step, each.left_rows())
                for each, step in zip(self.products, steps, strict=True)
            ]
            for name in dict.fromkeys(each.total for each in self.products):
                k.line(f"{name} = {self._nothing(tile.sides)}")
            for each, a, b in zip(self.products, left, kept, strict=True):
                k.line(f"{each.total} = {each.added(a, b)}")
            self._turn()
            self._finish("total", pieces)

    def _nothing(self, shape: Sequence[int]) -> str:
        """Sums of nothing yet."""
        zero = "0, tl.int32" if self.kernel.sums is DType.INT32 else "0.0, tl.float32"
        return f"tl.full(({', '.join(map(str, shape))}), {zero})"

    def _turn(self) -> None:
        """Sums of rows by columns of what was multiplied the other way round."""
        if self.tile.transposed:
            self.k.line("total = tl.trans(total)")

    def _write_tile(self) -> None:
        k, tile = self.k, self.tile
        self._place()
        pieces = self._pieces()
        more = (tile.depth,) if tile.vector else ()
        k.line(f"total = {self._nothing((*tile.sides, *more))}")
        if self.is_apart:
            k.line(f"early = {self._nothing(tile.sides)}")
        if self.whole and self.whole.is_one_loop:
            self._sum_both()
        else:
            for each in self.products:
                each.sum_up()
        if tile.vector:
            k.line("total = tl.reduce(total, 2, tl.standard._sum_combine)")
        self._turn()
        if tile.split == 1:
            self._finish("total", pieces)
        else:
            self._add_up()

    def _sum_both(self) -> None:
        """A loop over the depths of both products."""
        k, tile = self.k, self.tile
        early, late = self.products
        (first,), (second,) = early.left_rows(), late.left_rows()
        weights = early.right_columns()
        steps = early.kernel.steps
        begin, end = late.share(steps + late.kernel.steps)
        with k.block(f"for step in range({begin}, {end}):"):
            is_first = k.let("first", f"step < {steps}")
            left = k.let("left", f"tl.where({is_first}, {first}, {second})")
            local = f"tl.where({is_first}, step, step - {steps})"
            along = k.let("along", f"{local} * {tile.depth} + depth")
            a = k.let("a", f"tl.load({left} + {along}[None, :])")
            b = k.let("b", f"tl.load({weights} + step * {tile.depth})")
            k.line(f"total = {late.added(a, b)}")

    # ---- where the program's tile lies ---------------------------------------------------------

    def _place(self) -> None:
        """Names `pid`, `part`, `z`, `row`, `column` and `depth`."""
        k, tile, columns = self.k, self.tile, self.kernel.column_tiles
        k.line("pid = tl.program_id(0)")
        if tile.split > 1:
            k.line(f"part = pid % {tile.split}")
            k.line(f"pid = pid // {tile.split}")
        self._count_tiles()
        k.line("place = pid")
        if self.kernel.batched:
            k.line(f"z = pid // (row_tiles * {columns})")
            k.line(f"place = pid - z * (row_tiles * {columns})")
        self._place_tile()

    def _count_tiles(self) -> None:
        """Names `row_tiles`."""
        self.k.line(f"row_tiles = (n0 + {self.tile.rows - 1}) // {self.tile.rows}")

    def _place_tile(self) -> None:
        """Names `row_tile`, `column_tile`, `row`, `column` and `depth` of a `place`."""
        k, tile, columns = self.k, self.tile, self.kernel.column_tiles
        if columns == 1:
            k.line("row_tile = place")
            k.line("column_tile = 0")
        else:
            k.line(f"first_tile = place // {GROUP * columns} * {GROUP}")
            k.line(f"inside = place % {GROUP * columns}")
            k.line(f"height = tl.minimum(row_tiles - first_tile, {GROUP})")
            k.line("row_tile = first_tile + inside % height")
            k.line("column_tile = inside // height")
        self._name_rows()
        k.line(f"column = column_tile * {tile.columns} + tl.arange(0, {tile.columns})")
        k.line(f"depth = tl.arange(0, {tile.depth})")

    def _name_rows(self) -> None:
        """Names `row`: the rows of a tile."""
        self.k.line(f"row = row_tile * {self.tile.rows} + tl.arange(0, {self.tile.rows})")

    # ---- the result ----------------------------------------------------------------------------

    def _pieces(self, kept: Sequence[Piece] = ()) -> list[Piece]:
        """The pieces of a tile of regrouped columns, what varies by row loaded; else none.

        What all tiles share is taken from pieces that were kept.
        """
        if not self.kernel.neighbours:
            return []
        k, tile, work = self.k, self.tile, self.kernel.result
        warps = self.kernel.warps
        inner = k.let("inner", f"tl.arange(0, {8 * warps})")
        inner = k.let("inner", f"{inner} // 8 * 16 + {inner} % 8")
        pieces = []
        for half in range(tile.rows // (8 * warps)):
            first = half // 2 * 16 * warps + half % 2 * 8
            row = k.let("rows", f"row_tile * {tile.rows} + {first} + {inner}")
            exists = k.let("exists", f"({row} < n0)[:, None]")
            axes = work.shape[: -len(self._ends(""))]
            index = matrix_index(k, self.kernel, row, axes, "[:, None]")
            for group in range(tile.columns // self.kernel.neighbours):
                piece = kept[group] if kept else self._piece(group)
                piece = piece.at(index, exists)
                piece.load(k, work, self.result_pointer, whole=True)
                pieces.append(piece)
        return pieces

    def _piece(self, group: int) -> Piece:
        """A piece of a tile's columns, without rows yet."""
        k, tile, count = self.k, self.tile, self.kernel.neighbours
        first = f"column_tile * {tile.columns} + {group * count}"
        column = k.let("columns", f"{first} + tl.arange(0, {count})")
        inside = None
        if self.kernel.is_ragged:
            inside = k.let("exists", f"({column} < {self.kernel.columns})[None, :]")
        return Piece(self._ends(column), inside, column)

    def _ends(self, column: str) -> list[str]:
        """The index of columns: that of a row's pixels, if it has several, and of a pixel's own."""
        if not self.kernel.pixels:
            return [f"{column}[None, :]"]
        each = self.kernel.columns // self.kernel.pixels
        return [f"({column} {by} {each})[None, :]" for by in ("//", "%")]

    def _kept_pieces(self) -> list[Piece]:
        """The columns of a program of many tiles, with what they share, if it is to be kept."""
        kernel = self.kernel
        if not kernel.neighbours or not self.tile.keeps_scales:
            return []
        kept = []
        for group in range(self.tile.columns // kernel.neighbours):
            piece = self._piece(group)
            piece = piece.at(["0"] * (len(kernel.result.shape) - len(piece.ends)), None)
            piece.load(self.k, kernel.result, self.result_pointer, whole=False)
            if kernel.is_corrected:
                piece.correct(self.k, self.right_pointer + 1)
            kept.append(piece)
        return kept

    def _finish(self, total: str, pieces: Sequence[Piece] = ()) -> None:
        """Applies the epilogue and stores the tile."""
        kernel = self.kernel
        if pieces:
            names = [total, "early"] if self.is_apart else [total]
            apart = (
                taken_apart(self.k, name, self.tile, kernel.warps, kernel.neighbours)
                for name in names
            )
            sums = list(zip(*apart, strict=True))
            corrections = self.right_pointer + 1 if kernel.is_corrected else None
            groups = self.tile.columns // kernel.neighbours
            finish_pieces(
                self.k, kernel.result, self.result_pointer, pieces, sums, groups, corrections
            )
            return
        if kernel.is_corrected:
            more = self.k.let("more", f"tl.load(p{self.right_pointer + 1} + column)")
            total = self.k.let("sum", f"{total} - {more}[None, :]")
        self._store(total, "row", "n0")

    def _store(self, total: str, row: str, count: str) -> None:
        """Applies the epilogue to sums of so many rows in all, and stores them."""
        kernel = self.kernel
        ends = self._ends("column")
        axes = kernel.result.shape[: -len(ends)]
        exists = self.k.let("exists", f"({row} < {count})[:, None]")
        index = matrix_index(self.k, kernel, row, axes, "[:, None]")
        masks: list[str | None] = [exists] * len(index)
        if kernel.batched:
            masks[:-1] = [None] * (len(index) - 1)
        inside = None
        if kernel.is_ragged:
            inside = self.k.let("exists", f"(column < {kernel.columns})[None, :]")
        finish(
            self.k,
            kernel.result,
            self.result_pointer,
            [*index, *ends],
            [*masks, *([inside] * len(ends))],
            [total, *self._beside()],
        )

    def _beside(self) -> list[str]:
        """What the expression is given beside the sums: another product's, or nothing if these are
        among them.
        """
        if self.is_apart:
            return ["early"]
        return [self.k.let("nothing", "tl.full([], 0.0, tl.float32)")] if self.whole else []

    def _place_sums(self) -> None:
        """Names `local`: where a tile's sums lie among what programs hand to one another."""
        k, tile = self.k, self.tile
        k.line(f"local = tl.arange(0, {tile.rows})[:, None] * {tile.columns}")
        k.line(f"local = local + tl.arange(0, {tile.columns})[None, :]")

    def _add_up(self) -> None:
        """The program that is last at a tile sums the parts, in their order, and finishes.

        Counters are zero again afterwards.
        """
        k, tile = self.k, self.tile
        size = tile.rows * tile.columns
        self._place_sums()
        parts = k.let("parts", f"p{self.shared_pointer} + pid * {tile.split * size} + local")
        k.line(f"tl.store({parts} + part * {size}, total)")
        k.line("tl.debug_barrier()")  # all of the block's stores come before the count
        counter = f"p{self.shared_pointer + 1} + pid"
        k.line(f'arrived = tl.atomic_add({counter}, 1, sem="acq_rel", scope="gpu")')
        with k.block(f"if arrived == {tile.split - 1}:"):
            k.line(f"tl.store({counter}, 0)")
            k.line(f'whole = tl.load({parts}, cache_modifier=".cg")')
            with k.block(f"for other in tl.static_range(1, {tile.split}):"):
                k.line(f'whole += tl.load({parts} + other * {size}, cache_modifier=".cg")')
            self._finish("whole")
