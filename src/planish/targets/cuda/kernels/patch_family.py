"""What the families of sliding windows that mix no channels have in common; see `patches`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.targets.base import Binding, Tactic
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.patch_cost import likely_parameters
from planish.targets.cuda.kernels.patches import RANGES, PatchTactic, Windows
from planish.targets.restoring import Allowed


@dataclass(frozen=True)
class PatchFamily(MachineFamily):
    """Offers a `PatchTactic` with the likeliest tiles.

    Attributes
    ----------
    tactic : type of PatchTactic
    most : int
        Tactics offered.
    """

    tactic: ClassVar[type[PatchTactic]]
    allowed: ClassVar[Allowed] = RANGES
    most: ClassVar[int]

    @abstractmethod
    def windows(self, task: Task, binding: Binding) -> Windows:
        """The windows of a task that it understands."""

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        batch, *_, channels = task.output.type.bind(binding.symbols)
        size = task.inputs[0].dtype.size
        windows = self.windows(task, binding)
        most = self.most if size > 1 else 2 * self.most  # bytes differ by more
        likely = likely_parameters(windows, batch, channels, size, self.machine, most)
        for parameters in likely:
            yield self.tactic(task, *parameters)
