"""What is offered for tasks: tactics, by kernel families. Every target's families are of this kind.

A `Tactic` is one way to run a `Task`: it names the kernels it needs, prepares constants (packed
weights), and for concrete shapes says which launches to make. A `Layout` tells where the elements
of a value lie: tactics take strides as they come, or refuse (`Tactic.accepts`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.targets.restoring import Allowed, checked_parameters, impossible

Result = TypeVar("Result")


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
    _derived: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def derived(self, make: Callable[[Task, Binding], Result], task: Task) -> Result:
        """``make(task, self)``, made once: every tactic of a task asks for the same."""
        key = make, task
        if key not in self._derived:
            self._derived[key] = make(task, self)
        return self._derived[key]

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
    is_of_library: ClassVar[bool] = False
    """Whether a vendor's library computes it: what it does wrong is not ours to mend."""
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
    def is_exact_to_the_level(self) -> bool:
        """Whether levels are those of the references, bit by bit: a library may round a product and
        a sum after it once, not twice, so that a few results that lie half-way go the other way.
        """
        return True

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

    Attributes
    ----------
    name : str
    pattern : str
        That of its tasks (`Task.pattern`); most have but one op to understand.
    tactic : type of Tactic
        What it offers.
    allowed : mapping
        The possible values of each parameter of its tactics.
    """

    name: ClassVar[str]
    pattern: ClassVar[str] = ""
    tactic: ClassVar[type[Tactic]]
    allowed: ClassVar[Allowed] = {}

    @property
    def machine(self) -> Any:
        """The machine that its tactics are for, where they depend on one."""
        raise NotImplementedError

    def on(self, machine: Any) -> Family:
        """The family for a machine: itself, unless its tactics depend on the machine."""
        return self

    @abstractmethod
    def understands(self, task: Task) -> bool:
        """Whether it has tactics for tasks of this kind, at some shapes and layouts."""

    def tactics(self, task: Task, binding: Binding) -> Iterator[Tactic]:
        """Tactics worth measuring for a task at these shapes, which accept them, the likely best
        first; none for a task of another kind.
        """
        if self.understands(task):
            yield from (t for t in self.offered(task, binding) if t.accepts(binding))

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        """Candidates for a task that it understands; where tactics have no parameters, the one."""
        yield self.make(task)

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        """The tactic with the given parameters, as a plan stored them.

        Raises
        ------
        PlanError
            The parameters are not valid for this task.
        """
        understood = self.understands(task)
        values = checked_parameters(self.name, task, parameters, understood, **self.allowed)
        if why := self.forbids(task, values):
            raise impossible(self.name, task, why)
        return self.make(task, **values)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        """Why parameters that are allowed one by one are not together; empty if they are."""
        return ""

    def make(self, task: Task, **values: Any) -> Tactic:
        """The tactic of these parameters, for the family's machine if it depends on one."""
        if any(field.name == "machine" for field in fields(self.tactic)):
            values["machine"] = self.machine
        return self.tactic(task, **values)
