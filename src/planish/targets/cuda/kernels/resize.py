"""Resizing of channels-last data over any number of dimensions, in every mode; one launch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.ops.spatial import Resize
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cuda.kernels.fused import bind_work
from planish.targets.cuda.kernels.patch_cost import channel_blocks
from planish.targets.cuda.kernels.patches import bind_source
from planish.targets.cuda.kernels.resize_kernel import ResizeKernel
from planish.targets.restoring import checked_parameters


@dataclass(frozen=True)
class Resizing(AnchoredTactic):
    """A program does `rows` output positions x `channels`."""

    family: ClassVar[str] = "resize"

    rows: int
    channels: int
    warps: int

    def accepts(self, binding: Binding) -> bool:
        return super().accepts(binding) and math.prod(self.result_shape(binding)[:-1]) < 1 << 30

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
        programs = -(-rows // self.rows) * -(-shape[-1] // self.channels)
        return [Launch(kernel, (*reads, *values), (rows,), programs)]


def _understood(task: Task) -> bool:
    return (
        task.anchor is not None
        and isinstance(task.anchor.op, Resize)
        and len(task.anchor.op.size) > 0
    )


class ResizeFamily(Family):
    """Resizing in every mode."""

    name: ClassVar[str] = "resize"

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not _understood(task):
            return
        shape = task.output.type.bind(binding.symbols)
        vector = max(1, 16 // task.inputs[0].dtype.size)
        block = channel_blocks(shape[-1], vector)[-1]
        for warps, vectors in ((4, 1), (2, 1), (4, 2), (1, 1)):
            rows = max(1, 32 * warps * vectors * vector // block)
            tactic = Resizing(task, rows, block, warps)
            if tactic.accepts(binding):
                yield tactic

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        powers = tuple(1 << n for n in range(12))
        allowed = {"rows": powers, "channels": powers[:9], "warps": (1, 2, 4, 8)}
        return Resizing(
            task,
            **checked_parameters(self.name, task, parameters, _understood(task), **allowed),
        )


FAMILIES: tuple[Family, ...] = (ResizeFamily(),)
