"""What a target offers: tactics for tasks. The rest of Planish knows targets only through this.

A `Tactic` is one way to run a `Task`: it names the kernels it needs, prepares constants (packed
weights), and for concrete shapes says which launches to make. A `Layout` tells where the elements
of a value lie: tactics take strides as they come, or refuse (`Tactic.accepts`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np

from planish import native
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph.graph import Value


class Kernel(ABC):
    """Generated code, as a frozen dataclass of what it is specialised on.

    Equal kernels are the same code. The symbol is a hash of the family and the fields, so that it
    is the same in every process.
    """

    family: ClassVar[str]

    @cached_property
    def symbol(self) -> str:
        """The kernel's name in object files and caches."""
        digest = hashlib.sha256(f"{self.family} {self!r}".encode()).hexdigest()
        return f"{self.family}_{digest[:20]}"

    @abstractmethod
    def compile(self, machine: Any) -> bytes:
        """The kernel's machine code, as the target loads it.

        Raises
        ------
        TuningError
            It does not compile.
        """


@dataclass(frozen=True)
class Constant:
    """A pointer to the tactic's constant of that number (see `Tactic.constants`)."""

    index: int


@dataclass(frozen=True)
class Workspace:
    """A pointer into memory that only this task uses while it runs, at that many bytes."""

    offset: int = 0


@dataclass(frozen=True)
class Zeroed:
    """A pointer into memory of the context that is zero when a task starts, and that it leaves
    zero: counters by which blocks of a launch meet. At that many bytes of the task's own.
    """

    offset: int = 0


Pointer = Value | Constant | Workspace | Zeroed


@dataclass(frozen=True)
class Launch:
    """One kernel launch for concrete shapes.

    Attributes
    ----------
    kernel : Kernel or callable
        A callable is a host step: it is given the arrays behind the pointers (all values) and
        fills those of outputs.
    pointers : tuple
        Values, constants, workspace and zeroed memory, in the order the kernel takes them.
    params : tuple of int
        The kernel's integer parameters.
    tasks : int
        How many independent pieces of work there are: the kernel runs any range of them, on a GPU
        one in each block.
    grain : int
        How many of them a thread of a CPU takes at a time.
    scratch : int
        Bytes of memory of its own that each thread of a CPU needs.
    """

    kernel: Kernel | Callable[..., None]
    pointers: tuple[Pointer, ...]
    params: tuple[int, ...] = ()
    tasks: int = 1
    grain: int = 1
    scratch: int = 0


@dataclass(frozen=True)
class Layout:
    """Where the elements of a value lie for concrete shapes: strides in elements per axis.

    `alignment` is a power of two, at most 64, that divides the address of the first one.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    alignment: int = 64

    @property
    def is_dense(self) -> bool:
        """Whether the elements lie as in a new NumPy array."""
        return all(
            s == d or n == 1
            for n, s, d in zip(self.shape, self.strides, dense_strides(self.shape), strict=True)
        )


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides, in elements, of a new array of that shape."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


@dataclass(frozen=True)
class Binding:
    """Concrete shapes: the values of all symbols, and the layout of every value of a task."""

    symbols: Mapping[str, int]
    layouts: Mapping[Value, Layout] = field(default_factory=dict)

    def layout(self, value: Value) -> Layout:
        """The layout of a value; dense unless stated."""
        known = self.layouts.get(value)
        if known is None:
            shape = value.type.bind(self.symbols)
            known = Layout(shape, dense_strides(shape))
        return known

    def shape(self, value: Value) -> tuple[int, ...]:
        """The concrete shape of a value."""
        return self.layout(value).shape

    def strides(self, value: Value) -> tuple[int, ...]:
        """The strides of a value in elements."""
        return self.layout(value).strides

    def has_empty(self, task: Task) -> bool:
        """Whether a tensor that the task reads or writes has no elements."""
        return any(d <= 0 for v in (*task.inputs, *task.outputs) for d in self.shape(v))


@dataclass(frozen=True, eq=False)  # which tactics are equal, each class says itself
class Tactic(ABC):
    """One way to run a task: a frozen dataclass whose fields are `task`, its parameters, and
    `machine` where it depends on that.
    """

    family: ClassVar[str]
    task: Task

    @property
    def precision(self) -> str:
        """The precision it computes in: that of the task's dtypes.

        A tactic that rounds more than the dtypes say overrides this ("tf32"), and is offered only
        where that is permitted.
        """
        return self.task.precision

    def is_permitted(self, precisions: Collection[str]) -> bool:
        """Whether it may run where these precisions are permitted: dtypes are permission enough."""
        return self.precision == self.task.precision or self.precision in precisions

    @property
    def extra_seconds(self) -> float:
        """What it costs a network beside its own time, as measured alone."""
        return 0.0

    @property
    def parameters(self) -> dict[str, Any]:
        """What a plan stores, as JSON can hold it; the family makes the same tactic of it again."""
        names = (f.name for f in fields(self))
        return {name: getattr(self, name) for name in names if name not in ("task", "machine")}

    def constants(self) -> list[np.ndarray]:
        """Arrays derived from the task's constants (packed weights); made once per engine."""
        return []

    def accepts(self, binding: Binding) -> bool:
        """Whether the tactic can run for these shapes and layouts."""
        return True

    @abstractmethod
    def launches(self, binding: Binding) -> list[Launch]:
        """The launches for these shapes and layouts."""

    def workspace(self, binding: Binding) -> int:
        """Bytes of workspace between the launches."""
        return 0

    def zeroed(self, binding: Binding) -> int:
        """Bytes of `Zeroed` memory."""
        return 0

    def __str__(self) -> str:
        shown = ", ".join(f"{k}={v}" for k, v in self.parameters.items())
        return f"{self.family}({shown})"


class Family(ABC):
    """A kernel family: offers tactics for the tasks it understands. One family, one file.

    `pattern` is that of its tasks (`Task.pattern`); most have but one op to understand.
    """

    name: ClassVar[str]
    pattern: ClassVar[str] = ""

    def on(self, machine: Any) -> Family:
        """The family for a machine: itself, unless its tactics depend on the machine."""
        return self

    @abstractmethod
    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        """Tactics worth measuring for a task at these shapes, the likely best first; none for a
        task of another kind.
        """

    @abstractmethod
    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        """The tactic with the given parameters, as a plan stored them.

        Raises
        ------
        PlanError
            The parameters are not valid for this task.
        """


# ---- execution -----------------------------------------------------------------------------

ABSOLUTE, ARENA, FIRST_INPUT = 0, 1, 2
"""Bases of an address: absolute, in the arena, in input 0; inputs are followed by outputs."""

ZEROED_BYTES = 1 << 18
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
        self, arena: Any, inputs: Sequence[int], outputs: Sequence[int], threads: int, repeats: int
    ) -> np.ndarray:
        """The seconds of each of `repeats` runs."""


class Pool(Protocol):
    """Memory for constants."""

    def place(self, array: np.ndarray) -> tuple[int, object]:
        """The address of an array as kernels read it, and what keeps it alive."""


class TensorMemory(ABC):
    """The memory of one tensor on a target; for tuning, which compares what kernels write."""

    address: int

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


class Target(ABC):
    """A machine that runs plans."""

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

    @abstractmethod
    def families(self) -> Sequence[Family]:
        """The kernel families, in the order their tactics are offered."""

    tactics_per_task: ClassVar[int] = 12
    """At most so many tactics of a task are measured."""
    ceiling_sizes: ClassVar[tuple[int, int]] = (1024, 1 << 26)
    """Rows of the matrix product and elements of the tensor by which it is measured what the
    machine can reach.
    """
    compilers_beside: int = 0
    """So many kernels may be compiled on the host while others are measured; 0: none."""

    @contextmanager
    def compiling(self) -> Iterator[None]:
        """While it lasts, what `prepare` compiles with is kept at hand."""
        yield

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
