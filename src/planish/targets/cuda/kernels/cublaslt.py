"""Tactics of cuBLASLt: matrix products of floats, and convolutions that are such products.

Which algorithms cuBLASLt recommends is asked of it where tactics are offered, so only on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Tactic, Workspace
from planish.targets.cuda.driver import gpu
from planish.targets.cuda.kernel import LIBRARY_SECONDS
from planish.targets.cuda.kernels.cublaslt_problem import (
    Problem,
    line_of,
    problem_of,
    understood,
)
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.matrix_problem import filters, is_packed
from planish.targets.cuda.libraries.cublaslt import (
    SETTINGS,
    CublasLtSession,
    ProductKernel,
    session,
)
from planish.targets.cuda.libraries.session import workspace_bytes
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import FLAG, Allowed

_ANY = range(-(1 << 31), 1 << 31)
_SETTINGS = tuple(name.lower() for name in SETTINGS)


@dataclass(frozen=True)
class CublasLtTactic(AnchoredTactic):
    """An algorithm of cuBLASLt.

    Attributes
    ----------
    version : int
        Of the cuBLASLt that recommended it; another one does not run it.
    settings : tuple of int
        See `planish.targets.cuda.libraries.cublaslt.SETTINGS`.
    tf32 : bool
        Whether factors in float32 may be rounded to TF32.
    machine : CudaMachine
    """

    family: ClassVar[str] = "cublaslt"
    is_of_library: ClassVar[bool] = True

    version: int
    settings: tuple[int, ...]
    tf32: bool = False
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def parameters(self) -> dict[str, Any]:
        named = zip(_SETTINGS, self.settings, strict=True)
        return {"version": self.version, **dict(named), "tf32": self.tf32}

    @property
    def extra_seconds(self) -> float:
        return LIBRARY_SECONDS

    @property
    def precision(self) -> str:
        return "tf32" if self.tf32 else super().precision

    def accepts(self, binding: Binding) -> bool:
        own = _session(self.machine)
        if own is None or own.version != self.version or not super().accepts(binding):
            return False
        problem = problem_of(self.task, binding, self.tf32)
        return problem is not None and own.has(self._kernel(problem))

    def constants(self) -> list[np.ndarray]:
        """A constant second factor as ``[N, K]``, rows at multiples of 16 bytes."""
        if not is_packed(self.task):
            return []
        weights = filters(self.task)[0, 0].T
        columns, depth = weights.shape
        packed = np.zeros((columns, line_of(depth, self.anchor.inputs[1].dtype)), weights.dtype)
        packed[:, :depth] = weights
        return [packed]

    def launches(self, binding: Binding) -> list[Launch]:
        problem = self._problem(binding)
        left = problem.left if problem.left is not None else Constant(0)
        pointers = (left, problem.right, *problem.more, self.task.output, Workspace())
        return [Launch(self._kernel(problem), pointers)]

    def workspace(self, binding: Binding) -> int:
        assert self.machine.ordinal is not None, "tactics are run where they are offered"
        kernel = self._kernel(self._problem(binding))
        return workspace_bytes(kernel.load(gpu(self.machine.ordinal)).workspace)

    def _problem(self, binding: Binding) -> Problem:
        problem = problem_of(self.task, binding, self.tf32)
        assert problem is not None, "the tactic accepts the binding"
        return problem

    def _kernel(self, problem: Problem) -> ProductKernel:
        return ProductKernel(problem.product, self.version, self.settings)


@dataclass(frozen=True)
class CublasLtFamily(MachineFamily):
    """Matrix products by cuBLASLt, where it is installed."""

    name: ClassVar[str] = "cublaslt"
    tactic: ClassVar[type[Tactic]] = CublasLtTactic
    allowed: ClassVar[Allowed] = {
        "version": range(1 << 31),
        "tf32": FLAG,
        **dict.fromkeys(_SETTINGS, _ANY),
    }

    def understands(self, task: Task) -> bool:
        return understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for tf32 in (False, True):
            problem = problem_of(task, binding, tf32)
            own = _session(self.machine) if problem is not None else None
            if problem is None or own is None:
                continue
            for kernel in own.kernels(problem.product):
                yield CublasLtTactic(task, kernel.version, kernel.settings, tf32, self.machine)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        assert task.anchor is not None
        if values["tf32"] and task.anchor.inputs[0].dtype is not DType.FLOAT32:
            return "only float32 is rounded to TF32"
        return ""

    def make(self, task: Task, **values: Any) -> Tactic:
        settings = tuple(values.pop(name) for name in _SETTINGS)
        return super().make(task, settings=settings, **values)


def _session(machine: CudaMachine) -> CublasLtSession | None:
    """cuBLASLt on a machine; None where that is only described, or cuBLASLt is not installed."""
    return None if machine.ordinal is None else session(machine.ordinal)


FAMILIES = (CublasLtFamily(),)
