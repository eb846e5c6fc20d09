"""A GPU for fuzzing: tactics in random order, run in interpreters; see `FuzzTarget`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from helpers.fuzz.target import Offer, draw
from helpers.interpreted_target import InterpretedTarget
from planish.fusion.task import Task
from planish.targets.base import Binding, Tactic
from planish.targets.cuda.run import run_tactic


class CudaFuzzTarget(InterpretedTarget):
    """Tactics of a described GPU that round no more than dtypes say. Nothing is compiled."""

    compiled = 0

    def __init__(self) -> None:
        super().__init__()
        self.share, self.seed, self.known_only = 1.0, 0, False

    def tactics(self, task: Task, binding: Binding) -> list[Tactic]:
        offered = [t for t in super().tactics(task, binding) if t.precision == task.precision]
        return sorted(offered, key=lambda t: draw(f"{self.seed} {task.key} {t}"))

    def missing(self, tactic: Tactic, binding: Binding) -> set[str]:
        """Nothing has to be compiled."""
        return set()

    def loaded(self, offers: Sequence[Offer]) -> AbstractContextManager[None]:
        """Kernels of tactics that are run meanwhile."""
        return nullcontext()

    def run(
        self, tactic: Tactic, binding: Binding, arrays: Sequence[np.ndarray]
    ) -> list[list[np.ndarray]]:
        """What a tactic gives; programs are always run in one order."""
        return [run_tactic(tactic, binding, arrays)]
