"""Softmax, log softmax, layer, instance and batch normalization, with elementwise work around them.

The kernel stands in `rows_kernel`, what the ops compute in `rows_programs`. Local response
normalization has a file of its own, `lrn`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.fusion.task import Task
from planish.ops.base import Op, normalize_axis
from planish.ops.normalization import BatchNorm, InstanceNorm, LayerNorm
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.kernels import lrn
from planish.targets.cpu.kernels.axes import anchor_parameters, bind, prologue_of, task_box
from planish.targets.cpu.kernels.rows_kernel import RowsKernel
from planish.targets.cpu.kernels.rows_programs import program_of
from planish.targets.restoring import Allowed

_SCRATCH = 1 << 18
"""Bytes of scratch memory, at most, in which a row is kept: what the second-level cache holds."""
_FEW = 16
"""Tasks of fewer are made narrower."""
_GRAIN = 1 << 12
"""Elements a thread takes at a time, at least."""


@dataclass(frozen=True)
class Rows(AnchoredTactic):
    """An op over rows, `vectors` vectors at a time."""

    family: ClassVar[str] = "rows"
    vectors: int

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, fed = self.task, self.anchor.op, self.anchor.inputs[0]
        if 0 in fed.type.bind(binding.symbols):
            return []
        values = anchor_parameters(task)
        box, kept, reduced, vector_reduced = (
            task_box(task, binding, _row_axes(task), values).simplified().ordered()
        )
        leaves, outputs = bind(box.leaves), bind(box.outputs)
        parameters = bind(box.others[: len(values)])
        operands = bind(box.others[len(values) :])
        row = [a for a, r in enumerate(box.reduced) if r]
        moving = tuple(
            t is not None and any(t.strides[a] for a in row) for t in box.others[: len(values)]
        )
        count = math.prod(box.extents[a] for a in row)
        tasks, columns = math.prod(box.extents[:kept]), 16 * self.vectors
        if not vector_reduced:
            if tasks * -(-box.extents[-1] // columns) < _FEW:
                columns = 16
            tasks *= -(-box.extents[-1] // columns)
        vectors = max(1, min(self.vectors, -(-box.extents[-1] // 16), columns // 16))
        scratch = count * max(fed.dtype.size, 4) * (1 if vector_reduced else 16 * vectors)
        kernel = RowsKernel(
            op=_without_axis(op),
            dtype=fed.dtype,
            kept=kept,
            reduced=reduced,
            vector_reduced=vector_reduced,
            vectors=vectors,
            keep=scratch <= _SCRATCH,
            prologue=prologue_of(task).expression,
            leaves=leaves.accesses,
            parameters=parameters.accesses,
            moving=moving,
            epilogue=task.epilogue.expression,
            operands=operands.accesses,
            outputs=outputs.accesses,
        )
        bound = leaves + parameters + operands + outputs
        return [
            Launch(
                kernel,
                bound.pointers,
                (*box.extents, count, columns, *bound.params),
                tasks=tasks,
                grain=max(1, _GRAIN // max(1, math.prod(box.extents) // tasks)),
                scratch=scratch + 64 if kernel.keep else 0,
            )
        ]


def _without_axis(op: Op) -> Op:
    """The op with axis 0, if it has one: the kernel does not depend on it."""
    return replace(op, axis=0) if "axis" in op.attributes() else op  # type: ignore[call-arg]


def _row_axes(task: Task) -> list[int]:
    """The axes that make up a row."""
    assert task.anchor is not None
    op, rank = task.anchor.op, task.anchor.inputs[0].type.rank
    if isinstance(op, LayerNorm):
        return list(range(normalize_axis(op.axis, rank), rank))
    if isinstance(op, InstanceNorm):
        return list(range(1, rank - 1))
    if isinstance(op, BatchNorm):  # nothing is reduced: rows may be as short as they like
        return [rank - 2] if rank > 1 else []
    return [normalize_axis(op.axis, rank)]  # type: ignore[attr-defined]


class RowsFamily(Family):
    """Ops that go over each row several times."""

    name: ClassVar[str] = "rows"
    tactic: ClassVar[type[Tactic]] = Rows
    allowed: ClassVar[Allowed] = {"vectors": range(1, 9)}

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and program_of(task.anchor.op) is not None

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        yield Rows(task, 4)
        yield Rows(task, 2)


FAMILIES: tuple[Family, ...] = (RowsFamily(), *lrn.FAMILIES)
