"""The largest or smallest elements along an axis, in order, and their indices; see `ranking`.

Rows of one block are done in one launch, several rows a program; longer ones in as many as their
ranking takes, and one that turns tickets into elements. All of a row is sorting it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.ops.base import normalize_axis
from planish.ops.reduce import TopK
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Pointer, Tactic
from planish.targets.cuda.kernels.fused import WIDE
from planish.targets.cuda.kernels.nest import Operand, Space, open_ended, power_of_two
from planish.targets.cuda.kernels.ranking import Ranking, warps_for_block
from planish.targets.cuda.kernels.ranking_kernel import BestKernel, Ranked, TakeKernel, Taken
from planish.targets.cuda.kernels.sorting import part_count
from planish.targets.restoring import Allowed

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Elements that a program may sort."""
WARPS = (1, 2, 4, 8, 16)
_TAKEN = 256
"""Ranks that a program of `TakeKernel` does."""


@dataclass(frozen=True)
class BestOfRows(AnchoredTactic):
    """Top k, `block` elements a program."""

    family: ClassVar[str] = "top_k"

    block: int = 1024
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        return math.prod(binding.shape(self.anchor.inputs[0])) < WIDE

    def workspace(self, binding: Binding) -> int:
        ranking = self._ranking(binding)
        return ranking.workspace if ranking.length > self.block else 0

    def launches(self, binding: Binding) -> list[Launch]:
        op, source = self.anchor.op, self.anchor.inputs[0]
        assert isinstance(op, TopK)
        axis = normalize_axis(op.axis, source.type.rank)
        operands = [_along(Operand.of(v, binding), axis) for v in (source, *self.task.outputs)]
        shape = binding.shape(source)
        extents = tuple(n for a, n in enumerate(shape) if a != axis)
        space = Space(extents, (0,) * len(extents), (tuple(operands),))
        steps = operands[0].strides
        space = space.ordered(lambda a: (-abs(steps[a]), a)).merged()
        x, *outputs = space.operands()
        ranked = Ranked(source.dtype, x.access(), open_ended(space.extents), op.largest)
        taken = Taken(*(o.access() for o in outputs))
        ranking = self._ranking(binding)
        columns, rows = ranking.columns, ranking.together
        if ranking.length <= self.block:
            parts = ranking.parts
            kernel = BestKernel(self.warps, 1, parts, ranked, rows, columns, ranking.keep, taken)
            numbers = (ranking.rows, ranking.length, 1)
            programs = -(-ranking.rows // rows)
            return [Launch(kernel, (source, *self.task.outputs), numbers, programs)]
        take = TakeKernel(4, 1, ranked, ranking.keep, taken, _TAKEN)
        pointers: tuple[Pointer, ...] = (source, *ranking.result, *self.task.outputs)
        programs = -(-ranking.rows * ranking.keep // _TAKEN)
        last = Launch(take, pointers, (ranking.rows, ranking.stride), programs)
        return [*ranking.launches(ranked, (source,)), last]

    def _ranking(self, binding: Binding) -> Ranking:
        op, source = self.anchor.op, self.anchor.inputs[0]
        assert isinstance(op, TopK)
        shape = binding.shape(source)
        axis = normalize_axis(op.axis, len(shape))
        length, keep = shape[axis], binding.shape(self.task.output)[axis]
        rows = math.prod(shape) // length
        return Ranking(part_count(source.dtype), rows, length, keep, self.block, self.warps)


def _along(operand: Operand, axis: int) -> Operand:
    """An operand with its stride along an axis last."""
    steps = operand.strides
    strides = (*steps[:axis], *steps[axis + 1 :], steps[axis])
    return Operand(operand.value, operand.pointer, strides, operand.offset, operand.wide)


class TopKFamily(Family):
    """Top k along an axis."""

    name: ClassVar[str] = "top_k"
    tactic: ClassVar[type[Tactic]] = BestOfRows
    allowed: ClassVar[Allowed] = {"block": BLOCKS, "warps": WARPS}

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None and isinstance(task.anchor.op, TopK) and task.prologue is None
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for block, warps in _blocks(task, binding):
            yield BestOfRows(task, block, warps)


def _blocks(task: Task, binding: Binding) -> list[tuple[int, int]]:
    """Blocks and warps worth measuring, the likely best first."""
    assert task.anchor is not None and isinstance(task.anchor.op, TopK)
    shape = binding.shape(task.anchor.inputs[0])
    length = shape[normalize_axis(task.anchor.op.axis, len(shape))]
    whole = min(max(power_of_two(length), BLOCKS[0]), 2048)
    wanted = [whole, whole // 2, 2 * whole, 4 * whole]
    return [(b, warps_for_block(b)) for b in wanted if b in BLOCKS]


FAMILIES: tuple[Family, ...] = (TopKFamily(),)
