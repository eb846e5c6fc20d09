"""Writes the matrix kernel's text: tiles, the loop over the depth, loads, products, results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, emit, storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import Access, decompose, finish, offset
from planish.targets.cuda.kernels.matrix_pieces import Piece, finish_pieces, taken_apart
from planish.targets.cuda.kernels.matrix_problem import BYTES
from planish.targets.cuda.kernels.matrix_tile import Walk

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


@dataclass(frozen=True)
class Step:
    """A step of the loop: taps and channels it covers, and which of them exist.

    A tap is a scalar, or varies along the depth if the flag beside it is set. `along` is the place
    in the segment.
    """

    taps: tuple[str, str]
    varies: tuple[bool, bool]
    channel: str
    exists: str | None
    along: str


class MatrixWriter:
    """Writes a `MatrixKernel`; one object per kernel, holding what the whole kernel shares.

    Of a `whole` it writes both products, its own one behind the other.
    """

    def __init__(
        self, kernel: MatrixKernel, k: Source, whole: SumKernel | None = None, inner: bool = False
    ) -> None:
        self.kernel, self.k, self.tile, self.whole = kernel, k, kernel.tile, whole
        self.is_apart = whole is not None and kernel.dtype in BYTES
        """Whether both products have sums of their own."""
        self.total = "early" if inner and self.is_apart else "total"
        if not inner:
            k.packs = self.tile.rows * self.tile.columns >= 4
            for name in _NAMES:
                k.name(name)
        self.other: MatrixWriter | None = None
        self.left_pointer = self.start = 0
        self.pitch = kernel.steps * kernel.tile.depth
        if whole and not inner:
            self.other = MatrixWriter(whole.first, k, whole, inner=True)
            self.left_pointer = len(whole.first.left_pointers)
            self.start = self.other.pitch
            self.pitch += self.start
        self.right_pointer = self.left_pointer + len(kernel.left_pointers)
        if self.other:
            self.other.right_pointer, self.other.pitch = self.right_pointer, self.pitch
        self.result_pointer = self.right_pointer + 1 + kernel.is_corrected
        self.shared_pointer = self.result_pointer + len(kernel.result.pointers)
        # where rows, depth and columns lie in the tiles of the factors
        if self.tile.vector:
            self.left_at = "[:, None, None]", "[None, None, :]"
            self.right_at = "[None, None, :]", "[None, :, None]"
        else:
            self.left_at = "[:, None]", "[None, :]"
            self.right_at = "[:, None]", "[None, :]"

    def write(self) -> None:
        if self.kernel.codes:
            first = self.right_pointer if self.kernel.is_left_computed else self.left_pointer
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
        parts = [part for part in (self.other, self) if part]
        steps = [part._step(1) for part in parts]
        kept = [
            part._load_right(step, part._right_columns())
            for part, step in zip(parts, steps, strict=True)
        ]
        shared = self._kept_pieces()
        stages = f"num_stages={self.kernel.stages}"
        with k.block(f"for row_tile in tl.range(lane, row_tiles, lanes, {stages}):"):
            k.line(f"row = row_tile * {tile.rows} + tl.arange(0, {tile.rows})")
            pieces = self._pieces(shared)
            left = [
                part._load_left(step, part._left_rows())
                for part, step in zip(parts, steps, strict=True)
            ]
            for name in dict.fromkeys(part.total for part in parts):
                k.line(f"{name} = {self._nothing(tile.sides)}")
            for part, a, b in zip(parts, left, kept, strict=True):
                k.line(f"{part.total} = {part._product(a, b)}")
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
            if self.other:
                self.other._sum_up()
            self._sum_up()
        if tile.vector:
            k.line("total = tl.reduce(total, 2, tl.standard._sum_combine)")
        self._turn()
        if tile.split == 1:
            self._finish("total", pieces)
        else:
            self._add_up()

    def _sum_up(self) -> None:
        """The loop over the depth, or over a program's part of it."""
        k, tile = self.k, self.tile
        left, right = self._left_rows(), self._right_columns()
        begin, end = self._share(self.kernel.steps)
        blocks = self.kernel.segments[2]
        loop = f"range({begin}, {end})"
        if tile.vector and self.kernel.stages > 1:  # by itself Triton pipelines only dot's loads
            loop = f"tl.range({begin}, {end}, num_stages={self.kernel.stages})"
        with k.block(f"for step in {loop}:"):
            step = self._step(blocks)
            a = self._load_left(step, left)
            b = self._load_right(step, right)
            k.line(f"{self.total} = {self._product(a, b)}")
            if not tile.vector and self.kernel.is_left_computed:
                k.settle(self.total, storage_type(self.kernel.sums))

    def _share(self, steps: int) -> tuple[str, str]:
        """The first of a program's steps, and the one behind its last."""
        split = self.tile.split
        if split <= 1:
            return "0", str(steps)
        begin = self.k.let("begin", f"part * {steps} // {split}")
        return begin, self.k.let("end", f"(part + 1) * {steps} // {split}")

    def _sum_both(self) -> None:
        """A loop over the depths of both products."""
        k, tile, other = self.k, self.tile, self.other
        assert other is not None
        (first,), (second,) = other._left_rows(), self._left_rows()
        weights = other._right_columns()
        early = other.kernel.steps
        begin, end = self._share(early + self.kernel.steps)
        with k.block(f"for step in range({begin}, {end}):"):
            is_first = k.let("first", f"step < {early}")
            left = k.let("left", f"tl.where({is_first}, {first}, {second})")
            local = f"tl.where({is_first}, step, step - {early})"
            along = k.let("along", f"{local} * {tile.depth} + depth")
            a = k.let("a", f"tl.load({left} + {along}[None, :])")
            b = k.let("b", f"tl.load({weights} + step * {tile.depth})")
            k.line(f"total = {self._product(a, b)}")

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

    @property
    def _masked_columns(self) -> bool:
        return self.kernel.columns % self.tile.columns != 0

    @property
    def _lead(self) -> int:
        """Axes of the left factor that are the same for a whole program: those of a stack."""
        return len(self.kernel.axes) - 1 if self.kernel.batched else 0

    @property
    def _rows_side_by_side(self) -> bool:
        """Whether the left factor is read along its rows: wide loads need masks, not clamping."""
        strides = [a.strides for a in self.kernel.left.leaves if a is not None]
        return self.kernel.window is None and any(s[-2] == 1 != s[-1] for s in strides)

    # ---- the left factor ------------------------------------------------------------------------

    def _left_rows(self) -> list[str | None]:
        """Names of pointers to where the rows start, of each leaf; and names of rows in images."""
        k, window = self.k, self.kernel.window
        rows, _ = self.left_at
        safe = "row" if self._rows_side_by_side else k.let("safe", "tl.minimum(row, n0 - 1)")
        if window is not None:
            image, y, x = decompose(k, safe, self.kernel.axes)
            places = [image]
            for i, name in enumerate((y, x)):
                stride, pad = window.strides[i], window.pads[i]
                text = name if stride == 1 else f"{name} * {stride}"
                if pad:
                    text += f" - {pad}" if pad > 0 else f" + {-pad}"
                places.append(k.let("yx"[i], text))
            self.image_rows, self.image_columns = places[1:]
            index = [f"{name}{rows}" for name in places]
        else:
            index = self._matrix_index(safe, self.kernel.axes, rows)
        pointers: list[str | None] = []
        number = self.left_pointer
        for item in self.kernel.left.leaves:
            if item is None:
                pointers.append(None)
                continue
            start = offset(Access(item.pointer, item.strides[:-1], item.wide), index)
            pointers.append(k.let("left", f"p{number} + ({start})"))
            number += 1
        return pointers

    def _matrix_index(self, row: str, axes: Sequence[int], rows: str) -> list[str]:
        """The index of rows along `axes`, those of a stack of matrices first."""
        if not self.kernel.batched:
            return [f"{name}{rows}" for name in decompose(self.k, row, axes)]
        return [*decompose(self.k, "z", axes[:-1]), f"{row}{rows}"]

    def _step(self, blocks: int) -> Step:
        """Names what a step covers."""
        k, tile, kernel = self.k, self.tile, self.kernel
        count, length, _ = kernel.segments
        segment = "step" if blocks == 1 else "0"
        if blocks > 1 and count > 1:
            segment = k.let("segment", f"step // {blocks}")
        along = "depth"
        if blocks > 1:
            block = "step" if count == 1 else f"(step - {segment} * {blocks})"
            along = k.let("along", f"{block} * {tile.depth} + depth")
        exists = k.let("exists", f"{along} < {length}") if length % tile.depth else None
        if kernel.window is None:
            return Step(("0", "0"), (False, False), along, exists, along)
        taps = kernel.window.taps
        if tile.walk is Walk.TAPS:
            return Step(self._taps(segment, taps), (False, False), along, exists, along)
        tap = k.let("tap", f"{along} // {kernel.channels}")
        channel = k.let("channel", f"{along} - {tap} * {kernel.channels}")
        if tile.walk is Walk.ROW:
            return Step((segment, tap), (False, True), channel, exists, along)
        row, column = self._taps(tap, taps)
        return Step((row, column), (row != "0", column != "0"), channel, exists, along)

    def _taps(self, tap: str, taps: tuple[int, int]) -> tuple[str, str]:
        """Row and column of a tap."""
        if taps[0] == 1:
            return "0", tap
        if taps[1] == 1:
            return tap, "0"
        row = self.k.let("tap_row", f"{tap} // {taps[1]}")
        return row, self.k.let("tap_column", f"{tap} - {row} * {taps[1]}")

    def _load_left(self, step: Step, pointers: Sequence[str | None]) -> str:
        """Loads a tile of the left factor and applies its prologue."""
        k, work, kernel = self.k, self.kernel.left, self.kernel
        _, depth = self.left_at
        masks = self._inside(step)
        if step.exists:
            masks.append(f"{step.exists}{depth}")
        plain = work.expression.is_copy
        leaves: list[str | None] = []
        whole = False
        for leaf, item, pointer in zip(work.expression.leaves, work.leaves, pointers, strict=True):
            if item is None or pointer is None:
                assert leaf.constant is not None, "a prologue reads nothing that is computed"
                leaves.append(None)
                continue
            *outer, along = item.strides
            by_rows = any(outer[self._lead :])
            whole = whole or (by_rows and along != 0)
            if by_rows:
                mask = " & ".join(masks)
            else:
                mask = f"{step.exists}{depth}" if step.exists and along else ""
            where = pointer + self._inner_offset(step, item.strides)
            around = "0.0" if kernel.codes and plain else kernel.zero if plain else 0
            masked = f", mask={mask}, other={around}" if mask else ""
            typed = "" if plain else f".to({compute_type(leaf.dtype)})"
            leaves.append(k.let("a", f"tl.load({where}{masked}){typed}"))
        (value,) = leaves if plain else emit(k, work.expression, leaves)
        assert value is not None
        if not plain:
            if masks:
                outside = str(kernel.zero) if kernel.dtype in BYTES else "0.0"
                value = k.let("a", f"tl.where({' & '.join(masks)}, {value}, {outside})")
            value = k.let("a", f"({value}).to({storage_type(kernel.dtype)})")
        if kernel.dtype is DType.UINT8:
            value = k.let("a", f"({value} ^ 128).to(tl.int8, bitcast=True)")
        return value if whole else self._whole(value, self.tile.rows, 1, self.tile.depth)

    def _whole(self, value: str, *shape: int) -> str:
        """A tile of which some axis may be missing, as tensors have no stride along extents of 1;
        its shape is that of factors without tensor cores.
        """
        if not self.tile.vector:
            rows, columns, depth = shape
            shape = (rows, depth) if columns == 1 else (depth, columns)
        return self.k.let("whole", f"tl.broadcast_to({value}, {shape})")

    def _inside(self, step: Step) -> list[str]:
        """Conditions for elements to be inside the image (or matrix)."""
        k, window = self.k, self.kernel.window
        rows, depth = self.left_at
        if window is None:
            return [f"(row < n0){rows}"] if self._rows_side_by_side else []
        masks = []
        for i, place in enumerate((self.image_rows, self.image_columns)):
            if not window.checked[i]:
                continue
            tap, spread = step.taps[i], window.dilations[i]
            shift = tap if spread == 1 else f"{tap} * {spread}"
            if step.varies[i]:
                at = k.let("at", f"{place}{rows} + ({shift}){depth}")
                masks.append(f"({at} >= 0) & ({at} < {window.size[i]})")
            else:
                at = place if tap == "0" else k.let("at", f"{place} + {shift}")
                masks.append(f"(({at} >= 0) & ({at} < {window.size[i]})){rows}")
        return masks

    def _inner_offset(self, step: Step, strides: tuple[int, ...]) -> str:
        """What a step adds to a leaf's pointers: taps and channels, as text to append."""
        _, depth = self.left_at
        scalars: list[str] = []
        vectors: list[str] = []
        window = self.kernel.window
        if window is None:
            vectors += _times(step.along, strides[-1])
        else:
            down = strides[1] * window.dilations[0]
            across, channel = strides[2] * window.dilations[1], strides[3]
            (vectors if step.varies[0] else scalars).extend(_times(step.taps[0], down))
            if step.varies[1] and across == channel * self.kernel.channels and not step.varies[0]:
                vectors += _times(step.along, channel)
            else:
                (vectors if step.varies[1] else scalars).extend(_times(step.taps[1], across))
                vectors += _times(step.channel, channel)
        text = f" + ({' + '.join(scalars)})" if scalars else ""
        return text + (f" + ({' + '.join(vectors)}){depth}" if vectors else "")

    # ---- the right factor -----------------------------------------------------------------------

    def _right_columns(self) -> str:
        """The name of pointers to where the columns start."""
        k, right = self.k, self.kernel.right
        depth, columns = self.right_at
        pointer = f"p{self.right_pointer}"
        if right is None:
            start = f" + {self.start}" if self.start else ""
            place = f"column{columns} * {self.pitch} + depth{depth}{start}"
            return k.let("weights", f"{pointer} + ({place})")
        index = decompose(k, "z", self.kernel.right_axes) if self.kernel.batched else []
        index += [f"depth{depth}", f"column{columns}"]
        return k.let("weights", f"{pointer} + ({offset(right, index)})")

    def _load_right(self, step: Step, pointers: str) -> str:
        """Loads a tile of the right factor."""
        right, block = self.kernel.right, self.tile.depth
        depth, columns = self.right_at
        if right is None:
            return self.k.let("b", f"tl.load({pointers} + step * {block})")
        masks = [f"{step.exists}{depth}"] if step.exists else []
        if self._masked_columns:
            masks.append(f"(column < {self.kernel.columns}){columns}")
        around = "0.0" if self.kernel.codes else "0"
        masked = f", mask={' & '.join(masks)}, other={around}" if masks else ""
        stride = right.strides[-2] * block
        start = "step.to(tl.int64)" if right.wide else "step"
        value = self.k.let("b", f"tl.load({pointers} + {start} * {stride}{masked})")
        if 0 not in right.strides[-2:]:
            return value
        return self._whole(value, 1, self.tile.columns, block)

    # ---- product and result ---------------------------------------------------------------------

    def _product(self, a: str, b: str) -> str:
        if self.tile.vector:
            wide = storage_type(self.kernel.sums)
            return f"total + {a}.to({wide}) * {b}.to({wide})"
        how = ", out_dtype=tl.int32" if self.kernel.sums is DType.INT32 else ""
        if self.kernel.codes and self.kernel.is_left_computed:
            a = f"{a}.to(tl.float8e4nv, bitcast=True)"
        if self.kernel.dtype is DType.FLOAT32:
            precision = {0: "ieee", 1: "tf32", 3: "tf32x3"}[self.tile.passes]
            how = f', input_precision="{precision}"'
        if self.tile.transposed:
            a, b = f"tl.trans({b})", f"tl.trans({a})"
        return f"tl.dot({a}, {b}, {self.total}{how})"

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
            index = self._matrix_index(row, axes, "[:, None]")
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
        if self._masked_columns:
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
        index = self._matrix_index(row, axes, "[:, None]")
        masks: list[str | None] = [exists] * len(index)
        if kernel.batched:
            masks[:-1] = [None] * (len(index) - 1)
        inside = None
        if self._masked_columns:
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
        return [self.k.let("nothing", "tl.full([], 0.0, tl.float32)")] if self.other else []

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


def _times(name: str, factor: int) -> list[str]:
    """A term of a sum, or none."""
    if factor == 0 or name == "0":
        return []
    return [name if factor == 1 else f"{name} * {factor}"]
