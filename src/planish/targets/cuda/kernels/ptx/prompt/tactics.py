"""Tactics of the matrix kernel that is ready before its turn: small problems on Hopper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic
from planish.targets.cuda.kernels.family import HopperFamily, foremost
from planish.targets.cuda.kernels.mapped import Box, row_tiles, stays_in_pixels
from planish.targets.cuda.kernels.matrix_problem import (
    Problem,
    filters,
    is_packed,
    pack,
    understood,
)
from planish.targets.cuda.kernels.matrix_tile import Tile, ceil
from planish.targets.cuda.kernels.ptx.prompt.kernel import (
    AT_ONCE,
    PromptKernel,
    is_divisible,
    neighbours,
)
from planish.targets.cuda.kernels.ptx.specialized.cost import (
    DEPTHS,
    SHARE,
    box_of,
    frame_bytes,
    has_frames,
)
from planish.targets.cuda.kernels.ptx.specialized.tactics import specialized_problem
from planish.targets.cuda.kernels.ptx.specialized.tiles import LINES, SIDE
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import Allowed

ROWS = (64, 128, 192)
COLUMNS = (32, 64, 128)
STAGES = (1, 2, 3, 4, 5, 6, 8)
SIDES = (0, *(1 << i for i in range(8)))
"""Of a box, in pixels; 0: there is none."""
CLUSTERS = (1, 2, 4, 8)
"""Blocks that share a tile's depth; eight is what every Hopper GPU can launch."""
FRAMES = (0, 1, 2)
SQUARE = Box(SIDE * SIDE, SIDE, SIDE)
"""Of a tile with frames."""
LIMIT = 8
"""Tactics offered."""
OF_SIZE = 2
"""Of these with tiles of the same rows and columns, with frames and without."""
MOST_SUMS = 128
"""Of a thread."""
SAVED_SECONDS = 0.4e-6
"""What it takes less in a network than by itself: it begins before the kernel before it has ended.
"""
MOST_BLOCKS = 6
"""Of a multiprocessor: kernels with more have no latency to save."""

_PRODUCTS = 4096
"""Of bytes, per cycle and multiprocessor; of halves half as many."""
_CACHE = 48
"""Bytes per cycle that a multiprocessor loads."""
_NEAR = 6
"""Bytes per cycle that it takes from its cluster's shared memory, addition included."""
_STEP = 100
"""Cycles of a step at least."""
_WAVE, _MEETING, _END = 2500, 600, 500
"""Cycles until a block's first stage is there; of a cluster's meeting; of a tile's end."""
_DRAIN = 1200
"""Cycles until a frame has taken the place of the one before it."""
_EACH, _OPERATION = 8.0, 2.0
"""Cycles of the end for each of a thread's sums; for each operation on it."""
_RESERVED = 1024
"""Bytes of shared memory that a block takes beside its own."""


def prompt_problem(task: Task, binding: Binding) -> Problem | None:
    """The problem of a task; None if the kernel does not compute it."""
    found = specialized_problem(task, binding)
    return None if found is None else found[0]


@dataclass(frozen=True)
class PromptTactic(AnchoredTactic):
    """The matrix kernel that is ready before its turn, with a tile; see `PromptKernel`."""

    family: ClassVar[str] = "prompt"

    rows: int
    columns: int
    depth: int
    stages: int
    cluster: int = 1
    frames: int = 0
    high: int = 0
    wide: int = 0
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def tile(self) -> Tile:
        """What a cluster computes."""
        return Tile(self.rows, self.columns, self.depth)

    @property
    def extra_seconds(self) -> float:
        return -SAVED_SECONDS

    def accepts(self, binding: Binding) -> bool:
        if not super().accepts(binding):
            return False
        problem = prompt_problem(self.task, binding)
        if problem is None or (problem.window is None) != (self.wide == 0):
            return False
        size = problem.result.outputs[0].pointer.dtype.size
        if problem.columns % self.columns or not is_divisible(self.tile, size, self.cluster):
            return False
        if self.depth * problem.dtype.size not in LINES:
            return False
        if not stays_in_pixels(problem, self.depth):
            return False
        if self.frames and not has_frames(problem):
            return False
        kernel = self._kernel(problem)
        return kernel.units >= self.cluster and kernel.shared <= _room(self.machine)

    def constants(self) -> list[np.ndarray]:
        size = self.task.outputs[0].dtype.size
        return [pack(filters(self.task), self.tile, neighbours(size))]

    def launches(self, binding: Binding) -> list[Launch]:
        problem = prompt_problem(self.task, binding)
        assert problem is not None, "the tactic accepts the binding"
        kernel = self._kernel(problem)
        pointers: list[Pointer] = [*problem.left_values, Constant(0), *problem.result_values]
        tiles = _row_tiles(problem, Box(self.rows, self.high, self.wide), self.frames > 0)
        tasks = tiles * kernel.column_tiles * self.cluster
        return [Launch(kernel, tuple(pointers), (problem.rows,), tasks)]

    def _kernel(self, problem: Problem) -> PromptKernel:
        (left,) = problem.left.leaves
        assert left is not None
        return PromptKernel(
            tile=self.tile,
            stages=self.stages,
            ring=0,
            cluster=self.cluster,
            frames=self.frames,
            dtype=problem.dtype,
            left=left,
            axes=problem.axes,
            window=problem.window,
            channels=problem.channels,
            columns=problem.columns,
            result=problem.result,
            high=self.high,
            wide=self.wide,
            codes=problem.codes,
        )


def _room(machine: CudaMachine) -> int:
    """Bytes of shared memory of a block, so that two fit on a multiprocessor."""
    return machine.shared_per_multiprocessor // AT_ONCE - _RESERVED


@dataclass(frozen=True)
class PromptFamily(HopperFamily):
    """Convolutions and products by constants, of few tiles, for this or another machine."""

    name: ClassVar[str] = "prompt"
    tactic: ClassVar[type[Tactic]] = PromptTactic
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "columns": COLUMNS,
        "depth": DEPTHS,
        "stages": STAGES,
        "cluster": CLUSTERS,
        "frames": FRAMES,
        "high": SIDES,
        "wide": SIDES,
    }

    def understands(self, task: Task) -> bool:
        return understood(task) and is_packed(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        problem = prompt_problem(task, binding)
        if problem is None:
            return
        found = sorted(_choices(problem, self.machine), key=lambda item: item[0])
        tactics = (PromptTactic(task, *choice, machine=self.machine) for _, choice in found)
        yield from foremost(
            tactics, binding, LIMIT, OF_SIZE, lambda t: (t.rows, t.columns, t.frames > 0)
        )

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        assert task.anchor is not None
        pixels = values["high"] * values["wide"]
        wrong = (values["high"] > 0) != (values["wide"] > 0)
        wrong = wrong or (pixels > 0 and values["rows"] % pixels != 0)
        wrong = wrong or values["rows"] * values["columns"] > MOST_SUMS * THREADS
        wrong = wrong or (values["frames"] > 0 and (values["high"], values["wide"]) != (SIDE, SIDE))
        wrong = wrong or values["depth"] * task.anchor.inputs[0].dtype.size not in LINES
        tile = Tile(values["rows"], values["columns"], values["depth"])
        if wrong or not is_divisible(tile, task.outputs[0].dtype.size, values["cluster"]):
            return f"no tile is {dict(values)}"
        return ""


# ---- which tiles are worth measuring -------------------------------------------------------------

Choice = tuple[int, int, int, int, int, int, int, int]


def _row_tiles(problem: Problem, box: Box, framed: bool) -> int:
    """Tiles along the rows; those of frames are any squares, one behind the other."""
    if not framed:
        return row_tiles(problem, box)
    return ceil(row_tiles(problem, SQUARE), box.rows // 64)


def _choices(problem: Problem, machine: CudaMachine) -> Iterator[tuple[float, Choice]]:
    """A model of the time, with a tactic's parameters in their order."""
    size = problem.dtype.size
    line = LINES[problem.channels * size > LINES[0]]
    written = problem.result.outputs[0].pointer.dtype.size
    for rows, columns, frames, cluster in product(ROWS, COLUMNS, FRAMES, CLUSTERS):
        if problem.columns % columns or rows * columns > MOST_SUMS * THREADS:
            continue
        tile = Tile(rows, columns, line // size)
        box = Box(rows, SIDE, SIDE) if frames else box_of(problem, rows)
        if box is None or not is_divisible(tile, written, cluster):
            continue
        if frames and not has_frames(problem):
            continue
        taps = problem.taps[0] * problem.taps[1]
        units = ceil(problem.channels, tile.depth) * (1 if frames else taps)
        if units < max(cluster, frames * cluster):
            continue
        tiles = _row_tiles(problem, box, frames > 0) * (problem.columns // columns)
        if tiles * cluster > MOST_BLOCKS * machine.multiprocessors:
            continue
        room = _room(machine) - _RESERVED
        if cluster > 1 and 4 * rows * columns > room:
            continue
        if frames:
            room -= frames * rows // 64 * frame_bytes(problem, SQUARE, line)
        each = (columns if frames else rows + columns) * line
        steps = ceil(units, cluster) * (taps if frames else 1)
        fit = [n for n in STAGES if n * each <= room]
        if not fit or (frames and fit[-1] < 3):
            continue
        stages = min((n for n in fit if n >= steps), default=fit[-1])
        time = _estimate(problem, tile, tiles, frames, cluster, machine)
        yield time, (rows, columns, tile.depth, stages, cluster, frames, box.high, box.wide)


def _estimate(
    problem: Problem, tile: Tile, tiles: int, frames: int, cluster: int, machine: CudaMachine
) -> float:
    """Cycles, by what a multiprocessor waits for: the first stage, loads or products, the end."""
    size = problem.dtype.size
    taps = problem.taps[0] * problem.taps[1]
    blocks = ceil(problem.channels, tile.depth)
    products = tile.rows * tile.columns * tile.depth / (_PRODUCTS // size) / SHARE[tile.columns]
    line = tile.depth * size
    pixels = (
        tile.rows // 64 * frame_bytes(problem, SQUARE, line) / taps if frames else tile.rows * line
    )
    loads = (pixels + tile.columns * line) / _CACHE
    of_multiprocessor = ceil(tiles * cluster, machine.multiprocessors)
    steps = ceil(blocks, cluster) * taps if frames else ceil(blocks * taps, cluster)
    loop = steps * max(products, loads, _STEP)
    if frames == 1:
        loop += (steps // taps - 1) * _DRAIN
    operations = len(problem.result.expression.instructions)
    sums = tile.rows * tile.columns
    end = _END + sums / cluster / THREADS * (_EACH + operations * _OPERATION)
    start = float(_WAVE)
    if cluster > 1:
        start += 2 * _MEETING + 4 * sums * (cluster - 1) / cluster / _NEAR
    return ceil(of_multiprocessor, AT_ONCE) * start + of_multiprocessor * (loop + end)


FAMILIES = (PromptFamily(),)
