"""Ops whose inputs say which elements: gather, gather by vectors, scatter.

A gather is a movement whose source has coordinates that are read from memory. A scatter is turned
round, so that no two programs write the same place and results do not depend on their order: each
place of the result looks for the updates meant for it, in their order, or, where there are many
and the last one wins, is told its last one by an atomic maximum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.ops import indexing
from planish.ops.base import normalize_axis
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import WIDE
from planish.targets.cuda.kernels.gather_kernel import FillKernel, MarkKernel, ScatterKernel
from planish.targets.cuda.kernels.movement_kernel import Picked
from planish.targets.cuda.kernels.moves import (
    ELEMENTS,
    WARPS,
    Job,
    Move,
    columns_of,
    fits,
    itself,
    move,
    tile_choices,
)
from planish.targets.cuda.kernels.nest import (
    OWN,
    Operand,
    Space,
    open_ended,
    power_of_two,
    programs_of,
    values_of,
    work_of,
)
from planish.targets.restoring import FLAG, Allowed

SEARCHED = 1 << 33
"""Places times updates, at most, where every place looks at every update."""
_MARKED = 64
"""With so many updates marking places is worth measuring."""
_FILLED = 1024
"""Places that a program of `FillKernel` and `MarkKernel` does."""


# ---- gathers -----------------------------------------------------------------------------------


def _gather(job: Job) -> list[Launch]:
    """Result ``[*outer, *indices, *inner]``: the axis becomes a coordinate of its own."""
    indices = Operand.of(job.operand(1), job.binding)
    axis, batch = normalize_axis(job.op.axis, len(job.source_shape)), job.op.batch_dims
    places = len(indices.strides) - batch
    inner = len(job.source_shape) - axis - 1
    own, rest = indices.strides[:batch], indices.strides[batch:]
    indices = replace(indices, strides=(*own, *(0,) * (axis - batch), *rest, *(0,) * inner))

    def seen(o: Operand) -> Operand:
        outer, along, others = o.strides[:axis], o.strides[axis], o.strides[axis + 1 :]
        return replace(o, strides=(*outer, *(0,) * places, *others, along))

    picked = ((indices, job.source_shape[axis]),)
    return [move(job, Move(job.shape, job.before(seen), picked=picked))]


def _gather_nd(job: Job) -> list[Launch]:
    indices, batch = Operand.of(job.operand(1), job.binding), job.op.batch_dims
    depth = job.binding.shape(job.operand(1))[-1]
    places = len(indices.strides) - 1 - batch

    def seen(o: Operand) -> Operand:
        inner = o.strides[batch + depth :]
        picked = o.strides[batch : batch + depth]
        return replace(o, strides=(*o.strides[:batch], *(0,) * places, *inner, *picked))

    inner = len(job.source_shape) - batch - depth
    picked = tuple(
        (item, job.source_shape[batch + i])
        for i, item in enumerate(_vectors(indices, depth, inner))
    )
    return [move(job, Move(job.shape, job.before(seen), picked=picked))]


def _vectors(indices: Operand, depth: int, inner: int) -> list[Operand]:
    """Each component of vectors of indices, over their places and the axes inside."""
    strides = (*indices.strides[:-1], *(0,) * inner)
    step = indices.strides[-1]
    return [
        replace(indices, strides=strides, offset=indices.offset + i * step) for i in range(depth)
    ]


@dataclass(frozen=True)
class GatherTactic(Tactic):
    """One launch, with tiles of so many elements."""

    family = "gather"
    elements: int = 1024
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        return fits(self.task, binding)

    def launches(self, binding: Binding) -> list[Launch]:
        job = Job(self.task, binding, self.elements, self.warps)
        return _gather(job) if isinstance(job.op, indexing.Gather) else _gather_nd(job)


@dataclass(frozen=True)
class GatherFamily(MachineFamily):
    """Gathers, with elementwise work before and after."""

    name: ClassVar[str] = "gather"
    tactic: ClassVar[type[Tactic]] = GatherTactic
    allowed: ClassVar[Allowed] = {"elements": ELEMENTS, "warps": WARPS}

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(
            task.anchor.op, indexing.Gather | indexing.GatherNd
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not fits(task, binding):
            return
        for elements, warps in tile_choices(math.prod(binding.shape(task.output)), self.machine):
            yield GatherTactic(task, elements, warps)


# ---- scatters ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScatterTactic(Tactic):
    """One launch in which places look for their updates; or three, where places are `marked` with
    the number of their last update first.
    """

    family = "scatter"
    elements: int = 1024
    warps: int = 4
    marked: bool = False

    def accepts(self, binding: Binding) -> bool:
        if not fits(self.task, binding):
            return False
        _, updates, elements = _sizes(self.task, binding)
        if updates >= WIDE:
            return False
        return _last_wins(self.task) if self.marked else elements * updates <= SEARCHED

    def workspace(self, binding: Binding) -> int:
        return 4 * _sizes(self.task, binding)[0] if self.marked else 0

    def launches(self, binding: Binding) -> list[Launch]:
        job = Job(self.task, binding, self.elements, self.warps)
        places, updates, _ = _sizes(self.task, binding)
        indices = Operand.of(job.operand(1), binding)
        grid = binding.shape(job.operand(1))[:-1]
        depth = binding.shape(job.operand(1))[-1]
        picked = tuple(
            Picked(o.access(), job.shape[i]) for i, o in enumerate(_vectors(indices, depth, 0))
        )
        search = (indices.value,) * depth
        launches = []
        if self.marked:
            fill = FillKernel(4, 1, _FILLED)
            launches.append(Launch(fill, (Workspace(),), (places,), -(-places // _FILLED)))
            mark = MarkKernel(4, 1, job.shape[:depth], open_ended(grid), picked, _FILLED)
            programs = -(-updates // _FILLED)
            launches.append(Launch(mark, (*search, Workspace()), (updates,), programs))
        return [*launches, self._scatter(job, grid, picked, search)]

    def _scatter(
        self, job: Job, grid: tuple[int, ...], picked: tuple[Picked, ...], search: tuple[Value, ...]
    ) -> Launch:
        depth, rank = len(picked), len(job.shape)
        given = Operand.of(job.operand(2), job.binding)
        outer, inner = given.strides[: len(grid)], given.strides[len(grid) :]
        updates = replace(given, strides=(*(0,) * depth, *inner, *outer))
        reads, outputs = job.after(itself)
        roles = (OWN,) * depth + (0,) * (rank - depth)
        groups = ((updates,), job.before(itself), reads, outputs)
        space = Space(job.shape, roles, groups).merged()
        (seen, *_), before, reads, outputs = space.groups
        assert seen is not None
        places = math.prod(space.extents[:depth])
        columns = columns_of(math.prod(space.extents[depth:]), self.elements)
        rows = min(power_of_two(places), self.elements // columns)
        kernel = ScatterKernel(
            self.warps,
            1,
            shape=open_ended(space.extents),
            depth=depth,
            places=job.shape[:depth],
            grid=open_ended(grid),
            block=(rows, columns),
            reduction=job.op.reduction,
            dtype=job.source.dtype,
            marked=self.marked,
            picked=() if self.marked else picked,
            updates=seen.access(),
            before=work_of(job.prologue.expression, before),
            after=work_of(self.task.epilogue.expression, reads, outputs),
        )
        looked = (Workspace(),) if self.marked else search
        values = (*looked, seen.value, *values_of(before, reads, outputs))
        programs = programs_of((places, math.prod(space.extents[depth:])), (rows, columns))
        return Launch(kernel, values, (places, math.prod(grid)), programs)


def _sizes(task: Task, binding: Binding) -> tuple[int, int, int]:
    """How many places there are to scatter to, how many updates, and elements of the result."""
    assert task.anchor is not None
    data, indices, _ = (v.type.bind(binding.symbols) for v in task.anchor.inputs)
    return math.prod(data[: indices[-1]]), math.prod(indices[:-1]), math.prod(data)


def _last_wins(task: Task) -> bool:
    assert task.anchor is not None
    return task.anchor.op.reduction == "none"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class ScatterFamily(MachineFamily):
    """`ScatterNd`; not of so many updates to be combined that looking for them takes too long."""

    name: ClassVar[str] = "scatter"
    tactic: ClassVar[type[Tactic]] = ScatterTactic
    allowed: ClassVar[Allowed] = {"elements": ELEMENTS, "warps": WARPS, "marked": FLAG}

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(task.anchor.op, indexing.ScatterNd)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        _, updates, elements = _sizes(task, binding)
        for marked in FLAG if updates < _MARKED else FLAG[::-1]:
            for size, warps in tile_choices(elements, self.machine)[:2]:
                yield ScatterTactic(task, size, warps, marked)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        if values["marked"] and not _last_wins(task):
            return "only where the last update wins are places marked"
        return ""


FAMILIES: tuple[Family, ...] = (GatherFamily(), ScatterFamily())
