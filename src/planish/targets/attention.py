"""A task of attention in the terms of kernels: two levels of batches, and strides of every tensor.

Heads are read and written where they lie: a transpose that belongs to the task is an order of
strides, and so is a part of a projection of queries, keys and values together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.fusion.fused import ACCUMULATOR, Fused
from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.targets.base import Binding
from planish.targets.batches import two_levels


@dataclass(frozen=True)
class Place:
    """Where a tensor's elements lie: strides of batches and heads, rows and columns, in elements.

    0 where it is broadcast.
    """

    value: Value
    batch: int
    head: int
    row: int
    column: int


@dataclass(frozen=True)
class Problem:
    """An attention with concrete shapes.

    Attributes
    ----------
    batches, heads : int
        The two levels of batches.
    queries, keys, depth, values : int
        `depth` is that of queries and keys, `values` the columns of values and result.
    q, k, v, result : Place
        Rows are queries or keys.
    scores : tuple of Place or None
        For each leaf of the work on scores, rows are queries and columns keys; None for those that
        are not in memory.
    rows : tuple of Place or None
        The same for the epilogue; their column strides are 0.
    """

    batches: int
    heads: int
    queries: int
    keys: int
    depth: int
    values: int
    q: Place
    k: Place
    v: Place
    result: Place
    scores: tuple[Place | None, ...]
    rows: tuple[Place | None, ...]

    @property
    def operations(self) -> int:
        """Multiplications and additions of the two products."""
        pairs = self.batches * self.heads * self.queries * self.keys
        return 2 * pairs * (self.depth + self.values)


def problem_of(task: Task, binding: Binding) -> Problem | None:
    """The problem of a task of attention; None if its batches are not two levels."""
    work = task.attention
    assert work is not None
    shapes, strides = [], []
    values = [*(task.inputs[i] for i in work.sources), task.output]
    for value, axes in zip(values, work.axes, strict=True):
        layout = binding.layout(value)
        shapes.append([layout.shape[a] for a in axes])
        strides.append([layout.strides[a] for a in axes])
    (queries, depth), (keys, columns) = shapes[0][-2:], shapes[2][-2:]
    lead = shapes[3][:-2]
    operands = [_operands(task, fused) for fused in (work.scores, task.epilogue)]
    for fused, columns_there in zip(operands, (keys, columns), strict=True):
        whole = (*lead, queries, columns_there)
        for operand in (v for v in fused if v is not None):
            missing = len(whole) - operand.type.rank
            values.append(operand)
            shapes.append([1] * missing + [*binding.shape(operand)])
            strides.append([0] * missing + [*binding.strides(operand)])
            if any(n not in (1, m) for n, m in zip(shapes[-1], whole, strict=True)):
                return None
    for shape, steps in zip(shapes, strides, strict=True):
        if any(n not in (1, m) for n, m in zip(shape[:-2], lead, strict=True)):
            return None
        steps[:] = [0 if n == 1 else s for n, s in zip(shape, steps, strict=True)]
    levels = two_levels(lead, [s[:-2] for s in strides])
    if levels is None:
        return None
    (batches, heads), outer = levels
    places = iter(Place(v, *o, *s[-2:]) for v, o, s in zip(values, outer, strides, strict=True))
    q, k, v, result = (next(places) for _ in range(4))
    scores, rows = (tuple(None if v is None else next(places) for v in fused) for fused in operands)
    return Problem(batches, heads, queries, keys, depth, columns, q, k, v, result, scores, rows)


def _operands(task: Task, fused: Fused) -> Sequence[Value | None]:
    """What the leaves of an expression read from memory."""
    return [None if s is None or s == ACCUMULATOR else task.inputs[s] for s in fused.sources]
