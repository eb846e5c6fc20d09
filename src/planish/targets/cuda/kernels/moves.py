"""How one launch moves a result's elements: what the ops of movement and gather plan in common.

A `Job` is a task at concrete shapes; an op's plan is a `Move`, how source and result are seen from
a common space; `move` makes a `MoveKernel` of it, with tiles that fit what lies next to what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from planish.fusion.expression import identity
from planish.fusion.task import Fused, Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.targets.anchored import outputs_follow
from planish.targets.base import Binding, Launch
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import WIDE
from planish.targets.cuda.kernels.movement_kernel import MoveKernel, Padded, Picked
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
from planish.targets.cuda.machine import CudaMachine
from planish.targets.movement import MovementJob

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
class Job(MovementJob):
    """A task to be planned, as programs that walk over a space.

    Attributes
    ----------
    elements, warps : int
        Of a program.
    number : int
        Which of the anchor's inputs is moved; the prologue is that of the first one.
    """

    elements: int
    warps: int
    number: int = 0

    @property
    def source(self) -> Value:
        """What is moved."""
        return self.operand(self.number)

    @property
    def prologue(self) -> Fused:
        """What gives the source's elements."""
        if self.number == 0:
            return prologue_of(self.task)
        return Fused(identity(self.source.dtype), (self.task.inputs.index(self.source),))

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
