"""The matrix kernel with specialised warps: loads, products and the ends of tiles at the same time.

A block is three groups of four warps. One thread of the third loads boxes of both factors into a
ring of stages in shared memory (tensor maps, see `mapped_kernel`); the other two groups each
compute tiles of their own, the even and the odd ones of the block, and take turns: while one's
products go through the tensor cores, the other does what happens to its sums, and stores. This is
the schedule that CUTLASS calls "ping-pong" (Hopper's `KernelTmaWarpSpecializedPingpong`).

Two blocks of neighbouring multiprocessors, a cluster, go through rows of the same columns: each
loads half of the columns' weights, for both. What a stage takes from the second-level cache, which
would else be what tiles this small wait for, falls by a quarter or more.

Weights' columns lie in the order of `matrix_tile.regrouped`, so that each thread's sums are 16
bytes of the result side by side. Residuals are loaded as boxes to where the result will be, which
is stored as boxes from there: no thread computes an address in global memory or a border.

A convolution's tile can be loaded as a *frame*: what all taps of its window see of its pixels, once
for all of them, where else every tap loads its pixels anew. Eight rows of the matrix that tensor
cores read are eight pixels side by side, so that another tap is another place in shared memory to
begin at. Where the weights of all steps fit beside the frames, they stay there for all tiles of a
block, which then loads nothing but pixels.

Triton 3.6 has neither clusters whose blocks load for one another, nor groups of warps that work on
tiles of their own; so this is written in PTX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.tensor_map import TensorMap
from planish.targets.cuda.kernel import MappedPointer, Pointer, PtxKernel
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.mapped_kernel import pixels_map, whole_strides
from planish.targets.cuda.kernels.matrix_tile import Tile, Window, ceil, segments
from planish.targets.cuda.kernels.ptx.specialized.tiles import GROUPS, LINES, SIDE, WARPS, WHOLE
from planish.targets.cuda.kernels.ptx.specialized.writer import SpecializedWriter
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER


@dataclass(frozen=True)
class SpecializedKernel(PtxKernel):
    """One specialisation. Parameter: the rows.

    Attributes
    ----------
    tile : Tile
        What a group computes at a time; its depth is 64 or 128 bytes.
    stages : int
    ring : int
        Boxes of the result that a group has shared memory for.
    dtype, left, axes, window, channels, columns, result, codes
        See `MatrixKernel`. The left factor is one tensor, as it lies.
    high, wide : int
        Pixels of a tile; 0 where rows are no pixels.
    frames : int
        Frames that shared memory is there for, each of a tile and as many channels as a step has.
        0: each tap's pixels are loaded by themselves. Tiles with frames are `SIDE` pixels wide.
    """

    family = "specialized"
    warps = WARPS
    at_once = 1
    """Blocks that registers are left for on a multiprocessor."""

    tile: Tile
    stages: int
    ring: int
    dtype: DType
    left: Access
    axes: tuple[int, ...]
    window: Window | None
    channels: int
    columns: int
    result: Work
    high: int = 0
    wide: int = 0
    codes: bool = False
    frames: int = 0

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        found = self.result.pointers
        number = self.residual
        residual = None if number is None else self.place_of(number)
        rest = [
            mapped_pointer(p, self._result_map(item)) if whole else p
            for i, (p, item) in enumerate(zip(found, self._items, strict=True))
            for whole in (i in (residual, len(found) - 1),)
        ]
        return (*self.factors, *rest)

    @property
    def factors(self) -> tuple[Pointer, Pointer]:
        """The first pointers."""
        weights = Pointer(DType.INT8 if self.dtype.size == 1 else self.dtype)
        return mapped_pointer(self.left.pointer, self._left_map()), mapped_pointer(
            weights, self._right_map()
        )

    @property
    def _items(self) -> list[Access]:
        return [a for a in (*self.result.leaves, *self.result.outputs) if a is not None]

    def place_of(self, leaf: int) -> int:
        """The number of a leaf's pointer among the result's."""
        return sum(a is not None for a in self.result.leaves[:leaf])

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @property
    def size(self) -> int:
        """Bytes of an element of the result."""
        return self.result.outputs[0].pointer.dtype.size

    @property
    def neighbours(self) -> int:
        """Columns of a box of the result, of which four threads share a row."""
        return neighbours(self.tile, self.size)

    @property
    def boxes(self) -> int:
        """Of a tile's result."""
        return self.tile.columns // self.neighbours

    @property
    def column_tiles(self) -> int:
        """Tiles along the columns."""
        return ceil(self.columns, self.tile.columns)

    @property
    def blocks(self) -> int:
        """Steps for each tap."""
        return segments(self.tile, self.window.taps if self.window else (1, 1), self.channels)[2]

    @property
    def steps(self) -> int:
        """Steps of the loop over the depth."""
        taps = math.prod(self.window.taps) if self.window else 1
        return taps * self.blocks

    @property
    def residual(self) -> int | None:
        """The leaf that has an element for each of the result."""
        return next(
            (i for i, a in enumerate(self.result.leaves) if a is not None and any(a.strides[:-1])),
            None,
        )

    @property
    def sharing(self) -> int:
        """Blocks of a cluster that load weights for one another."""
        return self.cluster

    # ---- frames ----------------------------------------------------------------------------------

    @property
    def taps(self) -> int:
        """Of the window, for each of which a frame is read; 1 without frames."""
        return math.prod(self.window.taps) if self.window is not None and self.frames else 1

    @property
    def units(self) -> int:
        """Frames of a tile, or steps."""
        return self.steps // self.taps

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights of all steps stay in shared memory: each has a stage of its own."""
        return self.frames > 0 and self.stages == self.steps and self.column_tiles == 1

    @property
    def frame(self) -> tuple[int, int]:
        """Rows and columns of an image's part of a frame."""
        assert self.window is not None
        return self.window.seen(self.high, self.wide)

    @property
    def frame_bytes(self) -> int:
        """Of a frame: a multiple of what exchanged places repeat after."""
        if not self.frames:
            return 0
        return ceil(self.images * math.prod(self.frame) * self.line, WHOLE) * WHOLE

    def frame_place(self, block: int) -> int:
        """Where in a frame the pixels of 64 of the tile's rows begin, in bytes."""
        image, row = divmod(block * 64 // SIDE, self.high)
        down, across = self.frame
        return (image * down + row) * across * self.line

    @property
    def frame_barriers(self) -> int:
        """The number of the first barrier of frames: those behind it say that they are there, as
        many more that they were read.
        """
        return 2 * (self.stages + GROUPS * self.ring)

    # ---- shared memory ---------------------------------------------------------------------------

    @property
    def line(self) -> int:
        """Bytes of a row of a factor's box."""
        return self.tile.depth * self.dtype.size

    @property
    def weights(self) -> int:
        """Where a stage's weights begin: behind pixels, if these are no frames."""
        return 0 if self.frames else self.tile.rows * self.line

    @property
    def stage_bytes(self) -> int:
        """Of a stage: boxes of both factors, or of weights."""
        return self.weights + self.tile.columns * self.line

    @property
    def factor_bytes(self) -> int:
        """Of all stages and frames."""
        return self.stages * self.stage_bytes + self.frames * self.frame_bytes

    @property
    def box_bytes(self) -> int:
        """Of a box of the result."""
        return self.tile.rows * self.neighbours * self.size

    @property
    def barriers(self) -> int:
        """Where they begin."""
        return self.factor_bytes + GROUPS * self.ring * self.box_bytes

    @property
    def shared(self) -> int:
        """Bytes in all."""
        return self.barriers + BARRIER * (self.frame_barriers + 2 * self.frames)

    # ---- tensor maps -----------------------------------------------------------------------------

    def _left_map(self) -> TensorMap:
        if self.window is None:
            extents = 0, self.channels
            strides = whole_strides(self.left.strides, extents)
            return TensorMap(extents, strides, (self.tile.rows, self.tile.depth), 1)
        pixels = self.frame if self.frames else (self.high, self.wide)
        box = self.images, *pixels, self.tile.depth
        return pixels_map(self.left.strides, self.window, self.axes, self.channels, box)

    def _right_map(self) -> TensorMap:
        pitch = self.steps * self.tile.depth
        shape = self.column_tiles * self.tile.columns, pitch
        return TensorMap(shape, (pitch, 1), (self.tile.columns // self.sharing, self.tile.depth))

    def _result_map(self, item: Access) -> TensorMap:
        row, count = item.strides[-2], self.neighbours
        if self.window is None:
            return TensorMap((0, self.columns), (row, 1), (self.tile.rows, count), 1)
        high, wide = self.axes[1:]
        strides = high * wide * row, wide * row, row, 1
        box = self.images, self.high, self.wide, count
        return TensorMap((0, high, wide, self.columns), strides, box, high * wide)

    @property
    def images(self) -> int:
        """Images that a tile has pixels of."""
        return self.tile.rows // (self.high * self.wide)

    # ---- code ------------------------------------------------------------------------------------

    def text(self) -> str:
        """The kernel as PTX.

        Raises
        ------
        NotExpressible
            The epilogue has something that PTX is not written for here.
        """
        return SpecializedWriter(self).write()


def mapped_pointer(pointer: Pointer, tensor: TensorMap) -> MappedPointer:
    """A pointer to a tensor that boxes are copied of."""
    return MappedPointer(pointer.dtype, pointer.aligned, tensor=tensor)


def neighbours(tile: Tile, size: int) -> int:
    """Columns of a box of the result, of elements of so many bytes; 0 if there is no such box."""
    return next((n // size for n in reversed(LINES) if tile.columns % (n // size) == 0), 0)
