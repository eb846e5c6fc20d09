"""Which tiles of the matrix kernel are worth measuring: a model of its time, in cycles.

A multiprocessor runs as many programs at once as its registers and shared memory allow, in rounds.
A program's time is a start, the steps of its loop, and the end: a step takes as long as the slowest
of products, transfers from the second-level cache, and a load's latency over the depth of the
pipeline; programs that run at once share the first two. In all, no kernel is faster than memory.
(The roofline model: S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual
performance model for multicore architectures", CACM 52, 2009.) The model only orders: what it puts
first is measured, and it keeps tiles apart so that its errors do not decide everything.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

from planish.targets.cuda.kernels.matrix_tile import PERSISTENT, Tile, Walk, ceil, segments
from planish.targets.cuda.machine import CudaMachine

T = TypeVar("T")

ROWS = (16, 32, 64, 128, 256)
COLUMNS = (16, 32, 64, 128, 256)
DEPTHS = (16, 32, 64, 128)
DEEPEST = 256
"""The depth of a step, at most, where programs keep the weights of all of it."""
SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
STAGES = (2, 3, 4, 6)
LIMIT_OF_WALKS = 12
"""Where so many tactics are offered, every walk is among them."""
TRANSPOSED_COLUMNS = (64, 128)
"""Of tiles whose columns' weights are multiplied by their rows."""
VECTOR_ROWS = (1, 2, 4, 8)
VECTOR_COLUMNS = (1, 2, 4, 8, 16, 32)
VECTOR_DEPTHS = (64, 128, 256, 512, 1024)
MOST_WORKSPACE = 64 << 20
"""Bytes that programs which share tiles may hand to one another."""

_MULTIPLICATIONS = {7: 512, 8: 1024, 9: 2048, 10: 4096, 12: 1024}
"""Of halves with sums of float32, per cycle and multiprocessor, by compute capability. Of bytes it
is twice as many.
"""
_SHARED = 128
"""Bytes per cycle that a multiprocessor's shared memory gives or takes."""
_PLAIN_MULTIPLICATIONS = 80
"""Of float32 without tensor cores: 128 units, of which loads and index arithmetic leave so many."""
_CACHE = 40
"""Bytes per cycle that a multiprocessor gets from the second-level cache, while all ask."""
_MEMORY = 18
"""The same from memory."""
_LATENCY = 1000
"""Cycles until loaded data are in shared memory, while others load too."""
_STEP = 80
"""Cycles of a step beside all else: barriers, waits and index arithmetic."""
_LINE = 128
"""Bytes that the caches handle at once: shorter runs cost as much."""
_START = 2200
"""Cycles for starting a program and filling its pipeline."""
_MEETING = 1500
"""Cycles until the last program of a tile knows that it is, and reads the first part."""
_GATHER = 0.1
"""Cycles per load instruction of a thread: its address and its conditions."""
_NARROW = 0.2
"""The same for loads of less than four bytes, which go through registers."""
_EXCHANGE = 0.04
"""Cycles per sum that goes from one thread to another through shared memory: so it is where bytes
are added to sums, as bytes lie sixteen to a thread. A program that runs alone takes four times as
long, as nothing overlaps.
"""
_LEVEL, _LEVEL_READ = 0.06, 0.01
"""Cycles per level that is made of a sum, and per byte that is read or written for it."""
_SCALES, _SCALES_READ = 0.05, 0.09
"""Cycles per level for scales that each thread loads for its columns, shared by its rows of a tile,
and for factors of each byte that is read.
"""
_KEPT_REGISTERS = 64
"""Of a thread, beside its sums."""


@dataclass(frozen=True)
class Shape:
    """What the time of a problem depends on.

    Attributes
    ----------
    rows, columns, batch : int
    taps : tuple of int
    channels : int
    size : int
        Bytes of an element of the factors.
    read : int
        Bytes read per element of the left factor; more than `size` where a prologue reads others.
    worked : bool
        Whether there is a prologue: it takes registers.
    moved : int
        Bytes read and written per element of the result.
    vector : int
        Neighbouring elements of the source that one load takes.
    dilated : bool
        Whether taps of a row do not lie side by side.
    packed : bool
        Whether the right factor is a packed constant.
    written : int
        Bytes of an element of the result.
    """

    rows: int
    columns: int
    batch: int
    taps: tuple[int, int]
    channels: int
    size: int
    read: int
    worked: bool
    moved: int
    vector: int
    dilated: bool = False
    packed: bool = True
    written: int = 2

    @property
    def depth(self) -> int:
        """Products per element of the result."""
        return self.taps[0] * self.taps[1] * self.channels

    def regrouped(self, choice: Choice) -> bool:
        """Whether sums of bytes stay with their threads to the end."""
        may = self.size == 1 and self.packed
        return may and choice.tile.neighbours(choice.warps, self.written) > 0

    def exchanged(self, choice: Choice) -> bool:
        """Whether sums go through shared memory."""
        turned = choice.tile.transposed or self.moved > 1
        return self.size == 1 and turned and not self.regrouped(choice)

    def staged(self, tile: Tile, stages: int) -> int:
        """Bytes of shared memory that the pipeline takes."""
        per_step = (tile.rows * self.read + tile.columns * self.size) * tile.depth
        parts = 2 * (tile.rows + tile.columns) * tile.depth * self.size if tile.passes == 3 else 0
        return stages * per_step + parts

    def kept(self, tile: Tile, stages: int) -> int:
        """The same of a program of many tiles: weights, what further tiles read, and a result."""
        written = min(self.written, 2)
        more = (stages - 1) * tile.rows * tile.columns * max(self.moved - written, 0)
        weights = tile.columns * tile.depth * self.size
        left = stages * tile.rows * tile.depth * self.read
        return left + more + weights + written * tile.rows * tile.columns


@dataclass(frozen=True)
class Choice:
    """A tile with the warps of a program and the stages of its pipeline."""

    tile: Tile
    warps: int
    stages: int


@cache
def choices(shape: Shape, machine: CudaMachine, passes: int, limit: int) -> tuple[Choice, ...]:
    """The likely best, fastest first, but for the best of every way, which come before the rest: at
    most three of one tile's rows and columns, two of one walk where there are several; two at least
    of those that share tiles and of those that do not, where both make sense, and, unless few are
    wanted, of every walk. Beside `limit`, a third as many that multiply the other way round.
    """
    candidates = [*_tiles(shape, machine, passes), *_vector_tiles(shape, machine)]
    ranked = sorted((estimate(shape, c, machine), i) for i, c in enumerate(candidates))
    each = 3 if len({c.tile.walk for c in candidates}) == 1 else 2
    kept: list[Choice] = []
    seen: dict[object, int] = {}
    keys: tuple[object, ...]
    rest: list[Choice] = []
    for _, i in ranked:
        tile, warps = candidates[i].tile, candidates[i].warps
        size = tile.rows, tile.columns, tile.vector, tile.is_persistent
        keys = size, (*size, tile.walk), (tile, warps)
        fits = True
        for special, share in (("vector", 2), ("is_persistent", 3)):  # others may be faster
            if getattr(tile, special):
                fits = seen.get(special, 0) < limit // share
                keys = (*keys, special)
        allowed = zip(keys, (3, each, 2), strict=False)
        if fits and len(kept) < limit and all(seen.get(key, 0) < n for key, n in allowed):
            for key in keys:
                seen[key] = seen.get(key, 0) + 1
            kept.append(candidates[i])
        else:
            rest.append(candidates[i])
    kinds: list[Callable[[Choice], object]] = [lambda c: c.tile.split > 1]
    if limit >= LIMIT_OF_WALKS:
        kinds.append(lambda c: c.tile.walk)
    for kind in kinds:
        for value in dict.fromkeys(map(kind, candidates)):
            here = [c for c in kept if kind(c) == value]
            missing = [c for c in rest if kind(c) == value][: max(0, 2 - len(here))]
            if missing and len(kept) == limit:
                del kept[limit - len(missing) :]
            kept += missing
    kept += _transposed(shape, machine, passes, limit // 3)
    return tuple(varied(kept, lambda choice: way(choice.tile)))


def _transposed(shape: Shape, machine: CudaMachine, passes: int, limit: int) -> list[Choice]:
    """The likely best tiles whose columns' weights are multiplied by their rows, where tensor cores
    take that many rows at once: of few columns or of few rows; at most two of one size.
    """
    if machine.capability[0] != 9 or passes != 1 or shape.size == 4:
        return []
    found: list[tuple[float, int, Choice]] = []
    for tile in _plain_tiles(shape, passes):
        if tile.columns in TRANSPOSED_COLUMNS and (tile.rows >= 128 or tile.rows < 64):
            for choice in _variants(shape, replace(tile, transposed=True), machine):
                found.append((estimate(shape, choice, machine), len(found), choice))
    kept: list[Choice] = []
    seen: dict[object, int] = {}
    for _, _, choice in sorted(found, key=lambda item: item[:2]):
        tile = choice.tile
        size = tile.rows, tile.columns, tile.is_persistent
        if seen.get(size, 0) < 2 and len(kept) < limit:
            seen[size] = seen.get(size, 0) + 1
            kept.append(choice)
    return kept


def way(tile: Tile) -> tuple[bool, tuple[Walk, bool]]:
    """What the model's errors differ by; it thinks too well of programs of many tiles."""
    return tile.is_persistent, (tile.walk, tile.transposed)


def varied(items: Sequence[T], kind: Callable[[T], tuple[bool, Hashable]]) -> list[T]:
    """Items in their order, but for the first of every kind, which come before the rest, and kinds
    that begin with False before others.
    """
    first: dict[tuple[bool, Hashable], T] = {}
    for item in items:
        first.setdefault(kind(item), item)
    early = sorted(first, key=lambda kind: kind[0])
    return list(dict.fromkeys([*(first[kind] for kind in early), *items]))


def walks(shape: Shape, depth: int) -> Iterator[Walk]:
    """The ways through the depth worth trying with steps of `depth`."""
    if shape.taps == (1, 1):
        yield Walk.TAPS
        return
    by_taps, by_rows = (
        _padded(shape, Tile(16, 16, depth, walk=walk)) for walk in (Walk.TAPS, Walk.ROW)
    )
    if by_taps <= 2 * shape.depth:
        yield Walk.TAPS
    if by_taps == shape.depth:
        return
    if shape.taps[1] > 1 and not shape.dilated and by_rows <= 2 * shape.depth:
        yield Walk.ROW
    if shape.taps[0] > 1 or shape.dilated:
        yield Walk.FLAT


def _padded(shape: Shape, tile: Tile) -> int:
    count, _, blocks = segments(tile, shape.taps, shape.channels)
    return count * blocks * tile.depth


def _tiles(shape: Shape, machine: CudaMachine, passes: int) -> Iterator[Choice]:
    for tile in _plain_tiles(shape, passes):
        yield from _variants(shape, tile, machine)


def _plain_tiles(shape: Shape, passes: int) -> Iterator[Tile]:
    """Tiles for tensor cores that are not much larger than the problem."""
    least = 32 if shape.size == 1 else 64  # bytes: an instruction takes 32 levels
    depths = [d for d in DEPTHS if least <= d * shape.size <= 256]
    if passes == 0:
        depths = depths[:2]
    elif shape.size <= 2:
        depths.append(DEEPEST)
    narrow = 32 if shape.rows <= 16 else 16  # less than 16 by 32 is no tile
    for depth in depths:
        if depth > 32 and depth >= 2 * shape.depth:
            continue
        for walk in walks(shape, depth):
            for rows in ROWS:
                if rows > 16 and rows >= 2 * shape.rows:
                    continue
                for columns in COLUMNS:
                    if columns > narrow and columns >= 2 * shape.columns:
                        continue
                    yield Tile(rows, columns, depth, walk=walk, passes=passes)


def _variants(shape: Shape, tile: Tile, machine: CudaMachine) -> Iterator[Choice]:
    """A tile with every number of warps, stages and programs that makes sense."""
    size = tile.rows * tile.columns
    steps = _padded(shape, tile) // tile.depth
    tiles = shape.batch * ceil(shape.rows, tile.rows) * ceil(shape.columns, tile.columns)
    many = replace(tile, split=PERSISTENT)
    persists = may_persist(shape, many)
    shared = {split: replace(tile, split=split) for split in SPLITS if split <= max(1, steps // 2)}
    for warps in (4, 8):
        if warps == 8 and (size < 64 * 128 or tile.sides[0] < 64):
            continue
        if size < 512 or size > _most_sums(shape, tile) * warps * 32:
            continue
        for stages in STAGES:
            together = _resident(shape, tile, stages, machine) * machine.multiprocessors
            rounds = tiles / max(together, 1)
            loaded = 2 if tile.depth * shape.size > 128 else 3
            if together and stages == loaded and rounds >= 3 and persists:
                yield Choice(many, warps, stages)
            if shape.staged(tile, stages) > machine.shared - 4096 or tile.depth > DEPTHS[-1]:
                continue
            for split, part_tile in shared.items():
                if stages > max(2, steps // split):
                    continue
                if split > 1 and (
                    tiles * split > 4 * machine.multiprocessors
                    or tiles * split * size * 4 > MOST_WORKSPACE
                    or size > 64 * warps * 32  # adding up takes registers, too
                ):
                    continue
                yield Choice(part_tile, warps, stages)


def programs_of_many_tiles(shape: Shape, machine: CudaMachine) -> list[Choice]:
    """Small tiles with deep pipelines, of which several programs fit a multiprocessor: what the
    model, which knows no waiting in such programs, puts behind large ones.
    """
    found = []
    for columns in COLUMNS[2:]:
        tile = Tile(64, columns, max(16, 1 << (shape.depth - 1).bit_length()), PERSISTENT)
        many = tile.depth <= DEEPEST and shape.rows > 64 * 3 * 4 * machine.multiprocessors
        if many and may_persist(shape, tile) and _resident(shape, tile, 3, machine):
            found.append(Choice(tile, 4, 3))
    return found


def may_persist(shape: Shape, tile: Tile) -> bool:
    """Whether programs can go through many tiles: each is one step, by weights that they keep."""
    steps = _padded(shape, tile) // tile.depth
    return steps == 1 and shape.packed and shape.batch == 1 and not tile.vector and tile.passes == 1


def _resident(shape: Shape, tile: Tile, stages: int, machine: CudaMachine) -> int:
    """Programs of many tiles on a multiprocessor, no more than hide where each waits; 0 if none
    fits.
    """
    fit = (machine.shared - 4096) // shape.kept(tile, stages)
    return min(4, fit, max(1, 128 * 256 // (tile.rows * tile.columns)))


def lanes(choice: Choice, shape: Shape, machine: CudaMachine) -> int:
    """How many programs go through the tiles of the same columns."""
    tile = choice.tile
    together = _resident(shape, tile, choice.stages, machine) * machine.multiprocessors
    down, across = ceil(shape.rows, tile.rows), ceil(shape.columns, tile.columns)
    return max(1, min(down, ceil(together, across)))


def _most_sums(shape: Shape, tile: Tile) -> int:
    """Sums that a thread may keep in registers."""
    return 64 if tile.passes != 1 or shape.worked else 128


def _vector_tiles(shape: Shape, machine: CudaMachine) -> Iterator[Choice]:
    if shape.rows > (1 if shape.size == 1 else VECTOR_ROWS[-1]) or shape.taps != (1, 1):
        return  # several rows of bytes go to tensor cores, whatever is left of a tile
    rows = next(r for r in VECTOR_ROWS if r >= shape.rows)
    for depth in VECTOR_DEPTHS:
        if depth > VECTOR_DEPTHS[0] and depth >= 2 * shape.channels:
            continue
        for columns in VECTOR_COLUMNS:
            if columns > 1 and columns >= 2 * shape.columns:
                continue
            for warps in (2, 4, 8):
                sums = rows * columns * depth / (warps * 32)
                if not 8 <= sums <= 64 or columns * depth < 8 * warps * 32:
                    continue
                tile = Tile(rows, columns, depth, vector=True, passes=0)
                steps = ceil(shape.channels, depth)
                tiles = shape.batch * ceil(shape.columns, columns)
                for split in SPLITS:
                    if split > 1 and (steps < split or tiles * split > 8 * machine.multiprocessors):
                        continue
                    yield Choice(replace(tile, split=split), warps, 1)
                    if steps >= 3 * split:
                        yield Choice(replace(tile, split=split), warps, 3)


# ---- the time ------------------------------------------------------------------------------------


def estimate(shape: Shape, choice: Choice, machine: CudaMachine) -> float:
    """Roughly, cycles from the first program's start to the last one's end."""
    tile, size = choice.tile, choice.tile.rows * choice.tile.columns
    tiles = shape.batch * ceil(shape.rows, tile.rows) * ceil(shape.columns, tile.columns)
    steps = ceil(_padded(shape, tile) // tile.depth, tile.shares)
    at_once = _programs_at_once(shape, choice, machine)
    fetched = tile.rows * _run(tile.depth * shape.read)
    fetched += tile.columns * _run(tile.depth * shape.size)
    width = _vector(shape, tile)
    narrow = width * shape.size < 4
    loads = _GATHER * tile.depth * tile.columns * shape.size / 16
    loads += (_NARROW if narrow else _GATHER) * tile.depth * tile.rows / width
    work = max(_products(shape, tile, machine), fetched / _CACHE, loads)
    work += 0.25 * loads + (0 if tile.vector else _STEP)
    waiting = _LATENCY / max(choice.stages - 1, 1) if steps > 1 else 0.0
    if narrow or choice.stages == 1:
        waiting = _LATENCY

    ending = _EXCHANGE * (1 + 3 / at_once) if shape.exchanged(choice) else 0.0
    if shape.size == 1:
        ending += _LEVEL + _LEVEL_READ * shape.moved
    if shape.regrouped(choice) and not tile.keeps_scales:
        of_thread = tile.rows / (8 * choice.warps)
        ending += (_SCALES + _SCALES_READ * (shape.moved - 1)) / of_thread

    def time(programs: int) -> float:
        """Of so many programs that run at once on a multiprocessor."""
        taken = _START + steps * (max(programs * work, waiting) + 0.15 * waiting)
        taken += programs * size * (shape.moved / _CACHE + ending)
        if tile.split > 1:
            taken += _MEETING + programs * size * 4 / _CACHE + tile.split * size * 4 / _CACHE
        return taken

    share = ceil(tiles * tile.shares, machine.multiprocessors)
    if tile.is_persistent:  # nothing waits for loads but at the start
        moved = size * shape.moved + tile.rows * _run(tile.depth * shape.read)
        cycles = _START + share * (max(work, moved / _CACHE) + size * ending)
        return max(cycles, _least(shape, machine)) + 0.02 * cycles
    rounds, rest = divmod(share, at_once)
    cycles = rounds * time(at_once) + (time(rest) if rest else 0)
    return max(cycles, _least(shape, machine)) + 0.02 * cycles


def _run(size: int) -> float:
    """What a run of so many bytes costs, as bytes."""
    return 0.5 * size + 0.5 * max(size, _LINE)


def copying(size: int, machine: CudaMachine) -> float:
    """Cycles of a launch that reads and writes so many bytes in all."""
    return _START + size / (_MEMORY * machine.multiprocessors)


def _least(shape: Shape, machine: CudaMachine) -> float:
    """Cycles that memory needs for everything once."""
    factors = shape.rows * shape.channels * shape.read + shape.columns * shape.depth * shape.size
    result = shape.rows * shape.columns * shape.moved
    return shape.batch * (factors + result) / (_MEMORY * machine.multiprocessors)


def _vector(shape: Shape, tile: Tile) -> int:
    """Neighbouring elements of the source that a load takes."""
    if tile.walk is Walk.TAPS or shape.channels % shape.vector == 0:
        return shape.vector
    shared = shape.channels & -shape.channels
    return min(shape.vector, shared)


def _products(shape: Shape, tile: Tile, machine: CudaMachine) -> float:
    """Cycles of a step's multiplications."""
    count = tile.rows * tile.columns * tile.depth
    if tile.vector or tile.passes == 0:
        return count / _PLAIN_MULTIPLICATIONS
    rate = float(_MULTIPLICATIONS.get(machine.capability[0], 1024))
    if tile.transposed:  # reading both sides for every 64 columns, and writing them before
        read = tile.columns // 64 * (64 + tile.rows) + tile.rows + tile.columns
        taken = read * tile.depth * shape.size / _SHARED
        return max(taken, count / (0.7 * rate * 2 / shape.size))
    if tile.rows < 64:  # warps multiply by themselves; from 64 rows on Hopper's do in groups
        rate *= 0.25 if machine.capability[0] >= 9 else 0.6
    else:
        rate *= 0.7 if tile.rows * tile.columns >= 128 * 128 else 0.6
    if shape.size == 4:
        rate /= 2 if tile.passes == 1 else 8
    elif shape.size == 1:
        rate *= 2
    return count / rate


def _programs_at_once(shape: Shape, choice: Choice, machine: CudaMachine) -> int:
    tile, threads = choice.tile, choice.warps * 32
    sums = tile.rows * tile.columns * (tile.depth if tile.vector else 1) / threads
    registers = min(sums + _KEPT_REGISTERS, 255) * threads
    staged = 0 if choice.stages == 1 else shape.staged(tile, choice.stages)
    if shape.exchanged(choice):
        staged = max(staged, 4 * tile.rows * tile.columns)
    shared = machine.shared_per_multiprocessor // (staged + 1024)
    return max(1, min(shared, int(machine.registers // registers), 2048 // threads, 16))
