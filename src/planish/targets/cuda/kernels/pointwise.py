"""Tasks without an anchor: elementwise work on broadcasting operands of any layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from planish.fusion.task import Task
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Work, bind_work, decompose, finish
from planish.targets.restoring import checked_parameters

BLOCKS = (128, 256, 512, 1024, 2048)
"""Elements a program may do."""


@dataclass(frozen=True)
class PointwiseKernel(TritonKernel):
    """Every program does `block` neighbouring elements of the result. Parameter: the elements."""

    family = "pointwise"

    work: Work
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return self.work.pointers

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    def write(self, k: Source) -> None:
        flat = k.let("flat", f"tl.program_id(0) * {self.block} + tl.arange(0, {self.block})")
        mask = k.let("mask", f"{flat} < n0")
        finish(k, self.work, 0, decompose(k, flat, self.work.shape), mask)


@dataclass(frozen=True)
class PointwiseTactic(Tactic):
    """One kernel over the elements of the outputs."""

    family = "pointwise"

    task: Task
    block: int = 1024
    warps: int = 4

    @property
    def parameters(self) -> dict[str, Any]:
        return {"block": self.block, "warps": self.warps}

    def accepts(self, binding: Binding) -> bool:
        shapes = {binding.shape(v) for v in self.task.outputs}
        return len(shapes) == 1 and math.prod(shapes.pop()) < 1 << 31

    def launches(self, binding: Binding) -> list[Launch]:
        task = self.task
        shape = binding.shape(task.output)
        work, extents, values = bind_work(task, task.epilogue, task.outputs, binding, shape)
        kernel = PointwiseKernel(self.warps, 1, work, self.block)
        elements = math.prod(extents)
        return [Launch(kernel, values, (elements,), -(-elements // self.block))]


class PointwiseFamily(Family):
    """Offers one kernel for elementwise tasks."""

    name = "pointwise"

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if task.anchor is not None or not PointwiseTactic(task).accepts(binding):
            return
        for block in (1024, 512, 256):
            yield PointwiseTactic(task, block, 4)

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        understood = task.anchor is None
        return PointwiseTactic(
            task,
            **checked_parameters(
                self.name, task, parameters, understood, block=BLOCKS, warps=(1, 2, 4, 8)
            ),
        )


FAMILIES = (PointwiseFamily(),)
