"""What the kernel families of GPUs have in common whose tactics depend on the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planish.targets.base import Family
from planish.targets.cuda.machine import H200, CudaMachine


@dataclass(frozen=True)
class MachineFamily(Family):
    """A family for this or another machine."""

    machine: CudaMachine = H200

    def on(self, machine: CudaMachine) -> Family:
        return replace(self, machine=machine)
