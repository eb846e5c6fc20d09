"""From a plan and concrete shapes to a schedule: tactics chosen, memory planned, addresses set."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish import native
from planish.errors import DeviceError
from planish.graph.dims import evaluate
from planish.graph.dims import symbols as symbols_of
from planish.graph.graph import LARGEST, Value
from planish.graph.sizes import check_sizes
from planish.plan.memory import ALIGNMENT, Lifetime, largest_live_set, plan_arena
from planish.plan.plan import Plan
from planish.targets.base import Binding, Constant, Launch, Layout, Pointer, Tactic, Workspace
from planish.targets.execution import (
    ABSOLUTE,
    ARENA,
    FIRST_INPUT,
    ZEROED_BYTES,
    Address,
    Executable,
    Range,
    Schedule,
    ScheduledLaunch,
)
from planish.targets.target import Target


class ConstantStore:
    """Constants as kernels read them, made once per engine and shared by all its programs.

    Thread-safe: several shapes may be bound at the same time.
    """

    def __init__(self, target: Target) -> None:
        self.renew_locks()
        native.renew_after_fork(self)
        self._pool = target.constant_pool()
        self._values: dict[Value, tuple[int, object]] = {}
        self._tactics: dict[tuple[str, str], list[tuple[int, object, int]]] = {}
        self.bytes = 0
        """Bytes of derived constants (packed weights)."""

    def renew_locks(self) -> None:
        """See `planish.native.renew_after_fork`."""
        self._lock = threading.Lock()

    def value(self, value: Value) -> int:
        """The address of a constant of the graph."""
        with self._lock:
            if value not in self._values:
                assert value.data is not None
                self._values[value] = self._pool.place(np.ascontiguousarray(value.data))
            return self._values[value][0]

    def of(self, tactic: Tactic) -> list[tuple[int, int]]:
        """The addresses of a tactic's own constants, and their bytes."""
        key = (tactic.task.name, str(tactic))
        with self._lock:
            if key not in self._tactics:
                arrays = tactic.constants()
                placed = [(self._pool.place(c), c.nbytes) for c in arrays]
                self._tactics[key] = [(*place, nbytes) for place, nbytes in placed]
                self.bytes += sum(c.nbytes for c in arrays)
            return [(address, nbytes) for address, _, nbytes in self._tactics[key]]


@dataclass(frozen=True)
class BoundPlan:
    """A stage of a plan for concrete shapes, ready to run.

    Attributes
    ----------
    executable : Executable
    output_shapes : tuple
        The shapes of what the stage writes of `planish.plan.stages.Stages.kept`: of a plan of one
        stage, of the outputs.
    tactics : tuple of Tactic
        The tactic of each of its steps.
    launch_steps : tuple of int
        For each launch the index of its step.
    arena_bytes, live_bytes : int
        The arena, and the largest live set: its lower bound.
    """

    executable: Executable
    output_shapes: tuple[tuple[int, ...], ...]
    tactics: tuple[Tactic, ...]
    launch_steps: tuple[int, ...]
    arena_bytes: int
    live_bytes: int


def bind(
    plan: Plan,
    symbols: Mapping[str, int],
    target: Target,
    constants: ConstantStore,
    stage: int = 0,
) -> BoundPlan:
    """Makes a stage of a plan ready to run for concrete sizes of its dimensions."""
    part, kept = plan.stages.parts[stage], plan.stages.kept
    check_sizes(plan.graph, symbols)
    tactics: list[Tactic] = []
    launches: list[tuple[int, Tactic, Launch, Binding]] = []
    workspaces: list[int] = []
    zeroed: list[int] = []
    for index in part.steps:
        step = plan.steps[index]
        binding = plan.binding(symbols, step.task)
        tactic = step.tactic(binding, target)
        tactics.append(tactic)
        workspaces.append(tactic.workspace(binding))
        zeroed.append(tactic.zeroed(binding))
        launches += [(index, tactic, launch, binding) for launch in tactic.launches(binding)]

    memory = _Memory(plan, symbols, part.steps, workspaces, zeroed, constants)
    if memory.size > LARGEST:
        raise DeviceError(
            f"Intermediate results need {memory.size:,} bytes",
            where=", ".join(f"{name} = {size}" for name, size in sorted(symbols.items())),
            why="no machine can address that much",
            cure="use smaller inputs, or a smaller batch",
        )
    scheduled = []
    for index, tactic, launch, binding in launches:
        addresses: list[Address] = []
        layouts: list[tuple[Layout, np.dtype] | None] = []
        touches: list[Range] = []
        for pointer in launch.pointers:
            layout, size = None, 0
            if isinstance(pointer, Value):
                addresses.append(memory.address(pointer))
                layout = binding.layout(pointer)
                layouts.append((layout, pointer.dtype.numpy))
            else:
                if isinstance(pointer, Constant):
                    start, size = constants.of(tactic)[pointer.index]
                    addresses.append(Address(ABSOLUTE, start))
                elif isinstance(pointer, Workspace):
                    addresses.append(memory.workspace(index, pointer.offset))
                else:
                    addresses.append(memory.zeroed(index, pointer.offset))
                layouts.append(None)
            room = memory.room(index)
            touches.append(_touched(pointer, addresses[-1], layout, tactic, room, size))
        where = tuple(addresses), tuple(layouts), tuple(touches)
        scheduled.append(ScheduledLaunch(launch, *where, tactic.task.name))
    schedule = Schedule(
        tuple(scheduled),
        tuple(_bytes(v, symbols) for v in plan.graph.inputs),
        tuple(_bytes(v, symbols) for v in kept),
        memory.size,
        keep=constants,
    )
    return BoundPlan(
        target.executable(schedule),
        tuple(kept[i].type.bind(symbols) for i in part.writes),
        tuple(tactics),
        tuple(index for index, *_ in launches),
        memory.size,
        memory.live,
    )


def _bytes(value: Value, symbols: Mapping[str, int]) -> int:
    """The size of an input or output; 0 for what only a later stage knows, and writes."""
    if not symbols_of(value.type.elements) <= symbols.keys():
        return 0
    return int(evaluate(value.type.elements, symbols)) * value.dtype.size


def _touched(
    pointer: Pointer,
    address: Address,
    layout: Layout | None,
    tactic: Tactic,
    room: tuple[int, int],
    size: int,
) -> Range:
    """The bytes that a launch may touch through a pointer; `room` is that of its step's workspace
    and zeroed memory, `size` that of a tactic's constant.
    """
    if isinstance(pointer, Constant):
        return Range(ABSOLUTE, address.offset, address.offset + size, False)
    if layout is None:
        workspace, zeroed = room
        whole = workspace if isinstance(pointer, Workspace) else zeroed
        start = address.offset - pointer.offset  # type: ignore[union-attr]
        return Range(address.base, start, start + whole, True)
    assert isinstance(pointer, Value)
    strides = [s * (n - 1) for s, n in zip(layout.strides, layout.shape, strict=True)]
    before = sum(s for s in strides if s < 0)
    after = sum(s for s in strides if s > 0) + 1
    size = pointer.dtype.size
    written = pointer in tactic.task.outputs
    begin, end = address.offset + before * size, address.offset + after * size
    return Range(address.base, begin, begin if 0 in layout.shape else end, written)


class _Memory:
    """Addresses of values, workspaces and zeroed memory for one set of shapes."""

    def __init__(
        self,
        plan: Plan,
        symbols: Mapping[str, int],
        steps: Sequence[int],
        workspaces: list[int],
        zeroed: list[int],
        constants: ConstantStore,
    ) -> None:
        graph = plan.graph
        self._symbols = symbols
        self._placements = plan.placements.of
        self._constants = constants
        self._outside = {v: FIRST_INPUT + i for i, v in enumerate(graph.inputs)}
        first_output = FIRST_INPUT + len(graph.inputs)
        self._outside.update({v: first_output + i for i, v in enumerate(plan.stages.kept)})
        lives: dict[Value, list[int]] = {}
        for index in steps:
            task = plan.steps[index].task
            for value in (*task.inputs, *task.outputs):
                root = self._placements[value].root
                if root in self._outside or root.is_constant:
                    continue
                life = lives.setdefault(root, [index, index])
                life[1] = index
        tensors = [
            Lifetime(int(evaluate(root.type.elements, symbols)) * root.dtype.size, *life)
            for root, life in lives.items()
        ]
        used = [(i, size) for i, size in zip(steps, workspaces, strict=True) if size]
        tensors += [Lifetime(size, i, i) for i, size in used]
        arena = plan_arena(tensors)
        self.size, self.live = arena.size, largest_live_set(tensors)
        self._roots = dict(zip(lives, arena.offsets, strict=False))
        self._workspaces = dict(zip((i for i, _ in used), arena.offsets[len(lives) :], strict=True))
        self._room = dict(zip(steps, zip(workspaces, zeroed, strict=True), strict=True))
        self._zeroed: dict[int, int] = {}
        free = 0
        for index, size in zip(steps, zeroed, strict=True):
            if free + size > ZEROED_BYTES:  # shared with an earlier step: one waits for the other
                free = 0
            self._zeroed[index] = free - ZEROED_BYTES
            free += -(-size // ALIGNMENT) * ALIGNMENT

    def address(self, value: Value) -> Address:
        place = self._placements[value]
        shift = int(evaluate(place.offset, self._symbols)) * value.dtype.size
        if place.root.is_constant:
            return Address(ABSOLUTE, self._constants.value(place.root) + shift)
        if place.root in self._outside:
            return Address(self._outside[place.root], shift)
        return Address(ARENA, self._roots[place.root] + shift)

    def workspace(self, step: int, offset: int) -> Address:
        return Address(ARENA, self._workspaces.get(step, 0) + offset)

    def zeroed(self, step: int, offset: int) -> Address:
        return Address(ARENA, self._zeroed[step] + offset)

    def room(self, step: int) -> tuple[int, int]:
        """Bytes of a step's workspace and of its zeroed memory."""
        return self._room[step]
