"""Builds the expression of a kernel out of those of its task, and collects the operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.elementwise import Elementwise
from planish.targets.cpu.kernels.nest import Operand


class Composer:
    """An expression that grows. Leaves and instructions are known by numbers of its own."""

    def __init__(self) -> None:
        self.operands: list[Operand | None] = []
        """For each leaf what it reads; None for constants."""
        self._leaves: list[Leaf] = []
        self._steps: list[Instruction] = []

    def read(self, operand: Operand) -> int:
        """A leaf that reads an operand."""
        return self._leaf(Leaf(operand.dtype), operand)

    def constant(self, value: float | int | bool, dtype: DType) -> int:
        """A leaf that is known."""
        return self._leaf(Leaf(dtype, value), None)

    def apply(self, op: Elementwise, dtype: DType, *arguments: int) -> int:
        """An op applied; `dtype` is that of its result."""
        self._steps.append(Instruction(op, arguments, dtype))
        return -len(self._steps)

    def inline(self, expression: Expression, leaves: Sequence[int]) -> list[int]:
        """Another expression's results, with its leaves taken from here."""
        numbers = list(leaves)
        for step in expression.instructions:
            numbers.append(self.apply(step.op, step.dtype, *(numbers[i] for i in step.args)))
        return [numbers[i] for i in expression.results]

    def fused(
        self,
        task: Task,
        fused: Fused,
        view: Callable[[Value], Operand],
        accumulator: int | None = None,
    ) -> list[int]:
        """The results of a task's prologue or epilogue; `view` tells how its operands are read."""
        leaves = []
        for leaf, source in zip(fused.expression.leaves, fused.sources, strict=True):
            if source is None:
                assert leaf.constant is not None
                leaves.append(self.constant(leaf.constant, leaf.dtype))
            elif source == ACCUMULATOR:
                assert accumulator is not None
                leaves.append(accumulator)
            else:
                leaves.append(self.read(view(task.inputs[source])))
        return self.inline(fused.expression, leaves)

    def expression(self, results: Sequence[int]) -> Expression:
        """The whole, with the given results."""
        shift = len(self._leaves)

        def slot(number: int) -> int:
            return number if number >= 0 else shift - 1 - number

        steps = (Instruction(s.op, tuple(slot(a) for a in s.args), s.dtype) for s in self._steps)
        return Expression(tuple(self._leaves), tuple(steps), tuple(slot(r) for r in results))

    def _leaf(self, leaf: Leaf, operand: Operand | None) -> int:
        self._leaves.append(leaf)
        self.operands.append(operand)
        return len(self._leaves) - 1
