"""What both targets ask of a task whose anchor moves elements."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.targets.base import Binding


@dataclass(frozen=True)
class MovementJob:
    """A task to be planned at concrete shapes."""

    task: Task
    binding: Binding

    @property
    def op(self) -> Any:
        """The anchor's op."""
        assert self.task.anchor is not None
        return self.task.anchor.op

    def operand(self, index: int) -> Value:
        """The anchor's input of that number."""
        assert self.task.anchor is not None
        return self.task.anchor.inputs[index]

    @property
    def source(self) -> Value:
        """What the anchor reads first, or would without a prologue."""
        return self.operand(0)

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self.source.type.bind(self.binding.symbols)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the anchor's output, which is the task's."""
        return self.binding.shape(self.task.output)

    def dims(self, dims: Iterable[Any]) -> tuple[int, ...]:
        """An attribute's dimensions as integers."""
        return tuple(evaluate(d, self.binding.symbols) for d in dims)
