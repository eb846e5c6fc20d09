"""The matrix kernel with tensor maps: Hopper's copies of boxes instead of loads by every thread.

A convolution's tile of rows is a box of pixels, `images` by `high` by `wide`: for each tap the box
lies elsewhere, and what is outside the image is zero by itself. Nothing computes addresses or
conditions, so that even small tiles keep the tensor cores' pipeline full. The image's box is the
right factor of the tensor cores (Triton 3.6 would take it through registers as the left one), so
that the columns' weights are multiplied by the rows.

A convolution by steps of two sees the image as pairs of rows and of columns, the pixels of a pair
of columns as channels behind one another, so that the pixels of a tap are neighbours as well.

A matrix's tile is a box of rows. A program may also go through many tiles, so that the next one's
boxes are on their way while one is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.targets.cuda.codegen.elementwise import storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.codegen.tensor_map import TensorMap
from planish.targets.cuda.kernel import MappedPointer, Pointer
from planish.targets.cuda.kernels.fused import apply
from planish.targets.cuda.kernels.matrix_kernel import MatrixKernel
from planish.targets.cuda.kernels.matrix_product import ProductWriter
from planish.targets.cuda.kernels.matrix_tile import Window
from planish.targets.cuda.kernels.matrix_writer import MatrixWriter

PAIRS = 2, 2
"""Steps of a convolution whose image is seen as pairs."""
EVEN_BYTES = 16
"""Strides are multiples of so many."""


def whole_strides(strides: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Strides with those filled in that are 0, as axes of extent 1 have them."""
    whole = list(strides)
    for axis in reversed(range(len(whole) - 1)):
        whole[axis] = whole[axis] or whole[axis + 1] * shape[axis + 1]
    return tuple(whole)


def paired(strides: Sequence[int]) -> tuple[int, ...]:
    """Strides of images, rows and columns as those of images, pairs of rows, rows, and pairs."""
    image, row, column, _ = strides
    return image, 2 * row, row, 2 * column, 1


def pixels_map(
    strides: Sequence[int],
    window: Window,
    axes: Sequence[int],
    channels: int,
    box: tuple[int, int, int, int],
) -> TensorMap:
    """The tensor map of a convolution's images, its box of images, rows, columns and channels.

    `axes` are those of the result; its pixels are the kernel's parameter.
    """
    pixels = axes[1] * axes[2]
    down, across = window.size
    whole = whole_strides(strides, (0, down, across, channels))
    if window.strides != PAIRS:
        return TensorMap((0, down, across, channels), whole, box, pixels)
    shape = 0, down // 2, 2, across // 2, whole[2] + channels
    return TensorMap(shape, paired(whole), (*box[:2], 1, *box[2:]), pixels)


@dataclass(frozen=True)
class MappedKernel(MatrixKernel):
    """One specialisation. The left factor is one tensor, as it lies; the right one is packed.

    Attributes
    ----------
    high, wide : int
        Pixels of a tile; 0 where rows are no pixels.
    """

    family = "mapped"

    high: int = 0
    wide: int = 0

    @property
    def is_image(self) -> bool:
        """Whether a tile's rows are a box of pixels."""
        return self.window is not None

    @property
    def is_paired(self) -> bool:
        """Whether rows and columns of the image are taken two by two."""
        return self.window is not None and self.window.strides == PAIRS

    @property
    def images(self) -> int:
        """Images that a tile has pixels of."""
        return self.tile.rows // (self.high * self.wide)

    @property
    def pixels_of_result(self) -> tuple[int, int]:
        """Rows and columns of the result's images."""
        return self.axes[1], self.axes[2]

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        left, right, *rest = super().pointers
        if self.stores_boxes:
            result = rest.pop()
            rest.append(MappedPointer(result.dtype, result.aligned, tensor=self._result_map()))
        return (
            MappedPointer(left.dtype, left.aligned, tensor=self._left_map()),
            MappedPointer(right.dtype, right.aligned, tensor=self._right_map()),
            *rest,
        )

    @property
    def stores_boxes(self) -> bool:
        """Whether the result is stored as boxes, too: programs of many tiles go on meanwhile."""
        if not self.tile.is_persistent or len(self.result.outputs) != 1:
            return False
        (item,) = self.result.outputs
        pitch = item.strides[0] * item.pointer.dtype.size
        even = item.pointer.aligned and item.strides[-1] == 1 and pitch % EVEN_BYTES == 0
        whole = len(self.result.shape) == 2 and item.strides[0] >= self.columns
        return even and whole and item.pointer.dtype is self.dtype

    def _result_map(self) -> TensorMap:
        (item,) = self.result.outputs
        half = self.tile.columns // 2
        return TensorMap((0, self.columns), item.strides, (self.tile.rows, half), 1)

    def _left_map(self) -> TensorMap:
        (leaf,) = self.left.leaves
        assert leaf is not None
        depth = self.tile.depth
        if not self.is_image:
            rows = 0, self.channels
            strides = whole_strides(leaf.strides, rows)
            return TensorMap(rows, strides, (self.tile.rows, depth), 1)
        assert self.window is not None
        box = (self.images, self.high, self.wide, depth)
        return pixels_map(leaf.strides, self.window, self.axes, self.channels, box)

    def _right_map(self) -> TensorMap:
        pitch = self.steps * self.tile.depth
        shape = (self.column_tiles * self.tile.columns, pitch)
        return TensorMap(shape, (pitch, 1), (self.tile.columns, self.tile.depth))

    def write(self, k: Source) -> None:
        MappedWriter(self, k).write()


_NAMES = ("images", "left_side", "top", "image", "inner", "x", "y", "each", "exists")
"""Variables that every kernel of pixels has."""


class MappedWriter(MatrixWriter):
    """Writes a `MappedKernel`: the matrix kernel, but for how it loads, and how rows lie."""

    kernel: MappedKernel

    def __init__(self, kernel: MappedKernel, k: Source) -> None:
        super().__init__(kernel, k, writer=BoxWriter)
        for name in _NAMES:
            k.name(name)

    def _write_persistent(self) -> None:
        k, columns = self.k, self.kernel.column_tiles
        self._count_tiles()
        tiles = f"row_tiles * {columns}" if columns > 1 else "row_tiles"
        loop = f"tl.range(tl.program_id(0), {tiles}, tl.num_programs(0), flatten=True)"
        with k.block(f"for place in {loop}:"):
            self._place_tile()
            k.line(f"total = {self._nothing(self.tile.sides)}")
            self.products[0].sum_up()
            if self.kernel.stores_boxes:
                self._finish_boxes()
            else:
                self._finish("total")

    def _finish_boxes(self) -> None:
        """Applies the epilogue to a half of the tile's columns at a time, and stores it."""
        k, tile, kernel = self.k, self.tile, self.kernel
        half = tile.columns // 2
        turned = f"tl.permute(tl.reshape(total, ({tile.rows}, 2, {half})), (0, 2, 1))"
        parts = [k.name("half"), k.name("half")]
        k.line(f"{', '.join(parts)} = tl.split({turned})")
        exists = k.let("exists", "(row < n0)[:, None]")
        result = self.result_pointer + len(kernel.result.pointers) - 1
        for number, part in enumerate(parts):
            start = k.let("start", f"column_tile * {tile.columns} + {number * half}")
            column = k.let("columns", f"{start} + tl.arange(0, {half})")
            inside = None
            if self.kernel.is_ragged:
                inside = k.let("exists", f"({column} < {kernel.columns})[None, :]")
            index, masks = ["row[:, None]", f"{column}[None, :]"], [exists, inside]
            (value,) = apply(k, kernel.result, self.result_pointer, index, masks, [part])
            halves = f"({value}).to({storage_type(kernel.dtype)})"
            k.line(f"p{result}.store([row_tile * {tile.rows}, {start}], {halves})")

    def _count_tiles(self) -> None:
        kernel, k = self.kernel, self.k
        if not kernel.is_image:
            super()._count_tiles()
            return
        high, wide = kernel.pixels_of_result
        k.line(f"images = n0 // {high * wide}")
        of_image = -(-high // kernel.high) * -(-wide // kernel.wide)
        k.line(f"row_tiles = (images + {kernel.images - 1}) // {kernel.images} * {of_image}")

    def _name_rows(self) -> None:
        kernel, k, rows = self.kernel, self.k, self.tile.rows
        if not kernel.is_image:
            super()._name_rows()
            return
        high, wide = kernel.pixels_of_result
        down, across = -(-high // kernel.high), -(-wide // kernel.wide)
        k.line(f"left_side = row_tile % {across} * {kernel.wide}")
        k.line(f"top = row_tile // {across} % {down} * {kernel.high}")
        k.line(f"image = row_tile // {across * down} * {kernel.images}")
        k.line(f"inner = tl.arange(0, {rows})")
        k.line(f"x = left_side + inner % {kernel.wide}")
        k.line(f"y = top + inner // {kernel.wide} % {kernel.high}")
        k.line(f"each = image + inner // {kernel.wide * kernel.high}")
        k.line(f"exists = (x < {wide}) & (y < {high}) & (each < images)")
        k.line(f"row = tl.where(exists, (each * {high} + y) * {wide} + x, n0)")

    def _place_sums(self) -> None:
        if not self.tile.transposed:
            super()._place_sums()
            return
        self.k.line(f"local = tl.arange(0, {self.tile.rows})[:, None]")
        across = f"tl.arange(0, {self.tile.columns})[None, :] * {self.tile.rows}"
        self.k.line(f"local = local + {across}")


class BoxWriter(ProductWriter):
    """Writes a product whose factors are copied as boxes."""

    kernel: MappedKernel

    def sum_up(self) -> None:
        k, tile, kernel = self.k, self.tile, self.kernel
        begin, end = self.share(kernel.steps)
        with k.block(f"for step in range({begin}, {end}):"):
            a = self._load_box(kernel.segments[2])
            place = f"[column_tile * {tile.columns}, step * {tile.depth}]"
            b = k.let("b", f"p1.load({place})")
            first, second = (b, a) if tile.transposed else (a, b)
            k.line(f"total = tl.dot({first}, tl.trans({second}), total)")

    def _load_box(self, blocks: int) -> str:
        """Loads a tile of the left factor, ``[rows, depth]``."""
        k, tile, kernel = self.k, self.tile, self.kernel
        if not kernel.is_image:
            return k.let("a", f"p0.load([row_tile * {tile.rows}, step * {tile.depth}])")
        window = kernel.window
        assert window is not None
        tap = "step" if blocks == 1 else k.let("tap", f"step // {blocks}")
        channel = (
            "0" if blocks == 1 else k.let("along", f"(step - {tap} * {blocks}) * {tile.depth}")
        )
        row, column = self.taps(tap, window.taps)
        shifts = []
        for at, spread, pad in zip((row, column), window.dilations, window.pads, strict=True):
            shifts.append(k.let("shift", f"{at} * {spread} - {pad}"))
        if kernel.is_paired:
            (leaf,) = kernel.left.leaves
            assert leaf is not None
            strides = whole_strides(leaf.strides, (0, *window.size, kernel.channels))
            down, across = shifts
            # a shift by two is one pair; of an odd one the second of a pair, also before the image
            place = [f"top + ({down} >> 1)", f"{down} & 1", f"left_side + ({across} >> 1)"]
            channel = f"({across} & 1) * {strides[2]} + {channel}"
        else:
            place = [
                f"{start} + {by}" for start, by in zip(("top", "left_side"), shifts, strict=True)
            ]
        place.insert(0, "image")
        box = k.let("box", f"p0.load([{', '.join(place)}, {channel}])")
        return k.let("a", f"tl.reshape({box}, ({tile.rows}, {tile.depth}))")
