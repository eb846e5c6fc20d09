"""Softmax, log softmax, layer, instance and batch normalization, local response normalization,
with elementwise work around them. The kernels stand in `rows_kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from planish.fusion.expression import identity
from planish.fusion.task import Task
from planish.ops.base import normalize_axis
from planish.ops.normalization import (
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    LogSoftmax,
    Lrn,
    QuantizedSoftmax,
    Softmax,
)
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace
from planish.targets.cuda.codegen.elementwise import INEXACT
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.nest import (
    Space,
    open_ended,
    power_of_two,
    programs_of,
    prologue_of,
    spaces_of_rows,
    values_of,
    work_of,
)
from planish.targets.cuda.kernels.reduction import (
    CHUNKED,
    POWERS,
    TILES,
    Rows,
    Tile,
    different,
    fits,
    warps_for,
)
from planish.targets.cuda.kernels.rows_kernel import Arithmetic, LrnKernel, RowsKernel
from planish.targets.cuda.machine import CudaMachine
from planish.targets.restoring import Allowed

PROGRAMS: dict[type, str] = {
    Softmax: "softmax",
    QuantizedSoftmax: "softmax",
    LogSoftmax: "log_softmax",
    LayerNorm: "standardize",
    InstanceNorm: "standardize",
    BatchNorm: "affine",
}
_IN_REGISTERS = 1 << 14
"""Elements of a tile, at most, that stay in registers between passes."""
_LOOPED = 1 << 13
"""Elements of a tile, at most, where rows are read anew in every pass."""
_STATES = 1 << 12
"""Statistics of chunks that a program puts together, at most."""
_ALIGNMENT = 256
"""Bytes to which parts of the workspace are aligned."""


@dataclass(frozen=True)
class RowsTactic(AnchoredTactic):
    """An op over rows: so many of them, and elements of each at a time; in `split` chunks."""

    family: ClassVar[str] = "rows"

    rows: int = 1
    columns: int = 1024
    split: int = 1
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        return fits(self.task, binding)

    def workspace(self, binding: Binding) -> int:
        space, kept = rows_space(self.task, binding)
        return 2 * self._states(space, kept) if self._chunks(space, kept) > 1 else 0

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        space, kept = rows_space(task, binding)
        before, parameters, reads, outputs = space.groups
        count = math.prod(space.extents[:kept])
        chunks = self._chunks(space, kept)
        dtype = self.anchor.inputs[0].dtype

        def kernel(stage: str) -> RowsKernel:
            partial = stage == "partial"
            return RowsKernel(
                self.warps,
                1,
                program=PROGRAMS[type(op)],
                epsilon=getattr(op, "epsilon", 0.0),
                dtype=dtype,
                kept=open_ended(space.extents[:kept]),
                even=count % 16 == 0,
                reduced=space.extents[kept:],
                block=(self.rows, self.columns),
                chunk=self._chunk(space, kept),
                stage=stage,
                before=work_of(prologue_of(task).expression, before),
                parameters=() if partial else tuple(o.access() for o in parameters if o),
                after=work_of(identity(dtype), (None,))
                if partial
                else work_of(task.epilogue.expression, reads, outputs, INEXACT),
                levels=getattr(op, "levels", 0),
            )

        programs = -(-count // self.rows) * chunks
        values = values_of(before, parameters, reads, outputs)
        if chunks == 1:
            return [Launch(kernel("whole"), values, (count,), programs)]
        states = (Workspace(), Workspace(self._states(space, kept)))
        return [
            Launch(kernel("partial"), (*states, *values_of(before)), (count,), programs),
            Launch(kernel("final"), (*states, *values), (count,), programs),
        ]

    def _chunk(self, space: Space, kept: int) -> int:
        """Elements of a row that a program does: whole blocks, or all."""
        length = math.prod(space.extents[kept:])
        op = self.anchor.op
        # weights are quantized by the greatest of the whole row
        if self.split == 1 or isinstance(op, QuantizedSoftmax) or PROGRAMS[type(op)] == "affine":
            return length
        return -(-length // (self.split * self.columns)) * self.columns

    def _chunks(self, space: Space, kept: int) -> int:
        return -(-math.prod(space.extents[kept:]) // self._chunk(space, kept))

    def _states(self, space: Space, kept: int) -> int:
        """Bytes of one statistic of all chunks."""
        wide = Arithmetic(self.anchor.inputs[0].dtype).wide
        states = math.prod(space.extents[:kept]) * self._chunks(space, kept)
        return -(-states * wide.size // _ALIGNMENT) * _ALIGNMENT


def rows_space(task: Task, binding: Binding) -> tuple[Space, int]:
    """The space of an op over rows, and how many of its axes tell rows apart."""
    assert task.anchor is not None
    op, rank = task.anchor.op, task.anchor.inputs[0].type.rank
    if isinstance(op, LayerNorm):
        axes = list(range(normalize_axis(op.axis, rank), rank))
    elif isinstance(op, InstanceNorm):
        axes = list(range(1, rank - 1))
    elif isinstance(op, BatchNorm | Lrn):  # nothing is reduced: a row is as good as any
        axes = [rank - 1]
    else:
        axes = [normalize_axis(op.axis, rank)]  # type: ignore[attr-defined]
    return spaces_of_rows(task, binding, axes, task.anchor.inputs[1:])


def tile_choices(shape: Rows, machine: CudaMachine) -> list[Tile]:
    """Tiles worth measuring, the likely best first."""
    length, most = power_of_two(shape.length), power_of_two(shape.rows)
    costs: dict[Tile, float] = {}
    for rows, columns, split in product(POWERS[:9], POWERS, POWERS[:10]):
        chunk = -(-shape.length // (split * columns)) * columns
        once = chunk <= columns
        tile = rows * columns
        if rows > most or columns > length or (split > 1 and shape.length < split * columns):
            continue
        if rows * split > _STATES:
            continue
        if not min(256, most * length) <= tile <= (_IN_REGISTERS if once else _LOOPED):
            continue
        # the first pass fetches from memory, the others mostly from the second-level cache
        passes = (1.0 if once else 2.0) + (0.5 if split > 1 else 0.0)
        for warps in warps_for(rows, columns):
            cost = shape.cost(machine, rows, columns, split, warps)
            costs[rows, columns, split, warps] = passes * cost
    return different(sorted(costs, key=lambda tile: costs[tile]))


@dataclass(frozen=True)
class RowsFamily(MachineFamily):
    """Ops that go over each row several times."""

    name: ClassVar[str] = "rows"
    tactic: ClassVar[type[Tactic]] = RowsTactic
    allowed: ClassVar[Allowed] = CHUNKED

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and type(task.anchor.op) in PROGRAMS

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not fits(task, binding):
            return
        shape = Rows.of(*rows_space(task, binding))
        for tile in tile_choices(shape, self.machine):
            if tile[2] == 1 or not isinstance(task.anchor.op, QuantizedSoftmax):  # type: ignore[union-attr]
                yield RowsTactic(task, *tile)


# ---- local response normalization --------------------------------------------------------------


@dataclass(frozen=True)
class LrnTactic(AnchoredTactic):
    """Tiles of so many rows and channels."""

    family: ClassVar[str] = "lrn"

    rows: int = 16
    columns: int = 64
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        return fits(self.task, binding)

    def launches(self, binding: Binding) -> list[Launch]:
        op = self.anchor.op
        assert isinstance(op, Lrn)
        space, kept = rows_space(self.task, binding)
        before, _, reads, outputs = space.groups
        count, length = math.prod(space.extents[:kept]), space.extents[kept]
        kernel = LrnKernel(
            self.warps,
            1,
            op=op,
            dtype=self.anchor.inputs[0].dtype,
            kept=open_ended(space.extents[:kept]),
            length=length,
            block=(self.rows, self.columns),
            before=work_of(prologue_of(self.task).expression, before),
            after=work_of(self.task.epilogue.expression, reads, outputs),
        )
        values = values_of(before, reads, outputs)
        programs = programs_of((count, length), kernel.block)
        return [Launch(kernel, values, (count,), programs)]


@dataclass(frozen=True)
class LrnFamily(MachineFamily):
    """`Lrn`."""

    name: ClassVar[str] = "lrn"
    tactic: ClassVar[type[Tactic]] = LrnTactic
    allowed: ClassVar[Allowed] = TILES

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(task.anchor.op, Lrn)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not fits(task, binding):
            return
        space, kept = rows_space(task, binding)
        columns = min(power_of_two(space.extents[kept]), 128)
        for elements in (1024, 512, 2048):
            rows = max(1, elements // columns)
            yield LrnTactic(task, rows, columns, max(1, elements // 256))


FAMILIES: tuple[Family, ...] = (RowsFamily(), LrnFamily())
