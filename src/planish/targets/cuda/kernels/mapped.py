"""Tactics of the matrix kernel with tensor maps: convolutions and products of halves on Hopper."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic, Workspace, Zeroed
from planish.targets.cuda.kernels import matrix_cost as cost
from planish.targets.cuda.kernels.family import HopperFamily, foremost
from planish.targets.cuda.kernels.mapped_kernel import (
    EVEN_BYTES,
    PAIRS,
    MappedKernel,
    paired,
    whole_strides,
)
from planish.targets.cuda.kernels.matrix import shape_of
from planish.targets.cuda.kernels.matrix_problem import (
    Problem,
    filters,
    is_packed,
    pack,
    problem_of,
    understood,
)
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT, Tile, ceil
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.execution import ZEROED_BYTES
from planish.targets.restoring import FLAG, Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16)
LIMIT = 14
"""Tactics offered."""
OF_SIZE = 2
"""Of these with tiles of the same rows and columns that are shared, or not."""
ROWS = (16, 32, 64, 128, 256)
COLUMNS = (64, 128, 256)
DEPTHS = (64, 128)
STAGES = (3, 4, 6)
SPLITS = (1, 2, 3, 4, 6, 8)
SIDES = (0, *(1 << i for i in range(9)))
"""Of a box, in pixels; 0: there is none."""
RESERVED = 4096
"""Bytes of shared memory left to the compiler, for barriers and what else it needs."""
WIDEST = 32
"""Pixels of a box side by side."""
MAP_SECONDS = 0.3e-6
"""What it costs a network beside its own time: tensor maps are fetched anew in every run. From what
ResNet-50 and BERT at batch 1 and 8 took on an H200 beside the sum of their layers' times, with 23
to 36 of these kernels and without them.
"""
FEWEST = 8
"""Rows of a matrix: fewer are products of vectors."""
MOST_SUMS = 128
"""Of a thread."""
MOST_WASTE = 1.5
"""How many times the pixels that there are a box's may be."""


class Box(NamedTuple):
    """Pixels of a tile, in all and in each image; no pixels but rows where `wide` is 0."""

    rows: int
    high: int = 0
    wide: int = 0


def mapped_problem(task: Task, binding: Binding) -> Problem | None:
    """The problem of a task; None if its factors cannot be loaded as boxes."""
    return binding.derived(_mapped_problem, task)


def _mapped_problem(task: Task, binding: Binding) -> Problem | None:
    if not understood(task) or not is_packed(task):
        return None
    problem = problem_of(task, binding)
    if problem is None or problem.dtype not in DTYPES or problem.batched or problem.zero:
        return None
    if not problem.left.expression.is_copy or len(problem.left.leaves) != 1:
        return None
    few = problem.window is None and problem.rows < FEWEST
    return problem if is_left_mapped(problem) and not few else None


def is_left_mapped(problem: Problem) -> bool:
    """Whether boxes of the left factor, one tensor, can be loaded."""
    (leaf,) = problem.left.leaves
    if leaf is None or not leaf.pointer.aligned or leaf.wide or leaf.strides[-1] != 1:
        return False
    window = problem.window
    extents: tuple[int, ...] = (problem.rows,)
    if window is None:
        if len(leaf.strides) != 2:
            return False
    else:
        high, wide = problem.axes[1:]
        extents = (problem.rows // (high * wide), *window.size)
        odd = any(n % 2 for n in window.size)
        if window.strides not in ((1, 1), PAIRS) or (window.strides == PAIRS and odd):
            return False
    strides = whole_strides(leaf.strides, (*extents, problem.channels))
    if window is not None and window.strides == PAIRS:
        strides = paired(strides)
    if any(s == 0 and n > 1 for s, n in zip(leaf.strides, extents, strict=False)):
        return False
    even = EVEN_BYTES // problem.dtype.size
    uneven = any(s % even for s in strides[:-1]) or any(a % b for a, b in pairwise(strides))
    return not uneven and strides[-2] >= problem.channels


@dataclass(frozen=True)
class MappedTactic(AnchoredTactic):
    """The matrix kernel with tensor maps, with a tile; see `Tile` and `MappedKernel`."""

    family: ClassVar[str] = "mapped"
    kernel: ClassVar[type[MappedKernel]] = MappedKernel

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    split: int = 1
    transposed: bool = True
    high: int = 0
    wide: int = 0
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def tile(self) -> Tile:
        """What a program computes."""
        return Tile(self.rows, self.columns, self.depth, self.split, transposed=self.transposed)

    @property
    def extra_seconds(self) -> float:
        return MAP_SECONDS

    def accepts(self, binding: Binding) -> bool:
        if not super().accepts(binding):
            return False
        problem = self.problem(binding)
        if problem is None or (problem.window is None) != (self.wide == 0):
            return False
        if not stays_in_pixels(problem, self.depth):
            return False
        if self.workspace(binding) > cost.MOST_WORKSPACE or self.zeroed(binding) > ZEROED_BYTES:
            return False
        return self._tiles(problem) * self.tile.shares < 1 << 31

    def constants(self) -> list[np.ndarray]:
        return [pack(filters(self.task), self.tile)]

    def problem(self, binding: Binding) -> Problem | None:
        """What is computed; None if the kernel cannot."""
        return mapped_problem(self.task, binding)

    def launches(self, binding: Binding) -> list[Launch]:
        problem = self._problem(binding)
        kernel = self.kernel(
            warps=self.warps,
            stages=self.stages,
            tile=self.tile,
            dtype=problem.dtype,
            left=problem.left,
            axes=problem.axes,
            batched=False,
            window=problem.window,
            right=None,
            right_axes=(),
            channels=problem.channels,
            columns=problem.columns,
            result=problem.result,
            high=self.high,
            wide=self.wide,
        )
        pointers: list[Pointer] = [*problem.left_values, Constant(0), *problem.result_values]
        if self.split > 1:
            pointers += [Workspace(), Zeroed()]
        tasks = self._tiles(problem) * self.tile.shares
        if self.tile.is_persistent:
            tasks = min(tasks, self.machine.multiprocessors * _at_once(self.tile, self.stages))
        return [Launch(kernel, tuple(pointers), (problem.rows,), tasks)]

    def workspace(self, binding: Binding) -> int:
        if self.split <= 1:
            return 0
        return 4 * self._tiles(self._problem(binding)) * self.split * self.rows * self.columns

    def zeroed(self, binding: Binding) -> int:
        return 4 * self._tiles(self._problem(binding)) if self.split > 1 else 0

    def _problem(self, binding: Binding) -> Problem:
        problem = self.problem(binding)
        assert problem is not None, "the tactic accepts the binding"
        return problem

    def _tiles(self, problem: Problem) -> int:
        box = Box(self.rows, self.high, self.wide)
        return row_tiles(problem, box) * ceil(problem.columns, self.columns)


def row_tiles(problem: Problem, box: Box) -> int:
    """Tiles along the rows."""
    if not box.wide:
        return ceil(problem.rows, box.rows)
    high, wide = problem.axes[1:]
    images = ceil(problem.rows // (high * wide), box.rows // (box.high * box.wide))
    return images * ceil(high, box.high) * ceil(wide, box.wide)


def stays_in_pixels(problem: Problem, depth: int) -> bool:
    """Whether a step stays in the channels of a pixel, where another's are behind them."""
    by_pairs = problem.window is not None and problem.window.strides == PAIRS
    return not by_pairs or problem.channels % depth == 0


def _at_once(tile: Tile, stages: int) -> int:
    """Programs of many tiles on a multiprocessor."""
    return 1 if tile.rows * tile.columns > 128 * 128 or stages > 3 else 2


@dataclass(frozen=True)
class MappedFamily(HopperFamily):
    """Convolutions and products by constants, in halves, for this or another machine."""

    name: ClassVar[str] = "mapped"
    tactic: ClassVar[type[MappedTactic]] = MappedTactic
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "columns": COLUMNS,
        "depth": DEPTHS,
        "warps": (4, 8),
        "stages": STAGES,
        "split": (PERSISTENT, *SPLITS),
        "transposed": FLAG,
        "high": SIDES,
        "wide": SIDES,
    }
    least: ClassVar[int] = 1
    """Pixels of a box along each side, at least."""

    def problem(self, task: Task, binding: Binding) -> Problem | None:
        """What is computed; None if no kernel can."""
        return mapped_problem(task, binding)

    def understands(self, task: Task) -> bool:
        """Whether a task is of the kernel's kind; shapes and layouts decide the rest."""
        return understood(task) and is_packed(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        problem = self.problem(task, binding)
        if problem is None:
            return
        found = sorted(_choices(problem, self.machine, self.least), key=lambda item: item[0])
        tactics = (
            self.tactic(
                task,
                tile.rows,
                tile.columns,
                tile.depth,
                warps,
                stages,
                tile.split,
                tile.transposed,
                box.high,
                box.wide,
                self.machine,
            )
            for _, box, (tile, warps, stages) in found
        )
        yield from foremost(
            tactics,
            binding,
            LIMIT,
            OF_SIZE,
            lambda t: (t.rows, t.columns, t.transposed, t.split > 1, t.split == PERSISTENT),
        )

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        pixels = values["high"] * values["wide"]
        wrong = pixels > values["rows"] or (values["high"] > 0) != (values["wide"] > 0)
        wrong = wrong or (pixels > 0 and not values["transposed"])
        wrong = wrong or (values["split"] == PERSISTENT and (pixels > 0 or values["transposed"]))
        if wrong or values["rows"] * values["columns"] > MOST_SUMS * 32 * values["warps"]:
            return f"no tile is {dict(values)}"
        if self.least > 1 and min(values["high"], values["wide"]) < self.least:
            return f"no box is {dict(values)}"
        return ""


# ---- which tiles are worth measuring -------------------------------------------------------------


def _choices(
    problem: Problem, machine: CudaMachine, least: int
) -> Iterator[tuple[float, Box, tuple[Tile, int, int]]]:
    """Tiles, warps and stages, with a model of their time and the box of their rows."""
    shape = replace(shape_of(problem), vector=64)  # a box takes one thread's instruction
    for box in _boxes(problem, least):
        tiles = row_tiles(problem, box)
        padded = replace(shape, rows=tiles * box.rows)
        for columns in COLUMNS:
            if columns >= 2 * max(problem.columns, COLUMNS[0]):
                continue
            for choice in _variants(problem, box, columns, machine):
                time = cost.estimate(padded, cost.Choice(*choice), machine)
                yield time, box, choice


def _boxes(problem: Problem, least: int) -> Iterator[Box]:
    """Boxes of rows worth trying, for images that of each size with the least beside them."""
    if problem.window is None:
        yield from (Box(rows) for rows in ROWS if rows < 2 * max(problem.rows, ROWS[0]))
        return
    sides = [1 << i for i in range(WIDEST.bit_length()) if 1 << i >= least]
    for rows in ROWS:
        every = [Box(rows, y, x) for y in sides for x in sides if y * x <= rows]
        box = min(every, key=lambda b: (row_tiles(problem, b), -min(b.wide, 8), -b.high))
        if row_tiles(problem, box) * rows <= MOST_WASTE * max(problem.rows, ROWS[0]):
            yield box


def _variants(
    problem: Problem, box: Box, columns: int, machine: CudaMachine
) -> Iterator[tuple[Tile, int, int]]:
    """Ways to compute a tile."""
    sums = box.rows * columns
    for depth in DEPTHS:
        if depth > DEPTHS[0] and depth >= 2 * problem.channels:
            continue
        for turned in (True,) if box.wide else (True, False):
            tile = Tile(box.rows, columns, depth, transposed=turned)
            if not stays_in_pixels(problem, tile.depth):
                continue
            if tile.sides[0] < 64 or (turned and columns > 128 and box.rows > 64):
                continue
            for warps in (4, 8):
                of_thread = sums // (32 * warps)
                if of_thread > MOST_SUMS or (
                    warps == 8 and (sums < 128 * 128 or tile.sides[0] < 128)
                ):
                    continue
                for stages in STAGES:
                    if _buffers(tile, stages) > machine.shared - RESERVED:
                        continue
                    for split in _splits(problem, tile, stages, machine):
                        yield replace(tile, split=split), warps, stages


def _buffers(tile: Tile, stages: int) -> int:
    """Bytes of shared memory that the factors take."""
    return stages * (tile.rows + tile.columns) * tile.depth * 2


def _splits(problem: Problem, tile: Tile, stages: int, machine: CudaMachine) -> Iterator[int]:
    """How many programs may share a tile."""
    tiles = ceil(problem.rows, tile.rows) * ceil(problem.columns, tile.columns)
    steps = problem.taps[0] * problem.taps[1] * ceil(problem.channels, tile.depth)
    room = tile.rows * tile.columns <= 64 * 128  # adding up takes registers, too
    for split in SPLITS:
        enough = steps >= split * min(stages, 4)
        if split == 1 or (room and enough and tiles * split <= 2 * machine.multiprocessors):
            yield split
    many = tiles >= 3 * machine.multiprocessors * _at_once(tile, stages)
    half = tile.rows * tile.columns  # its bytes: results leave in halves, through shared memory
    many = many and _buffers(tile, stages) + half <= machine.shared - RESERVED
    if many and not tile.transposed and min(tile.rows, tile.columns) >= 128:
        yield PERSISTENT


FAMILIES = (MappedFamily(),)
