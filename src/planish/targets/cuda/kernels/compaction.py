"""Numbering of the elements that are marked: what `nonzero` and `unique` share.

The elements are cut into pieces. A first launch counts what is marked in each piece; in the second,
every program knows from these counts how many marked elements there are before its piece, and in
all. So results are always the same, and nothing is read by the host.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.base import Launch
from planish.targets.base import Pointer as Given
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.nest import power_of_two, reduced, running_sum

NUMBER = Pointer(DType.INT32)
"""A pointer to positions and counts."""
BLOCK = 1024
"""Elements that a program does at a time."""
_PIECES = 1024
"""Most pieces."""


@dataclass(frozen=True)
class Pieces:
    """How elements are cut.

    Attributes
    ----------
    elements : int
    block : int
        Elements that a program does at a time.
    """

    elements: int
    block: int = BLOCK

    @property
    def each(self) -> int:
        """Elements of a piece: whole blocks."""
        return -(-self.elements // (_PIECES * self.block)) * self.block

    @property
    def number(self) -> int:
        """How many pieces there are."""
        return max(1, -(-self.elements // self.each))

    def launch(
        self, kernel: CountKernel | PlaceKernel, pointers: tuple[Given, ...], *more: int
    ) -> Launch:
        """The launch of a kernel, one program a piece."""
        return Launch(kernel, pointers, (self.elements, self.each, *more), self.number)


class Marks(ABC):
    """Which elements are marked; a frozen dataclass, as it is part of a kernel."""

    @property
    @abstractmethod
    def pointers(self) -> tuple[Pointer, ...]:
        """What is looked at: a kernel's first pointers."""

    @abstractmethod
    def at(self, k: Source, place: str, inside: str) -> str:
        """Whether the elements at places are marked; false where they are not inside."""


@dataclass(frozen=True)
class CountKernel(TritonKernel):
    """Counts the marked elements of pieces. Parameters: elements, those of a piece.

    Pointers: those of the marks, the counts.
    """

    family = "count"

    marks: Marks
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.marks.pointers, NUMBER)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False)

    def write(self, k: Source) -> None:
        piece = k.let("piece", "tl.program_id(0)")
        count = k.let("count", f"{piece} * 0")
        with k.block(walk(piece, self.block)):
            place = k.let("place", f"start + tl.arange(0, {self.block})")
            marked = self.marks.at(k, place, k.let("inside", f"{place} < n0"))
            found = reduced(f"{marked}.to(tl.int32)", "sum")
            k.line(f"{count} += {found}")
        k.line(f"tl.store(p{len(self.marks.pointers)} + {piece}, {count})")


@dataclass(frozen=True)
class PlaceKernel(TritonKernel):
    """Does something with each marked element, whose number it knows.

    Attributes
    ----------
    marks : Marks
    block : int
    most : int
        A power of two that is no less than the pieces.

    Pointers: those of the marks, the counts of `CountKernel`, its own.
    Parameters: elements, those of a piece, pieces.
    """

    marks: Marks
    block: int
    most: int

    @property
    @abstractmethod
    def own(self) -> tuple[Pointer, ...]:
        """The kernel's own pointers."""

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.marks.pointers, NUMBER, *self.own)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False, False)

    @property
    def first(self) -> int:
        """The number of its own first pointer."""
        return len(self.marks.pointers) + 1

    @abstractmethod
    def put(self, k: Source, place: str, inside: str, marked: str, number: str, total: str) -> None:
        """Writes what follows from a block of elements.

        `number` is that of the last marked element up to each, -1 before the first one.
        """

    def close(self, k: Source, piece: str, total: str) -> None:
        """Writes what follows from the number of all marked elements."""

    def write(self, k: Source) -> None:
        piece = k.let("piece", "tl.program_id(0)")
        other = k.let("other", f"tl.arange(0, {self.most})")
        counts = f"tl.load(p{self.first - 1} + {other}, mask={other} < n2, other=0)"
        counts = k.let("counts", counts)
        total = k.let("total", reduced(counts, "sum"))
        earlier = k.let("earlier", f"tl.where({other} < {piece}, {counts}, 0)")
        before = k.let("before", reduced(earlier, "sum"))
        with k.block(walk(piece, self.block)):
            place = k.let("place", f"start + tl.arange(0, {self.block})")
            inside = k.let("inside", f"{place} < n0")
            marked = self.marks.at(k, place, inside)
            ones = k.let("ones", f"{marked}.to(tl.int32)")
            number = k.let("number", f"{before} + {running_sum(ones)} - 1")
            self.put(k, place, inside, marked, number, total)
            k.line(f"{before} += {reduced(ones, 'sum')}")
        self.close(k, piece, total)


def walk(piece: str, block: int) -> str:
    """The loop over the blocks of a piece."""
    return f"for start in range({piece} * n1, tl.minimum({piece} * n1 + n1, n0), {block}):"


def most_pieces(pieces: Pieces) -> int:
    """The attribute `most` of a `PlaceKernel`."""
    return power_of_two(pieces.number)
