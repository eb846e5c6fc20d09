"""Tasks without an anchor: elementwise work on broadcasting operands of any layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.kernels.compose import Composer
from planish.targets.cpu.kernels.loopnest import launch
from planish.targets.cpu.kernels.space import is_heavy
from planish.targets.cpu.kernels.views import View
from planish.targets.restoring import Allowed

UNROLLS = (1, 2, 4, 8)
"""Vectors per round that a tactic may have."""


@dataclass(frozen=True)
class ElementwiseTactic(Tactic):
    """One loop nest over the outputs' shape."""

    family = "elementwise"
    unroll: int = 4

    def accepts(self, binding: Binding) -> bool:
        return len({binding.shape(v) for v in self.task.outputs}) == 1

    def launches(self, binding: Binding) -> list[Launch]:
        task = self.task
        shape = binding.shape(task.output)
        composer = Composer()
        results = composer.fused(
            task, task.epilogue, lambda v: View.of(v, binding).broadcast(shape).operand()
        )
        outputs = [View.of(v, binding).operand() for v in task.outputs]
        expression = composer.expression(results)
        return [launch(expression, composer.operands, outputs, shape, unroll=self.unroll)]


class ElementwiseFamily(Family):
    """Offers a loop nest for elementwise tasks."""

    name: ClassVar[str] = "elementwise"
    tactic: ClassVar[type[Tactic]] = ElementwiseTactic
    allowed: ClassVar[Allowed] = {"unroll": UNROLLS}

    def understands(self, task: Task) -> bool:
        return task.anchor is None

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for unroll in (2, 1) if is_heavy(task.epilogue.expression) else (4, 1):
            yield ElementwiseTactic(task, unroll)


FAMILIES = (ElementwiseFamily(),)
