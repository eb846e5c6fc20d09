"""The kernels that find the best elements of rows, in order: of blocks, then of their results.

`BestKernel` sorts blocks of rows and keeps what may be among the best; `MergeKernel` makes one run
of two neighbouring ones, every ticket finding its place by a binary search in the other run;
`TakeKernel` turns tickets into elements and indices. See `sorting` for tickets.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import constant
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, load, store
from planish.targets.cuda.kernels.nest import COLUMNS, ROWS, Tile, lanes, spread
from planish.targets.cuda.kernels.sorting import (
    PART,
    Ticket,
    better,
    load_tickets,
    make_ticket,
    order_key,
    part_count,
    place_of,
    sort,
    store_tickets,
)


@dataclass(frozen=True)
class Ranked:
    """Rows of elements, and what makes one of them better than another.

    Attributes
    ----------
    dtype : DType
    access : Access
        Over the axes that tell rows apart, then the axis along a row.
    kept : tuple of int
        Extents of the former; the first is -1.
    largest : bool
    above : float or None
        Elements that are not larger than this count as nothing.
    """

    dtype: DType
    access: Access
    kept: tuple[int, ...]
    largest: bool = True
    above: float | None = None

    def tickets(self, k: Source, row: str, exists: str, place: str, inside: str) -> Ticket:
        """Tickets of the elements at places of rows; their pointer is the first."""
        tile = spread(k, row, self.kept, exists) + Tile((place,), (inside,))
        x = load(k, 0, self.access, tile.index, tile.masks)
        mask = f"{exists} & {inside}"
        if self.above is not None:
            mask += f" & ({x} > {constant(self.above, self.dtype)})"
        key = order_key(k, x, self.dtype, self.largest)
        return make_ticket(k, key, place, part_count(self.dtype), k.let("valid", mask))


@dataclass(frozen=True)
class Taken:
    """What becomes of tickets: elements and their indices.

    Attributes
    ----------
    elements, indices : Access
        Over the axes of rows, then the ranks.
    """

    elements: Access
    indices: Access

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return self.elements.pointer, self.indices.pointer

    def write(
        self, k: Source, ranked: Ranked, first: int, tile: Tile, rows: Tile, ticket: Ticket
    ) -> None:
        """Stores the elements of tickets, read anew: tickets do not tell zeros and NaNs apart."""
        place = place_of(k, ticket)
        source = rows + Tile((place,), (tile.masks[-1],))
        x = load(k, 0, ranked.access, source.index, source.masks)
        store(k, first, self.elements, tile.index, tile.masks, x)
        store(k, first + 1, self.indices, tile.index, tile.masks, place)


@dataclass(frozen=True)
class BestKernel(TritonKernel):
    """Sorts blocks of rows, and keeps the best of each. A program does `rows` blocks.

    Attributes
    ----------
    parts : int
        Integers of a ticket.
    ranked : Ranked or None
        None: tickets are read, whose pointers are the first.
    rows, columns : int
        Blocks, and elements of each.
    keep : int
        How many stay of a block, at most `columns`.
    taken : Taken or None
        None: tickets are written, ``[rows, blocks of a row, keep]``; else every row is one block.

    Parameters: all blocks, elements of a row, blocks of a row.
    """

    family = "best"

    parts: int
    ranked: Ranked | None
    rows: int
    columns: int
    keep: int
    taken: Taken | None = None

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        tickets = (PART,) * self.parts
        read = tickets if self.ranked is None else (self.ranked.access.pointer,)
        return (*read, *(tickets if self.taken is None else self.taken.pointers))

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False, False)

    def write(self, k: Source) -> None:
        unit = lanes(k, f"tl.program_id(0) * {self.rows}", self.rows, ROWS)
        exists = k.let("exists", f"{unit} < n0")
        row, block = k.let("row", f"{unit} // n2"), k.let("block", f"{unit} % n2")
        column = k.let("place", f"{block} * {self.columns} + tl.arange(0, {self.columns})[None, :]")
        inside = k.let("inside", f"{column} < n1")
        if self.ranked is not None:
            ticket = self.ranked.tickets(k, row, exists, column, inside)
        else:
            mask = k.let("mask", f"{exists} & {inside}")
            ticket = load_tickets(k, 0, self.parts, f"{row}.to(tl.int64) * n1 + {column}", mask)
        keep = 1 << (self.keep - 1).bit_length()
        ticket = sort(k, ticket, self.rows, self.columns, keep)
        rank = lanes(k, "0", keep, COLUMNS)
        first = self.parts if self.ranked is None else 1
        if self.taken is None:
            mask = k.let("mask", f"{exists} & ({rank} < {self.keep})")
            place = f"{unit}.to(tl.int64) * {self.keep} + {rank}"
            store_tickets(k, first, ticket, place, mask)
            return
        assert self.ranked is not None
        rows = spread(k, row, self.ranked.kept, exists)
        ranks = Tile((rank,), (k.let("wanted", f"{rank} < {self.keep}"),))
        self.taken.write(k, self.ranked, first, rows + ranks, rows, ticket)


@dataclass(frozen=True)
class MergeKernel(TritonKernel):
    """Makes one run of every two. A program places `block` tickets.

    Attributes
    ----------
    parts : int
    block : int

    Parameters: tickets of a row, of a run that is read, of one that is written; runs of a row that
    are read, that are written; programs of a row.
    """

    family = "merge"

    parts: int
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (PART,) * (2 * self.parts)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,) * 6

    def write(self, k: Source) -> None:
        program = k.let("program", "tl.program_id(0)")
        row = k.let("row", f"({program} // n5).to(tl.int64)")
        place = k.let("place", f"{program} % n5 * {self.block} + tl.arange(0, {self.block})")
        exists = k.let("exists", f"{place} < n0")
        run, rank = k.let("run", f"{place} // n1"), k.let("rank", f"{place} % n1")
        ticket = load_tickets(k, 0, self.parts, f"{row} * n0 + {place}", exists)
        second = k.let("second", f"({run} % 2) == 1")
        other = k.let("other", f"tl.where({second}, {run} - 1, {run} + 1)")
        alone = k.let("alone", f"{other} >= n3")
        low = k.let("low", f"{place} * 0")
        high = k.let("high", f"tl.where({exists} & ({alone} == 0), n1, 0)")
        bound = k.let("bound", "n1")
        with k.block(f"while {bound} > 0:"):
            middle = k.let("middle", f"({low} + {high}) // 2")
            searched = k.let("searched", f"{low} < {high}")
            at = f"{row} * n0 + {other} * n1 + {middle}"
            found = load_tickets(k, 0, self.parts, at, searched)
            # of equal ones (there are such only of nothing) those of the first run come first
            before = f"tl.where({second}, {better(found, ticket, True)}, {better(found, ticket)})"
            before = k.let("before", f"{searched} & ({before})")
            k.line(f"{low} = tl.where({before}, {middle} + 1, {low})")
            k.line(f"{high} = tl.where({searched} & ({before} == 0), {middle}, {high})")
            k.line(f"{bound} = {bound} // 2")
        target = k.let("target", f"{rank} + {low}")
        start = k.let("start", f"({row} * n4 + {run} // 2) * n2")
        mask = k.let("mask", f"{exists} & ({target} < n2)")
        store_tickets(k, self.parts, ticket, f"{start} + {target}", mask)
        rest = k.let("rest", f"{exists} & {alone} & ({rank} + n1 < n2)")
        nothing = tuple(k.let("nothing", f"{part} * 0") for part in ticket)
        store_tickets(k, self.parts, nothing, f"{start} + {rank} + n1", rest)


@dataclass(frozen=True)
class TakeKernel(TritonKernel):
    """Turns the first `keep` tickets of rows into elements and indices.

    Attributes
    ----------
    ranked : Ranked
    keep : int
    taken : Taken
    block : int
        Ranks that a program does.

    Parameters: the rows, tickets of a row.
    """

    family = "take"

    ranked: Ranked
    keep: int
    taken: Taken
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        tickets = (PART,) * part_count(self.ranked.dtype)
        return (self.ranked.access.pointer, *tickets, *self.taken.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False, False)

    def write(self, k: Source) -> None:
        flat = k.let("flat", f"tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        row, rank = k.let("row", f"{flat} // {self.keep}"), k.let("rank", f"{flat} % {self.keep}")
        exists = k.let("exists", f"{row} < n0")
        parts = part_count(self.ranked.dtype)
        ticket = load_tickets(k, 1, parts, f"{row}.to(tl.int64) * n1 + {rank}", exists)
        rows = spread(k, row, self.ranked.kept, exists)
        tile = rows + Tile((rank,), (exists,))
        self.taken.write(k, self.ranked, 1 + parts, tile, rows, ticket)
