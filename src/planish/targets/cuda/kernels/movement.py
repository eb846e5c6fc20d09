"""Ops that move elements: transpose, slice, pad, tile, one-hot, reshape and their kin.

One function per op says how the source and the result are seen from a common space; `PLANS` lists
them. Elementwise work before and after comes along: its operands are seen the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.ops import indexing, shape
from planish.ops.base import Op, normalize_axis
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import pointer_of
from planish.targets.cuda.kernels.movement_kernel import (
    Padded,
    ParametersKernel,
    ReshapeKernel,
)
from planish.targets.cuda.kernels.moves import (
    ELEMENTS,
    WARPS,
    Job,
    Move,
    fits,
    itself,
    move,
    tile_choices,
)
from planish.targets.cuda.kernels.nest import (
    Operand,
    Seen,
    Space,
    open_ended,
    values_of,
    work_of,
)
from planish.targets.restoring import Allowed

# ---- views -------------------------------------------------------------------------------------


def _transpose(job: Job) -> list[Launch]:
    perm = job.op.perm

    def seen(o: Operand) -> Operand:
        return replace(o, strides=tuple(o.strides[p] for p in perm))

    return [move(job, Move(job.shape, job.before(seen)))]


def _slice(job: Job) -> list[Launch]:
    begin = job.dims(job.op.begin)

    def seen(o: Operand) -> Operand:
        start = sum(b * s for b, s in zip(begin, o.strides, strict=True))
        strides = tuple(s * step for s, step in zip(o.strides, job.op.strides, strict=True))
        return replace(o, strides=strides, offset=o.offset + start)

    return [move(job, Move(job.shape, job.before(seen)))]


def _broadcast(job: Job) -> list[Launch]:
    missing = (0,) * (len(job.shape) - len(job.source_shape))

    def seen(o: Operand) -> Operand:
        kept = (0 if n == 1 else s for n, s in zip(job.source_shape, o.strides, strict=True))
        return replace(o, strides=(*missing, *kept))

    return [move(job, Move(job.shape, job.before(seen)))]


def _tile(job: Job) -> list[Launch]:
    """Each axis as two: the repeats, and the source's elements."""
    repeats = job.dims(job.op.repeats)
    sizes = job.source_shape
    space = tuple(n for pair in zip(repeats, sizes, strict=True) for n in pair)

    def source(o: Operand) -> Operand:
        return replace(o, strides=tuple(s for stride in o.strides for s in (0, stride)))

    def result(o: Operand) -> Operand:
        pairs = zip(o.strides, sizes, strict=True)
        return replace(o, strides=tuple(s for stride, n in pairs for s in (n * stride, stride)))

    return [move(job, Move(space, job.before(source), result))]


def _reshape(job: Job) -> list[Launch]:
    """Over the axes that both shapes are made of; where there are none, over flat indices."""
    common = common_axes(job.source_shape, job.shape)
    if common is None:
        return [_reshape_flat(job)]
    source, result = (split_into(size, common) for size in (job.source_shape, job.shape))
    return [move(job, Move(common, job.before(source), result))]


def common_axes(old: Sequence[int], new: Sequence[int]) -> tuple[int, ...] | None:
    """The coarsest shape whose axes make up those of both shapes; None if there is none."""
    ends: set[int] = set()
    for size in (old, new):
        product = 1
        for extent in reversed(size):
            product *= extent
            ends.add(product)
    extents, last = [], 1
    for end in sorted(ends | {1}):
        if end % last:
            return None
        extents.append(end // last)
        last = end
    return tuple(reversed(extents[1:]))


def split_into(size: Sequence[int], axes: Sequence[int]) -> Seen:
    """Sees an operand over a shape from the axes that its own are made of."""
    homes: list[tuple[int, int]] = []  # for each axis, the last first: its home, and its step there
    parts = list(axes)
    for axis in reversed(range(len(size))):
        step = 1
        while step < size[axis]:
            homes.append((axis, step))
            step *= parts.pop()

    def seen(o: Operand) -> Operand:
        return replace(o, strides=tuple(o.strides[a] * step for a, step in reversed(homes)))

    return seen


def _reshape_flat(job: Job) -> Launch:
    task = job.task
    old = Space(job.source_shape, (0,) * len(job.source_shape), (job.before(itself),)).merged()
    new = Space(job.shape, (0,) * len(job.shape), job.after(itself)).merged()
    (before,), (reads, outputs) = old.groups, new.groups
    elements = math.prod(job.shape)
    kernel = ReshapeKernel(
        job.warps,
        1,
        (open_ended(old.extents), open_ended(new.extents)),
        job.elements,
        elements % 16 == 0,
        work_of(job.prologue.expression, before),
        work_of(task.epilogue.expression, reads, outputs),
    )
    values = values_of(before, reads, outputs)
    return Launch(kernel, values, (elements,), -(-elements // job.elements))


# ---- more than a view --------------------------------------------------------------------------


def _pad(job: Job) -> list[Launch]:
    padding = [job.dims(pair) for pair in job.op.padding]
    axes = [axis for axis, pair in enumerate(padding) if any(pair)]
    padded = tuple(Padded(a, padding[a][0], job.source_shape[a], job.op.mode) for a in axes)

    def seen(o: Operand) -> Operand:
        own = (0 if a in axes else s for a, s in enumerate(o.strides))
        return replace(o, strides=(*own, *(o.strides[a] for a in axes)))

    fill = None
    if job.op.mode == "constant" and axes:
        given = np.asarray(job.op.value).astype(job.source.dtype.numpy).item()
        fill = float(given) if job.source.dtype.is_float else given
    return [move(job, Move(job.shape, job.before(seen), padded=padded, fill=fill))]


def _concat(job: Job) -> list[Launch]:
    """A launch for each input, into its part of the result."""
    assert job.task.anchor is not None
    axis = normalize_axis(job.op.axis, len(job.shape))
    launches, start = [], 0
    for number, value in enumerate(job.task.anchor.inputs):
        size = value.type.bind(job.binding.symbols)

        def part(o: Operand, start: int = start) -> Operand:
            return replace(o, offset=o.offset + start * o.strides[axis])

        start += size[axis]
        if 0 in size:
            continue
        own = replace(job, number=number)
        launches.append(move(own, Move(size, own.before(itself), part)))
    return launches


def _one_hot(job: Job) -> list[Launch]:
    axis = normalize_axis(job.op.axis, len(job.shape))

    def seen(o: Operand) -> Operand:
        return replace(o, strides=(*o.strides[:axis], 0, *o.strides[axis:]))

    levels = tuple(Operand.of(job.operand(i), job.binding, job.shape) for i in (1, 2))
    return [move(job, Move(job.shape, job.before(seen), hot=axis, levels=levels))]


def _parameters(job: Job, values: Sequence[int]) -> list[Launch]:
    output = job.task.output
    strides = job.binding.strides(output)
    pointer = pointer_of(output, job.binding)
    kernel = ParametersKernel(1, 1, pointer, strides[0] if strides else 1, len(values))
    return [Launch(kernel, (output,), tuple(values))] if values else []


def _dims(job: Job) -> list[Launch]:
    values = job.op.values
    return _parameters(job, job.dims(values if isinstance(values, tuple) else (values,)))


def _shape_of(job: Job) -> list[Launch]:
    return _parameters(job, job.source_shape)


PLANS: dict[type[Op], Callable[[Job], list[Launch]]] = {
    shape.Transpose: _transpose,
    shape.Slice: _slice,
    shape.BroadcastTo: _broadcast,
    shape.Tile: _tile,
    shape.Reshape: _reshape,
    shape.Identity: _reshape,
    shape.Pad: _pad,
    shape.Concat: _concat,
    shape.Dims: _dims,
    shape.ShapeOf: _shape_of,
    indexing.OneHot: _one_hot,
}
_BARE = (shape.Dims, shape.ShapeOf)


@dataclass(frozen=True)
class MovementTactic(Tactic):
    """The launches that `PLANS` has for the anchor, with tiles of so many elements."""

    family = "movement"
    elements: int = 1024
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        return fits(self.task, binding)

    def launches(self, binding: Binding) -> list[Launch]:
        assert self.task.anchor is not None
        plan = PLANS[type(self.task.anchor.op)]
        return plan(Job(self.task, binding, self.elements, self.warps))


@dataclass(frozen=True)
class MovementFamily(MachineFamily):
    """Offers kernels for tasks whose anchor moves elements."""

    name: ClassVar[str] = "movement"
    tactic: ClassVar[type[Tactic]] = MovementTactic
    allowed: ClassVar[Allowed] = {"elements": ELEMENTS, "warps": WARPS}

    def understands(self, task: Task) -> bool:
        if task.anchor is None or type(task.anchor.op) not in PLANS:
            return False
        bare = task.prologue is None and task.epilogue.expression.is_copy
        return bare or not isinstance(task.anchor.op, _BARE)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not fits(task, binding):
            return
        assert task.anchor is not None
        if isinstance(task.anchor.op, _BARE):
            yield MovementTactic(task)
            return
        size = math.prod(binding.shape(task.output))
        for elements, warps in tile_choices(size, self.machine):
            yield MovementTactic(task, elements, warps)


FAMILIES: tuple[Family, ...] = (MovementFamily(),)
