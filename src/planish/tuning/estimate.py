"""A rough guess of a task's time, for what has not been measured: bytes moved and arithmetic."""

from __future__ import annotations

import math

from planish.fusion.task import Task
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.targets.base import Binding

FLOPS = 100e9
BYTES = 10e9
LAUNCH = 1.5e-6


def estimate(task: Task, binding: Binding) -> float:
    """Seconds, by a machine of a few cores; good for ordering work and for choosing fusions."""
    moved = sum(math.prod(binding.shape(v)) * v.dtype.size for v in (*task.inputs, *task.outputs))
    seconds = LAUNCH + max(operations(task, binding) / FLOPS, moved / BYTES)
    # work on an input is done again by every task that reads it; on an output it is done once
    return seconds * (1.1 if task.prologue else 1.0)


def operations(task: Task, binding: Binding) -> float:
    """Arithmetic operations of a task, roughly."""
    size = math.prod(binding.shape(task.output))
    work = float(size * len(task.nodes))
    anchor = task.anchor
    if anchor is None:
        return work
    result = math.prod(anchor.outputs[0].type.bind(binding.symbols))
    if isinstance(anchor.op, Conv):
        filters = anchor.inputs[1].type.bind(binding.symbols)
        return work + 2.0 * result * math.prod(filters[:-1])
    if isinstance(anchor.op, MatMul):
        a = anchor.inputs[0].type.bind(binding.symbols)
        # attention has two products, of about the same size
        products = 2 if task.attention else 1
        return work + 2.0 * products * result * (a[-2] if anchor.op.transpose_a else a[-1])
    sources = [math.prod(v.type.bind(binding.symbols)) for v in anchor.inputs]
    return work + float(max(sources, default=0))
