"""The matrix kernel that is ready before its turn: small convolutions and products on Hopper.

Where a network waits for latency, a kernel takes as long to begin and to end as to multiply. What
this one does about it:

- The next kernel's blocks are let in as soon as all of this one has been loaded (programmatic
  dependent launch), and blocks are small enough that both fit on a multiprocessor. A block sets up
  barriers and computes addresses, and the weights of its first steps are on their way to shared
  memory, while the kernel before it is still at work; then it waits for that, and loads the rest.
- Few tiles do not occupy all multiprocessors. The blocks of a cluster can share a tile's depth:
  each adds up and finishes a part of the tile, and the others' sums of it come through shared
  memory that a cluster's blocks reach (distributed shared memory), not through global memory.
- A convolution's tile can be squares of 8 by 8 pixels. What the taps of its window see of a square,
  a frame, is loaded once for all of them: eight rows of the matrix that tensor cores read are eight
  pixels side by side, so that another tap is another place to begin at. Else every tap loads its
  pixels anew, and what a multiprocessor can load is what kernels as small as these wait for.

A block is a group of four warps that compute and one thread that loads boxes (it is made from
`specialized`, which is for many tiles). Results go to global memory straight from registers:
four threads write 64 bytes of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from planish.graph.types import DType
from planish.targets.cuda.kernel import MappedPointer, Pointer
from planish.targets.cuda.kernels.fused import Access
from planish.targets.cuda.kernels.matrix_tile import SHARED_BYTES, Tile, ceil
from planish.targets.cuda.kernels.ptx.prompt.writer import PromptWriter
from planish.targets.cuda.kernels.ptx.specialized.kernel import SpecializedKernel
from planish.targets.cuda.kernels.ptx.specialized.tiles import WHOLE
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS

AT_ONCE = 2
"""Blocks that fit on a multiprocessor: of this kernel, or of this one and the next."""


@dataclass(frozen=True)
class PromptKernel(SpecializedKernel):
    """One specialisation. Parameter: the rows. A cluster's blocks share a tile's depth.

    Attributes
    ----------
    tile, stages, dtype, left, axes, window, channels, columns, result, high, wide, codes, frames
        See `SpecializedKernel`. A tile's frame is those of its squares.
    """

    family = "prompt"
    warps: ClassVar[int] = THREADS // 32 + 1

    @property
    def at_once(self) -> int:  # type: ignore[override]
        """Blocks that registers are left for on a multiprocessor."""
        sums = self.tile.rows * self.tile.columns // THREADS
        return 4 if sums <= 32 else 3 if sums <= 64 else AT_ONCE

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        left, weights = self.left.pointer, DType.INT8 if self.dtype.size == 1 else self.dtype
        return (
            MappedPointer(left.dtype, left.aligned, tensor=self._left_map()),
            MappedPointer(weights, tensor=self._right_map()),
            *self.result.pointers,
        )

    @property
    def neighbours(self) -> int:
        return neighbours(self.size)

    @property
    def sharing(self) -> int:
        return 1

    @property
    def keeps_weights(self) -> bool:
        return False  # a block has one tile

    # ---- a cluster's shares ----------------------------------------------------------------------

    @property
    def images(self) -> int:
        return 1 if self.frames else super().images

    @property
    def first_steps(self) -> int:
        """Steps whose weights are loaded before the kernel before this one has ended: of frames no
        more than there are places for.
        """
        least = self.units // self.cluster
        return min(self.stages, (min(least, self.frames) if self.frames else least) * self.taps)

    @property
    def first_frames(self) -> int:
        """Frames that these steps read."""
        return ceil(self.first_steps, self.taps)

    @property
    def pieces(self) -> list[tuple[int, int, int]]:
        """A thread's sums as pieces of the result: the 64 rows, the upper or lower eight of a
        warp's sixteen, and the box of columns.
        """
        blocks = range(self.tile.rows // 64)
        return [(b, h, c) for b in blocks for h in range(2) for c in range(self.boxes)]

    @property
    def share(self) -> int:
        """Pieces that a thread finishes."""
        return len(self.pieces) // self.cluster

    @property
    def share_bytes(self) -> int:
        """Sums that a block has of what another one finishes."""
        return 4 * self.tile.rows * self.tile.columns // self.cluster

    # ---- shared memory ---------------------------------------------------------------------------

    @property
    def square_bytes(self) -> int:
        """From what all taps see of a square to what they see of the next one."""
        return ceil(math.prod(self.frame) * self.line, WHOLE) * WHOLE

    @property
    def frame_bytes(self) -> int:
        return self.tile.rows // 64 * self.square_bytes if self.frames else 0

    def frame_place(self, block: int) -> int:
        return block * self.square_bytes

    @property
    def vectors(self) -> list[tuple[int, Access, int]]:
        """Leaves that have an element for each column, and where their shared memory begins."""
        found, place = [], self.factor_bytes
        for number, item in enumerate(self.result.leaves):
            if item is not None and any(item.strides) and number != self.residual:
                found.append((number, item, place))
                place += self._vector_bytes(item)
        return found

    @property
    def factor_bytes(self) -> int:
        """Of stages and frames; sums take their place when blocks exchange them."""
        own = super().factor_bytes
        return max(own, self.cluster * self.share_bytes) if self.cluster > 1 else own

    def _vector_bytes(self, item: Access) -> int:
        return self.tile.columns * item.pointer.dtype.size

    @property
    def barriers(self) -> int:
        if self.vectors:
            _, item, place = self.vectors[-1]
            return place + self._vector_bytes(item)
        return self.factor_bytes

    def text(self) -> str:
        return PromptWriter(self).write()


def neighbours(size: int) -> int:
    """Columns of which four threads share a row, for elements of so many bytes."""
    return SHARED_BYTES // size


def is_divisible(tile: Tile, size: int, blocks: int) -> bool:
    """Whether so many blocks can each finish a part of a tile with elements of so many bytes: whole
    rows of it, or a part of their columns.
    """
    boxes, rest = divmod(tile.columns, neighbours(size))
    share, more = divmod(tile.rows // 32 * boxes, blocks)
    return not (rest or more) and (share % boxes == 0 or boxes % share == 0)
