"""The kernels of `ScatterNd`: every place of the result finds its updates itself.

A place is a slice of the result that updates replace or are combined with. It either looks at the
indices of all updates, in their order, so that results are those of one update after the other; or
reads the number of its last update, which `MarkKernel` left in the workspace.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph.types import DType
from planish.ops.elementwise import ew
from planish.targets.cuda.codegen.casts import round_half
from planish.targets.cuda.codegen.elementwise import compute_type, emit
from planish.targets.cuda.codegen.literals import HALVES
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, Work, apply, finish, load
from planish.targets.cuda.kernels.movement_kernel import Picked, pick
from planish.targets.cuda.kernels.nest import COLUMNS, ROWS, Tile, lanes, spread

_COMBINE = {"add": ew.Add(), "mul": ew.Mul(), "max": ew.Maximum(), "min": ew.Minimum()}
_COMBINE_BOOL = {
    "add": ew.LogicalOr(),
    "mul": ew.LogicalAnd(),
    "max": ew.LogicalOr(),
    "min": ew.LogicalAnd(),
}
_MARKS = Pointer(DType.INT32)


@dataclass(frozen=True)
class FillKernel(TritonKernel):
    """Marks all places as those of no update. Parameter: the places."""

    family = "scatter_fill"

    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (_MARKS,)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        place = k.let("place", f"tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        none = f"tl.full(({self.block},), -1, tl.int32)"
        k.line(f"tl.store(p0 + {place}, {none}, mask={place} < n0)")


@dataclass(frozen=True)
class MarkKernel(TritonKernel):
    """Marks each place with the number of its last update. Parameter: the updates.

    Attributes
    ----------
    places : tuple of int
        The extents that the components of an index count in.
    grid : tuple of int
        The axes of the updates; the first is -1.
    picked : tuple of Picked
        The components, over the grid.
    block : int
    """

    family = "scatter_mark"

    places: tuple[int, ...]
    grid: tuple[int, ...]
    picked: tuple[Picked, ...]
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*(p.access.pointer for p in self.picked), _MARKS)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        update = k.let("update", f"tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        inside = k.let("inside", f"{update} < n0")
        grid = spread(k, update, self.grid, inside) if self.grid else Tile((), ())
        place = _place(k, self.picked, self.places, grid)
        # a single index has no axis to vary along
        where = f"p{len(self.picked)} + {place} + {update} * 0"
        k.line(f"tl.atomic_max({where}, {update}, mask={inside}, sem='relaxed')")


@dataclass(frozen=True)
class ScatterKernel(TritonKernel):
    """One program does a tile: places by elements inside them.

    Attributes
    ----------
    shape : tuple of int
        The axes of the result, those of places first; the first is -1.
    depth : int
        How many of them are places'.
    places : tuple of int
        Their extents.
    grid : tuple of int
        The axes of the updates; the first is -1.
    block : (int, int)
        Places and elements of a tile.
    reduction : str
        As in `planish.ops.indexing.ScatterNd`.
    dtype : DType
    marked : bool
        Whether the first pointer holds the number of the last update of each place.
    picked : tuple of Picked
        Else what the first pointers are: the components of the indices, over the grid.
    updates : Access
        Over the axes of the result (0 for those of places), then those of the grid.
    before, after : Work

    Parameters: how many places and updates there are.
    """

    family = "scatter"

    shape: tuple[int, ...]
    depth: int
    places: tuple[int, ...]
    grid: tuple[int, ...]
    block: tuple[int, int]
    reduction: str
    dtype: DType
    marked: bool
    picked: tuple[Picked, ...]
    updates: Access
    before: Work
    after: Work

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        looked = (_MARKS,) if self.marked else tuple(p.access.pointer for p in self.picked)
        return (*looked, self.updates.pointer, *self.before.pointers, *self.after.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False)

    def write(self, k: Source) -> None:
        rows, columns = self.block
        task = k.let("task", "tl.program_id(0)")
        inner, elements = self.shape[self.depth :], 1
        for extent in inner:
            elements *= extent
        blocks = -(-elements // columns)
        place = lanes(k, f"{task} // {blocks} * {rows}", rows, ROWS)
        exists = k.let("exists", f"{place} < n0")
        tile = spread(k, place, self.shape[: self.depth], exists)
        if inner:
            column = lanes(k, f"{task} % {blocks} * {columns}", columns, COLUMNS)
            tile += spread(k, column, inner, k.let("inside", f"{column} < {elements}"))
        looked = 1 if self.marked else len(self.picked)
        (x,) = apply(k, self.before, looked + 1, tile.index, tile.masks)
        x = k.let("x", f"tl.broadcast_to({x}, ({rows}, {columns if inner else 1}))")
        if self.marked:
            update = k.let("update", f"tl.load(p0 + {place}, mask={exists}, other=-1)")
            hit = k.let("hit", f"{update} >= 0")
            update = k.let("update", f"tl.maximum({update}, 0)")
            self._update(k, x, tile, update, hit)
        else:
            with k.block("for update in range(0, n1):"):
                grid = spread(k, "update", self.grid, None) if self.grid else Tile((), ())
                target = _place(k, self.picked, self.places, grid)
                hit = k.let("hit", f"({place} == {target}) & {exists}")
                self._update(k, x, tile, "update", hit)
        first = looked + 1 + len(self.before.pointers)
        finish(k, self.after, first, tile.index, tile.masks, [x])

    def _update(self, k: Source, x: str, tile: Tile, update: str, hit: str) -> None:
        """Puts an update into the elements of the places that it hits."""
        mask = hit if self.marked else None  # an update that all look at is read once for them
        grid = spread(k, update, self.grid, mask) if self.grid else Tile((), ())
        whole = tile + grid
        pointer = 1 if self.marked else len(self.picked)
        value = load(k, pointer, self.updates, whole.index, whole.masks)
        if self.reduction != "none":
            value = self._combined(k, x, value)
        k.line(f"{x} = tl.where({hit}, {value}, {x})")

    def _combined(self, k: Source, x: str, value: str) -> str:
        """Halves are rounded after every update, as if each had been stored."""
        table = _COMBINE_BOOL if self.dtype is DType.BOOL else _COMBINE
        leaf = Leaf(self.dtype)
        step = Instruction(table[self.reduction], (0, 1), self.dtype)
        (result,) = emit(k, Expression((leaf, leaf), (step,), (2,)), [x, value])
        if self.dtype in HALVES:
            return round_half(result, self.dtype)
        return f"{result}.to({compute_type(self.dtype)})"


def _place(k: Source, picked: tuple[Picked, ...], places: tuple[int, ...], grid: Tile) -> str:
    """The number of the place that an index means."""
    flat = ""
    for number, (item, extent) in enumerate(zip(picked, places, strict=True)):
        component = pick(k, number, item, grid)
        flat = k.let("flat", f"{flat} * {extent} + {component}") if flat else component
    return flat
