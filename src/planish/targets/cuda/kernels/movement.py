"""Ops that move elements: transpose, slice, pad, tile, one-hot, reshape and their kin.

One function per op says how the source and the result are seen from a common space; `PLANS` lists
them. Elementwise work before and after comes along: its operands are seen the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from planish.fusion.expression import identity
from planish.fusion.task import Fused, Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops import indexing, shape
from planish.ops.base import Op, normalize_axis
from planish.targets.anchored import outputs_follow
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import WIDE, pointer_of
from planish.targets.cuda.kernels.movement_kernel import (
    MoveKernel,
    Padded,
    ParametersKernel,
    Picked,
    ReshapeKernel,
)
from planish.targets.cuda.kernels.nest import (
    OWN,
    Operand,
    Operands,
    Seen,
    Space,
    open_ended,
    operands_of,
    power_of_two,
    programs_of,
    prologue_of,
    unsigned,
    values_of,
    work_of,
)
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import checked_parameters

ELEMENTS = (256, 512, 1024, 2048, 4096, 8192)
"""Elements a program may do."""
WARPS = (1, 2, 4, 8)
_OFFERED = 4
"""Tactics for a task."""
_WASTE = 1.15
"""How much larger than a row the blocks that cover it may be."""
_LINE = 32
"""Elements that are enough for a side of a tile to be read in whole lines."""


def itself(operand: Operand) -> Operand:
    """An operand that is seen as it is."""
    return operand


@dataclass(frozen=True)
class Job:
    """A task to be planned at concrete shapes.

    Attributes
    ----------
    task : Task
    binding : Binding
    elements, warps : int
        Of a program.
    number : int
        Which of the anchor's inputs is moved; the prologue is that of the first one.
    """

    task: Task
    binding: Binding
    elements: int
    warps: int
    number: int = 0

    @property
    def op(self) -> Any:
        assert self.task.anchor is not None
        return self.task.anchor.op

    @property
    def source(self) -> Value:
        """What the anchor reads first, or would without a prologue."""
        return self.operand(self.number)

    @property
    def prologue(self) -> Fused:
        """What gives the source's elements."""
        if self.number == 0:
            return prologue_of(self.task)
        return Fused(identity(self.source.dtype), (self.task.inputs.index(self.source),))

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self.source.type.bind(self.binding.symbols)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the anchor's output, which is the task's."""
        return self.binding.shape(self.task.output)

    def operand(self, index: int) -> Value:
        """The anchor's input of that number."""
        assert self.task.anchor is not None
        return self.task.anchor.inputs[index]

    def dims(self, dims: Iterable[Any]) -> tuple[int, ...]:
        """An attribute's dimensions as integers."""
        return tuple(evaluate(d, self.binding.symbols) for d in dims)

    def before(self, seen: Seen) -> Operands:
        """What the prologue reads, or the anchor itself, seen from a space."""
        return operands_of(self.task, self.prologue, self.binding, self.source_shape, seen)

    def after(self, seen: Seen) -> tuple[Operands, Operands]:
        """What the epilogue reads, and the outputs, seen from a space."""
        read = operands_of(self.task, self.task.epilogue, self.binding, self.shape, seen)
        return read, tuple(seen(Operand.of(v, self.binding)) for v in self.task.outputs)

    @property
    def is_copy(self) -> bool:
        """Whether elements are not looked at."""
        return self.task.epilogue.expression.is_copy and self.prologue.expression.is_copy


@dataclass(frozen=True)
class Move:
    """How a result's places follow from a source's.

    Attributes
    ----------
    space : tuple of int
        The extents of the axes that are walked.
    before : tuple of Operand or None
        What is read to compute the source's elements, seen from the space; its strides for derived
        coordinates come last.
    result : callable
        Turns an operand over the result's shape into one over the space.
    padded : tuple of Padded
    picked : tuple of (Operand, int)
        Indices seen from the space, and how many elements there are to pick from.
    fill : int, float, bool or None
    hot : int or None
        An axis of the space; see `MoveKernel`.
    levels : tuple of Operand
    """

    space: tuple[int, ...]
    before: Operands
    result: Seen = itself
    padded: tuple[Padded, ...] = ()
    picked: tuple[tuple[Operand, int], ...] = ()
    fill: float | int | bool | None = None
    hot: int | None = None
    levels: tuple[Operand, ...] = ()


def move(job: Job, plan: Move) -> Launch:
    """The launch of a `MoveKernel`."""
    reads, outputs = job.after(plan.result)
    # axes that the kernel knows by number stay what they are
    special = [p.axis for p in plan.padded] + ([] if plan.hot is None else [plan.hot])
    roles = [0] * len(plan.space)
    for number, axis in enumerate(special):
        roles[axis] = OWN - number
    indices = tuple(o for o, _ in plan.picked)
    space = Space(plan.space, tuple(roles), (indices, plan.levels, plan.before, reads, outputs))
    space = space.ordered(_by_stride(space, outputs[0])).merged()
    places = [space.roles.index(OWN - number) for number in range(len(special))]
    indices, levels, before, reads, outputs = space.groups  # type: ignore[assignment]
    prologue, epilogue = job.prologue.expression, job.task.epilogue.expression
    dtype, fill = prologue.dtype(prologue.results[0]), plan.fill
    if job.is_copy and plan.hot is None and fill is None:
        dtype = unsigned(dtype)
        prologue = epilogue = identity(dtype)
        before, outputs = _as_type(before, dtype), _as_type(outputs, dtype)
    row = _row(space, before)
    block = _block(space.extents, row, job.elements)
    count = _counted(space.extents, row)
    kernel = MoveKernel(
        job.warps,
        1,
        shape=open_ended(space.extents),
        row=row,
        block=block,
        even=count % 16 == 0,
        padded=tuple(replace(p, axis=a) for p, a in zip(plan.padded, places, strict=False)),
        picked=tuple(
            Picked(o.access(), size)
            for o, (_, size) in zip(indices, plan.picked, strict=True)
            if o is not None
        ),
        fill=fill,
        hot=None if plan.hot is None else places[-1],
        levels=tuple(o.access() for o in levels if o is not None),
        dtype=dtype,
        before=work_of(prologue, before),
        after=work_of(epilogue, reads, outputs),
    )
    values = values_of(indices, levels, before, reads, outputs)
    return Launch(kernel, values, (count,), _programs(space.extents, row, block))


def _by_stride(space: Space, output: Operand | None) -> Callable[[int], tuple[int, ...]]:
    """The order in which the result's elements lie in memory."""
    assert output is not None
    return lambda axis: (-abs(output.strides[axis]) if space.extents[axis] > 1 else -WIDE, axis)


def _as_type(operands: Operands, dtype: DType) -> Operands:
    return tuple(o and replace(o, pointer=Pointer(dtype, o.pointer.aligned)) for o in operands)


def _row(space: Space, before: Operands) -> int | None:
    """The axis along which the source's elements lie, if it is another one than the result's."""
    rank = len(space.extents)

    def touched(operand: Operand) -> int:
        steps = zip(space.extents, operand.strides, strict=False)
        return math.prod(n for n, s in steps if s)

    largest = max((o for o in before if o is not None), key=touched, default=None)
    if largest is None or rank < 2:
        return None
    along = abs(largest.strides[rank - 1])
    axes = [a for a in range(rank - 1) if space.extents[a] > 1 and largest.strides[a]]
    nearest = min(axes, key=lambda a: abs(largest.strides[a]), default=None)
    if nearest is None or along <= 1 or abs(largest.strides[nearest]) >= along:
        return None
    return nearest


def _block(extents: Sequence[int], row: int | None, elements: int) -> tuple[int, int]:
    """Rows and columns of a tile."""
    if row is None:
        columns = columns_of(extents[-1], elements)
        rows = min(power_of_two(math.prod(extents[:-1])), elements // columns)
        return rows, columns
    side = 1 << (elements.bit_length() - 1) // 2
    columns = min(power_of_two(extents[-1]), side)
    rows = min(power_of_two(extents[row]), elements // columns)
    return rows, min(power_of_two(extents[-1]), elements // rows)


def columns_of(extent: int, most: int) -> int:
    """A power of two that covers a row in blocks of which little is cut off."""
    blocks = [min(power_of_two(extent), most)]
    while blocks[-1] > _LINE:
        blocks.append(blocks[-1] // 2)
    covered = {b: -(-extent // b) * b for b in blocks}
    least = min(covered.values())
    return next(b for b in blocks if covered[b] <= max(least, _WASTE * extent))


def _counted(extents: Sequence[int], row: int | None) -> int:
    """The kernel's parameter."""
    if row is not None:
        return extents[0]
    return extents[0] if len(extents) == 1 else math.prod(extents[:-1])


def _programs(extents: Sequence[int], row: int | None, block: tuple[int, int]) -> int:
    rows = math.prod(extents[:-1]) if row is None else extents[row]
    outer = 1 if row is None else math.prod(extents[:-1]) // rows
    return outer * programs_of((rows, extents[-1]), block)


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

    task: Task
    elements: int = 1024
    warps: int = 4

    @property
    def parameters(self) -> dict[str, Any]:
        return {"elements": self.elements, "warps": self.warps}

    def accepts(self, binding: Binding) -> bool:
        return fits(self.task, binding)

    def launches(self, binding: Binding) -> list[Launch]:
        assert self.task.anchor is not None
        plan = PLANS[type(self.task.anchor.op)]
        return plan(Job(self.task, binding, self.elements, self.warps))


def fits(task: Task, binding: Binding) -> bool:
    """Whether the outputs are as the anchor's, and 32 bits count their elements."""
    assert task.anchor is not None
    result = task.anchor.output.type.bind(binding.symbols)
    return outputs_follow(task, binding, result) and math.prod(result) < WIDE


def tile_choices(elements: int, machine: CudaMachine) -> list[tuple[int, int]]:
    """Elements and warps of tiles worth measuring, the likely best first."""
    enough = [e for e in reversed(ELEMENTS) if elements >= e * machine.multiprocessors]
    most = enough[0] if enough else ELEMENTS[0]
    best = min(most, 2048)
    ranked = sorted(ELEMENTS, key=lambda e: abs(math.log2(e / best)))
    chosen = [e for e in ranked if e <= 2 * most][:_OFFERED]
    return [(e, min(max(e // 256, 1), 8)) for e in chosen]


def _understood(task: Task) -> bool:
    if task.anchor is None or type(task.anchor.op) not in PLANS:
        return False
    bare = task.prologue is None and task.epilogue.expression.is_copy
    return bare or not isinstance(task.anchor.op, _BARE)


@dataclass(frozen=True)
class MovementFamily(Family):
    """Offers kernels for tasks whose anchor moves elements."""

    name = "movement"

    machine: CudaMachine = H200

    def on(self, machine: Any) -> Family:
        return MovementFamily(machine)

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not _understood(task) or not fits(task, binding):
            return
        assert task.anchor is not None
        if isinstance(task.anchor.op, _BARE):
            yield MovementTactic(task)
            return
        size = math.prod(binding.shape(task.output))
        for elements, warps in tile_choices(size, self.machine):
            yield MovementTactic(task, elements, warps)

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        return MovementTactic(
            task,
            **checked_parameters(
                self.name, task, parameters, _understood(task), elements=ELEMENTS, warps=WARPS
            ),
        )


FAMILIES: tuple[Family, ...] = (MovementFamily(),)
