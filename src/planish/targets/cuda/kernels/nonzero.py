"""Where a tensor is not zero: the indices, and how many there are; see `compaction`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.data_dependent import NonZero
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace
from planish.targets.cuda.codegen.elementwise import constant
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.compaction import (
    CountKernel,
    Marks,
    Pieces,
    PlaceKernel,
    most_pieces,
)
from planish.targets.cuda.kernels.fused import WIDE, Access, load, store
from planish.targets.cuda.kernels.nest import Operand, open_ended, spread
from planish.targets.restoring import Allowed

BLOCKS = (64, 256, 512, 1024, 2048)
"""Elements that a program may do at a time."""


@dataclass(frozen=True)
class NotZero(Marks):
    """The elements that are not zero, in row-major order.

    Attributes
    ----------
    access : Access
    shape : tuple of int
        The first extent is -1.
    """

    access: Access
    shape: tuple[int, ...]

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (self.access.pointer,)

    def at(self, k: Source, place: str, inside: str) -> str:
        tile = spread(k, place, self.shape, inside)
        x = load(k, 0, self.access, tile.index, inside)
        dtype = self.access.pointer.dtype
        test = x if dtype is DType.BOOL else f"{x} != {constant(0, dtype)}"
        return k.let("marked", f"({test}) & {inside}")


@dataclass(frozen=True)
class IndicesKernel(PlaceKernel):
    """Writes the indices of marked elements in order, zeros in the rows that are left, the count.

    Attributes
    ----------
    rows : Access
        Over the elements and the axes.
    """

    family = "nonzero"

    rows: Access

    @property
    def own(self) -> tuple[Pointer, ...]:
        return (self.rows.pointer, Pointer(DType.INT64))

    def put(self, k: Source, place: str, inside: str, marked: str, number: str, total: str) -> None:
        assert isinstance(self.marks, NotZero)
        empty = k.let("empty", f"{inside} & ({place} >= {total})")
        for axis, index in enumerate(spread(k, place, self.marks.shape, inside).index):
            store(k, self.first, self.rows, (number, str(axis)), marked, index)
            store(k, self.first, self.rows, (place, str(axis)), empty, f"{place} * 0")

    def close(self, k: Source, piece: str, total: str) -> None:
        k.line(f"tl.store(p{self.first + 1}, {total}.to(tl.int64), mask={piece} == 0)")


@dataclass(frozen=True)
class Indices(AnchoredTactic):
    """Two launches: counting, and writing."""

    family: ClassVar[str] = "nonzero"

    block: int

    def accepts(self, binding: Binding) -> bool:
        return math.prod(binding.shape(self.task.inputs[0])) < WIDE

    def workspace(self, binding: Binding) -> int:
        return 4 * self._pieces(binding).number

    def launches(self, binding: Binding) -> list[Launch]:
        (x,), (rows, count) = self.task.inputs, self.task.outputs
        read, access = (Operand.of(v, binding).access() for v in (x, rows))
        marks = NotZero(read, open_ended(binding.shape(x)))
        pieces = self._pieces(binding)
        place = IndicesKernel(4, 1, marks, self.block, most_pieces(pieces), access)
        return [
            pieces.launch(CountKernel(4, 1, marks, self.block), (x, Workspace())),
            pieces.launch(place, (x, Workspace(), rows, count), pieces.number),
        ]

    def _pieces(self, binding: Binding) -> Pieces:
        return Pieces(math.prod(binding.shape(self.task.inputs[0])), self.block)


class NonZeroFamily(Family):
    """`NonZero` of any dtype and layout."""

    name: ClassVar[str] = "nonzero"
    tactic: ClassVar[type[Tactic]] = Indices
    allowed: ClassVar[Allowed] = {"block": BLOCKS}

    def understands(self, task: Task) -> bool:
        anchor = task.anchor
        return anchor is not None and isinstance(anchor.op, NonZero) and len(task.nodes) == 1

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for block in (1024, 256, 2048):
            yield Indices(task, block)


FAMILIES: tuple[Family, ...] = (NonZeroFamily(),)
