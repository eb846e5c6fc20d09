"""Which axes of a reduction become loops, and which one vectors run along.

The elements of a reduction form a box of kept and reduced axes. Axes that lie side by side in
every tensor become one; then one axis is chosen for vectors: one along which elements are
neighbours in memory. All others are loops, kept axes outside and reduced axes inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import llvmlite.ir as ir

from planish.fusion.expression import identity
from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.graph import Value
from planish.targets.base import Binding, Pointer
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.kernels.fused import Bound, access, broadcast_strides


@dataclass(frozen=True)
class Tensor:
    """A tensor as the box sees it: one stride per axis of the box, 0 where it does not move.

    `value` gives the dtype; `pointer` is what the launch passes.
    """

    value: Value
    pointer: Pointer
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """The axes of a reduction: extents, which of them are reduced, and all tensors' strides.

    `leaves` are what the prologue reads, `others` what is read later (operands of the epilogue,
    parameters), `outputs` what is written. An entry of None is a leaf that is not read.
    """

    extents: tuple[int, ...]
    reduced: tuple[bool, ...]
    leaves: tuple[Tensor | None, ...]
    others: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]

    def tensors(self) -> list[Tensor]:
        """All tensors."""
        return [t for t in (*self.leaves, *self.others, *self.outputs) if t is not None]

    def bound(self) -> tuple[Bound, Bound, Bound]:
        """Leaves, others and outputs, bound."""
        return bind(self.leaves), bind(self.others), bind(self.outputs)

    def rearranged(self, groups: Sequence[Sequence[int]]) -> Box:
        """A box with one axis per group: the group's axes together; all extents multiply."""

        def extent(group: Sequence[int]) -> int:
            product = 1
            for axis in group:
                product *= self.extents[axis]
            return product

        def moved(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(
                None if t is None else replace(t, strides=tuple(t.strides[g[-1]] for g in groups))
                for t in tensors
            )

        return Box(
            tuple(extent(g) for g in groups),
            tuple(self.reduced[g[-1]] for g in groups),
            moved(self.leaves),
            moved(self.others),
            moved(self.outputs),
        )

    def simplified(self) -> Box:
        """The same box without axes of one element, neighbouring axes merged where all allow it.

        At least one axis is left.
        """
        groups: list[list[int]] = []
        for axis, extent in enumerate(self.extents):
            if extent == 1:
                continue
            if groups and self._mergeable(groups[-1][-1], axis):
                groups[-1].append(axis)
            else:
                groups.append([axis])
        if not groups:
            if not self.extents:
                return self._scalar()
            groups = [[len(self.extents) - 1]]
        return self.rearranged(groups)

    def _mergeable(self, outer: int, inner: int) -> bool:
        return self.reduced[outer] == self.reduced[inner] and all(
            t.strides[outer] == t.strides[inner] * self.extents[inner] for t in self.tensors()
        )

    def _scalar(self) -> Box:
        def moved(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(None if t is None else replace(t, strides=(1,)) for t in tensors)

        return Box((1,), (True,), moved(self.leaves), moved(self.others), moved(self.outputs))

    def ordered(self) -> tuple[Box, int, int, bool]:
        """The box with kept axes first, then reduced ones, the vector axis last.

        Returns
        -------
        box : Box
        kept, reduced : int
            How many axes of either kind come before the vector axis.
        vector_reduced : bool
            Whether the vector axis is a reduced one.
        """
        rank = len(self.extents)

        def merit(axis: int) -> tuple[int, int, int]:
            ones = sum(t is not None and t.strides[axis] == 1 for t in self.leaves)
            written = sum(t is not None and t.strides[axis] == 1 for t in self.outputs)
            return ones, written, axis

        vector = max(range(rank), key=merit)
        kept = [a for a in range(rank) if not self.reduced[a] and a != vector]
        inner = [a for a in range(rank) if self.reduced[a] and a != vector]
        order = [[a] for a in (*kept, *inner, vector)]
        return self.rearranged(order), len(kept), len(inner), self.reduced[vector]


def task_box(
    task: Task,
    binding: Binding,
    axes: Sequence[int],
    parameters: Sequence[Value] = (),
    parameter_axes: Callable[[Value], Sequence[int]] | None = None,
) -> Box:
    """The box of a task whose anchor reduces its input 0 along `axes`.

    Parameters
    ----------
    task : Task
    binding : Binding
    axes : sequence of int
        The reduced axes, counted from the front. The outputs either have the input's rank (with
        any extent along reduced axes) or lack the reduced axes.
    parameters : sequence of Value
        Further inputs of the anchor, which broadcast to its input: they come first in `others`.
    """
    assert task.anchor is not None
    fed = task.anchor.inputs[0]
    shape = fed.type.bind(binding.symbols)
    rank = len(shape)
    result = task.anchor.output.type.bind(binding.symbols)
    same_rank = len(result) == rank
    kept = [a for a in range(rank) if a not in axes]

    def in_input(value: Value) -> Tensor:
        return Tensor(value, value, broadcast_strides(binding.layout(value), shape))

    def in_output(value: Value) -> Tensor:
        strides = broadcast_strides(binding.layout(value), result)
        if not same_rank:
            spread = [0] * rank
            for axis, stride in zip(kept, strides, strict=True):
                spread[axis] = stride
            strides = tuple(spread)
        return Tensor(value, value, strides)

    leaves = _leaves(task, prologue_of(task), in_input)
    others = _leaves(task, task.epilogue, in_output)
    return Box(
        shape,
        tuple(a in axes for a in range(rank)),
        leaves,
        (*(in_input(v) for v in parameters), *others),
        tuple(in_output(v) for v in task.outputs),
    )


def prologue_of(task: Task) -> Fused:
    """The task's prologue; where there is none, one that gives the anchor's input 0."""
    return task.prologue or Fused(identity(task.inputs[0].dtype), (0,))


def anchor_parameters(task: Task) -> tuple[Value, ...]:
    """The anchor's inputs after the first."""
    assert task.anchor is not None
    return task.anchor.inputs[1:]


def _leaves(
    task: Task, fused: Fused, tensor: Callable[[Value], Tensor]
) -> tuple[Tensor | None, ...]:
    return tuple(
        None if s is None or s == ACCUMULATOR else tensor(task.inputs[s]) for s in fused.sources
    )


def bind(tensors: Sequence[Tensor | None]) -> Bound:
    """Accesses, pointers and parameters of tensors."""
    present = [t for t in tensors if t is not None]
    return Bound(
        tuple(None if t is None else access(t.value, t.strides) for t in tensors),
        tuple(t.pointer for t in present),
        tuple(n for t in present for n in t.strides),
    )


def unravel(
    k: KernelBuilder, index: ir.Value, extents: Sequence[int | ir.Value]
) -> list[int | ir.Value]:
    """The indices of nested axes from a flat index; the first axis takes what is left."""
    return k.unravel(index, extents[1:]) if extents else []
