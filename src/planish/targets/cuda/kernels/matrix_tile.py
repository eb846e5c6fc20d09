"""The matrix kernel's terms: tiles, how the loop goes over the depth, windows over an image.

What chooses tiles (`matrix_cost`) and what packs weights for them (`matrix_problem`) need these,
and nothing of how the kernel is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Walk(IntEnum):
    """What one step of the loop, a block of the depth, covers.

    TAPS: channels of one tap. ROW: neighbouring channels and taps of a row of taps, for images of
    few channels. FLAT: any neighbouring elements of the filter.
    """

    TAPS = 0
    ROW = 1
    FLAT = 2


SHARED_BYTES = 64
"""Of a row of the result, by four threads: each stores 16 at once."""
KEPT_COLUMNS = 64
"""Of a tile, at most, where a thread holds what columns share: it has registers for no more."""

PERSISTENT = 0
"""What stands for the number of programs that share a tile where each computes many."""


@dataclass(frozen=True)
class Tile:
    """What a program computes, and how.

    Attributes
    ----------
    rows, columns, depth : int
        Powers of two. `depth` is what one step of the loop takes.
    split : int
        How many programs share a tile; each sums a part of the depth, the last one adds up.
        `PERSISTENT`: a program computes many tiles.
    walk : Walk
    vector : bool
        Multiplies without tensor cores, for very few rows: the columns' weights are read once.
    passes : int
        Products of float32 on tensor cores: 1 for TF32, 3 for nearly float32; 0: without them.
    transposed : bool
        Multiplies the columns' weights by the rows, so that the rows are the long side of what
        tensor cores take: Hopper's multiply 64 by up to 256 at once, and read both sides from
        shared memory for every such product.
    """

    rows: int
    columns: int
    depth: int
    split: int = 1
    walk: Walk = Walk.TAPS
    vector: bool = False
    passes: int = 1
    transposed: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """How the sums of products lie."""
        return (self.columns, self.rows) if self.transposed else (self.rows, self.columns)

    @property
    def is_persistent(self) -> bool:
        """Whether a program computes many tiles of the same columns."""
        return self.split == PERSISTENT

    @property
    def shares(self) -> int:
        """Programs that share a tile."""
        return max(self.split, 1)

    @property
    def keeps_scales(self) -> bool:
        """Whether a program that goes through many tiles holds what their columns share: as few
        columns as registers are there for.
        """
        return self.is_persistent and self.columns <= KEPT_COLUMNS

    def neighbours(self, warps: int, size: int) -> int:
        """How many columns four threads share, for elements of so many bytes, where columns are
        multiplied in the order of `regrouped`; 0 where they cannot be: it takes Hopper's
        instructions for groups of four warps, each warp 16 rows, and sums that are the program's.
        """
        group = SHARED_BYTES // size
        whole = self.columns % group == 0 and self.rows % (16 * warps) == 0
        return group if whole and self.shares == 1 and not (self.vector or self.transposed) else 0


@dataclass(frozen=True)
class Window:
    """How a convolution walks over its image; pairs are of image rows and columns.

    `checked` says whether windows leave the image.
    """

    size: tuple[int, int]
    taps: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]
    checked: tuple[bool, bool]

    def seen(self, high: int, wide: int) -> tuple[int, int]:
        """Rows and columns of an image that the windows of so many pixels of the result see."""
        down, across = (
            (count - 1) * step + (taps - 1) * spread + 1
            for count, step, taps, spread in zip(
                (high, wide), self.strides, self.taps, self.dilations, strict=True
            )
        )
        return down, across


def ceil(a: int, b: int) -> int:
    """The quotient rounded up."""
    return -(-a // b)


def segments(tile: Tile, taps: tuple[int, int], depth: int) -> tuple[int, int, int]:
    """The loop over the depth as `count` segments of `length` elements, each in `blocks` steps.

    Segments are padded to whole steps. `depth` is the number of channels.
    """
    count, length = {
        Walk.TAPS: (taps[0] * taps[1], depth),
        Walk.ROW: (taps[0], taps[1] * depth),
        Walk.FLAT: (1, taps[0] * taps[1] * depth),
    }[tile.walk]
    return count, length, ceil(length, tile.depth)


def regrouped(columns: int, neighbours: int) -> np.ndarray:
    """The order in which a packed factor's columns are multiplied so that threads hold neighbours.

    Of every 8 columns in the order of multiplication a thread holds two, and four threads share
    them: of so many columns a thread holds a quarter, which are neighbours in the result.

    Returns
    -------
    array of int, ``[columns]``
        For each place the column that stands there.
    """
    order = np.arange(columns).reshape(-1, 4, neighbours // 8, 2)
    return order.transpose(0, 2, 1, 3).reshape(-1)
