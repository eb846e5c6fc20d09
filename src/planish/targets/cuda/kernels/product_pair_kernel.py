"""Two convolutions of single pixels, one after the other, as one kernel.

A program computes some rows (pixels) of both. It goes over the first one's result by blocks of
columns: a block is computed over the whole depth, which is small, gets its elementwise work, is
stored if others read it, and is multiplied with its part of the second one's weights right away.
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

_NAMES = ("row", "safe", "depth", "inner", "column", "place", "step", "total")
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
        k.line(f"row = tl.program_id(0) * {self.rows} + tl.arange(0, {self.rows})")
        k.line("safe = tl.minimum(row, n0 - 1)")
        k.line(f"depth = tl.arange(0, {self.depth})")
        k.line(f"inner = tl.arange(0, {self.block})")
        k.line(f"column = tl.arange(0, {self.width})")
        image = self._image(k)
        second = 2 + len(self.between.pointers)
        blocks = ceil(self.middle, self.block)
        first_weights = f"p1 + (inner[None, :] * {len(image) * self.depth} + depth[:, None])"
        first_weights = k.let("weights", first_weights)
        pitch = blocks * self.block
        second_weights = f"p{second} + (column[None, :] * {pitch} + inner[:, None])"
        second_weights = k.let("weights", second_weights)
        k.line(f"total = tl.full(({self.rows}, {self.width}), 0.0, tl.float32)")
        with k.block(f"for step in tl.range(0, {blocks}, num_stages={self.stages}):"):
            value = self._first(k, image, first_weights)
            w = k.let("w", f"tl.load({second_weights} + step * {self.block})")
            k.line(f"total = tl.dot({value}, {w}, total)")
        exists = None if self.columns == self.width else f"(column < {self.columns})[None, :]"
        finish(k, self.result, second + 1, *self._at(k, self.result, "column", exists), ["total"])

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

    def _first(self, k: Source, image: list[str], weights: str) -> str:
        """A block of the first result, as the second product takes it."""
        k.line(f"place = step * {self.block} + inner")
        pitch = self.block * len(image) * self.depth
        value = k.let("sum", f"tl.full(({self.rows}, {self.block}), 0.0, tl.float32)")
        for number, tile in enumerate(image):
            w = k.let("w", f"tl.load({weights} + (step * {pitch} + {number * self.depth}))")
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
