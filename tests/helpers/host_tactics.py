"""Kernel families made of host steps, for tests of tuning: right, wrong, slow, or failing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.errors import DeviceLostError, TuningError
from planish.fusion.task import Task
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.target import CpuTarget
from planish.targets.reference import ReferenceTactic


@dataclass(frozen=True, eq=False)
class HostTactic(Tactic):
    """Computes the references, with a difference.

    `kind` is "right", "wrong" (one element is off), "idle" (writes nothing), "failing" (cannot be
    compiled), "fatal" (the device is lost); `delay` is in milliseconds; `room` is its workspace.
    """

    family: ClassVar[str] = "host"
    kind: str = "right"
    delay: float = 0.0
    room: int = 0

    def workspace(self, binding: Binding) -> int:
        return self.room

    def launches(self, binding: Binding) -> list[Launch]:
        (launch,) = ReferenceTactic(self.task).launches(binding)
        compute = launch.kernel

        def run(*arrays: np.ndarray) -> None:
            time.sleep(self.delay / 1e3)
            if self.kind == "idle":
                return
            if self.kind == "fatal":
                raise DeviceLostError("A kernel failed", where="here", why="it does", cure="none")
            compute(*arrays)
            if self.kind == "wrong":
                result = arrays[-1]
                result[(-1,) * result.ndim] += 1

        if self.kind == "failing":
            raise TuningError("It cannot be compiled")
        return [Launch(run, launch.pointers)]


class HostFamily(Family):
    """Offers the given variants for every task."""

    name: ClassVar[str] = "host"
    tactic: ClassVar[type[Tactic]] = HostTactic

    def __init__(self, variants: Sequence[Mapping[str, Any]]) -> None:
        self._variants = variants

    def understands(self, task: Task) -> bool:
        return True

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        return (HostTactic(task, **v) for v in self._variants)

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        return HostTactic(task, **parameters)


class HostTarget(CpuTarget):
    """The CPU with these variants instead of its kernels."""

    def __init__(self, *variants: Mapping[str, Any]) -> None:
        super().__init__()
        self._family = HostFamily(variants)

    def families(self) -> Sequence[Family]:
        return [self._family]
