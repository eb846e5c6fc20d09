"""The last fallback of every target: a task computed by the NumPy references of its ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.interpret import bind
from planish.targets.base import Binding, Family, Launch, Tactic


@dataclass(frozen=True, eq=False)
class ReferenceTactic(Tactic):
    """A host step: leaves native code, takes the interpreter lock, and is slow. Always correct."""

    family: ClassVar[str] = "reference"

    def launches(self, binding: Binding) -> list[Launch]:
        task = self.task
        if all(0 in binding.shape(v) for v in task.outputs):
            return []
        ops = [bind(node.op, binding.symbols) for node in task.nodes]
        count = len(task.inputs)

        def run(*arrays: np.ndarray) -> None:
            known = dict(zip(task.inputs, arrays[:count], strict=True))
            for node, op in zip(task.nodes, ops, strict=True):
                values = [known.get(v, v.data) for v in node.inputs]
                results = op.reference(*values)  # type: ignore[arg-type]
                known.update(zip(node.outputs, results, strict=True))
            for value, target in zip(task.outputs, arrays[count:], strict=True):
                target[...] = known[value]

        return [Launch(run, (*task.inputs, *task.outputs))]


class ReferenceFamily(Family):
    """Offers the reference for every task."""

    name: ClassVar[str] = "reference"
    tactic: ClassVar[type[Tactic]] = ReferenceTactic

    def understands(self, task: Task) -> bool:
        return True
