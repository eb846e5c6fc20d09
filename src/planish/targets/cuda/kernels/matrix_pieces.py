"""The end of the matrix kernel for bytes: from sums to results without changing threads.

Hopper's tensor cores leave a thread two of every eight columns, of which four threads share a row.
Results are read and written 16 bytes at a time, so either sums go to other threads through shared
memory, or columns are multiplied in an order by which a thread's sums are neighbours in the result:
`matrix_tile.regrouped`. Here a tile is taken apart into pieces of which each thread holds 16 bytes
of a row: eight rows of each warp's, by 64 bytes. What the epilogue adds to them is loaded before
the products, whose time hides that of the loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import Work, finish, load
from planish.targets.cuda.kernels.matrix_tile import Tile


@dataclass
class Piece:
    """A piece of a tile.

    Attributes
    ----------
    ends : list of str
        The index of its columns.
    inside : str or None
        Which of them exist; None: all.
    column : str
        The name of its columns.
    index : list of str
        See `fused.apply`.
    exists : str or None
        Which of its rows exist.
    loaded : list of str or None
        Per leaf of the epilogue what was loaded; None: not yet, or nothing.
    more : str or None
        What sums hold too much, by column, if that was loaded.
    """

    ends: list[str]
    inside: str | None
    column: str
    index: list[str] = field(default_factory=list)
    exists: str | None = None
    loaded: list[str | None] = field(default_factory=list)
    more: str | None = None

    @property
    def masks(self) -> list[str | None]:
        """Per axis of the index which elements exist."""
        rows = len(self.index) - len(self.ends)
        return [*[self.exists] * rows, *[self.inside] * len(self.ends)]

    def at(self, rows: Sequence[str], exists: str | None) -> Piece:
        """The same columns of other rows, with what was loaded."""
        return replace(self, index=[*rows, *self.ends], exists=exists, loaded=list(self.loaded))

    def load(self, k: Source, work: Work, first: int, whole: bool) -> None:
        """Loads what is not there: if `whole` what has an element for each of the result, else what
        is the same in all rows.
        """
        loaded = self.loaded or [None] * len(work.leaves)
        for i, item in enumerate(work.leaves):
            if item is None:
                continue
            varies = any(item.strides[: -len(self.ends)])
            if loaded[i] is None and varies is whole:
                loaded[i] = load(k, first, item, self.index, self.masks)
            first += 1
        self.loaded = loaded

    def correct(self, k: Source, pointer: int) -> None:
        """Loads what sums hold too much."""
        self.more = self.more or k.let("more", f"tl.load(p{pointer} + {self.column})")


def taken_apart(k: Source, total: str, tile: Tile, warps: int, neighbours: int) -> list[str]:
    """The sums of a tile's pieces: those of the first rows, group by group, then of the next."""
    high, bits = (
        (tile.rows // (16 * warps)).bit_length() - 1,
        (tile.columns // neighbours).bit_length() - 1,
    )
    shape = (*[2] * high, warps, 2, 8, *[2] * bits, neighbours // 8, 4, 2)
    warp, first = high, high + 3  # axes: of the warps, and of the first bit of groups
    last = first + bits
    own = warp, warp + 2, last + 1, last, last + 2
    apart = *reversed(range(first, last)), warp + 1, *reversed(range(high))
    text = f"tl.permute(tl.reshape({total}, {shape}), {(*own, *apart)})"
    shape = (8 * warps, neighbours, *[2] * len(apart))
    parts = [k.let("apart", f"tl.reshape({text}, {shape})")]
    for _ in apart:
        halves = []
        for part in parts:
            names = [k.name("part"), k.name("part")]
            k.line(f"{', '.join(names)} = tl.split({part})")
            halves += names
        parts = halves
    return parts


def finish_pieces(
    k: Source,
    work: Work,
    first: int,
    pieces: Sequence[Piece],
    sums: Sequence[Sequence[str]],
    groups: int,
    corrections: int | None,
) -> None:
    """Applies the epilogue to pieces, in the order of `taken_apart`, and stores them.

    Parameters
    ----------
    k : Source
    work : Work
    first : int
        The number of the pointer of the epilogue's first leaf.
    pieces : sequence of Piece
    sums : sequence of sequence of str
        For each piece; two of the same place where two products are added.
    groups : int
        Of columns.
    corrections : int or None
        The pointer's number of what sums hold too much, by column.
    """
    ends = len(pieces[0].ends)
    of_rows = [item is not None and any(item.strides[:-ends]) for item in work.leaves]
    for number in range(groups):
        top, *others = pieces[number::groups]
        top.load(k, work, first, whole=False)
        if corrections is not None:
            top.correct(k, corrections)
        for piece in others:
            both = zip(top.loaded, piece.loaded, of_rows, strict=True)
            piece.loaded = [own if varies else shared for shared, own, varies in both]
        for piece, parts in zip((top, *others), sums[number::groups], strict=True):
            if top.more:
                parts = [k.let("sum", f"{part} - {top.more}[None, :]") for part in parts]
            finish(k, work, first, piece.index, piece.masks, parts, piece.loaded)
