"""Tactics of recurrent layers; the kernel stands in `recurrent_kernel`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.recurrent import Recurrent
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace
from planish.targets.cuda.kernels.fused import WIDE, Access, is_wide, pointer_of
from planish.targets.cuda.kernels.nest import power_of_two
from planish.targets.cuda.kernels.recurrent_kernel import (
    DOTTED,
    RecurrentKernel,
    own_memories,
)
from planish.targets.restoring import checked_parameters

ROWS = (1, 2, 4, DOTTED)
"""Sequences that a program may do."""
BLOCKS = (4, 8, 16, 32, 64, 128)
"""Units that may be summed over, or computed, at a time."""
WARPS = (1, 2, 4, 8)
_ALIGNMENT = 256


@dataclass(frozen=True)
class Recurrence(AnchoredTactic):
    """All steps in one launch: `rows` sequences a program, `depth` x `units` weights at a time."""

    family: ClassVar[str] = "recurrent"

    rows: int
    depth: int
    units: int
    warps: int

    def accepts(self, binding: Binding) -> bool:
        return math.prod(binding.shape(self.task.inputs[0])) < WIDE and (
            self.rows < DOTTED or self._takes_dot
        )

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
            tuple(_access(v, binding) for v in self.anchor.inputs),
            tuple(_access(v, binding) for v in task.outputs),
            self.rows,
            self.depth,
            self.units,
        )
        each = self._each(binding)
        memory = tuple(Workspace(i * each) for i in range(self._memories))
        pointers = (*self.anchor.inputs, *task.outputs, *memory)
        programs = directions * -(-batch // self.rows)
        return [Launch(kernel, pointers, (batch, steps), programs)]

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


def _access(value: Value, binding: Binding) -> Access:
    layout = binding.layout(value)
    return Access(pointer_of(value, binding), layout.strides, is_wide(layout))


def _understood(task: Task) -> bool:
    return (
        task.anchor is not None
        and isinstance(task.anchor.op, Recurrent)
        and len(task.nodes) == 1
    )


class RecurrentFamily(Family):
    """Recurrent layers."""

    name: ClassVar[str] = "recurrent"

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not _understood(task):
            return
        _, batch, _, _, hidden = binding.shape(task.inputs[0])
        whole = max(16, power_of_two(hidden))
        offered = [(1, 32, 64, 8), (1, 16, 128, 8), (2, 32, 32, 8), (4, 16, 32, 8)]
        if batch >= DOTTED // 2:
            offered = [(DOTTED, 32, 64, 4), (DOTTED, 32, 32, 4), *offered[::-1]]
        seen = set()
        for rows, depth, units, warps in offered:
            if rows > 1 and rows >= 2 * batch:
                continue
            tactic = Recurrence(task, rows, min(depth, whole), min(units, whole), warps)
            key = tuple(tactic.parameters.values())
            if key not in seen and tactic.accepts(binding):
                seen.add(key)
                yield tactic

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        allowed = {"rows": ROWS, "depth": BLOCKS, "units": BLOCKS, "warps": WARPS}
        understood = _understood(task)
        return Recurrence(
            task, **checked_parameters(self.name, task, parameters, understood, **allowed)
        )


FAMILIES: tuple[Family, ...] = (RecurrentFamily(),)
