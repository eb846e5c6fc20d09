"""Two convolutions of single pixels, one after the other, by specialised warps, on Hopper.

    x ─▶ product ─▶ bias, residual, activation ─┬─▶ product ─▶ epilogue
                                                └─▶ others

What such layers cost is memory: what stands between the products is the largest tensor of the
network, its residual is read and it is written. So nobody who computes waits for memory here. A
block is three groups of four warps. Two compute tiles of rows of their own; threads of the third
load the image's tiles, weights, and residuals, and store both results, all as boxes (tensor maps).

A group goes over the first result by chunks of 64 columns. A chunk's product leaves sums in
registers; its elementwise work reads the residual's box from shared memory and writes the result's
to the same places, from where it is stored. The very registers that were written are the left
factor of the second product: sums of 64 rows lie in a group's threads as its left factor does, if
two neighbouring sums are packed into one register. So the second product's depth has the order in
which the first one's columns are multiplied, that of `matrix_tile.regrouped`: its weights are laid
out for that. This is how FlashAttention multiplies probabilities by values (Shah et al., 2024).

The image may be two, whose products are added: their channels are one depth.

Where all weights fit they stay in shared memory for all tiles of a block; else chunks of them go
through a ring of stages, each for both groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.graph.types import DType
from planish.targets.cuda.codegen.tensor_map import TensorMap
from planish.targets.cuda.kernel import MappedPointer, Pointer, PtxKernel
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.mapped_kernel import whole_strides
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.specialized.tiles import GROUPS, WARPS
from planish.targets.cuda.kernels.ptx.specialized_pair.writer import (
    BOX,
    LINE,
    SIDE,
    SpecializedPairWriter,
)
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER


@dataclass(frozen=True)
class SpecializedPairKernel(PtxKernel):
    """One specialisation. Parameter: the rows.

    Attributes
    ----------
    rows : int
        Of a group's tile: 64 or 128.
    stages : int
        Chunks of weights that there is room for; where it is all of them, they stay.
    ring : int
        Boxes of results that a group has room for.
    ahead : int
        Tiles of the image that a group has room for.
    dtype : DType
    images : tuple of Access
        What the first product reads: one, or two whose products are added.
    channels : tuple of int
        Of each of them.
    middle, columns : int
        Of both results.
    between, result : Work
        What happens to both products' sums.
    kept : bool
        Whether the first result is written.
    """

    family = "specialized_pair"
    warps: ClassVar[int] = WARPS
    at_once: ClassVar[int] = 1
    codes: ClassVar[bool] = False

    rows: int
    stages: int
    ring: int
    ahead: int
    dtype: DType
    images: tuple[Access, ...]
    channels: tuple[int, ...]
    middle: int
    columns: int
    between: Work
    result: Work
    kept: bool

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        between = self._mapped_work(self.between, self.middle)
        return (
            *map(_image, self.images, self.channels),
            MappedPointer(self.dtype, tensor=_weights_map(self.middle, self.parts * SIDE, SIDE)),
            *(between if self.kept else between[:-1]),
            MappedPointer(self.dtype, tensor=_weights_map(self.columns, self.middle, self.columns)),
            *self._mapped_work(self.result, self.columns),
        )

    def _mapped_work(self, work: Work, columns: int) -> list[Pointer]:
        """The pointers of a work's leaves and result, those with boxes with their maps."""
        found: list[Pointer] = []
        for item in (*work.leaves, *work.outputs):
            if item is None:
                continue
            pointer = item.pointer
            if any(item.strides[:-1]):
                box = TensorMap((0, columns), (item.strides[0], 1), (SIDE, SIDE), 1)
                pointer = MappedPointer(pointer.dtype, pointer.aligned, tensor=box)
            found.append(pointer)
        return found

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    # ---- numbers of pointers ---------------------------------------------------------------------

    @property
    def first(self) -> int:
        """That of the first weights; behind it is what the work between reads and writes."""
        return len(self.images)

    @property
    def second(self) -> int:
        """That of the second weights."""
        return self.first + 1 + sum(a is not None for a in self.between.leaves) + self.kept

    @property
    def residual(self) -> int | None:
        """The leaf of the work between that has an element for each of its result."""
        return next(
            (i for i, a in enumerate(self.between.leaves) if a is not None and any(a.strides[:-1])),
            None,
        )

    # ---- what a group computes -------------------------------------------------------------------

    @property
    def blocks(self) -> int:
        """Rows of a tile that an instruction multiplies at a time are so many."""
        return self.rows // SIDE

    @property
    def places(self) -> list[tuple[int, int]]:
        """Boxes along the images' channels: the image, and the first channel."""
        counts = [ceil(channels, SIDE) for channels in self.channels]
        return [(image, SIDE * i) for image, count in enumerate(counts) for i in range(count)]

    @property
    def parts(self) -> int:
        """How many these are."""
        return len(self.places)

    @property
    def chunks(self) -> int:
        """Of the first result's columns."""
        return self.middle // SIDE

    @property
    def keeps_weights(self) -> bool:
        """Whether they stay for all tiles."""
        return self.stages == self.chunks

    @property
    def between_boxes(self) -> int:
        """Boxes of the first result, or of what is added to it, of a tile."""
        needed = self.kept or self.residual is not None
        return self.blocks * self.chunks if needed else 0

    @property
    def boxes(self) -> int:
        """The same of both results: first by columns, then by rows."""
        return self.between_boxes + self.blocks * self.columns // SIDE

    # ---- shared memory ---------------------------------------------------------------------------

    @property
    def stage_bytes(self) -> int:
        """Of a chunk of weights."""
        return self.parts * BOX + self.columns * LINE

    @property
    def image_start(self) -> int:
        """Where tiles of the image begin."""
        return self.stages * self.stage_bytes

    @property
    def image_bytes(self) -> int:
        """Of a tile of the image."""
        return self.blocks * self.parts * BOX

    @property
    def buffers(self) -> int:
        """Where boxes of results begin."""
        return self.image_start + GROUPS * self.ahead * self.image_bytes

    @property
    def barriers(self) -> int:
        """Where they begin."""
        return self.buffers + GROUPS * self.ring * BOX

    @property
    def counts(self) -> list[int]:
        """Of each barrier: weights are there, or were read; tiles of the image; boxes."""
        tiles, boxes = GROUPS * self.ahead, GROUPS * self.ring
        found = [1] * self.stages + [4 * GROUPS] * self.stages
        return found + [1] * tiles + [4] * tiles + [1] * boxes + [4] * boxes

    @property
    def image_barriers(self) -> int:
        """The number of the first of tiles of the image."""
        return 2 * self.stages

    @property
    def box_barriers(self) -> int:
        """The number of the first of boxes."""
        return self.image_barriers + 2 * GROUPS * self.ahead

    @property
    def shared(self) -> int:
        """Bytes in all."""
        return self.barriers + BARRIER * len(self.counts)

    # ---- code ------------------------------------------------------------------------------------

    def text(self) -> str:
        """The kernel as PTX."""
        return SpecializedPairWriter(self).write()


def _image(item: Access, channels: int) -> MappedPointer:
    extents = 0, channels
    box = TensorMap(extents, whole_strides(item.strides, extents), (SIDE, SIDE), 1)
    return MappedPointer(item.pointer.dtype, item.pointer.aligned, tensor=box)


def _weights_map(columns: int, depth: int, high: int) -> TensorMap:
    return TensorMap((columns, depth), (depth, 1), (high, SIDE))
