"""Reductions along any axes, arg max, and running sums, with elementwise work before and after.

The kernels stand in `reduction_kernel`. Where there are few rows of many elements, a first launch
reduces chunks of rows into the workspace and a second one the chunks' states: always the same
chunks, so that results are always the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.expression import identity
from planish.fusion.task import Task
from planish.ops.base import normalize_axis
from planish.ops.reduce import (
    ArgMax,
    CumSum,
    Reduction,
)
from planish.targets.anchored import AnchoredTactic, outputs_follow
from planish.targets.base import Binding, Family, Launch, Pointer, Tactic, Workspace
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import WIDE
from planish.targets.cuda.kernels.nest import (
    Space,
    main_of,
    open_ended,
    power_of_two,
    prologue_of,
    spaces_of_rows,
    values_of,
    work_of,
)
from planish.targets.cuda.kernels.reduction_kernel import (
    Reducer,
    ReductionKernel,
    RunningSumKernel,
)
from planish.targets.cuda.machine import CudaMachine
from planish.targets.reductions import KINDS
from planish.targets.restoring import Allowed

POWERS = tuple(1 << i for i in range(15))
"""Rows and elements a program may take at a time, and chunks of a row."""
WARPS = (1, 2, 4, 8, 16)
TILES = {"rows": POWERS, "columns": POWERS, "warps": WARPS}
"""The possible values of a tile's parameters."""
CHUNKED = {**TILES, "split": POWERS}
"""The same where rows may be cut into chunks."""
_OFFERED = 8
"""Tactics for a task."""
Tile = tuple[int, int, int, int]
"""Rows, elements of each at a time, chunks of a row, and warps."""
_ALIGNMENT = 256
"""Bytes to which parts of the workspace are aligned."""


# ---- which tiles -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What the choice of tiles looks at.

    Attributes
    ----------
    rows, length : int
        How many rows there are, and elements in each.
    along : bool
        Whether the elements of a row are neighbours, rather than those of different rows.
    size : int
        Bytes of an element.
    """

    rows: int
    length: int
    along: bool
    size: int

    @staticmethod
    def of(space: Space, kept: int) -> Rows:
        """The rows of a space."""
        main = main_of(space.groups[0])
        inner, outer = (abs(main.strides[a]) or WIDE for a in (-1, kept - 1))
        return Rows(
            math.prod(space.extents[:kept]),
            math.prod(space.extents[kept:]),
            inner <= outer,
            main.pointer.dtype.size,
        )

    def cost(self, machine: CudaMachine, rows: int, columns: int, split: int, warps: int) -> float:
        """Nanoseconds, roughly: only the order of tiles matters.

        Bytes at what the multiprocessors in use can draw, lines fetched whole; steps of a loop one
        after the other, with as many programs side by side as there is room for; another launch.
        """
        programs = -(-self.rows // rows) * split
        steps = -(-self.length // (split * columns))
        side = (columns if self.along else rows) * self.size
        fetched = programs * steps * rows * columns * self.size * max(1.0, 64 / side)
        busy = min(programs, machine.multiprocessors)
        lane = rows * columns / (32 * warps)
        room = machine.registers / (32 * warps * (2 * lane + 32))
        waves = -(-programs // (max(1, int(min(32, 64 / warps, room))) * machine.multiprocessors))
        # a row that lies in several warps is combined through shared memory
        crossing = self.along and warps > 1 and columns * self.size > 32 * 16
        step = 500 + 10 * lane + 200 * crossing
        return fetched / (30 * busy) + waves * steps * step + 2000 * (split > 1)


def warps_for(rows: int, columns: int) -> list[int]:
    """Warps that may take a tile: 4 to 32 elements in each thread."""
    tile = rows * columns
    return [w for w in WARPS if 128 * w <= tile <= 1024 * w] or [1]


def different(ranked: Sequence[Tile]) -> list[Tile]:
    """The first tiles, at most two of which differ in nothing but their warps."""
    chosen: list[Tile] = []
    for tile in ranked:
        if sum(tile[:3] == other[:3] for other in chosen) < 2:
            chosen.append(tile)
        if len(chosen) == _OFFERED:
            break
    return chosen


def tile_choices(shape: Rows, machine: CudaMachine, split: bool) -> list[Tile]:
    """Tiles worth measuring, the likely best first."""
    length, most = power_of_two(shape.length), power_of_two(shape.rows)
    tiles = [
        (rows, columns, chunks, warps)
        for rows in POWERS[:10]
        if rows <= most
        for columns in POWERS[:13]
        if columns <= length and min(256, length * most) <= rows * columns <= 8192
        for chunks in (POWERS[:10] if split else (1,))
        if chunks == 1 or shape.length >= chunks * columns
        for warps in warps_for(rows, columns)
    ]
    return different(sorted(tiles, key=lambda tile: shape.cost(machine, *tile)))


# ---- reductions --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReductionTactic(AnchoredTactic):
    """A reduction with so many rows, and elements of each at a time; in `split` chunks."""

    family: ClassVar[str] = "reduction"

    rows: int = 1
    columns: int = 1024
    split: int = 1
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        return fits(self.task, binding)

    def workspace(self, binding: Binding) -> int:
        space, kept = reduction_space(self.task, binding)
        if self._chunks(space, kept) == 1:
            return 0
        reducer = self._reducer()
        values = self._positions_at(space, kept)
        chunks = self._chunks(space, kept)
        return values + (4 * math.prod(space.extents[:kept]) * chunks if reducer.is_search else 0)

    def launches(self, binding: Binding) -> list[Launch]:
        space, kept = reduction_space(self.task, binding)
        before, _, reads, outputs = space.groups
        count = math.prod(space.extents[:kept])
        chunks = self._chunks(space, kept)
        reducer = self._reducer()
        prologue = work_of(prologue_of(self.task).expression, before)
        epilogue = work_of(self.task.epilogue.expression, reads, outputs)
        nothing = work_of(identity(reducer.dtype), (None,))
        states: tuple[Pointer, ...] = (Workspace(),)
        if reducer.is_search:
            states = (*states, Workspace(self._positions_at(space, kept)))
        chunk = self._chunk(space, kept)

        def kernel(stage: str, block: tuple[int, int], warps: int) -> ReductionKernel:
            return ReductionKernel(
                warps,
                1,
                reducer=reducer,
                kept=open_ended(space.extents[:kept]),
                even=count % 16 == 0,
                reduced=space.extents[kept:],
                block=block,
                chunk=chunk,
                stage=stage,
                before=nothing if stage == "joined" else prologue,
                after=nothing if stage == "partial" else epilogue,
            )

        block = (self.rows, self.columns)
        groups = -(-count // self.rows)
        if chunks == 1:
            values = values_of(before, reads, outputs)
            return [Launch(kernel("whole", block, self.warps), values, (count,), groups)]
        first = kernel("partial", block, self.warps)
        columns = power_of_two(chunks)
        rows = min(power_of_two(count), max(1, 1024 // columns))
        second = kernel("joined", (rows, columns), warps_for(rows, columns)[0])
        return [
            Launch(first, (*values_of(before), *states), (count,), groups * chunks),
            Launch(second, (*states, *values_of(reads, outputs)), (count,), -(-count // rows)),
        ]

    def _reducer(self) -> Reducer:
        op = self.anchor.op
        dtype = self.anchor.inputs[0].dtype
        return Reducer(KINDS[type(op)], dtype, isinstance(op, ArgMax) and op.select_last)

    def _chunk(self, space: Space, kept: int) -> int:
        """Elements of a row that a program reduces: whole blocks."""
        length = math.prod(space.extents[kept:])
        return -(-length // (self.split * self.columns)) * self.columns

    def _chunks(self, space: Space, kept: int) -> int:
        return -(-math.prod(space.extents[kept:]) // self._chunk(space, kept))

    def _positions_at(self, space: Space, kept: int) -> int:
        """Where positions stand in the workspace: after the values."""
        states = math.prod(space.extents[:kept]) * self._chunks(space, kept)
        return -(-states * self._reducer().wide.size // _ALIGNMENT) * _ALIGNMENT


def reduction_space(task: Task, binding: Binding) -> tuple[Space, int]:
    """The space of a reduction, and how many of its axes are kept."""
    assert task.anchor is not None
    op, rank = task.anchor.op, task.anchor.inputs[0].type.rank
    given = op.axes if isinstance(op, Reduction) else (op.axis,)  # type: ignore[attr-defined]
    return spaces_of_rows(task, binding, [normalize_axis(a, rank) for a in given])


def fits(task: Task, binding: Binding) -> bool:
    """Whether the outputs are as the anchor's, and 32 bits count the input's elements."""
    assert task.anchor is not None
    result = task.anchor.output.type.bind(binding.symbols)
    elements = math.prod(task.anchor.inputs[0].type.bind(binding.symbols))
    return outputs_follow(task, binding, result) and elements < WIDE


@dataclass(frozen=True)
class ReductionFamily(MachineFamily):
    """Reductions and arg max."""

    name: ClassVar[str] = "reduction"
    tactic: ClassVar[type[Tactic]] = ReductionTactic
    allowed: ClassVar[Allowed] = CHUNKED

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and type(task.anchor.op) in KINDS

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not fits(task, binding):
            return
        shape = Rows.of(*reduction_space(task, binding))
        for tile in tile_choices(shape, self.machine, split=True):
            yield ReductionTactic(task, *tile)


# ---- running sums ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningSumTactic(AnchoredTactic):
    """A running sum of so many rows, and elements of each at a time."""

    family: ClassVar[str] = "running_sum"

    rows: int = 1
    columns: int = 1024
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        return fits(self.task, binding)

    def launches(self, binding: Binding) -> list[Launch]:
        op = self.anchor.op
        assert isinstance(op, CumSum)
        space, kept = reduction_space(self.task, binding)
        before, _, reads, outputs = space.groups
        count = math.prod(space.extents[:kept])
        kernel = RunningSumKernel(
            self.warps,
            1,
            dtype=self.anchor.inputs[0].dtype,
            exclusive=op.exclusive,
            reverse=op.reverse,
            kept=open_ended(space.extents[:kept]),
            even=count % 16 == 0,
            length=space.extents[kept],
            block=(self.rows, self.columns),
            before=work_of(prologue_of(self.task).expression, before),
            after=work_of(self.task.epilogue.expression, reads, outputs),
        )
        values = values_of(before, reads, outputs)
        return [Launch(kernel, values, (count,), -(-count // self.rows))]


@dataclass(frozen=True)
class RunningSumFamily(MachineFamily):
    """`CumSum`."""

    name: ClassVar[str] = "running_sum"
    tactic: ClassVar[type[Tactic]] = RunningSumTactic
    allowed: ClassVar[Allowed] = TILES

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(task.anchor.op, CumSum)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not fits(task, binding):
            return
        shape = Rows.of(*reduction_space(task, binding))
        for rows, columns, _, warps in tile_choices(shape, self.machine, split=False):
            yield RunningSumTactic(task, rows, columns, warps)


FAMILIES: tuple[Family, ...] = (ReductionFamily(), RunningSumFamily())
