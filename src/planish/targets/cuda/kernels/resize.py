"""Resizing of channels-last data over any number of dimensions, in every mode; one launch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.ops.spatial import Resize
from planish.targets.base import Binding, Family, Launch
from planish.targets.cuda.kernels.fused import bind_work
from planish.targets.cuda.kernels.patches import bind_source
from planish.targets.cuda.kernels.positions import PositionsFamily, PositionsTactic
from planish.targets.cuda.kernels.resize_kernel import ResizeKernel


@dataclass(frozen=True)
class Resizing(PositionsTactic):
    """A program does `rows` output positions x `channels`."""

    family: ClassVar[str] = "resize"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, shape = self.task, self.anchor.op, self.result_shape(binding)
        assert isinstance(op, Resize)
        if 0 in shape:
            return []
        source, reads = bind_source(task, binding)
        columns = (len(shape) - 1,)
        work, _, values = bind_work(task, task.epilogue, task.outputs, binding, shape, columns)
        fed = self.anchor.inputs[0]
        kernel = ResizeKernel(
            self.warps,
            1,
            source,
            work,
            replace(op, size=tuple(evaluate(n, binding.symbols) for n in op.size)),
            fed.type.bind(binding.symbols)[1:-1],
            fed.dtype,
            self.rows,
            self.channels,
        )
        rows = math.prod(shape[:-1])
        return [Launch(kernel, (*reads, *values), (rows,), self.programs(shape))]


class ResizeFamily(PositionsFamily):
    """Resizing in every mode."""

    name: ClassVar[str] = "resize"
    tactic: ClassVar[type[PositionsTactic]] = Resizing

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, Resize)
            and len(task.anchor.op.size) > 0
        )


FAMILIES: tuple[Family, ...] = (ResizeFamily(),)
