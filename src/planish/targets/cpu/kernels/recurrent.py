"""Tactics of recurrent layers; the kernel stands in `recurrent_kernel`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.expression import identity
from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.ops.recurrent import Recurrent
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import (
    Binding,
    Constant,
    Family,
    Launch,
    Pointer,
    Tactic,
    Workspace,
    dense_strides,
)
from planish.targets.cpu.kernels.fused import bind_values
from planish.targets.cpu.kernels.loopnest import launch
from planish.targets.cpu.kernels.nest import Operand
from planish.targets.cpu.kernels.recurrent_kernel import RecurrentKernel, lanes_of, slots
from planish.targets.restoring import Allowed

_ROWS = (4, 2, 1)


@dataclass(frozen=True)
class Recurrence(AnchoredTactic):
    """All steps in one launch, `rows` sequences a task."""

    family: ClassVar[str] = "recurrent"
    rows: int

    def constants(self) -> list[np.ndarray]:
        """The recurrent weights as ``[direction][block][unit][gate][lanes]``, zero padded."""
        data = self._weights.data
        if data is None:
            return []
        directions, units, gates, hidden = data.shape
        lanes = lanes_of(self._weights.dtype)
        blocks = -(-hidden // lanes)
        padded = np.zeros((directions, units, gates, blocks * lanes), data.dtype)
        padded[..., :hidden] = data
        split = padded.reshape(directions, units, gates, blocks, lanes)
        return [np.ascontiguousarray(split.transpose(0, 3, 1, 2, 4))]

    def workspace(self, binding: Binding) -> int:
        weights = self._weights
        if weights.is_constant:
            return 0
        directions, units, gates, hidden = binding.shape(weights)
        lanes = lanes_of(weights.dtype)
        return directions * units * gates * -(-hidden // lanes) * lanes * weights.dtype.size

    def accepts(self, binding: Binding) -> bool:
        return True

    def launches(self, binding: Binding) -> list[Launch]:
        op, (x, weights, *others) = self._op, self.anchor.inputs
        steps, batch, directions, _, hidden = binding.shape(x)
        lanes = lanes_of(x.dtype)
        blocks, row_blocks = -(-hidden // lanes), -(-batch // self.rows)

        def spread(value: Value) -> tuple[int, ...]:
            """Strides of an extra input as direction, gate, unit."""
            found = binding.strides(value)
            return found if len(found) == 3 else (found[0], 0, found[1])

        states, rest = others[: op.states], others[op.states :]
        extras, lengths = (rest[:-1], rest[-1:]) if op.lengths else (rest, [])
        outputs = self.task.outputs
        bound = (
            bind_values((x,), binding.strides),
            bind_values(states, binding.strides),
            bind_values(extras, spread),
            bind_values(lengths, binding.strides),
            bind_values(outputs[:1], binding.strides),
            bind_values(outputs[1:], binding.strides),
        )
        kernel = RecurrentKernel(op, x.dtype, self.rows, *(part.accesses for part in bound))
        packed: Pointer = Constant(0) if weights.is_constant else Workspace()
        main = Launch(
            kernel,
            (packed, *(p for part in bound for p in part.pointers)),
            (steps, batch, hidden, row_blocks, blocks, *(n for part in bound for n in part.params)),
            tasks=directions * row_blocks,
            scratch=slots(op) * self.rows * blocks * lanes * x.dtype.size,
        )
        return [main] if weights.is_constant else [*self._packing(binding), main]

    def _packing(self, binding: Binding) -> list[Launch]:
        """Copies of weights that are not constant: the whole blocks, and the last one's columns.

        Lanes beyond the last unit stay as they are: whatever is computed in them is not stored.
        """
        weights = self._weights
        directions, units, gates, hidden = binding.shape(weights)
        lanes = lanes_of(weights.dtype)
        blocks, rest = -(-hidden // lanes), hidden % lanes
        from_d, from_u, from_g, from_h = binding.strides(weights)
        to_d, to_b, to_u, to_g, _ = dense_strides((directions, blocks, units, gates, lanes))
        launches = []
        for first, count, width in ((0, hidden // lanes, lanes), (hidden // lanes, 1, rest)):
            shape = (directions, count, units, gates, width)
            if not math.prod(shape):
                continue
            source = Operand(
                weights,
                weights.dtype,
                (from_d, from_h * lanes, from_u, from_g, from_h),
                first * lanes * from_h,
            )
            target = Operand(Workspace(), weights.dtype, (to_d, to_b, to_u, to_g, 1), first * to_b)
            launches.append(launch(identity(weights.dtype), [source], [target], shape))
        return launches

    @property
    def _op(self) -> Recurrent:
        assert isinstance(self.anchor.op, Recurrent)
        return self.anchor.op

    @property
    def _weights(self) -> Value:
        return self.anchor.inputs[1]


class RecurrentFamily(Family):
    """LSTM, GRU and RNN."""

    name: ClassVar[str] = "recurrent"
    tactic: ClassVar[type[Tactic]] = Recurrence
    allowed: ClassVar[Allowed] = {"rows": _ROWS}

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, Recurrent)
            and task.prologue is None
            and not task.epilogue.expression.instructions
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        assert task.anchor is not None
        _, batch, directions, *_ = binding.shape(task.anchor.inputs[0])
        fitting = [rows for rows in _ROWS if rows == 1 or rows <= batch]
        # many sequences share what is loaded, but a thread without a task does nothing
        fitting.sort(key=lambda rows: (directions * -(-batch // rows) < 2, -rows))
        for rows in fitting:
            yield Recurrence(task, rows)


FAMILIES: tuple[Family, ...] = (RecurrentFamily(),)
