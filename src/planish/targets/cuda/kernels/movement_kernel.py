"""The kernels that move elements: every result reads its element from somewhere else.

`MoveKernel` walks the axes of the result in tiles. Where the source's elements lie along another
axis than the result's, a tile spans both axes, so that both sides are read and written in whole
lines (the compiler turns it in shared memory). Coordinates of the source that are no multiple of
the result's are *derived*: mirrored or cut off by padding, or read from memory as indices.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, Work, apply, finish, load, whole_mask
from planish.targets.cuda.kernels.nest import COLUMNS, ROWS, Tile, lanes, spread


@dataclass(frozen=True)
class Padded:
    """A coordinate of a padded source.

    Attributes
    ----------
    axis : int
        The result's axis that it follows.
    before : int
        How many elements are put before the source's.
    size : int
        How many the source has.
    mode : str
        As in `planish.ops.shape.Pad`.
    """

    axis: int
    before: int
    size: int
    mode: str


@dataclass(frozen=True)
class Picked:
    """A coordinate that is read from memory; it counts from the end where it is negative.

    Attributes
    ----------
    access : Access
        The index for each of the result's places.
    size : int
        How many elements there are to pick from; other indices are clamped.
    """

    access: Access
    size: int


@dataclass(frozen=True)
class MoveKernel(TritonKernel):
    """One program does a tile of the result.

    Attributes
    ----------
    shape : tuple of int
        The axes of the result; the first is -1.
    row : int or None
        The axis of a tile's rows; its columns are the last axis. None: rows count all axes but the
        last.
    block : (int, int)
        Rows and columns of a tile.
    even : bool
        Whether the parameter is always a multiple of 16.
    padded : tuple of Padded
    picked : tuple of Picked
        Derived coordinates: the leaves of `before` have strides for them after those of the axes.
    fill : int, float, bool or None
        What stands where padding has no element, of type `dtype`.
    hot : int or None
        An axis along which an element is one of two levels: the first where what was read is the
        position, the second elsewhere.
    levels : tuple of Access
    dtype : DType
        Of what is read, after `before` was applied.
    before, after : Work

    Parameter: how many rows there are; with one axis, columns; where `row` is given, the extent of
    the first axis.
    """

    family = "movement"

    shape: tuple[int, ...]
    row: int | None
    block: tuple[int, int]
    even: bool
    padded: tuple[Padded, ...]
    picked: tuple[Picked, ...]
    fill: float | int | bool | None
    hot: int | None
    levels: tuple[Access, ...]
    dtype: DType
    before: Work
    after: Work

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        own = (*(p.access.pointer for p in self.picked), *(a.pointer for a in self.levels))
        return (*own, *self.before.pointers, *self.after.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (self.even,)

    def write(self, k: Source) -> None:
        tile = self._tile(k)
        padded, valid = self._padded(k, tile)
        source = tile + padded + self._picked(k, tile)
        first = len(self.picked) + len(self.levels)
        (x,) = apply(k, self.before, first, source.index, source.masks)
        if self.fill is not None and valid:
            x = k.let("x", f"tl.where({valid}, {x}, {constant(self.fill, self.dtype)})")
        if self.hot is not None:
            on, off = (
                load(k, len(self.picked) + i, a, tile.index, tile.masks)
                for i, a in enumerate(self.levels)
            )
            x = k.let("hot", f"tl.where({x}.to(tl.int64) == {tile.index[self.hot]}, {on}, {off})")
        finish(
            k,
            self.after,
            first + len(self.before.pointers),
            tile.index,
            tile.masks,
            accumulators=[x],
        )

    def _tile(self, k: Source) -> Tile:
        rows, columns = self.block
        rest = k.let("task", "tl.program_id(0)")
        if len(self.shape) == 1:
            column = lanes(k, f"{rest} * {columns}", columns, COLUMNS)
            return Tile((column,), (k.let("inside", f"{column} < n0"),))
        blocks = -(-self.shape[-1] // columns)
        start = "0"
        if blocks > 1:
            start = k.let("start", f"{rest} % {blocks} * {columns}")
            rest = k.let("task", f"{rest} // {blocks}")
        column = lanes(k, start, columns, COLUMNS)
        whole = self.shape[-1] % columns == 0
        last = Tile(
            (column,), (None if whole else k.let("inside", f"{column} < {self.shape[-1]}"),)
        )
        if self.row is None:
            row = lanes(k, f"{rest} * {rows}", rows, ROWS)
            return spread(k, row, self.shape[:-1], k.let("inside", f"{row} < n0")) + last
        extent = "n0" if self.row == 0 else str(self.shape[self.row])
        blocks_of_rows = k.let("blocks", f"({extent} + {rows - 1}) // {rows}")
        row = lanes(k, f"{rest} % {blocks_of_rows} * {rows}", rows, ROWS)
        own = Tile((row,), (k.let("inside", f"{row} < {extent}"),))
        others = [n for axis, n in enumerate(self.shape[:-1]) if axis != self.row]
        outer = Tile((), ())
        if others:
            rest = k.let("task", f"{rest} // {blocks_of_rows}")
            outer = spread(k, rest, others, None)
        before, after = slice(0, self.row), slice(self.row, None)
        return (
            Tile(outer.index[before], outer.masks[before])
            + own
            + Tile(outer.index[after], outer.masks[after])
            + last
        )

    def _padded(self, k: Source, tile: Tile) -> tuple[Tile, str | None]:
        """The coordinates of padding, and which elements are the source's, if others are filled."""
        index: list[str] = []
        masks: list[str | None] = []
        for item in self.padded:
            place = k.let("place", f"{tile.index[item.axis]} - {item.before}")
            last = item.size - 1
            if item.mode == "constant":
                masks.append(k.let("valid", f"({place} >= 0) & ({place} < {item.size})"))
                index.append(place)
                continue
            if item.mode in ("reflect", "symmetric"):
                edge = 1 if item.mode == "symmetric" else 0
                place = k.let("place", f"tl.where({place} < 0, {-edge} - {place}, {place})")
                turned = f"{2 * last + edge} - {place}"
                place = k.let("place", f"tl.where({place} > {last}, {turned}, {place})")
            index.append(k.let("place", f"tl.minimum(tl.maximum({place}, 0), {last})"))
            masks.append(tile.masks[item.axis])
        constant_only = [m for m, p in zip(masks, self.padded, strict=True) if p.mode == "constant"]
        return Tile(tuple(index), tuple(masks)), whole_mask(constant_only)

    def _picked(self, k: Source, tile: Tile) -> Tile:
        """The coordinates that are read from memory."""
        index: list[str] = []
        masks: list[str | None] = []
        for number, item in enumerate(self.picked):
            index.append(pick(k, number, item, tile))
            masks.append(
                whole_mask(
                    [m if s else None for m, s in zip(tile.masks, item.access.strides, strict=True)]
                )
            )
        return Tile(tuple(index), tuple(masks))


def pick(k: Source, pointer: int, item: Picked, tile: Tile) -> str:
    """Reads indices, counts negative ones from the end, and clamps them."""
    place = load(k, pointer, item.access, tile.index, tile.masks)
    dtype = item.access.pointer.dtype
    narrow = dtype.size < 4 or dtype is DType.INT32
    place = k.let("place", f"{place}.to({'tl.int32' if narrow else 'tl.int64'})")
    place = k.let("place", f"tl.where({place} < 0, {place} + {item.size}, {place})")
    return k.let("place", f"tl.minimum(tl.maximum({place}, 0), {item.size - 1}).to(tl.int32)")


@dataclass(frozen=True)
class ReshapeKernel(TritonKernel):
    """Every program does `block` neighbouring elements, seen in two shapes that have nothing in
    common. Parameter: the elements.

    Attributes
    ----------
    shapes : tuple of tuple of int
        The axes of `before` and of `after`; the first of each is -1.
    """

    family = "reshape"

    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    block: int
    even: bool
    before: Work
    after: Work

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.before.pointers, *self.after.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (self.even,)

    def write(self, k: Source) -> None:
        flat = k.let("flat", f"tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        mask = k.let("inside", f"{flat} < n0")
        old, new = (spread(k, flat, shape, mask) for shape in self.shapes)
        results = apply(k, self.before, 0, old.index, old.masks)
        finish(k, self.after, len(self.before.pointers), new.index, new.masks, results)


@dataclass(frozen=True)
class ParametersKernel(TritonKernel):
    """One program writes the launch's integer parameters to memory: shapes as tensors."""

    family = "parameters"

    pointer: Pointer
    stride: int
    count: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (self.pointer,)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,) * self.count

    def write(self, k: Source) -> None:
        for number in range(self.count):
            value = f"(n{number} + tl.arange(0, 1)).to({compute_type(self.pointer.dtype)})"
            k.line(f"tl.store(p0 + {number * self.stride} + tl.arange(0, 1), {value})")
