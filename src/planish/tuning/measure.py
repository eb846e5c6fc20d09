"""Measures tactics on this machine, each checked against the reference before it may win."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.graph.interpret import bind
from planish.targets.base import (
    ABSOLUTE,
    ARENA,
    ZEROED_BYTES,
    Address,
    Binding,
    Constant,
    Executable,
    Kernel,
    Layout,
    Range,
    Schedule,
    ScheduledLaunch,
    Tactic,
    Target,
    TensorMemory,
    Workspace,
)

log = logging.getLogger("planish")

TOLERANCE = 1e-4
"""Largest error of a float32 result, as a share of the result's largest magnitude."""

SECONDS_EACH = 0.006
"""Time given to the repeats of one tactic."""


HOPELESS = 4.0
"""A tactic whose first two runs both take so many times the best is not measured further."""


@dataclass(frozen=True)
class Measurement:
    """What came of measuring a tactic: its time; None if it did not run, or gave a wrong result."""

    seconds: float | None
    wrong: str = ""


class Bench:
    """Inputs, reference result and memory for the tactics of one task at one binding."""

    def __init__(self, task: Task, binding: Binding, target: Target, threads: int) -> None:
        self._task, self._binding, self._target = task, binding, target
        self._threads = threads
        random = np.random.default_rng(0)
        self._arrays = [_sample(v, binding, random) for v in task.inputs]
        self._inputs = [self._tensor(v) for v in task.inputs]
        for tensor, array in zip(self._inputs, self._arrays, strict=True):
            tensor.write(array)
        self._outputs = [self._tensor(v) for v in task.outputs]
        self._expected: list[np.ndarray] | None = None

    def _tensor(self, value: Value) -> TensorMemory:
        return self._target.tensor(self._binding.layout(value), value.dtype.numpy)

    def expected(self) -> list[np.ndarray]:
        """The outputs by the references."""
        if self._expected is None:
            known = dict(zip(self._task.inputs, self._arrays, strict=True))
            for node in self._task.nodes:
                op = bind(node.op, self._binding.symbols)
                values = [known.get(v, v.data) for v in node.inputs]
                known.update(zip(node.outputs, op.reference(*values), strict=True))  # type: ignore[arg-type]
            self._expected = [known[v] for v in self._task.outputs]
        return self._expected

    def measure(self, tactic: Tactic, best: float = float("inf")) -> Measurement:
        """Runs a tactic, compares its outputs, times it; stops early if it is far from `best`."""
        with self._program(tactic) as (executable, arena):
            for tensor in self._outputs:
                tensor.poison()
            first = float(executable.measure(arena, (), (), self._threads, 1)[0])
            wrong = _difference([t.read() for t in self._outputs], self.expected())
            if wrong:
                log.warning("tactic %s of %s is wrong: %s", tactic, self._task.name, wrong)
                return Measurement(None, wrong)
            once = min(first, float(executable.measure(arena, (), (), self._threads, 1)[0]))
            if once > HOPELESS * best and once > 1e-4:
                return Measurement(once)
            repeats = int(min(max(SECONDS_EACH / max(once, 1e-7), 5), 2000))
            times = executable.measure(arena, (), (), self._threads, repeats)
            # the least: what disturbs a measurement only ever adds to it
            return Measurement(float(times.min()))

    @contextmanager
    def _program(self, tactic: Tactic) -> Iterator[tuple[Executable, Any]]:
        task, binding, target = self._task, self._binding, self._target
        keep: list[object] = []
        pool = target.constant_pool()

        def constant(array: np.ndarray) -> int:
            address, owner = pool.place(array)
            keep.append(owner)
            return address

        own = [constant(c) for c in tactic.constants()]
        where = {
            value: tensor.address
            for value, tensor in zip(
                (*task.inputs, *task.outputs), (*self._inputs, *self._outputs), strict=True
            )
        }
        size = tactic.workspace(binding)
        scheduled = []
        for launch in tactic.launches(binding):
            addresses: list[Address] = []
            layouts: list[tuple[Layout, np.dtype] | None] = []
            touches: list[Range] = []
            for pointer in launch.pointers:
                layouts.append(None)
                if isinstance(pointer, Value):
                    address = Address(ABSOLUTE, where[pointer])
                    layouts[-1] = (binding.layout(pointer), pointer.dtype.numpy)
                elif isinstance(pointer, Constant):
                    address = Address(ABSOLUTE, own[pointer.index])
                elif isinstance(pointer, Workspace):
                    address = Address(ARENA, pointer.offset)
                else:
                    address = Address(ARENA, pointer.offset - ZEROED_BYTES)
                addresses.append(address)
                # one launch after the other, as if every one wrote the same byte
                touches.append(Range(ARENA, 0, 1, pointer not in task.inputs))
            scheduled.append(
                ScheduledLaunch(launch, tuple(addresses), tuple(layouts), tuple(touches))
            )
        schedule = Schedule(tuple(scheduled), (), (), size, keep=(keep, self))
        yield target.executable(schedule), target.arena(size)


def kernels_of(tactic: Tactic, binding: Binding) -> list[Kernel]:
    """The generated kernels a tactic needs."""
    return [
        launch.kernel for launch in tactic.launches(binding) if isinstance(launch.kernel, Kernel)
    ]


def _sample(value: Value, binding: Binding, random: np.random.Generator) -> np.ndarray:
    """Data for an input: the constant itself, or random values that suit any op."""
    if value.data is not None:
        return value.data
    shape = binding.shape(value)
    if value.dtype.is_float:
        return random.standard_normal(shape).astype(value.dtype.numpy)
    return random.integers(0, 2, shape).astype(value.dtype.numpy)


def _difference(outputs: list[np.ndarray], expected: list[np.ndarray]) -> str:
    """What is wrong with outputs; empty if nothing is."""
    for i, (have, want) in enumerate(zip(outputs, expected, strict=True)):
        if have.dtype.kind not in "fV":
            if not np.array_equal(have, want):
                share = float(np.mean(have != want))
                return f"output {i} differs in {share:.1%} of its elements"
            continue
        tolerance = TOLERANCE if have.dtype.itemsize >= 4 else 2e-2
        a, b = have.astype(np.float64), want.astype(np.float64)
        with np.errstate(all="ignore"):
            agree = (a == b) | (np.isnan(a) & np.isnan(b))
            error = np.where(agree, 0.0, np.abs(a - b))
        finite = np.abs(b[np.isfinite(b)])
        scale = float(finite.max()) if finite.size else 1.0
        worst = float(np.max(error, initial=0.0))
        if not worst <= tolerance * max(scale, 1e-30):
            return f"output {i} is off by {worst:.3g}, values reach {scale:.3g}"
    return ""
