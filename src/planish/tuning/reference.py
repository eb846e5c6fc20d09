"""What tactics of a task are given when they are measured, and what the references make of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from planish.fusion.task import Task
from planish.graph.interpret import bind
from planish.ops.quantization import ConvInteger, Dequantize, MatMulInteger, Quantize
from planish.targets.base import Binding
from planish.tuning.rows import sampled_rows, take
from planish.tuning.sample import Sample

KEPT = 1 << 21
"""Bytes of reference results at most that are kept for a task that is measured again later."""

AHEAD = 16
"""References of so many tasks are computed before they are wanted: each may take megabytes."""

THREADS = 4
"""Threads that compute them: NumPy leaves Python's lock while it works on arrays."""

_OF_LEVELS = (ConvInteger, Dequantize, MatMulInteger, Quantize)
"""Ops whose operands of one byte are levels."""


class Reference:
    """Inputs of a task at one binding, and its outputs by the references. Thread-safe.

    Parameters
    ----------
    task : Task
    binding : Binding
    known : list of array, optional
        The outputs, if they were computed before.

    Attributes
    ----------
    arrays : list
        The inputs: constants, and samples of what is random.
    rows : array or None
        The rows of the outputs that are computed; None: all (see `planish.tuning.rows`).
    """

    def __init__(self, task: Task, binding: Binding, known: list[np.ndarray] | None = None) -> None:
        self._task, self._binding, self._known = task, binding, known
        self._lock = threading.Lock()
        levels = any(isinstance(node.op, _OF_LEVELS) for node in task.nodes)
        self.arrays: list[np.ndarray | Sample] = [
            Sample(
                binding.layout(value), value.dtype.numpy, number, levels and value.dtype.size == 1
            )
            if value.data is None
            else value.data
            for number, value in enumerate(task.inputs)
        ]
        self.rows = sampled_rows(task, binding)

    def results(self) -> list[np.ndarray]:
        """The outputs; of large ones `rows`. Computed once."""
        with self._lock:
            if self._known is None:
                self._known = self._computed()
            return self._known

    def small_results(self) -> list[np.ndarray] | None:
        """The outputs, if they are known and small enough to be kept."""
        known = self._known
        return known if known and sum(a.nbytes for a in known) <= KEPT else None

    def _computed(self) -> list[np.ndarray]:
        task, arrays = self._task, self.arrays
        if self.rows is not None:
            arrays = take(task, self._binding, arrays, self.rows)
        known = dict(zip(task.inputs, map(np.asarray, arrays), strict=True))
        for node in task.nodes:
            op = bind(node.op, self._binding.symbols)
            values = [known.get(v, v.data) for v in node.inputs]
            known.update(zip(node.outputs, op.reference(*values), strict=True))  # type: ignore[arg-type]
        return [known[v] for v in task.outputs]


class References:
    """References in the order in which they are wanted, computed a few ahead by threads.

    Parameters
    ----------
    makers : sequence of callable
        Each makes a `Reference`.
    threads : int
        0: nothing is computed before it is asked for.
    """

    def __init__(self, makers: Sequence[Callable[[], Reference]], threads: int = THREADS) -> None:
        self._makers = makers
        self._made: dict[int, Reference] = {}
        self._next = self._wanted = 0
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def get(self, number: int) -> Reference:
        """The reference of that number, computed or not; those before it are forgotten."""
        with self._changed:
            self._wanted = max(self._wanted, number)
            for earlier in [n for n in self._made if n < self._wanted]:
                del self._made[earlier]
            self._changed.notify_all()
            return self._one(number)

    def _one(self, number: int) -> Reference:
        if number not in self._made:
            self._made[number] = self._makers[number]()
        return self._made[number]

    def close(self) -> None:
        """Ends the threads; waits for what they are at."""
        with self._changed:
            self._wanted = len(self._makers)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        count = len(self._makers)
        while True:
            with self._changed:
                while self._wanted + AHEAD <= self._next < count and self._wanted < count:
                    self._changed.wait()
                number = max(self._next, self._wanted)
                if number >= count:
                    return
                self._next = number + 1
                reference = self._one(number)
            with suppress(Exception):  # whoever measures the task comes upon it, too
                reference.results()
