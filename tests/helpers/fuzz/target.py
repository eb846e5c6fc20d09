"""The CPU for fuzzing: kernels compiled in this process, tactics in random order, some tasks only.

Compiling costs far more than running such small graphs. So a target compiles kernels for a share of
the tasks, chosen by the seed, or takes only tactics whose kernels it has compiled before, and lets
the references run the others: every graph still goes through passes, fusion, views, memory planning
and the executor.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from helpers.tactics import assert_gaps_untouched
from planish.fusion.task import Task
from planish.targets.base import Binding, Kernel, Tactic
from planish.targets.cpu.codegen import compile as codegen
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.machine import Machine
from planish.targets.cpu.run import forget_kernels, load_kernels, run_tactic
from planish.targets.cpu.target import CpuTarget

KEPT = 20_000
"""Kernels kept in memory."""

MOST_RANGES = 100
"""Pieces, at most, that a tactic's tasks are run in, the last one first."""

FORGOTTEN = 5000
"""After so many tactics the kernels that they loaded are unloaded."""

Offer = tuple[Tactic, Binding]
"""A tactic, and the layouts it is to be tried at."""


def draw(text: str) -> float:
    """A number from 0 to 1 that looks random and is the same in every process."""
    return zlib.crc32(text.encode()) / 2**32


class MemoryCache:
    """Object code of kernels by symbol; what was not used for longest is forgotten."""

    def __init__(self) -> None:
        self._code: dict[str, bytes] = {}
        self.compiled = 0

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._code

    def get(self, symbol: str) -> bytes | None:
        code = self._code.pop(symbol, None)
        if code is not None:
            self._code[symbol] = code
        return code

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
    optimized : float
        The share of kernels, decided by their symbols, that LLVM compiles as it does for users. The
        others it compiles as written, without its passes, in a quarter of the time.
    known_only : bool
        Whether only tactics are offered whose kernels are compiled.
    """

    def __init__(self, machine: Machine | None = None, optimized: float = 1.0) -> None:
        super().__init__(machine)
        self.kernels = MemoryCache()
        self._cache = self.kernels  # type: ignore[assignment]
        self.share, self.seed, self.known_only = 1.0, 0, False
        self.optimized = optimized
        self._plain: Any = None
        self._tried = 0

    def prepare(
        self, kernels: Iterable[Kernel], progress: Callable[[int, int], None] | None = None
    ) -> None:
        for kernel in kernels:
            self.code(kernel)

    def code(self, kernel: Kernel) -> bytes:
        """A kernel's object code, compiled if there is none yet."""
        code = self.kernels.get(kernel.symbol)
        if code is None:
            code = self._compile(kernel)
            self.kernels.put(kernel.symbol, code)
        return code

    @property
    def compiled(self) -> int:
        """How many kernels were compiled so far."""
        return self.kernels.compiled

    def missing(self, tactic: Tactic, binding: Binding) -> set[str]:
        """The symbols of the kernels of a tactic that are not compiled yet."""
        kernels = (launch.kernel for launch in tactic.launches(binding))
        symbols = {k.symbol for k in kernels if isinstance(k, Kernel)}
        return {s for s in symbols if s not in self.kernels}

    def tactics(self, task: Task, binding: Binding) -> list[Tactic]:
        if draw(f"{self.seed} {task.key}") >= self.share:
            return []
        offered = super().tactics(task, binding)
        if self.known_only:
            offered = [t for t in offered if t.accepts(binding) and not self.missing(t, binding)]
        return sorted(offered, key=lambda t: draw(f"{self.seed} {task.key} {t}"))

    def _compile(self, kernel: Kernel) -> bytes:
        if draw(kernel.symbol) < self.optimized or not isinstance(kernel, CpuKernel):
            return kernel.compile(self.machine)
        llvm = codegen.binding()
        if self._plain is None:
            codegen.compile_assembly("", self.machine)  # LLVM knows the architecture then
            self._plain = llvm.Target.from_triple(self.machine.triple).create_target_machine(
                cpu="", features=",".join(self.machine.features), opt=0, codemodel="jitdefault"
            )
        module = llvm.parse_assembly(kernel.assembly(self.machine))
        module.verify()
        return self._plain.emit_object(module)

    # ---- tactics by themselves ------------------------------------------------------------

    @contextmanager
    def loaded(self, offers: Sequence[Offer]) -> Iterator[None]:
        """Kernels of tactics that are run meanwhile."""
        launches = [launch for t, binding in offers for launch in t.launches(binding)]
        kernels = [x.kernel for x in launches if isinstance(x.kernel, Kernel)]
        load_kernels(kernels, self.machine, self.code)
        yield
        self._tried += len(offers)
        if self._tried > FORGOTTEN:
            self._tried = 0
            forget_kernels()

    def run(
        self, tactic: Tactic, binding: Binding, arrays: Sequence[np.ndarray]
    ) -> list[list[np.ndarray]]:
        """What a tactic gives: at once, and with its tasks in other orders.

        The last third of the tasks comes first; threads may take them in any order.
        """
        pieces = min(max(x.tasks for x in tactic.launches(binding)), MOST_RANGES)
        at_once = run_tactic(tactic, binding, arrays, self.machine)
        for output in at_once:
            assert_gaps_untouched(output)
        return [
            at_once,
            *(run_tactic(tactic, binding, arrays, self.machine, ranges=n) for n in (1, pieces)),
        ]
