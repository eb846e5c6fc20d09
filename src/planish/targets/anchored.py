"""What tactics have in common whose kernel computes an anchor and the elementwise work on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.fusion.task import Task
from planish.graph.graph import Node
from planish.targets.base import Binding, Tactic


def outputs_follow(task: Task, binding: Binding, shape: Sequence[int]) -> bool:
    """Whether all outputs of a task have the shape that its anchor gives."""
    return all(binding.shape(v) == tuple(shape) for v in task.outputs)


@dataclass(frozen=True)
class AnchoredTactic(Tactic):
    """A tactic of a task with an anchor.

    The kernel writes one element of each output per element of the anchor's result.
    """

    @property
    def anchor(self) -> Node:
        """The task's anchor."""
        assert self.task.anchor is not None
        return self.task.anchor

    def result_shape(self, binding: Binding) -> tuple[int, ...]:
        """The concrete shape of the anchor's (first) result."""
        return self.anchor.outputs[0].type.bind(binding.symbols)

    def accepts(self, binding: Binding) -> bool:
        return outputs_follow(self.task, binding, self.result_shape(binding))
