"""Spaces of axes, and tiles of them: what movement, reductions and row-wise kernels share.

Such a kernel visits every point of a *space*. Each tensor it touches is an `Operand`: a stride per
axis of the space, 0 where it does not move, so that broadcasting, transposing, slicing and reading
backwards are the same thing. Axes through which all tensors step evenly are merged first.

A program does a `Tile`: some rows and columns of the space. Its index names have the shape
``[rows, 1]`` or ``[1, columns]``, so that what depends on rows only (an index, a bias of channels)
is loaded once a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from planish.fusion.expression import Expression, identity
from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.targets.base import Binding
from planish.targets.cuda.codegen.elementwise import UNKNOWN, Facts
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import (
    Access,
    Work,
    broadcast_strides,
    is_wide,
    pointer_of,
    whole_mask,
)

ROWS, COLUMNS = "[:, None]", "[None, :]"
"""How a vector of indices becomes one of rows, or of columns."""
OWN = -1
"""Axes of this role or a lower one are neither merged nor dropped."""


# ---- when binding ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """A tensor as seen from a space.

    Attributes
    ----------
    value : Value
    pointer : Pointer
    strides : tuple of int
        In elements, per axis of the space; then per coordinate that the kernel derives.
    offset : int
        Where the element at index 0 lies, in elements.
    wide : bool
        Whether offsets need 64 bits.
    """

    value: Value
    pointer: Pointer
    strides: tuple[int, ...]
    offset: int = 0
    wide: bool = False

    @staticmethod
    def of(value: Value, binding: Binding, shape: Sequence[int] | None = None) -> Operand:
        """A value over its own axes, or over those of a shape to which it broadcasts."""
        layout = binding.layout(value)
        strides = layout.strides if shape is None else broadcast_strides(layout, shape)
        return Operand(value, pointer_of(value, binding), tuple(strides), 0, is_wide(layout))

    def access(self) -> Access:
        """What the kernel is specialised on."""
        return Access(self.pointer, self.strides, self.wide, self.offset)


Operands = tuple["Operand | None", ...]
"""One per leaf of an expression; None for constants and for what the kernel computes itself."""
Seen = Callable[[Operand], Operand]
"""Turns an operand over one shape into the operand over a space."""


@dataclass(frozen=True)
class Space:
    """Axes and the tensors seen from them.

    Attributes
    ----------
    extents : tuple of int
    roles : tuple of int
        Axes of different roles stay apart; see `OWN`.
    groups : tuple of tuple of Operand or None
        All operands, in groups that mean something to the caller.
    """

    extents: tuple[int, ...]
    roles: tuple[int, ...]
    groups: tuple[Operands, ...]

    def operands(self) -> list[Operand]:
        """All of them."""
        return [o for group in self.groups for o in group if o is not None]

    def ordered(self, key: Callable[[int], tuple[int, ...]]) -> Space:
        """The space with its axes sorted."""
        return self._rearranged([[a] for a in sorted(range(len(self.extents)), key=key)])

    def merged(self) -> Space:
        """The space without axes of one element, neighbours merged where all tensors step through
        them evenly. At least one axis is left.
        """
        groups: list[list[int]] = []
        for axis, extent in enumerate(self.extents):
            if extent == 1 and self.roles[axis] > OWN:
                continue
            if groups and self._mergeable(groups[-1][-1], axis):
                groups[-1].append(axis)
            else:
                groups.append([axis])
        if not groups:
            return self.extended(0)._rearranged([[0]])
        return self._rearranged(groups)

    def extended(self, role: int) -> Space:
        """The space with an axis of one element in front."""
        moved = self._with_strides(lambda s: (0, *s))
        return replace(moved, extents=(1, *self.extents), roles=(role, *self.roles))

    def _mergeable(self, outer: int, inner: int) -> bool:
        role = self.roles[outer]
        return role == self.roles[inner] > OWN and all(
            o.strides[outer] == o.strides[inner] * self.extents[inner] for o in self.operands()
        )

    def _with_strides(self, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Space:
        def changed(group: Operands) -> Operands:
            return tuple(o and replace(o, strides=change(o.strides)) for o in group)

        return replace(self, groups=tuple(map(changed, self.groups)))

    def _rearranged(self, groups: Sequence[Sequence[int]]) -> Space:
        """One axis per group of axes: the extents multiply, the last one's stride stays."""
        rank = len(self.extents)
        moved = self._with_strides(lambda s: (*(s[g[-1]] for g in groups), *s[rank:]))
        extents = []
        for group in groups:
            extents.append(1)
            for axis in group:
                extents[-1] *= self.extents[axis]
        roles = tuple(self.roles[g[-1]] for g in groups)
        return replace(moved, extents=tuple(extents), roles=roles)


def prologue_of(task: Task) -> Fused:
    """The task's prologue; where there is none, one that gives the anchor's input 0."""
    assert task.anchor is not None
    if task.prologue is not None:
        return task.prologue
    fed = task.anchor.inputs[0]
    return Fused(identity(fed.dtype), (task.inputs.index(fed),))


def operands_of(
    task: Task, fused: Fused, binding: Binding, shape: Sequence[int], seen: Seen
) -> Operands:
    """What an expression reads, broadcast to a shape and then seen from a space."""
    return tuple(
        None if s is None or s == ACCUMULATOR else seen(Operand.of(task.inputs[s], binding, shape))
        for s in fused.sources
    )


def spaces_of_rows(
    task: Task, binding: Binding, axes: Sequence[int], parameters: Sequence[Value] = ()
) -> tuple[Space, int]:
    """The space of a task whose anchor goes over its input 0 along some axes.

    Parameters
    ----------
    task : Task
    binding : Binding
    axes : sequence of int
        Those of a row, counted from the front; the others tell rows apart. The anchor's output has
        the input's axes (perhaps of one element each), or lacks those of a row.
    parameters : sequence of Value
        Inputs of the anchor that broadcast to its input 0.

    Returns
    -------
    space : Space
        The axes of rows, of role 0, then those inside a row, of role 1; at least one of each.
        Groups: what is read before, the parameters, what is read after, the outputs.
    kept : int
        How many axes tell rows apart.
    """
    assert task.anchor is not None
    shape = task.anchor.inputs[0].type.bind(binding.symbols)
    result = task.anchor.output.type.bind(binding.symbols)
    rank = len(shape)
    kept = [a for a in range(rank) if a not in axes]

    def seen(o: Operand) -> Operand:
        if len(result) == rank:
            return o
        steps = dict(zip(kept, o.strides, strict=True))
        return replace(o, strides=tuple(steps.get(a, 0) for a in range(rank)))

    groups = (
        operands_of(task, prologue_of(task), binding, shape, lambda o: o),
        tuple(Operand.of(v, binding, shape) for v in parameters),
        operands_of(task, task.epilogue, binding, result, seen),
        # a row's axes have one element where they are reduced, but keep their strides
        tuple(seen(Operand.of(v, binding, result)) for v in task.outputs),
    )
    roles = tuple(int(a in axes) for a in range(rank))
    space = Space(shape, roles, groups)
    main = main_of(space.groups[0])

    def order(axis: int) -> tuple[int, ...]:
        return roles[axis], -abs(main.strides[axis]), axis

    space = space.ordered(order).merged()
    for role in (0, 1):
        if role not in space.roles:
            space = space.extended(role)
    space = space.ordered(lambda axis: (space.roles[axis], axis))
    return space, space.roles.count(0)


def main_of(group: Operands) -> Operand:
    """The operand that moves along most axes."""
    present = [o for o in group if o is not None]
    return max(present, key=lambda o: sum(map(bool, o.strides)))


def bind(group: Iterable[Operand | None]) -> tuple[Access | None, ...]:
    """The accesses of operands."""
    return tuple(None if o is None else o.access() for o in group)


def values_of(*groups: Iterable[Operand | None]) -> tuple[Value, ...]:
    """What a launch passes for operands."""
    return tuple(o.value for group in groups for o in group if o is not None)


def work_of(
    expression: Expression, leaves: Operands, outputs: Operands = (), facts: Facts = UNKNOWN
) -> Work:
    """The work of an expression over a space."""
    written = tuple(o.access() for o in outputs if o is not None)
    return Work((), expression, bind(leaves), written, facts)


def power_of_two(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()


def open_ended(extents: Sequence[int]) -> tuple[int, ...]:
    """Extents as a kernel sees them: the first one is no part of its text."""
    return (-1, *extents[1:]) if extents else ()


def programs_of(extents: Sequence[int], blocks: Sequence[int]) -> int:
    """How many blocks cover a box."""
    return math.prod(-(-n // b) for n, b in zip(extents, blocks, strict=True))


# ---- when writing ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """The points of a space that a program does at a time.

    Attributes
    ----------
    index : tuple of str
        Per axis, and per derived coordinate, a name of a scalar, of a column of rows
        ``[rows, 1]``, or of a row of columns ``[1, columns]``.
    masks : tuple of str or None
        For each of them, which of its places exist.
    """

    index: tuple[str, ...]
    masks: tuple[str | None, ...]

    def __add__(self, other: Tile) -> Tile:
        """Both tiles' coordinates."""
        return Tile((*self.index, *other.index), (*self.masks, *other.masks))

    @property
    def mask(self) -> str | None:
        """Which points exist, as one expression."""
        return whole_mask(self.masks)


def spread(k: Source, flat: str, extents: Sequence[int], mask: str | None) -> Tile:
    """The axes of these extents from their flat index; the first axis takes what is left."""
    index: list[str] = []
    rest = flat
    for extent in reversed(extents[1:]):
        index.insert(0, k.let("i", f"{rest} % {extent}"))
        rest = k.let("i", f"{rest} // {extent}")
    return Tile((rest, *index), (mask,) * len(extents))


def lanes(k: Source, start: str, count: int, side: str) -> str:
    """The numbers from `start` on, as `ROWS` or as `COLUMNS`."""
    return k.let("lanes", f"({start}) + tl.arange(0, {count}){side}")


_COMBINED = {
    "sum": "_sum_combine",
    "prod": "_prod_combine",
    "max": "_elementwise_max",
    "min": "_elementwise_min",
}


def across(name: str, reduction: str) -> str:
    """The columns of a tile combined into one: ``[rows, 1]``. Maxima and minima ignore NaN."""
    return f"tl.reduce({name}, 1, tl.standard.{_COMBINED[reduction]}, keep_dims=True)"


def reduced(text: str, reduction: str, axis: int = 0) -> str:
    """An axis combined into one element, which is no axis any more; as `across`."""
    return f"tl.reduce({text}, {axis}, tl.standard.{_COMBINED[reduction]})"


def running_sum(text: str) -> str:
    """The running sums of a vector."""
    return f"tl.associative_scan({text}, 0, tl.standard._sum_combine)"


def unsigned(dtype: DType) -> DType:
    """The unsigned integers of an element type's size: what moves without being looked at."""
    return {1: DType.UINT8, 2: DType.UINT16, 4: DType.UINT32, 8: DType.UINT64}[dtype.size]
