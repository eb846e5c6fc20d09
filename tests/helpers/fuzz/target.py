"""The CPU for fuzzing: kernels compiled in this process, tactics in random order, some tasks only.

Compiling costs far more than running such small graphs. So a target compiles kernels for a share of
the tasks, chosen by the seed, and lets the references run the others: every graph still goes
through passes, fusion, views, memory planning and the executor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from planish.fusion.task import Task
from planish.targets.base import Binding, Kernel, Tactic
from planish.targets.cpu.machine import Machine
from planish.targets.cpu.target import CpuTarget

KEPT = 4000
"""Kernels kept in memory."""


class MemoryCache:
    """Object code of kernels by symbol, the oldest forgotten."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}
        self.compiled = 0

    def get(self, symbol: str) -> bytes | None:
        return self._code.get(symbol)

    def put(self, symbol: str, code: bytes) -> None:
        self.compiled += 1
        self._code[symbol] = code
        if len(self._code) > KEPT:
            del self._code[next(iter(self._code))]


class FuzzTarget(CpuTarget):
    """See above.

    Attributes
    ----------
    share : float
        The share of tasks that kernels run.
    seed : int
        Decides which, and which of their tactics comes first.
    """

    def __init__(self, machine: Machine | None = None) -> None:
        super().__init__(machine)
        self.kernels = MemoryCache()
        self._cache = self.kernels  # type: ignore[assignment]
        self.share, self.seed = 1.0, 0

    def prepare(
        self, kernels: Iterable[Kernel], progress: Callable[[int, int], None] | None = None
    ) -> None:
        for kernel in kernels:
            if self.kernels.get(kernel.symbol) is None:
                code = kernel.compile(self.machine)
                self.kernels.put(kernel.symbol, code)

    def tactics(self, task: Task, binding: Binding) -> list[Tactic]:
        if self._draw(f"{self.seed} {task.key}") >= self.share:
            return []
        offered = super().tactics(task, binding)
        return sorted(offered, key=lambda t: self._draw(f"{self.seed} {task.key} {t}"))

    @staticmethod
    def _draw(text: str) -> float:
        """A number from 0 to 1 that looks random and is the same in every process."""
        return zlib.crc32(text.encode()) / 2**32
