"""Measures tactics on this machine, each checked against the reference before it may win."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.fusion.task import PRECISIONS, Task
from planish.graph.graph import Value
from planish.graph.interpret import bind
from planish.graph.types import DType
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
from planish.tuning.rows import probed_rows, sampled_rows, take

log = logging.getLogger("planish")

TOLERANCES = {"fp16": 1e-2, "bf16": 2e-2, "tf32": 4e-3}
"""Largest error of a result, as a share of its largest magnitude, by what it is rounded to."""
TOLERANCE = 1e-4
"""That of float32 and wider."""

SECONDS_EACH = 0.006
"""Time given to the repeats of one tactic."""

SAMPLES = (1 << 22) - 3
"""So many random numbers at most are drawn for an input; larger ones repeat them."""

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
        self._rows = sampled_rows(task, binding)
        self._expected: list[np.ndarray] | None = None

    def _tensor(self, value: Value) -> TensorMemory:
        return self._target.tensor(self._binding.layout(value), value.dtype.numpy)

    def expected(self) -> list[np.ndarray]:
        """The outputs by the references; of large ones some rows (see `planish.tuning.rows`)."""
        if self._expected is None:
            arrays = self._arrays
            if self._rows is not None:
                arrays = take(self._task, self._binding, arrays, self._rows)
            known = dict(zip(self._task.inputs, arrays, strict=True))
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
            wrong = self._difference(tactic.precision)
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

    def _difference(self, precision: str) -> str:
        """What is wrong with the outputs; empty if nothing is."""
        wanted = self.expected()
        if self._rows is not None:
            probes = probed_rows(self._binding.shape(self._task.output)[0])
            for i, (tensor, want) in enumerate(zip(self._outputs, wanted, strict=True)):
                have = tensor.read(probes)
                if have.dtype.kind in "fV" and np.isnan(have).any() and not np.isnan(want).any():
                    return f"output {i} is not written everywhere"
        return _difference([t.read(self._rows) for t in self._outputs], wanted, precision)

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
    count = math.prod(shape)
    drawn = min(count, SAMPLES)
    if value.dtype.is_float:
        some = random.standard_normal(drawn, np.float32).astype(value.dtype.numpy)
    else:
        some = random.integers(0, 2, drawn).astype(value.dtype.numpy)
    return np.resize(some, shape)


def _difference(
    outputs: list[np.ndarray], expected: list[np.ndarray], precision: str = "fp32"
) -> str:
    """What is wrong with outputs of a tactic of that precision; empty if nothing is."""
    for i, (have, want) in enumerate(zip(outputs, expected, strict=True)):
        if have.dtype.kind not in "fV":
            if not np.array_equal(have, want):
                share = float(np.mean(have != want))
                return f"output {i} differs in {share:.1%} of its elements"
            continue
        # results are rounded to their own dtype, and computed in the tactic's precision
        rounded = PRECISIONS.get(DType.of(have.dtype), "fp32")
        tolerance = max(TOLERANCES.get(p, TOLERANCE) for p in (rounded, precision))
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
