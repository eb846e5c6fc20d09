"""Which tiles of the matrix kernel with specialised warps are worth measuring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from planish.targets.cuda.codegen.tensor_map import LARGEST
from planish.targets.cuda.kernels.fused import Access
from planish.targets.cuda.kernels.mapped import MOST_WASTE, WIDEST, Box, row_tiles
from planish.targets.cuda.kernels.matrix_problem import Problem
from planish.targets.cuda.kernels.matrix_tile import Tile, ceil
from planish.targets.cuda.kernels.ptx.specialized.kernel import neighbours
from planish.targets.cuda.kernels.ptx.specialized.tiles import GROUPS, LINES, SIDE, WHOLE
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS
from planish.targets.cuda.machine import CudaMachine

ROWS = (64, 128, 192, 256)
COLUMNS = (64, 128, 192, 256)
DEPTHS = (32, 64, 128)
STAGES = (2, 3, 4, 5, 6, 7, 8, 10, 12)
RINGS = (1, 2, 3, 4, 6, 8)
CLUSTERS = (1, 2)
FRAMES = (2, 3, 4)
MOST_SUMS = 192
"""Of a thread."""
MOST_TAPS = 9
"""Of a window with frames: the code of each stands for itself."""
FEWEST_STAGES = 3
"""Of the weights of frames' taps, where they do not stay."""

_PRODUCTS = 4096
"""Of bytes, per cycle and multiprocessor; of halves half as many."""
SHARE = {32: 0.5, 64: 0.9, 128: 1.0, 192: 1.0, 256: 1.0}
"""Of that what tiles of so many columns reach: pixels are read from shared memory for each."""
_CACHE = 48
"""Bytes per cycle that a multiprocessor takes from the second-level cache."""
_MEMORY = 18
"""The same from memory."""
_LATENCY = 1500
"""Cycles until a stage is loaded again, while all load."""
_END, _EACH, _OPERATION = 600, 4.0, 2.0
"""Cycles of a tile's end: in all, and for each of a thread's sums; for each operation on it."""
_VECTOR = 3.0
"""The same for what each column has of its own: loading it."""
_WAITING = 1.15
"""How much longer an end takes where a box must be stored before the next one is computed."""
_START = 4000
_MEETING = 0.01
"""How much longer tiles take where two blocks wait for one another."""


Rooms = Sequence[tuple[int, int]]
"""Rings, and the bytes of shared memory for factors beside each."""


class Choice(NamedTuple):
    """A tactic's parameters."""

    rows: int
    columns: int
    depth: int
    stages: int
    ring: int
    cluster: int
    high: int
    wide: int
    frames: int

    @property
    def tile(self) -> Tile:
        """What a group computes."""
        return Tile(self.rows, self.columns, self.depth)

    @property
    def box(self) -> Box:
        """The pixels of a tile."""
        return Box(self.rows, self.high, self.wide)


def choices(problem: Problem, machine: CudaMachine) -> Iterator[tuple[float, Choice]]:
    """Tiles, each with a model of its time, in cycles."""
    line = LINES[problem.channels * problem.dtype.size > LINES[0]]
    written = problem.result.outputs[0].pointer.dtype.size
    adds = any(a is not None and any(a.strides[:-1]) for a in problem.result.leaves)
    for rows in ROWS:
        for columns in COLUMNS:
            if problem.columns % columns or rows * columns > MOST_SUMS * THREADS:
                continue
            tile = Tile(rows, columns, line // problem.dtype.size)
            width = neighbours(tile, written) * written
            rooms = [
                (ring, machine.shared - 1024 - GROUPS * ring * rows * width)
                for ring in ((2, 3) if adds else (1, 2))
            ]
            for choice in (
                *_of_boxes(problem, tile, line, rooms),
                *_of_frames(problem, tile, line, rooms),
            ):
                tiles = row_tiles(problem, choice.box) * (problem.columns // columns)
                if 2 * tiles >= machine.multiprocessors:
                    yield _estimate(problem, choice, tiles, machine), choice


def _of_boxes(problem: Problem, tile: Tile, line: int, rooms: Rooms) -> Iterator[Choice]:
    """With as many stages as there is room for beside each ring."""
    box = box_of(problem, tile.rows)
    for ring, room in rooms:
        fit = [n for n in STAGES if n * (tile.rows + tile.columns) * line <= room]
        if fit and box is not None:
            for cluster in CLUSTERS:
                size = tile.rows, tile.columns, tile.depth
                yield Choice(*size, fit[-1], ring, cluster, box.high, box.wide, 0)


def _of_frames(problem: Problem, tile: Tile, line: int, rooms: Rooms) -> Iterator[Choice]:
    """With weights that stay, if they can, and as many frames as there is room for then; else with
    two frames and as many stages. The largest ring with which that is possible.
    """
    box = square_of(problem, tile.rows)
    if box is None or not has_frames(problem, box.high):
        return
    chosen = tile.rows, tile.columns, tile.depth
    steps = math.prod(problem.taps) * ceil(problem.channels, tile.depth)
    weights, frame = tile.columns * line, frame_bytes(problem, box, line)
    for ring, room in reversed(rooms) if problem.columns == tile.columns else ():
        fit = [n for n in FRAMES if steps * weights + n * frame <= room]
        if fit:
            yield Choice(*chosen, steps, ring, 1, box.high, box.wide, fit[-1])
            return
    for ring, room in reversed(rooms):
        free = room - FRAMES[0] * frame
        fit = [n for n in STAGES if FEWEST_STAGES <= n < steps and n * weights <= free]
        if fit:
            for cluster in CLUSTERS:
                yield Choice(*chosen, fit[-1], ring, cluster, box.high, box.wide, FRAMES[0])
            return


def box_of(problem: Problem, rows: int) -> Box | None:
    """The box of so many rows with the least beside the images; None if that is too much."""
    if problem.window is None:
        return Box(rows)
    sides = [1 << i for i in range(WIDEST.bit_length())]
    every = [Box(rows, y, x) for y in sides for x in sides if rows % (y * x) == 0]
    box = min(every, key=lambda b: (row_tiles(problem, b), -min(b.wide, 8), -b.high))
    return box if row_tiles(problem, box) * rows <= MOST_WASTE * problem.rows else None


def square_of(problem: Problem, rows: int) -> Box | None:
    """The same of boxes that frames are possible for."""
    if problem.window is None:
        return None
    every = [Box(rows, n, SIDE) for n in range(SIDE, rows // SIDE + 1, SIDE)]
    every = [b for b in every if rows % (b.high * SIDE) == 0 and b.high & (b.high - 1) == 0]
    box = min(every, key=lambda b: (row_tiles(problem, b), -b.high))
    return box if row_tiles(problem, box) * rows <= MOST_WASTE * problem.rows else None


def has_frames(problem: Problem, high: int = SIDE) -> bool:
    """Whether pixels of tiles that high can be loaded once for all taps."""
    window = problem.window
    if window is None or window.strides != (1, 1):
        return False
    small = max(window.seen(high, SIDE)) <= LARGEST
    return small and 1 < math.prod(problem.taps) <= MOST_TAPS


def frame_bytes(problem: Problem, box: Box, line: int) -> int:
    """Shared memory of what all taps see of a box's pixels, of one step's channels."""
    assert problem.window is not None
    pixels = math.prod(problem.window.seen(box.high, box.wide))
    return ceil(box.rows // (box.high * box.wide) * pixels * line, WHOLE) * WHOLE


def _estimate(problem: Problem, choice: Choice, tiles: int, machine: CudaMachine) -> float:
    """Cycles, by what limits a multiprocessor: products, what it can load, the ends of tiles."""
    size, tile = problem.dtype.size, choice.tile
    steps = math.prod(problem.taps) * ceil(problem.channels, tile.depth)
    products = tile.rows * tile.columns * tile.depth / (_PRODUCTS // size)
    if choice.frames:  # without, loading is the limit of tiles of few columns
        products /= SHARE[tile.columns]
    step = max(products, *_loading(problem, choice, steps))
    loop = steps * step
    operations = len(problem.result.expression.instructions)
    end = _END + tile.rows * tile.columns / THREADS * (_EACH + operations * _OPERATION)
    vectors = sum(1 for a in problem.result.leaves if a is not None and not _is_whole(a))
    end += vectors * tile.columns * _VECTOR
    if choice.ring == 1:
        end *= _WAITING
    rounds = ceil(tiles, machine.multiprocessors)
    moved: float = tile.rows * tile.columns * problem.result.outputs[0].pointer.dtype.size
    moved *= sum(1 for a in (*problem.result.leaves, *problem.result.outputs) if _is_whole(a))
    moved += tile.rows * problem.channels * size * tile.columns / problem.columns
    each = max(loop, (loop + end) / GROUPS, moved / _MEMORY)
    return _START + rounds * each * (1 + (choice.cluster - 1) * _MEETING) + loop + end


def _loading(problem: Problem, choice: Choice, steps: int) -> tuple[float, float]:
    """Cycles of a step by the bytes it loads, and by how early they can be asked for."""
    tile, line = choice.tile, choice.depth * problem.dtype.size
    if not choice.frames:
        early = _LATENCY / max(choice.stages - 1, 1)
        return (tile.rows + tile.columns) * line / _CACHE, early
    taps = math.prod(problem.taps)
    pixels = frame_bytes(problem, choice.box, line) / taps
    early = _LATENCY / (taps * (choice.frames - 1))
    if choice.stages == steps and problem.columns == tile.columns:  # weights stay
        return pixels / _CACHE, early
    return (pixels + tile.columns * line) / _CACHE, max(early, _LATENCY / (choice.stages - 1))


def _is_whole(item: Access | None) -> bool:
    """Whether a tensor has an element for each of the result."""
    return item is not None and any(item.strides[:-1])
