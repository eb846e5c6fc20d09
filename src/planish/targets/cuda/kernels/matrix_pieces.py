"""The end of the matrix kernel for bytes: from sums to levels without changing threads.

Hopper's tensor cores leave a thread two of every eight columns, of which four threads share a row.
Levels are read and written sixteen at a time, so either sums (four bytes each) go to other threads
through shared memory, or columns are multiplied in an order by which a thread's sums are neighbours
in the result: `matrix_tile.regrouped`. Here a tile is taken apart into pieces of which each thread
holds 16 neighbouring columns of a row: every other eight rows, by 64 columns. What the epilogue
adds to them is loaded before the products, whose time hides that of the loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import Mask, Work, finish, load
from planish.targets.cuda.kernels.matrix_tile import NEIGHBOURS, Tile


@dataclass
class Piece:
    """A piece of a tile.

    Attributes
    ----------
    column : str
        The name of its columns.
    index : list of str
        See `fused.apply`.
    masks : list of str or None
    loaded : list of str or None
        Per leaf of the epilogue what was loaded; None: not yet, or nothing.
    """

    column: str
    index: list[str]
    masks: list[str | None]
    loaded: list[str | None] = field(default_factory=list)

    def load(self, k: Source, work: Work, first: int, whole: bool) -> None:
        """Loads what has an element for each of the result, if `whole`; else what remains."""
        loaded = self.loaded or [None] * len(work.leaves)
        for i, item in enumerate(work.leaves):
            if item is None:
                continue
            varies = item.strides[-1] != 0 and any(item.strides[:-1])
            if loaded[i] is None and varies is whole:
                mask: Mask = self.masks
                loaded[i] = load(k, first, item, self.index, mask)
            first += 1
        self.loaded = loaded


def of_columns(work: Work) -> list[bool]:
    """Per leaf whether it is the same in all rows."""
    return [item is not None and not any(item.strides[:-1]) for item in work.leaves]


def taken_apart(k: Source, total: str, tile: Tile) -> list[str]:
    """The sums of a tile's pieces: those of the first rows, group by group, then of the others."""
    groups = tile.columns // NEIGHBOURS
    bits = groups.bit_length() - 1
    shape = (tile.rows // 16, 2, 8, *[2] * bits, 8, 4, 2)
    j = 3 + bits
    order = (0, 2, j + 1, j, j + 2, *reversed(range(3, j)), 1)
    apart = k.let("apart", f"tl.permute(tl.reshape({total}, {shape}), {order})")
    shape = (tile.rows // 2, NEIGHBOURS, *[2] * bits, 2)
    parts = [k.let("apart", f"tl.reshape({apart}, {shape})")]
    for _ in range(bits + 1):
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
    sums: Sequence[str],
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
    sums : sequence of str
    corrections : int or None
        The pointer's number of what sums hold too much, by column.
    """
    groups = len(pieces) // 2
    shared = of_columns(work)
    for number in range(groups):
        above, below = pieces[number], pieces[number + groups]
        above.load(k, work, first, whole=False)
        below.loaded = [
            a if same else b for a, b, same in zip(above.loaded, below.loaded, shared, strict=True)
        ]
        more = None
        if corrections is not None:
            more = k.let("more", f"tl.load(p{corrections} + {above.column})")
        for piece, part in ((above, sums[number]), (below, sums[number + groups])):
            if more is not None:
                part = k.let("sum", f"{part} - {more}[None, :]")
            finish(k, work, first, piece.index, piece.masks, [part], piece.loaded)
