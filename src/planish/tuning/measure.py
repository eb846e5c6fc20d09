"""Measures tactics on this machine, each checked against the reference before it may win."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from planish.fusion.task import PRECISIONS, Task
from planish.graph.graph import Value
from planish.graph.interpret import bind
from planish.graph.types import DType
from planish.native import Memory
from planish.ops.float8 import (
    LEAST_NORMAL,
    DecodeFloat8,
    EncodeFloat8,
    MatMulFloat8,
    decode,
)
from planish.ops.indexing import Gather, GatherNd, ScatterNd
from planish.ops.quantization import ConvInteger, Dequantize, MatMulInteger, Quantize
from planish.targets.base import Binding, Constant, Kernel, Layout, Tactic, Workspace
from planish.targets.execution import (
    ABSOLUTE,
    ARENA,
    ZEROED_BYTES,
    Address,
    Executable,
    Range,
    Schedule,
    ScheduledLaunch,
    TensorMemory,
)
from planish.targets.target import Target
from planish.tuning.rows import probed_rows, sampled_rows, take
from planish.tuning.sample import Sample
from planish.tuning.slack import HALF_WAY, coarsest, slack, tolerance

log = logging.getLogger("planish")

SECONDS_EACH = 0.006
"""Time given to the repeats of one tactic."""

FEW = 8
"""Repeats, at most, where other memory is read before each, which takes longer than many tactics.
"""

NEAR = 0.2
"""Computed inputs of at most this share of the other memory are in the caches yet, when a network
comes to read them.
"""

PATIENCE = 2
"""So many times as many runs are tried, at most, where other processes take a CPU meanwhile."""

KEPT = 1 << 21
"""Bytes of reference results at most that are kept for a task that is measured again later."""

HOPELESS, LONG_HOPELESS = 4.0, 1.5
"""A tactic whose first two runs both take so many times the best is not measured further, and of
long ones one that takes less more: each run counts, and what disturbs one counts less.
"""

LONG = 0.001
"""Seconds of such a run."""


_OF_LEVELS = (ConvInteger, Dequantize, MatMulInteger, Quantize)
"""Ops whose operands of one byte are levels."""


@dataclass(frozen=True)
class Measurement:
    """What came of measuring a tactic: its time; None if it did not run, or gave a wrong result."""

    seconds: float | None
    wrong: str = ""


class Bench:
    """Inputs, reference result and memory for the tactics of one task at one binding.

    `expected` are the reference results, if an earlier bench has computed them. `other` is memory
    that is read before each run, as the rest of a network would be, so that operands come from
    where they would come from there: weights from memory, and so do computed inputs but the first,
    which was just computed, unless they are few bytes (`NEAR`).
    """

    def __init__(
        self,
        task: Task,
        binding: Binding,
        target: Target,
        threads: int,
        expected: list[np.ndarray] | None = None,
        other: np.ndarray | None = None,
    ) -> None:
        self._task, self._binding, self._target = task, binding, target
        self._threads = threads
        self._arrays: list[np.ndarray | Sample] = []
        self._inputs: list[TensorMemory] = []
        greatest = 0 if _indexes_one(task, binding) else 1
        for number, value in enumerate(task.inputs):
            tensor = self._tensor(value)
            if value.data is not None:
                tensor.write(value.data)
                self._arrays.append(value.data)
            else:
                levels = value.dtype.size == 1 and _reads_levels(task)
                layout, dtype = binding.layout(value), value.dtype.numpy
                codes = value.dtype is DType.INT8 and _reads_codes(task)
                sample = Sample(layout, dtype, number, levels, greatest, codes)
                tensor.fill(sample.period)
                self._arrays.append(sample)
            self._inputs.append(tensor)
        self._outputs = [self._tensor(v) for v in task.outputs]
        self._touched: list[Memory] = []
        if other is not None:
            computed = (t for v, t in zip(task.inputs, self._inputs, strict=True) if v.data is None)
            self._touched.append((other.ctypes.data, other.nbytes))
            near = [(tensor.address, tensor.nbytes) for tensor in computed]
            if sum(nbytes for _, nbytes in near) > other.nbytes * NEAR:
                del near[1:]
            self._touched += reversed(near)
        self._rows = sampled_rows(task, binding)
        self._expected = expected

    def _tensor(self, value: Value) -> TensorMemory:
        return self._target.tensor(self._binding.layout(value), value.dtype.numpy)

    def expected(self) -> list[np.ndarray]:
        """The outputs by the references; of large ones some rows (see `planish.tuning.rows`)."""
        if self._expected is None:
            arrays: Sequence[np.ndarray | Sample] = self._arrays
            if self._rows is not None:
                arrays = take(self._task, self._binding, arrays, self._rows)
            known = dict(zip(self._task.inputs, map(np.asarray, arrays), strict=True))
            for node in self._task.nodes:
                op = bind(node.op, self._binding.symbols)
                values = [known.get(v, v.data) for v in node.inputs]
                known.update(zip(node.outputs, op.reference(*values), strict=True))  # type: ignore[arg-type]
            self._expected = [known[v] for v in self._task.outputs]
        return self._expected

    def small_results(self) -> list[np.ndarray] | None:
        """The reference results, if they are known and small enough to be kept."""
        known = self._expected
        return known if known and sum(a.nbytes for a in known) <= KEPT else None

    def time(self, tactic: Tactic, seconds: float) -> float:
        """The least seconds of the runs of a tactic in so many, whatever it computes."""
        with self._program(tactic) as (executable, arena):
            once = float(executable.measure(arena, (), (), self._threads, 2).min())
            repeats = int(min(max(seconds / max(once, 1e-7), 3), 1000))
            times = executable.measure(arena, (), (), self._threads, repeats)
            return min(once, float(times.min()))

    def measure(self, tactic: Tactic, best: float = float("inf")) -> Measurement:
        """Runs a tactic, compares its outputs, times it; stops early if it is far from `best`."""
        with self._program(tactic) as (executable, arena):
            for tensor in self._outputs:
                tensor.poison()
            first = float(self._run(executable, arena, 1)[0])
            wrong = self._difference(tactic)
            if wrong:
                text = "tactic %s of %s is wrong: %s"
                log.log(level_of_faults(tactic), text, tactic, self._task.name, wrong)
                return Measurement(None, wrong)
            once = min(first, float(self._run(executable, arena, 1)[0]))
            hopeless = LONG_HOPELESS if once > LONG else HOPELESS
            if once > hopeless * best and once > 1e-4:
                return Measurement(once)
            repeats = int(min(max(SECONDS_EACH / max(once, 1e-7), 3 if once > LONG else 5), 2000))
            times = self._run(executable, arena, min(repeats, FEW) if self._touched else repeats)
            # the least: what disturbs a measurement only ever adds to it
            return Measurement(float(times.min()))

    def _run(self, executable: Executable, arena: Any, repeats: int) -> np.ndarray:
        """Seconds of so many runs, if possible of such that no other process took a CPU from."""
        each = 1 if self._touched else repeats
        calm: list[np.ndarray] = []
        disturbed: list[np.ndarray] = []
        while len(calm) * each < repeats and len(calm) + len(disturbed) < PATIENCE * repeats / each:
            before = _interruptions()
            times = executable.measure(arena, (), (), self._threads, each, self._touched)
            (calm if _interruptions() == before else disturbed).append(times)
        return np.concatenate(calm or disturbed)

    def _difference(self, tactic: Tactic) -> str:
        """What is wrong with the outputs; empty if nothing is."""
        wanted = self.expected()
        if self._rows is not None:
            probes = probed_rows(self._binding.shape(self._task.output)[0])
            for i, (tensor, want) in enumerate(zip(self._outputs, wanted, strict=True)):
                have = tensor.read(probes)
                if have.dtype.kind in "fV" and _has_nan(have) and not _has_nan(want):
                    return f"output {i} is not written everywhere"
        outputs = [t.read(self._rows) for t in self._outputs]
        for i, output in enumerate(self._task.outputs):
            if _gives_codes(self._task, output):
                wanted = list(wanted)
                outputs[i], wanted[i] = _settled(outputs[i], wanted[i])
        step, share = slack(self._task, tactic)
        precision = coarsest(self._task, tactic)
        if step and all(v.dtype is DType.INT32 for v in self._task.outputs):
            # sums of levels of which some may be the next ones: to be compared as floats are
            outputs, wanted = ([a.astype(np.float32) for a in each] for each in (outputs, wanted))
            precision = max(precision, "fp16", key=tolerance)
        return _difference(outputs, wanted, precision, step, share)

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


def _interruptions() -> int:
    """How often a thread of this process has lost its CPU to another process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def level_of_faults(tactic: Tactic) -> int:
    """How loudly what a tactic does wrong is logged."""
    return logging.INFO if tactic.is_of_library else logging.WARNING


def kernels_of(tactic: Tactic, binding: Binding) -> list[Kernel]:
    """The generated kernels a tactic needs."""
    return [
        launch.kernel for launch in tactic.launches(binding) if isinstance(launch.kernel, Kernel)
    ]


def _reads_levels(task: Task) -> bool:
    """Whether bytes among its inputs are levels of a quantized tensor, all of them likely."""
    return any(isinstance(node.op, _OF_LEVELS) for node in task.nodes)


def _reads_codes(task: Task) -> bool:
    """Whether bytes among its inputs are codes of FP8."""
    return any(isinstance(node.op, DecodeFloat8 | MatMulFloat8) for node in task.nodes)


def _gives_codes(task: Task, output: Value) -> bool:
    """Whether an output of a task is codes of FP8 that it makes."""
    makes = any(isinstance(node.op, EncodeFloat8) for node in task.nodes)
    return makes and output.dtype is DType.INT8


def _settled(have: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What codes stand for; a share of `HALF_WAY` of them may be the next ones."""
    a, b = decode(have), decode(want)
    near = np.abs(a - b) <= np.maximum(np.abs(a), np.abs(b)) / 8
    near |= (np.abs(a) < LEAST_NORMAL) & (np.abs(b) < LEAST_NORMAL)
    return (np.where(near, b, a), b) if np.mean(have != want) <= HALF_WAY else (a, b)


def _indexes_one(task: Task, binding: Binding) -> bool:
    """Whether indices may be into a dimension of 1."""
    indexing = (n for n in task.nodes if isinstance(n.op, Gather | GatherNd | ScatterNd))
    return any(1 in n.inputs[0].type.bind(binding.symbols) for n in indexing)


@lru_cache(maxsize=4)
def _table(dtype: np.dtype) -> np.ndarray:
    """The values of all elements of a dtype of two bytes, in float32."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype).astype(np.float32)


def _widened(array: np.ndarray) -> np.ndarray:
    """Floats in a new array of float32, or of float64 where they are that wide: where there are
    many, looking halves up is quicker than NumPy's conversion.
    """
    if array.dtype.itemsize == 2 and array.size >= 1 << 16:
        bits = np.ascontiguousarray(array).view(np.uint16)
        return np.take(_table(array.dtype), bits)
    return array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)


def _has_nan(array: np.ndarray) -> bool:
    return bool(np.isnan(_widened(array)).any())


def _difference(
    outputs: list[np.ndarray],
    expected: list[np.ndarray],
    precision: str = "fp32",
    step: float = 0.0,
    most: float = HALF_WAY,
) -> str:
    """What is wrong with outputs of a tactic of that precision; empty if nothing is.

    Where sums of floats are rounded to levels, a share of `most` may be off by a `step`.
    """
    for i, (have, want) in enumerate(zip(outputs, expected, strict=True)):
        if have.dtype.kind not in "fV":
            if not np.array_equal(have, want):
                share = float(np.mean(have != want))
                apart = np.abs(have.astype(np.int64) - want.astype(np.int64)).max()
                if apart <= step and share <= most:
                    continue
                return f"output {i} differs in {share:.1%} of its elements"
            continue
        # results are rounded to their own dtype, and computed in the tactic's precision
        rounded = PRECISIONS.get(DType.of(have.dtype), "fp32")
        share = max(map(tolerance, (rounded, precision)))
        # float32 tells errors of its own results, and is quicker for many
        a, b = _widened(have), _widened(want)
        with np.errstate(all="ignore"):
            error = a - b
            worst = float(np.max(np.abs(error, out=error), initial=0.0))
            if not np.isfinite(worst):  # infinities and NaN may be right
                agree = (a == b) | (np.isnan(a) & np.isnan(b))
                worst = float(np.max(np.where(agree, 0.0, error), initial=0.0))
                b = b[np.isfinite(b)]
        scale = float(np.max(np.abs(b, out=b))) if b.size else 1.0
        usual = share * max(scale, 1e-30)
        if not worst <= usual:
            if worst <= step + usual and np.mean(error > usual) <= most:
                continue
            return f"output {i} is off by {worst:.3g}, values reach {scale:.3g}"
    return ""
