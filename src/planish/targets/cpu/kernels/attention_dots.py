"""Attention of bfloat16 or of levels by dot products of short numbers; see
`attention_dots_kernel`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.attention import Problem
from planish.targets.base import Binding, Family, Tactic
from planish.targets.cpu.codegen.dot import BYTES, HALVES, Dot
from planish.targets.cpu.kernels.attention import (
    PARAMETERS,
    AttentionTactic,
    candidates,
    readable,
)
from planish.targets.cpu.kernels.attention_dots_kernel import AttentionDotsKernel
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.machine import Machine
from planish.targets.restoring import Allowed


@dataclass(frozen=True, eq=False)
class AttentionDotsTactic(AttentionTactic):
    """As `AttentionTactic`, by dot products."""

    family: ClassVar[str] = "attention_dots"

    def accepts(self, binding: Binding) -> bool:
        return _problem(self.task, binding, self.machine) is not None

    def _kernel(self, **fields: Any) -> AttentionDotsKernel:
        dot = _dot(self.task, self.machine)
        assert dot is not None
        return AttentionDotsKernel(**fields, dot=dot)


def _dot(task: Task, machine: Machine) -> Dot | None:
    """How the numbers of a task of attention are multiplied here; None: not by this family."""
    work = task.attention
    if work is None:
        return None
    dtypes = {task.inputs[i].dtype for i in work.sources}
    if work.levels:
        return BYTES if machine.has_vnni else None
    if dtypes == {DType.BFLOAT16} == {v.dtype for v in task.outputs}:
        return HALVES if machine.has_bf16 else None
    return None


def _problem(task: Task, binding: Binding, machine: Machine) -> Problem | None:
    """The problem, if queries and keys are whole groups."""
    dot = _dot(task, machine)
    problem = readable(task, binding) if dot else None
    return problem if problem and dot and problem.depth % dot.group == 0 else None


@dataclass(frozen=True)
class AttentionDotsFamily(MachineFamily):
    """Attention of bfloat16 or levels, for this or another machine."""

    name: ClassVar[str] = "attention_dots"
    pattern: ClassVar[str] = "attention"
    tactic: ClassVar[type[Tactic]] = AttentionDotsTactic
    allowed: ClassVar[Allowed] = PARAMETERS

    def understands(self, task: Task) -> bool:
        return _dot(task, self.machine) is not None

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        problem = _problem(task, binding, self.machine)
        if problem is not None:
            for candidate in candidates(problem, self.machine):
                yield AttentionDotsTactic(task, self.machine, *candidate)


FAMILIES: tuple[Family, ...] = (AttentionDotsFamily(),)
"""What this file offers."""
