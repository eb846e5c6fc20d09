"""Which parameters are likely best for kernels of sliding windows: a rough count of their work."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from planish.targets.cuda.kernels.patches import Windows
from planish.targets.cuda.machine import CudaMachine

Parameters = tuple[int, int, int, int, int]
"""Rows, columns, patches, channels, warps: those of a `PatchTactic`."""

TILES = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (2, 4), (4, 2), (4, 4))
"""Tiles worth trying: rows, columns."""
WASTE, WASTE_OF_BYTES = 1.15, 1.34
"""Channels that programs compute for each there is, at most: short runs of memory cost, too."""
_RUN = 64
"""Bytes that the second-level cache gives at the cost of fewer."""
_LATENCY = 1200
"""Clocks from a program's start to its end beside its instructions: two rounds of loads."""
_REGISTERS = 64
"""Registers a thread may have for sums."""


def likely_parameters(
    windows: Windows, batch: int, channels: int, size: int, machine: CudaMachine, most: int
) -> Iterator[Parameters]:
    """Parameters for windows, the likely best first.

    Parameters
    ----------
    windows : Windows
    batch, channels : int
    size : int
        Bytes of an element.
    machine : CudaMachine
    most : int
        How many to give.
    """
    spatial, widest = len(windows.sizes), max(1, 16 // size)
    found: dict[Parameters, float] = {}
    for rows, columns in TILES:
        if spatial == 1 and rows > 1:
            continue
        tile = (*(1,) * (spatial - 2), rows, columns)[-spatial:]
        if (rows, columns) != (1, 1) and not windows.is_unrolled(tile):
            continue
        # narrower loads where there are few threads, or few registers for what bytes add up to
        for vector in {widest, max(1, widest // 2), max(1, widest // 4 if size == 1 else widest)}:
            if rows * columns * vector > _REGISTERS:
                continue
            for block in channel_blocks(channels, widest, WASTE if size > 1 else WASTE_OF_BYTES):
                for warps in (1, 2, 4):
                    patches = 32 * warps * vector // block
                    if patches:
                        key = (rows, columns, patches, block, warps)
                        found[key] = _clocks(windows, tile, batch, channels, key, size, machine)
    ranked = sorted(found, key=found.__getitem__)
    yield from itertools.islice(_varied(ranked, by_channels=size == 1), most)


def _varied(ranked: Sequence[Parameters], by_channels: bool) -> list[Parameters]:
    """The same, the best of every tile and width of loads, and of channels if they are told apart,
    before the second best of any.
    """
    count: dict[tuple[int, int, int, int], int] = {}
    order = []
    for place, key in enumerate(ranked):
        rows, columns, patches, block, warps = key
        kind = (rows, columns, patches * block // warps, block if by_channels else 0)
        seen = count[kind] = count.get(kind, 0) + 1
        order.append((seen, place, key))
    return [key for *_, key in sorted(order)]


def channel_blocks(channels: int, vector: int, waste: float = WASTE) -> list[int]:
    """Channels of a program: powers of two that compute few in vain."""
    powers = [1 << n for n in range(8)]
    wide = [b for b in powers if b >= 2 * vector] if channels >= 2 * vector else powers
    padded = {b: -(-channels // b) * b / channels for b in wide}
    fair = [b for b in wide if padded[b] <= max(waste, min(padded.values()))]
    return fair[-3:]


def _clocks(
    windows: Windows,
    tile: Sequence[int],
    batch: int,
    channels: int,
    key: Parameters,
    size: int,
    machine: CudaMachine,
) -> float:
    """Clocks of the multiprocessor that has most to do."""
    *_, patches, block, warps = key
    vector = patches * block // (32 * warps)
    loads = math.prod(len(windows.reach(a, n)) for a, n in enumerate(tile))
    positions, taps = math.prod(tile), math.prod(windows.window)
    programs = -(-batch * math.prod(windows.tiles(tile)) // patches) * -(-channels // block)
    own = -(-programs // machine.multiprocessors) * warps
    each = taps + 4 if size > 1 else taps / 2 + 10  # bytes go by several, and are rounded
    instructions = loads * (6 + vector) + positions * vector * each + taps * vector + 80
    issue = own * instructions / min(4.0, own)
    # the first-level cache gives 128 bytes a clock, less where they lie in many lines
    width = 32 * vector * size
    lines = width // min(block * size, 128)
    cached = own * (loads + 2 * positions) * max(width / 128, lines / 2)
    # the second-level cache gives half of that: every input element about once, and the result
    area = min(math.prod(windows.strides) * positions, loads)
    fetched = own * (area + positions + taps / 4) * width / 64 * max(1.0, _RUN / (block * size))
    # registers (sums, weights, a row of loads) and blocks limit what runs at a time
    registers = 40 + positions * vector + min(taps, 9) * vector + 4 * len(tile)
    at_once = min(64.0, 32.0 * warps, machine.registers / 32 / registers)
    rounds = max(1.0, own / at_once)
    bounds = (issue, cached, fetched, rounds * _LATENCY)
    return _LATENCY + max(bounds) + sum(bounds) / 8 - warps
