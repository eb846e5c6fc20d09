"""Two convolutions of single pixels, one after the other, as one kernel.

A program computes some rows (pixels) of both. It goes over the first one's result by blocks of
columns: a block is computed over the whole depth, which is small, gets its elementwise work, is
stored if others read it, and is multiplied with its part of the second one's weights right away.

Where all weights fit into shared memory beside that, a program goes through many tiles of rows and
keeps them: then what the next tiles read is loaded while one is computed and written.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import (
    Access,
    Work,
    apply,
    decompose,
    finish,
    offset,
    store,
)
from planish.targets.cuda.kernels.matrix_tile import ceil

_NAMES = ("row", "safe", "depth", "inner", "column", "place", "step", "total", "tile")
"""Variables that every kernel has."""


@dataclass(frozen=True)
class ProductPairKernel(TritonKernel):
    """One specialisation. Parameter: the rows.

    Pointers: the image, the first weights, what the work between reads and writes, the second
    weights, what the epilogue reads and writes.

    Attributes
    ----------
    rows, block, depth : int
        Rows of a program, columns of the first result in a step, channels of the image in a
        product.
    width : int
        The second result's columns, as a power of two.
    dtype : DType
    left : Access
        The image: a stride for each of `axes`, and for its channels.
    axes : tuple of int
        The axes of the rows; the first is -1.
    channels, middle, columns : int
        Of the image, and of both results.
    between, result : Work
        Along rows and columns; `between` writes the first result if that is kept.
    persistent : bool
        Whether a program goes through many tiles.
    """

    family = "product_pair"

    rows: int
    block: int
    depth: int
    width: int
    dtype: DType
    left: Access
    axes: tuple[int, ...]
    channels: int
    middle: int
    columns: int
    between: Work
    result: Work
    persistent: bool = False

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        weights = Pointer(self.dtype)
        return (
            self.left.pointer,
            weights,
            *self.between.pointers,
            weights,
            *self.result.pointers,
        )

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        for name in _NAMES:
            k.name(name)
        k.line(f"depth = tl.arange(0, {self.depth})")
        k.line(f"inner = tl.arange(0, {self.block})")
        k.line(f"column = tl.arange(0, {self.width})")
        pitch = self._parts * self.depth
        first = k.let("weights", f"p1 + (inner[None, :] * {pitch} + depth[:, None])")
        pitch = self._blocks * self.block
        place = f"(column[None, :] * {pitch} + inner[:, None])"
        second = k.let("weights", f"p{2 + len(self.between.pointers)} + {place}")
        if not self.persistent:
            k.line("tile = tl.program_id(0)")
            image = self._start(k)
            with k.block(f"for step in tl.range(0, {self._blocks}, num_stages={self.stages}):"):
                self._block(k, "step", image, *self._weights(k, "step", first, second))
            self._end(k)
            return
        kept = [self._weights(k, str(step), first, second) for step in range(self._blocks)]
        tiles = k.let("tiles", f"(n0 + {self.rows - 1}) // {self.rows}")
        loop = f"tl.program_id(0), {tiles}, tl.num_programs(0), num_stages={self.stages}"
        with k.block(f"for tile in tl.range({loop}):"):
            image = self._start(k)
            for step, weights in enumerate(kept):
                self._block(k, str(step), image, *weights)
            self._end(k)

    @property
    def _blocks(self) -> int:
        """Steps over the columns of the first result."""
        return ceil(self.middle, self.block)

    @property
    def _parts(self) -> int:
        """Products that the depth of the first one takes."""
        return ceil(self.channels, self.depth)

    def _start(self, k: Source) -> list[str]:
        """Names a tile's rows and sums; the tiles of its image."""
        k.line(f"row = tile * {self.rows} + tl.arange(0, {self.rows})")
        k.line("safe = tl.minimum(row, n0 - 1)")
        image = self._image(k)
        k.line(f"total = tl.full(({self.rows}, {self.width}), 0.0, tl.float32)")
        return image

    def _end(self, k: Source) -> None:
        """Applies the epilogue to a tile's sums and stores them."""
        exists = None if self.columns == self.width else f"(column < {self.columns})[None, :]"
        pointer = 3 + len(self.between.pointers)
        finish(k, self.result, pointer, *self._at(k, self.result, "column", exists), ["total"])

    def _weights(self, k: Source, step: str, first: str, second: str) -> tuple[list[str], str]:
        """The weights of a block: the first ones, for each part of the depth, and the second."""
        pitch = self.block * self._parts * self.depth
        before = [
            k.let("w", f"tl.load({first} + ({step} * {pitch} + {number * self.depth}))")
            for number in range(self._parts)
        ]
        return before, k.let("w", f"tl.load({second} + {step} * {self.block})")

    def _block(self, k: Source, step: str, image: list[str], before: list[str], after: str) -> None:
        """Adds a block of the first result, by its part of the second weights, to the sums."""
        value = self._first(k, step, image, before)
        k.line(f"total = tl.dot({value}, {after}, total)")
        k.settle("total")

    def _image(self, k: Source) -> list[str]:
        """The tiles of the image, all of its channels."""
        index = [f"{name}[:, None]" for name in decompose(k, "safe", self.axes)]
        rows = Access(self.left.pointer, self.left.strides[:-1], self.left.wide)
        start = k.let("start", f"p0 + ({offset(rows, index)})")
        tiles = []
        for begin in range(0, self.channels, self.depth):
            channel = f"({begin} + depth)[None, :]"
            mask = ""
            if begin + self.depth > self.channels:
                mask = f", mask={channel} < {self.channels}, other=0"
            place = f"{start} + {channel} * {self.left.strides[-1]}"
            tile = f"tl.load({place}{mask})"
            if not any(self.left.strides[:-1]):  # a single row has no stride
                tile = f"tl.broadcast_to({tile}, ({self.rows}, {self.depth}))"
            tiles.append(k.let("image", tile))
        return tiles

    def _first(self, k: Source, step: str, image: list[str], weights: list[str]) -> str:
        """A block of the first result, as the second product takes it."""
        k.line(f"place = {step} * {self.block} + inner")
        value = k.let("sum", f"tl.full(({self.rows}, {self.block}), 0.0, tl.float32)")
        for tile, w in zip(image, weights, strict=True):
            value = k.let("sum", f"tl.dot({tile}, {w}, {value})")
        exists = None if self.middle % self.block == 0 else f"(place < {self.middle})[None, :]"
        index, masks = self._at(k, self.between, "place", exists)
        (made,) = apply(k, self.between, 2, index, masks, [value])
        for output in self.between.outputs:
            store(k, 1 + len(self.between.pointers), output, index, masks, made)
        return k.let("made", f"({made}).to({storage_type(self.dtype)})")

    def _at(
        self, k: Source, work: Work, column: str, inside: str | None
    ) -> tuple[list[str], list[str | None]]:
        """The index of the program's rows and some columns, and which of them exist."""
        index = [f"{name}[:, None]" for name in decompose(k, "row", work.shape[:-1])]
        exists = k.let("exists", "(row < n0)[:, None]")
        return [*index, f"{column}[None, :]"], [*([exists] * len(index)), inside]
