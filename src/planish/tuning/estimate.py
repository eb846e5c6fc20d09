"""A rough guess of a task's time, for what has not been measured: bytes moved and arithmetic."""

from __future__ import annotations

import math

from planish.fusion.task import Task
from planish.graph.graph import Node
from planish.ops.conv import Conv, ConvTranspose
from planish.ops.elementwise import Elementwise
from planish.ops.float8 import MatMulFloat8
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.base import Binding
from planish.targets.target import Rates

PAIR = 2.0
"""Two convolutions in one kernel move less and compute more slowly: only measuring tells."""


def estimate(task: Task, binding: Binding, rates: Rates) -> float:
    """Seconds, good for ordering work and for choosing fusions."""
    moved = sum(math.prod(binding.shape(v)) * v.dtype.size for v in (*task.inputs, *task.outputs))
    seconds = rates.start + max(operations(task, binding) / rates.operations, moved / rates.bytes)
    # work on an input is done again by every task that reads it; on an output it is done once
    return seconds * (1.1 if task.prologue else PAIR if task.pair else 1.0)


def operations(task: Task, binding: Binding) -> float:
    """Arithmetic operations of a task, roughly."""
    size = math.prod(binding.shape(task.output))
    anchors = (n for n in task.nodes if not isinstance(n.op, Elementwise))
    return float(size * len(task.nodes)) + sum(_own(n, binding) for n in anchors)


def _own(node: Node, binding: Binding) -> float:
    """Arithmetic operations of an anchor."""
    result = math.prod(node.outputs[0].type.bind(binding.symbols))
    if isinstance(node.op, Conv | ConvInteger):
        filters = node.inputs[1].type.bind(binding.symbols)
        return 2.0 * result * math.prod(filters[:-1])
    if isinstance(node.op, ConvTranspose):
        source, filters = (v.type.bind(binding.symbols) for v in node.inputs[:2])
        taps, columns = math.prod(filters[:-2]), filters[-1] // node.op.groups
        return 2.0 * math.prod(source) * taps * columns
    if isinstance(node.op, MatMul | MatMulFloat8 | MatMulInteger):
        a = node.inputs[0].type.bind(binding.symbols)
        return 2.0 * result * (a[-2] if node.op.transpose_a else a[-1])
    sources = [math.prod(v.type.bind(binding.symbols)) for v in node.inputs]
    return float(max(sources, default=0))
