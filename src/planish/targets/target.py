"""A machine that runs plans. The rest of Planish knows machines only through `Target`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.errors import PlanError
from planish.fusion.task import Task
from planish.targets.base import Binding, Family, Kernel, Layout, Tactic
from planish.targets.execution import Executable, ForeignArray, Pool, Schedule, TensorMemory


@dataclass(frozen=True)
class Rates:
    """What a machine can do, roughly: operations and bytes a second; seconds to start a kernel."""

    operations: float
    bytes: float
    start: float


class Target(ABC):
    """A machine that runs plans."""

    rates: ClassVar[Rates] = Rates(100e9, 10e9, 1.5e-6)  # a few cores
    """By which tasks are guessed that were not measured yet."""

    device: str
    has_streams: ClassVar[bool] = False
    has_own_memory: ClassVar[bool] = False
    """Whether arrays live elsewhere than on the host: see `new_array`."""
    timing_key: str
    """What measured times depend on: the machine and the version of its kernels."""
    threads: int
    """Threads an execution uses unless told otherwise."""
    precisions: frozenset[str] = frozenset({"fp32"})
    """What it has kernels for, of `planish.precision.permissions.PRECISIONS`."""

    symmetric_levels: ClassVar[bool] = False
    """Whether its products of bytes want signed ones whose level 0 stands for 0; otherwise they
    take unsigned ones with any zero point.
    """

    adds_short: bool = False
    """Whether its products of bytes are faster where weights side by side are so small that sums of
    some products fit 16 bits.
    """

    attends_to_levels: bool = False
    """Whether it has kernels of attention that multiply bytes."""

    @abstractmethod
    def families(self) -> Sequence[Family]:
        """The kernel families, in the order their tactics are offered."""

    cached_bytes: int = 0
    """How much its caches hold, all together, of a network that runs again and again. Where one is
    larger, tactics are measured with their operands in memory; 0: always as they are.
    """
    tactics_per_task: ClassVar[int] = 12
    """At most so many tactics of a task are measured."""
    ceiling_sizes: ClassVar[tuple[int, int]] = (1024, 1 << 26)
    """Rows of the matrix product and elements of the tensor by which it is measured what the
    machine can reach.
    """
    compilers_beside: int = 0
    """So many kernels may be compiled on the host while others are measured; 0: none."""

    def compiling(self) -> AbstractContextManager[None]:
        """While it lasts, what `prepare` compiles with is kept at hand."""
        return nullcontext()

    @abstractmethod
    def prepare(
        self, kernels: Iterable[Kernel], progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Makes sure that kernels are compiled, several at a time."""

    @abstractmethod
    def executable(self, schedule: Schedule) -> Executable:
        """Makes a schedule ready to run; compiles what is not yet compiled."""

    def matrix_units(
        self, tactic: Tactic, binding: Binding, permitted: Collection[str]
    ) -> tuple[bool | None, str]:
        """Whether a tactic's kernels use units that multiply matrices (tensor cores), and the
        reason if not; None where the machine has none that they could use.
        """
        return None, ""

    code_key: str = ""
    """What the code in plans depends on: the kind of machine, the version of the generators. Empty
    where plans hold none, because the machine that runs them compiles at once.
    """

    def device_code(self, kernels: Iterable[Kernel]) -> dict[str, bytes]:
        """What it takes to run kernels without a compiler, by name; only where there is a
        `code_key`.
        """
        raise NotImplementedError

    def with_code(self, code: Mapping[str, bytes]) -> Target:
        """This target, running the code that a plan holds in place of what it would compile.

        Raises
        ------
        PlanError
            The code is damaged.
        """
        raise NotImplementedError

    @abstractmethod
    def arena(self, size: int) -> Any:
        """Memory for intermediate values."""

    @abstractmethod
    def constant_pool(self) -> Pool:
        """Memory for the constants of one engine."""

    @abstractmethod
    def tensor(self, layout: Layout, dtype: np.dtype) -> TensorMemory:
        """Memory for a tensor of that layout, aligned as the layout says and no better."""

    def foreign_array(self, given: Any, stream: Any = None) -> ForeignArray | None:
        """What a caller passes as an array of the target's own memory; None for anything else.

        It may be used on `stream` then, or right now where that is None: whatever writes it is
        waited for.
        """
        return None

    def new_array(self, shape: Sequence[int], dtype: np.dtype) -> ForeignArray:
        """An array in the target's own memory; only where `has_own_memory`."""
        raise NotImplementedError

    def write_array(self, target: ForeignArray, array: np.ndarray) -> None:
        """Copies a dense array on the host into one of the target's own."""
        raise NotImplementedError

    def stream(self, given: Any) -> Any:
        """A caller's stream, as `Executable.run` takes it; only where `has_streams`."""
        raise NotImplementedError

    def tactics(self, task: Task, binding: Binding) -> list[Tactic]:
        """All tactics offered for a task at these shapes, the likely best of each family first.

        None where a tensor is empty: kernels need not know of empty tensors.
        """
        if binding.has_empty(task):
            return []
        families = (f for f in self.families() if f.pattern == task.pattern)
        return [t for family in families for t in family.tactics(task, binding)]

    def restore(self, task: Task, family: str, parameters: Mapping[str, Any]) -> Tactic:
        """A tactic as a plan stored it.

        Raises
        ------
        PlanError
            There is no such family for tasks of that kind, or the parameters are invalid.
        """
        for candidate in self.families():
            if candidate.name == family and candidate.pattern == task.pattern:
                return candidate.restore(task, parameters)
        raise PlanError(
            f"The plan uses kernels of the family {family!r}, which {self.device} does not have",
            where=task.name,
            why="another version of Planish wrote it, or it is damaged",
            cure="load it with retune=True",
        )
