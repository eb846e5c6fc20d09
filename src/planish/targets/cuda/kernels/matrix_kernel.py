"""The matrix kernel: convolutions and matrix products as one generator.

The result is rows (pixels of all images, rows of a matrix) by columns (channels); a program
computes a tile of it, over the whole depth or over a part of it. Where the whole depth is one step
a program may also go through many tiles of the same columns, whose weights it keeps: then the next
tiles are loaded while one is computed and written. The left factor's tiles are
gathered as the loop goes: which element of it a place along the depth means is a `Walk`, chosen by
the shape. Weights that are constant were packed ``[columns, depth]`` in the order in which the loop
goes, zeros where a tile ends beyond them.

What happens elementwise to the left factor (a prologue) is applied to each tile as it is loaded.
What lies outside an image is zero after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, emit, storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, Work, decompose, finish, offset
from planish.targets.cuda.kernels.matrix_pieces import Piece, finish_pieces, taken_apart
from planish.targets.cuda.kernels.matrix_problem import BYTES
from planish.targets.cuda.kernels.matrix_tile import (
    Tile,
    Walk,
    Window,
    ceil,
    segments,
)

_NAMES = (
    *("pid", "part", "z", "place", "row_tiles", "row_tile", "column_tile", "first_tile", "inside"),
    *("height", "row", "column", "depth", "step", "total", "local", "arrived", "whole", "other"),
    *("lane", "lanes"),
)
"""Variables that every kernel has."""

GROUP = 8
"""Tiles of rows that are done together: their programs share columns in the second-level cache."""


@dataclass(frozen=True)
class MatrixKernel(TritonKernel):
    """One specialisation of the matrix kernel. Parameter: the rows (of each matrix).

    Attributes
    ----------
    tile : Tile
    dtype : DType
        Of the factors; where it is uint8, of the left one: weights are int8.
    left : Work
        The left factor and what happens to its elements. The axes of its accesses are those of
        `axes` and the depth; with a window ``[image, row, column, channel]``.
    axes : tuple of int
        The axes of a stack of matrices, if `batched`, and those of the rows; the first is -1.
    batched : bool
    window : Window or None
    right : Access or None
        The right factor, its axes those of `right_axes`, depth, columns; None if it is packed.
    right_axes : tuple of int
    channels, columns : int
        The depth without taps, and the columns of the result.
    result : Work
        The epilogue. Its axes: those of a stack of matrices if `batched`, rows, columns.
    whole_rows : bool
        Whether the rows are a multiple of 16; stated only where those of the left factor lie side
        by side.
    zero : int
        The level of the left factor that stands for 0, where it is bytes.
    neighbours : int
        The columns that four threads share, multiplied in the order of `regrouped`; 0: in theirs.
    """

    family = "matrix"

    tile: Tile
    dtype: DType
    left: Work
    axes: tuple[int, ...]
    batched: bool
    window: Window | None
    right: Access | None
    right_axes: tuple[int, ...]
    channels: int
    columns: int
    result: Work
    whole_rows: bool = False
    zero: int = 0
    neighbours: int = 0

    @property
    def factor(self) -> DType:
        """What is multiplied: bytes with a sign, whether or not levels have one."""
        return DType.INT8 if self.dtype in BYTES else self.dtype

    @property
    def sums(self) -> DType:
        """What products are summed in."""
        return DType.INT32 if self.dtype in BYTES else DType.FLOAT32

    @property
    def is_corrected(self) -> bool:
        """Whether what is multiplied is not 0 where the levels stand for 0."""
        return self.zero != (128 if self.dtype is DType.UINT8 else 0)

    @property
    def left_pointers(self) -> tuple[Pointer, ...]:
        """What the left factor is made of."""
        return self.left.pointers

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        right = [self.right.pointer if self.right else Pointer(self.factor)]
        right += [Pointer(DType.INT32)] * self.is_corrected
        shared = (Pointer(self.sums), Pointer(DType.INT32)) if self.tile.split > 1 else ()
        return (*self.left_pointers, *right, *self.result.pointers, *shared)

    @property
    def params(self) -> tuple[bool, ...]:
        return (self.whole_rows,)

    @property
    def is_left_computed(self) -> bool:
        """Whether the left factor is computed before it is multiplied: by a prologue, to give bytes
        a sign, or where what is outside an image is no 0.
        """
        return not self.left.expression.is_copy or self.dtype is DType.UINT8 or self.zero != 0

    @property
    def column_tiles(self) -> int:
        """Tiles along the columns."""
        return ceil(self.columns, self.tile.columns)

    @property
    def segments(self) -> tuple[int, int, int]:
        """See the function `segments`."""
        return segments(self.tile, self.window.taps if self.window else (1, 1), self.channels)

    def write(self, k: Source) -> None:
        MatrixWriter(self, k).write()


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
    """Writes a `MatrixKernel`; one object per kernel, holding what the whole kernel shares."""

    def __init__(self, kernel: MatrixKernel, k: Source) -> None:
        self.kernel, self.k, self.tile = kernel, k, kernel.tile
        for name in _NAMES:
            k.name(name)
        self.right_pointer = len(kernel.left_pointers)
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
        step = self._step(1)
        b = self._load_right(step, self._right_columns())
        kept = self._kept_pieces()
        stages = f"num_stages={self.kernel.stages}"
        with k.block(f"for row_tile in tl.range(lane, row_tiles, lanes, {stages}):"):
            k.line(f"row = row_tile * {tile.rows} + tl.arange(0, {tile.rows})")
            left, pieces = self._left_rows(), self._pieces(kept)
            a = self._load_left(step, left)
            k.line(f"total = {self._nothing(f'{tile.rows}, {tile.columns}')}")
            k.line(f"total = {self._product(a, b)}")
            self._finish("total", pieces)

    def _nothing(self, shape: str) -> str:
        """Sums of nothing yet."""
        zero = "0, tl.int32" if self.kernel.sums is DType.INT32 else "0.0, tl.float32"
        return f"tl.full(({shape}), {zero})"

    def _write_tile(self) -> None:
        k, tile = self.k, self.tile
        self._place()
        left, right, pieces = self._left_rows(), self._right_columns(), self._pieces()
        count, _, blocks = self.kernel.segments
        steps = count * blocks
        begin, end = "0", str(steps)
        if tile.split > 1:
            begin = k.let("begin", f"part * {steps} // {tile.split}")
            end = k.let("end", f"(part + 1) * {steps} // {tile.split}")
        shape = f"{tile.rows}, {tile.columns}" + (f", {tile.depth}" if tile.vector else "")
        k.line(f"total = {self._nothing(shape)}")
        loop = f"range({begin}, {end})"
        if tile.vector and self.kernel.stages > 1:  # by itself Triton pipelines only dot's loads
            loop = f"tl.range({begin}, {end}, num_stages={self.kernel.stages})"
        with k.block(f"for step in {loop}:"):
            step = self._step(blocks)
            a = self._load_left(step, left)
            b = self._load_right(step, right)
            k.line(f"total = {self._product(a, b)}")
            if not tile.vector and self.kernel.is_left_computed:
                k.settle("total", storage_type(self.kernel.sums))
        if tile.vector:
            k.line("total = tl.reduce(total, 2, tl.standard._sum_combine)")
        if tile.split == 1:
            self._finish("total", pieces)
        else:
            self._add_up()

    # ---- where the program's tile lies ---------------------------------------------------------

    def _place(self) -> None:
        """Names `pid`, `part`, `z`, `row`, `column` and `depth`."""
        k, tile, columns = self.k, self.tile, self.kernel.column_tiles
        k.line("pid = tl.program_id(0)")
        if tile.split > 1:
            k.line(f"part = pid % {tile.split}")
            k.line(f"pid = pid // {tile.split}")
        k.line(f"row_tiles = (n0 + {tile.rows - 1}) // {tile.rows}")
        k.line("place = pid")
        if self.kernel.batched:
            k.line(f"z = pid // (row_tiles * {columns})")
            k.line(f"place = pid - z * (row_tiles * {columns})")
        if columns == 1:
            k.line("row_tile = place")
            k.line("column_tile = 0")
        else:
            k.line(f"first_tile = place // {GROUP * columns} * {GROUP}")
            k.line(f"inside = place % {GROUP * columns}")
            k.line(f"height = tl.minimum(row_tiles - first_tile, {GROUP})")
            k.line("row_tile = first_tile + inside % height")
            k.line("column_tile = inside // height")
        k.line(f"row = row_tile * {tile.rows} + tl.arange(0, {tile.rows})")
        k.line(f"column = column_tile * {tile.columns} + tl.arange(0, {tile.columns})")
        k.line(f"depth = tl.arange(0, {tile.depth})")

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
        number = 0
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
            around = kernel.zero if plain else 0
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
            count, _, blocks = self.kernel.segments
            pitch = count * blocks * self.tile.depth
            return k.let("weights", f"{pointer} + (column{columns} * {pitch} + depth{depth})")
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
        masked = f", mask={' & '.join(masks)}, other=0" if masks else ""
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
        if self.kernel.dtype is DType.FLOAT32:
            precision = {0: "ieee", 1: "tf32", 3: "tf32x3"}[self.tile.passes]
            how = f', input_precision="{precision}"'
        return f"tl.dot({a}, {b}, total{how})"

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
            index = self._matrix_index(row, work.shape[:-1], "[:, None]")
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
        return Piece(column, inside)

    def _kept_pieces(self) -> list[Piece]:
        """The columns of a program of many tiles, with what they share, if it is to be kept."""
        kernel = self.kernel
        if not kernel.neighbours or not self.tile.keeps_scales:
            return []
        kept = []
        for group in range(self.tile.columns // kernel.neighbours):
            piece = self._piece(group).at(["0"] * (len(kernel.result.shape) - 1), None)
            piece.load(self.k, kernel.result, self.result_pointer, whole=False)
            if kernel.is_corrected:
                piece.correct(self.k, self.right_pointer + 1)
            kept.append(piece)
        return kept

    def _finish(self, total: str, pieces: Sequence[Piece] = ()) -> None:
        """Applies the epilogue and stores the tile."""
        kernel = self.kernel
        if pieces:
            sums = taken_apart(self.k, total, self.tile, kernel.warps, kernel.neighbours)
            corrections = self.right_pointer + 1 if kernel.is_corrected else None
            groups = self.tile.columns // kernel.neighbours
            finish_pieces(
                self.k, kernel.result, self.result_pointer, pieces, sums, groups, corrections
            )
            return
        if kernel.is_corrected:
            more = self.k.let("more", f"tl.load(p{self.right_pointer + 1} + column)")
            total = self.k.let("sum", f"{total} - {more}[None, :]")
        axes = kernel.result.shape
        exists = self.k.let("exists", "(row < n0)[:, None]")
        index = self._matrix_index("row", axes[:-1], "[:, None]")
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
            [*index, "column[None, :]"],
            [*masks, inside],
            [total],
        )

    def _add_up(self) -> None:
        """The program that is last at a tile sums the parts, in their order, and finishes.

        Counters are zero again afterwards.
        """
        k, tile = self.k, self.tile
        size = tile.rows * tile.columns
        k.line(f"local = tl.arange(0, {tile.rows})[:, None] * {tile.columns}")
        k.line(f"local = local + tl.arange(0, {tile.columns})[None, :]")
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
