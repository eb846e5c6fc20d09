"""How a padded tensor is made of pieces, each a view of the input or a constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Piece:
    """A box of the output.

    Attributes
    ----------
    begin, size : tuple of int
        Where it lies in the output.
    source : (tuple of int, tuple of int) or None
        First element and step per axis of the input; None for the constant.
    """

    begin: tuple[int, ...]
    size: tuple[int, ...]
    source: tuple[tuple[int, ...], tuple[int, ...]] | None


@dataclass(frozen=True)
class _Segment:
    """A range of an output axis that the input's elements `first`, ``first + step``, ... fill."""

    begin: int
    size: int
    first: int
    step: int


def pad_pieces(shape: Sequence[int], padding: Sequence[Sequence[int]], mode: str) -> list[Piece]:
    """The pieces of a padded tensor. They do not overlap.

    Parameters
    ----------
    shape : sequence of int
        The input's.
    padding : sequence of pairs
        Elements before and after, per axis.
    mode : str
        As in `planish.ops.shape.Pad`.
    """
    total = [n + before + after for n, (before, after) in zip(shape, padding, strict=True)]
    if 0 in total:
        return []
    if mode == "constant":
        return _constant_pieces(shape, padding, total)
    axes = [
        _segments(n, before, after, mode) for n, (before, after) in zip(shape, padding, strict=True)
    ]
    return [
        Piece(
            tuple(s.begin for s in box),
            tuple(s.size for s in box),
            (tuple(s.first for s in box), tuple(s.step for s in box)),
        )
        for box in product(*axes)
    ]


def _constant_pieces(
    shape: Sequence[int], padding: Sequence[Sequence[int]], total: Sequence[int]
) -> list[Piece]:
    """The input in the middle, and two slabs per axis, as large as those before it leave."""
    inner = tuple(before for before, _ in padding)
    rank = len(shape)
    pieces = [Piece(inner, tuple(shape), ((0,) * rank, (1,) * rank))]
    for axis, (before, after) in enumerate(padding):
        for begin, size in ((0, before), (before + shape[axis], after)):
            pieces.append(
                Piece(
                    (*inner[:axis], begin, *(0,) * (rank - axis - 1)),
                    (*shape[:axis], size, *total[axis + 1 :]),
                    None,
                )
            )
    return [p for p in pieces if 0 not in p.size]


def _segments(n: int, before: int, after: int, mode: str) -> list[_Segment]:
    edge = 0 if mode == "symmetric" else 1
    front, back = (0, n - 1) if mode == "edge" else (before - 1 + edge, n - 1 - edge)
    step = 0 if mode == "edge" else -1
    segments = (
        _Segment(0, before, front, step),
        _Segment(before, n, 0, 1),
        _Segment(before + n, after, back, step),
    )
    return [s for s in segments if s.size]
