"""Batch dimensions of stacked matrices, merged to as few as the strides allow."""

from __future__ import annotations

from collections.abc import Sequence


def two_levels(
    lead: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[tuple[int, int], list[tuple[int, int]]] | None:
    """Batch dimensions as two: their extents, and each tensor's strides; None if they are more.

    Neighbours become one where every tensor steps through them evenly.
    """
    levels: list[tuple[int, list[int]]] = []
    for axis, extent in enumerate(lead):
        here = [s[axis] for s in strides]
        if extent == 1:
            continue
        if levels and all(o == extent * i for o, i in zip(levels[-1][1], here, strict=True)):
            levels[-1] = (levels[-1][0] * extent, here)
        else:
            levels.append((extent, here))
    if len(levels) > 2:
        return None
    levels += [(1, [0] * len(strides))] * (2 - len(levels))
    (batch, outer), (groups, inner) = levels
    return (batch, groups), list(zip(outer, inner, strict=True))
