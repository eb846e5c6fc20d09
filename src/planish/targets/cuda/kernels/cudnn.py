"""Tactics of cuDNN: convolutions, of floats also those with groups, and large products of floats by
constant matrices, with elementwise work fused in.

Which plans cuDNN recommends is asked of it where tactics are offered, so only on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic, Workspace
from planish.targets.cuda.driver import gpu
from planish.targets.cuda.kernel import LIBRARY_SECONDS
from planish.targets.cuda.kernels.cudnn_problem import (
    Problem,
    filters,
    problem_of,
    steps_of,
    understood,
)
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.libraries.cudnn import NAME, ConvKernel, CudnnSession, session
from planish.targets.cuda.libraries.session import workspace_bytes
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import FLAG, Allowed

EACH = 4
"""Plans offered for each order of additions, where there are two: either may be the faster one."""


@dataclass(frozen=True)
class CudnnTactic(AnchoredTactic):
    """A plan of cuDNN's.

    Attributes
    ----------
    version : int
        Of the cuDNN that recommended it; another one does not run it.
    plan : str
        Its name: the engine, and knobs by their numbers.
    tf32 : bool
        Whether factors in float32 may be rounded to TF32.
    residual_first : bool
        See `problem_of`.
    machine : CudaMachine
    """

    family: ClassVar[str] = "cudnn"
    is_of_library: ClassVar[bool] = True

    version: int
    plan: str
    tf32: bool = False
    residual_first: bool = False
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def is_exact_to_the_level(self) -> bool:
        return False

    @property
    def extra_seconds(self) -> float:
        return LIBRARY_SECONDS

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else super().precision

    def accepts(self, binding: Binding) -> bool:
        own = own_session(self.machine)
        if own is None or own.version != self.version or not super().accepts(binding):
            return False
        problem = problem_of(self.task, binding, self.tf32, self.residual_first)
        return problem is not None and own.has(self._kernel(problem))

    def constants(self) -> list[np.ndarray]:
        """The filters as ``[K, rows, columns, C]``; then the numbers that steps use."""
        chain = steps_of(self.task)
        assert chain is not None, "the family understands the task"
        _, scalars, _ = chain
        packed = np.ascontiguousarray(np.moveaxis(filters(self.task), -1, 0))
        return [packed, *(np.array([s], np.float32) for s in scalars)]

    def launches(self, binding: Binding) -> list[Launch]:
        problem = self._problem(binding)
        pointers: tuple[Pointer, ...] = (
            self.anchor.inputs[0],
            Constant(0),
            *problem.operands,
            *(Constant(1 + i) for i in range(len(problem.scalars))),
            *self.task.outputs,
            Workspace(),
        )
        return [Launch(self._kernel(problem), pointers)]

    def workspace(self, binding: Binding) -> int:
        assert self.machine.ordinal is not None, "tactics are run where they are offered"
        kernel = self._kernel(self._problem(binding))
        return workspace_bytes(kernel.load(gpu(self.machine.ordinal)).workspace)

    def _problem(self, binding: Binding) -> Problem:
        problem = problem_of(self.task, binding, self.tf32, self.residual_first)
        assert problem is not None, "the tactic accepts the binding"
        return problem

    def _kernel(self, problem: Problem) -> ConvKernel:
        return ConvKernel(problem.graph, self.version, self.plan)


@dataclass(frozen=True)
class CudnnFamily(MachineFamily):
    """Convolutions by cuDNN, where it is installed."""

    name: ClassVar[str] = "cudnn"
    tactic: ClassVar[type[Tactic]] = CudnnTactic
    allowed: ClassVar[Allowed] = {
        "version": range(1 << 31),
        "plan": NAME,
        "tf32": FLAG,
        "residual_first": FLAG,
    }

    def understands(self, task: Task) -> bool:
        return understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for tf32 in (False, True):
            orders = [self._in_order(task, binding, tf32, first) for first in (False, True)]
            limit = EACH if all(orders) else None
            for rank in zip_longest(*(order[:limit] for order in orders)):
                yield from filter(None, rank)

    def _in_order(
        self, task: Task, binding: Binding, tf32: bool, residual_first: bool
    ) -> list[CudnnTactic]:
        problem = problem_of(task, binding, tf32, residual_first)
        own = own_session(self.machine) if problem is not None else None
        if problem is None or own is None:
            return []
        return [
            CudnnTactic(task, k.version, k.plan, tf32, residual_first, self.machine)
            for k in own.kernels(problem.graph)
        ]

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        assert task.anchor is not None
        if values["tf32"] and task.anchor.inputs[0].dtype is not DType.FLOAT32:
            return "only float32 is rounded to TF32"
        return ""


def own_session(machine: CudaMachine) -> CudnnSession | None:
    """cuDNN on a machine; None where it is only described, or cuDNN is not installed."""
    return None if machine.ordinal is None else session(machine.ordinal)


FAMILIES = (CudnnFamily(),)
