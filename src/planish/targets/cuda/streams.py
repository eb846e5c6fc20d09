"""Which launches may run at the same time, and on which streams.

Two launches conflict where one writes bytes that the other reads or writes; arenas reuse memory, so
this is asked of addresses, not of values. A launch waits for those before it that conflict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.targets.execution import Range

STREAMS = 6
"""At most so many streams for one execution."""


@dataclass(frozen=True)
class Placed:
    """Where a launch runs.

    Attributes
    ----------
    stream : int
    waits : tuple of int
        Launches on other streams that must have ended.
    awaited : bool
        Whether a launch on another stream waits for this one.
    """

    stream: int
    waits: tuple[int, ...]
    awaited: bool


def conflicts(touched: Sequence[Sequence[Range]]) -> list[list[int]]:
    """For each launch the earlier ones it conflicts with, ascending."""
    count = sum(map(len, touched))
    base = np.empty(count, np.int64)
    begin, end = np.empty(count, np.int64), np.empty(count, np.int64)
    written, owner = np.empty(count, bool), np.empty(count, np.int64)
    used = 0
    found = []
    for launch, ranges in enumerate(touched):
        earlier: set[int] = set()
        for r in ranges:
            hit = (base[:used] == r.base) & (begin[:used] < r.end) & (end[:used] > r.begin)
            if not r.written:
                hit &= written[:used]
            earlier.update(owner[:used][hit].tolist())
        found.append(sorted(earlier))
        for r in ranges:
            base[used], begin[used], end[used] = r.base, r.begin, r.end
            written[used], owner[used] = r.written, launch
            used += 1
    return found


def place(touched: Sequence[Sequence[Range]], streams: int = STREAMS) -> list[Placed]:
    """Spreads launches over streams: each follows a launch it waits for, where that is free."""
    tails: list[int] = []
    known: list[list[int]] = []  # of each launch, per stream, the last one that ended before it
    where: list[int] = []
    waits: list[tuple[int, ...]] = []
    awaited: set[int] = set()
    for launch, before in enumerate(conflicts(touched)):
        ends = [s for s, tail in enumerate(tails) if tail in before]
        if ends:
            stream = max(ends, key=lambda s: tails[s])
        elif len(tails) < streams:
            tails.append(-1)
            stream = len(tails) - 1
        else:  # none is free: behind the one that began its last launch first
            stream = min(range(len(tails)), key=lambda s: tails[s])
        clock = [-1] * streams
        if tails[stream] >= 0:
            clock = list(known[tails[stream]])
            clock[stream] = tails[stream]
        needed = []
        for other in reversed(before):
            if clock[where[other]] >= other:
                continue
            needed.append(other)
            clock = [max(a, b) for a, b in zip(clock, known[other], strict=True)]
            clock[where[other]] = max(clock[where[other]], other)
        awaited.update(needed)
        waits.append(tuple(sorted(needed)))
        known.append(clock)
        where.append(stream)
        tails[stream] = launch
    return [Placed(s, w, i in awaited) for i, (s, w) in enumerate(zip(where, waits, strict=True))]
