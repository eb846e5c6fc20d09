"""What the kernel families of CPUs have in common whose tactics depend on the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planish.targets.base import Family
from planish.targets.cpu.machine import Machine, host


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
