"""What a target runs: schedules, made ready as executables; and the memory that they work on.

A `Schedule` is a plan's launches for one set of concrete shapes, every pointer resolved to an
address. Tuning makes schedules of one launch or a few, engines those of whole networks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, LifoQueue
from typing import Any, Protocol

import numpy as np

from planish import native
from planish.targets.base import Launch, Layout

ABSOLUTE, ARENA, FIRST_INPUT = 0, 1, 2
"""Bases of an address: absolute, in the arena, in input 0; inputs are followed by outputs."""

ZEROED_BYTES = 1 << 22
"""So many bytes before an arena's first are `Zeroed` memory, on targets whose kernels use it."""


@dataclass(frozen=True)
class Address:
    """Where a pointer of a launch points: a base and bytes from its start."""

    base: int
    offset: int


@dataclass(frozen=True)
class Range:
    """Bytes from `begin` to `end` of a base, read or also written."""

    base: int
    begin: int
    end: int
    written: bool


@dataclass(frozen=True)
class ScheduledLaunch:
    """A launch with its pointers resolved.

    Attributes
    ----------
    launch : Launch
    addresses : tuple of Address
        Of each pointer.
    layouts : tuple
        The layout and dtype behind each pointer that is a value; host steps need it.
    touches : tuple of Range
        What is read or written through each pointer: launches that share nothing may overlap.
    label : str
        The layer's name, for profilers.
    """

    launch: Launch
    addresses: tuple[Address, ...]
    layouts: tuple[tuple[Layout, np.dtype] | None, ...]
    touches: tuple[Range, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Schedule:
    """Everything that runs for one set of concrete shapes, in order.

    Attributes
    ----------
    launches : tuple of ScheduledLaunch
    input_bytes, output_bytes : tuple of int
        The sizes of the inputs and outputs.
    arena_bytes : int
    keep : object
        Whatever owns the memory behind absolute addresses.
    """

    launches: tuple[ScheduledLaunch, ...]
    input_bytes: tuple[int, ...]
    output_bytes: tuple[int, ...]
    arena_bytes: int
    keep: object = None


class Executable(ABC):
    """A schedule made ready to run; immutable and thread-safe."""

    arena_bytes: int

    @abstractmethod
    def run(
        self,
        arena: Any,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int,
        profile: np.ndarray | None = None,
        stream: Any = None,
        local: bool = False,
    ) -> None:
        """Runs everything.

        Parameters
        ----------
        arena : object
            As `Target.arena` made it, of at least `arena_bytes`.
        inputs, outputs : sequence of int
            Addresses on the host, or where the target's arrays live.
        threads : int
            Most threads to use.
        profile : array, optional
            Receives start and end in nanoseconds of each launch, int64 ``[launches, 2]``.
        stream : object, optional
            As `Target.stream` made it: work is queued there and not waited for.
        local : bool
            Whether all addresses are known to be in memory of the target's own.
        """

    @property
    @abstractmethod
    def program(self) -> native.Program:
        """A program of the C runtime that runs everything, for callers in C."""

    @abstractmethod
    def measure(
        self,
        arena: Any,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int,
        repeats: int,
        touched: Sequence[native.Memory] = (),
    ) -> np.ndarray:
        """The seconds of each of `repeats` runs.

        `touched` is memory that is read before each one, for targets that say so
        (`planish.targets.target.Target.cached_bytes`).
        """


def host_program(
    executable: Executable, schedule: Schedule, new_arena: Callable[[], Any]
) -> native.Program:
    """A program whose one step is a call of `executable.run`: whoever executes it, on any thread,
    takes an arena that nobody uses. The program keeps the executable alive, which so must not
    keep its program.
    """
    count = len(schedule.input_bytes)
    values = count + len(schedule.output_bytes)
    free: LifoQueue[Any] = LifoQueue()

    def call(pointers: Any, _params: Any, _begin: int, _end: int) -> None:
        addresses = [pointers[i] or 0 for i in range(values)]
        try:
            arena = free.get_nowait()
        except Empty:
            arena = new_arena()
        executable.run(arena, addresses[:count], addresses[count:], 1)
        free.put(arena)

    kernel = native.HostKernel(call)
    given = [(FIRST_INPUT + i, 0) for i in range(values)]
    step = native.Step(kernel.address, 1, 1, given, (), native.HOST)
    return native.Program(
        [step], input_count=count, output_count=values - count, keep=(kernel, schedule)
    )


class Pool(Protocol):
    """Memory for constants."""

    def place(self, array: np.ndarray) -> tuple[int, object]:
        """The address of an array as kernels read it, and what keeps it alive."""


class TensorMemory(ABC):
    """The memory of one tensor on a target; for tuning, which compares what kernels write."""

    address: int
    nbytes: int

    @abstractmethod
    def write(self, array: np.ndarray) -> None:
        """Fills it with the elements of an array of its shape."""

    @abstractmethod
    def fill(self, period: np.ndarray) -> None:
        """Fills its memory, gaps between elements included, with those of a vector, again and
        again.
        """

    @abstractmethod
    def poison(self) -> None:
        """Fills it with what no kernel writes by chance (NaN)."""

    @abstractmethod
    def read(self, rows: np.ndarray | None = None) -> np.ndarray:
        """Its elements, to be used before the next call; of some rows of the first axis only, if
        they are given.
        """


class ForeignArray(Protocol):
    """An array in memory of the target's own, not of the host's."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def writeable(self) -> bool: ...

    def written_on(self, stream: Any) -> None:
        """Notes the stream, as `Target.stream` made it, on which what writes it is queued; None:
        it is written.
        """

    def numpy(self) -> np.ndarray:
        """A copy on the host."""
