"""What the kernel families of GPUs have in common whose tactics depend on the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from planish.fusion.task import Task
from planish.targets.base import Binding, Family, Tactic
from planish.targets.cuda.machine import H200, CudaMachine


@dataclass(frozen=True)
class MachineFamily(Family):
    """A family for this or another machine."""

    machine: CudaMachine = H200

    def on(self, machine: CudaMachine) -> Family:
        return replace(self, machine=machine)


Offered = TypeVar("Offered", bound=Tactic)


def foremost(
    tactics: Iterable[Offered],
    binding: Binding,
    limit: int,
    each: int,
    kind: Callable[[Offered], Hashable],
) -> Iterator[Offered]:
    """The first of them that accept these shapes: so many in all, and `each` of a kind."""
    seen: Counter[Hashable] = Counter()
    for tactic in tactics:
        if seen.total() == limit:
            return
        if seen[kind(tactic)] < each and tactic.accepts(binding):
            seen[kind(tactic)] += 1
            yield tactic


@dataclass(frozen=True)
class HopperFamily(MachineFamily):
    """A family that uses what only GPUs of capability 9 have: tensor maps, wgmma."""

    def tactics(self, task: Task, binding: Binding) -> Iterator[Tactic]:
        if self.machine.capability[0] == 9:
            yield from super().tactics(task, binding)
