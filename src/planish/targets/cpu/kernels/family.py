"""What kernel families of CPUs have in common: tactics for a machine, or one tactic alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.targets.base import Binding, Family, Tactic
from planish.targets.cpu.machine import Machine, host
from planish.targets.restoring import checked_parameters


@dataclass(frozen=True)
class MachineFamily(Family):
    """A family for a machine: the one that this process runs on, unless another one is given."""

    given: Machine | None = None

    def on(self, machine: Machine) -> Family:
        return replace(self, given=machine)

    @property
    def machine(self) -> Machine:
        """The machine that its tactics are for."""
        return self.given or host()


class SoleFamily(Family):
    """A family of one tactic, which has no parameters."""

    tactic: ClassVar[type[Tactic]]

    @abstractmethod
    def understands(self, task: Task) -> bool:
        """Whether the tactic computes tasks of this kind."""

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if self.understands(task):
            yield self.tactic(task)

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        understood = self.understands(task)
        return self.tactic(task, **checked_parameters(self.name, task, parameters, understood))
