"""The kernels of `unique`: sorted tickets of equal elements are a group, its first one the head.

`GroupKernel` numbers groups in ascending order of their elements, `OrderKernel` in the order in
which they first occur; `DistinctKernel` writes the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.compaction import NUMBER, Marks, PlaceKernel
from planish.targets.cuda.kernels.fused import Access, load, store
from planish.targets.cuda.kernels.sorting import PART, load_tickets, place_of, same_element


@dataclass(frozen=True)
class Heads(Marks):
    """The first of every group of sorted tickets. Pointers: the parts of tickets."""

    parts: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (PART,) * self.parts

    def at(self, k: Source, place: str, inside: str) -> str:
        ticket = load_tickets(k, 0, self.parts, place, inside)
        follows = k.let("follows", f"{inside} & ({place} > 0)")
        before = load_tickets(k, 0, self.parts, f"{place} - 1", follows)
        return k.let(
            "marked", f"{inside} & (({place} == 0) | ({same_element(ticket, before)} == 0))"
        )


@dataclass(frozen=True)
class Firsts(Marks):
    """The elements that are the first of their group. Pointers: groups, first elements of those."""

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (NUMBER, NUMBER)

    def at(self, k: Source, place: str, inside: str) -> str:
        group = k.let("group", f"tl.load(p0 + {place}, mask={inside}, other=0)")
        first = k.let("first", f"tl.load(p1 + {group}, mask={inside}, other=-1)")
        return k.let("marked", f"{inside} & ({first} == {place})")


@dataclass(frozen=True)
class GroupKernel(PlaceKernel):
    """Writes the group of every element, where groups start, their first elements, how many.

    Own pointers: the parts of tickets, groups, starts, first elements, the count.
    """

    family = "unique_groups"

    parts: int

    @property
    def own(self) -> tuple[Pointer, ...]:
        return (*(PART,) * self.parts, NUMBER, NUMBER, NUMBER, Pointer(DType.INT64))

    def put(self, k: Source, place: str, inside: str, marked: str, number: str, total: str) -> None:
        element = place_of(k, load_tickets(k, self.first, self.parts, place, inside))
        to = self.first + self.parts
        k.line(f"tl.store(p{to} + {element}, {number}, mask={inside})")
        k.line(f"tl.store(p{to + 1} + {number}, {place}, mask={marked})")
        k.line(f"tl.store(p{to + 2} + {number}, {element}, mask={marked})")

    def close(self, k: Source, piece: str, total: str) -> None:
        to = self.first + self.parts
        k.line(f"tl.store(p{to + 1} + {total}, n0, mask={piece} == 0)")
        k.line(f"tl.store(p{to + 3}, {total}.to(tl.int64), mask={piece} == 0)")


@dataclass(frozen=True)
class OrderKernel(PlaceKernel):
    """Writes the groups in the order in which they occur, and the rank of every group.

    Own pointers: groups, their order, their ranks.
    """

    family = "unique_order"

    @property
    def own(self) -> tuple[Pointer, ...]:
        return (NUMBER, NUMBER, NUMBER)

    def put(self, k: Source, place: str, inside: str, marked: str, number: str, total: str) -> None:
        to = self.first
        group = k.let("group", f"tl.load(p{to} + {place}, mask={marked}, other=0)")
        k.line(f"tl.store(p{to + 1} + {number}, {group}, mask={marked})")
        k.line(f"tl.store(p{to + 2} + {group}, {number}, mask={marked})")


@dataclass(frozen=True)
class DistinctKernel(TritonKernel):
    """Writes the outputs. Parameter: the elements.

    Attributes
    ----------
    reads : Access
    outputs : tuple of Access
        Distinct elements, their first places, the inverse, how often.
    sorted : bool
        Whether groups come in ascending order.
    block : int

    Pointers: the source, how many groups there are, groups, starts, first elements; unless sorted
    the order of groups and their ranks; the outputs.
    """

    family = "unique"

    reads: Access
    outputs: tuple[Access, ...]
    sorted: bool
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        order = () if self.sorted else (NUMBER, NUMBER)
        known = (Pointer(DType.INT64), NUMBER, NUMBER, NUMBER, *order)
        return (self.reads.pointer, *known, *(a.pointer for a in self.outputs))

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        rank = k.let("rank", f"tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        inside = k.let("inside", f"{rank} < n0")
        exists = k.let("exists", f"{inside} & ({rank} < tl.load(p1))")
        group, to = rank, 5
        if not self.sorted:
            group, to = k.let("group", f"tl.load(p5 + {rank}, mask={exists}, other=0)"), 7
        first = k.let("first", f"tl.load(p4 + {group}, mask={exists}, other=0)")
        start = k.let("start", f"tl.load(p3 + {group}, mask={exists}, other=0)")
        end = k.let("end", f"tl.load(p3 + {group} + 1, mask={exists}, other=0)")
        x = load(k, 0, self.reads, (first,), exists)
        inverse = k.let("inverse", f"tl.load(p2 + {rank}, mask={inside}, other=0)")
        if not self.sorted:
            inverse = k.let("inverse", f"tl.load(p6 + {inverse}, mask={inside}, other=0)")
        for i, value in enumerate((x, first, inverse, f"{end} - {start}")):
            store(k, to + i, self.outputs[i], (rank,), inside, value)
