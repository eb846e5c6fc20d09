"""Tactics of recurrent layers; the kernel stands in `recurrent_kernel`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.recurrent import Recurrent
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Pointer, Tactic, Workspace
from planish.targets.cuda.kernels.fused import WIDE
from planish.targets.cuda.kernels.nest import Operand, power_of_two
from planish.targets.cuda.kernels.recurrent_kernel import (
    DOTTED,
    RecurrentKernel,
    own_memories,
    resets_before,
)
from planish.targets.restoring import FLAG, Allowed

ROWS = (1, 2, 4, DOTTED)
"""Sequences that a program may do."""
BLOCKS = (4, 8, 16, 32, 64, 128)
"""Units that may be summed over, or computed, at a time."""
WARPS = (1, 2, 4, 8)
_ALIGNMENT = 256
_LAUNCHES = 1024
"""Steps that may have launches of their own."""


@dataclass(frozen=True)
class Recurrence(AnchoredTactic):
    """All steps in one launch, or `stepwise` a launch each: `rows` sequences a program, `depth` x
    `units` weights at a time.
    """

    family: ClassVar[str] = "recurrent"

    rows: int
    depth: int
    units: int
    warps: int
    stepwise: bool = False

    def accepts(self, binding: Binding) -> bool:
        shape = binding.shape(self.task.inputs[0])
        if math.prod(shape) >= WIDE or (self.stepwise and shape[0] > _LAUNCHES):
            return False
        return self.rows < DOTTED or self._takes_dot

    def workspace(self, binding: Binding) -> int:
        return self._memories * self._each(binding)

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, Recurrent)
        steps, batch, directions, _, hidden = binding.shape(task.inputs[0])
        kernel = RecurrentKernel(
            self.warps,
            1,
            op,
            task.inputs[0].dtype,
            hidden,
            tuple(Operand.of(v, binding).access() for v in self.anchor.inputs),
            tuple(Operand.of(v, binding).access() for v in task.outputs),
            self.rows,
            self.depth,
            self.units,
        )
        each = self._each(binding)
        memory = tuple(Workspace(i * each) for i in range(self._memories))
        pointers: tuple[Pointer, ...] = (*self.anchor.inputs, *task.outputs, *memory)
        programs = directions * -(-batch // self.rows)
        if not self.stepwise:
            return [Launch(kernel, pointers, (batch, steps, 0), programs)]
        programs *= -(-hidden // self.units)

        def launch(stage: str, step: int = 0) -> Launch:
            numbers = (batch, steps, step)
            return Launch(replace(kernel, stage=stage), pointers, numbers, programs)

        each_step = ("reset", "step") if resets_before(op) else ("step",)
        middle = [launch(stage, step) for step in range(steps) for stage in each_step]
        return [launch("begin"), *middle, launch("end")]

    @property
    def _takes_dot(self) -> bool:
        exact = self.anchor.inputs[0].dtype is DType.FLOAT32
        return exact and self.depth >= 16 and self.units >= 16

    @property
    def _memories(self) -> int:
        assert isinstance(self.anchor.op, Recurrent)
        return 2 + own_memories(self.anchor.op)

    def _each(self, binding: Binding) -> int:
        """Bytes of a vector for every sequence and direction."""
        _, batch, directions, _, hidden = binding.shape(self.task.inputs[0])
        size = batch * directions * hidden * self.task.inputs[0].dtype.size
        return -(-size // _ALIGNMENT) * _ALIGNMENT


def _likely(batch: int) -> list[tuple[int, int, int, int, bool]]:
    """Tiles worth measuring: few sequences leave most of a GPU to blocks of units."""
    if batch >= DOTTED // 2:
        tiles = [(DOTTED, 32, 32, 4, True), (DOTTED, 32, 64, 4, False), (DOTTED, 32, 32, 4, False)]
        return [*tiles, (4, 16, 32, 8, False), (4, 64, 16, 4, True)]
    rows = min(4, power_of_two(batch))
    tiles = [(rows, 128 // rows, 16, 4, True), (rows, 64 // rows, 8, 1, True)]
    return [*tiles, (rows, 32 // rows, 64, 8, False), (1, 16, 128, 8, False)]


class RecurrentFamily(Family):
    """Recurrent layers."""

    name: ClassVar[str] = "recurrent"
    tactic: ClassVar[type[Tactic]] = Recurrence
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "depth": BLOCKS,
        "units": BLOCKS,
        "warps": WARPS,
        "stepwise": FLAG,
    }

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, Recurrent)
            and len(task.nodes) == 1
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        _, batch, _, _, hidden = binding.shape(task.inputs[0])
        whole = max(16, power_of_two(hidden))
        seen: set[Tactic] = set()
        for rows, depth, units, warps, stepwise in _likely(batch):
            tile = (rows, min(depth, whole), min(units, whole), warps)
            tactic = Recurrence(task, *tile, stepwise)
            if tactic not in seen and tactic.accepts(binding):
                seen.add(tactic)
                yield tactic


FAMILIES: tuple[Family, ...] = (RecurrentFamily(),)
