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

from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.matrix_problem import BYTES
from planish.targets.cuda.kernels.matrix_tile import Tile, Window, ceil, segments
from planish.targets.cuda.kernels.matrix_writer import MatrixWriter


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
    pixels : int
        Pixels of the result that a row holds, one behind the other among its columns; if not 0,
        the result has an axis for them before the columns'.
    neighbours : int
        The columns that four threads share, multiplied in the order of `regrouped`; 0: in theirs.
    codes : bool
        Whether bytes are codes of FP8: their products are summed in float32.
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
    pixels: int = 0
    neighbours: int = 0
    codes: bool = False

    @property
    def factor(self) -> DType:
        """What is multiplied: bytes with a sign, whether or not levels have one."""
        return DType.INT8 if self.dtype in BYTES else self.dtype

    @property
    def sums(self) -> DType:
        """What products are summed in."""
        return DType.INT32 if self.dtype in BYTES and not self.codes else DType.FLOAT32

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
    def is_ragged(self) -> bool:
        """Whether the last of them has columns that do not exist."""
        return self.columns % self.tile.columns != 0

    @property
    def segments(self) -> tuple[int, int, int]:
        """See the function `segments`."""
        return segments(self.tile, self.window.taps if self.window else (1, 1), self.channels)

    @property
    def steps(self) -> int:
        """Steps of the loop over the whole depth."""
        count, _, blocks = self.segments
        return count * blocks

    def write(self, k: Source) -> None:
        MatrixWriter(self, k).write()


@dataclass(frozen=True)
class SumKernel(TritonKernel):
    """Two products of the same rows and columns, summed as one. Parameter: the rows.

    Attributes
    ----------
    first : MatrixKernel
        Its result is not looked at.
    second : MatrixKernel
        The expression of its result has two accumulators, and adds them; of bytes they are two, its
        own and that of the first. Its weights are those of both, one behind the other along the
        depth.
    """

    family = "matrix_sum"

    first: MatrixKernel
    second: MatrixKernel

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.first.left_pointers, *self.second.pointers)

    @property
    def is_one_loop(self) -> bool:
        """Whether one loop goes over both depths: matrices that end with a step."""
        parts = (self.first, self.second)
        return all(
            part.window is None
            and not part.is_left_computed
            and part.dtype not in BYTES
            and part.channels % part.tile.depth == 0
            and all(leaf is not None and leaf.strides[-1] == 1 for leaf in part.left.leaves)
            for part in parts
        )

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        MatrixWriter(self.second, k, self).write()
