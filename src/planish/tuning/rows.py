"""Which rows of a large result are enough to tell whether a tactic is right.

The reference of a convolution over 128 images takes seconds, and every image is computed alike. So
where a task does every row of its first axis by itself, the references compute the first and the
last rows only; of the others it is seen that something was written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planish.fusion.task import Task
from planish.graph.graph import Node
from planish.ops.base import normalize_axis
from planish.ops.conv import Conv, ConvTranspose
from planish.ops.elementwise import Elementwise
from planish.ops.float8 import MatMulFloat8
from planish.ops.matmul import MatMul
from planish.ops.normalization import LayerNorm, LogSoftmax, Softmax
from planish.ops.operands import normalize_axes
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.ops.reduce import ArgMax, ArgMin, Reduction
from planish.ops.shape import Transpose
from planish.ops.spatial import Resize
from planish.targets.base import Binding
from planish.tuning.estimate import operations
from planish.tuning.sample import Sample

WORK = 2e8
"""Operations that the references may take."""

ELEMENTS = 1 << 18
"""Elements of a result that are compared, where rows of it can stand for all."""

PROBES = 8
"""Rows of which it is seen that they were written."""


def sampled_rows(task: Task, binding: Binding) -> np.ndarray | None:
    """The rows that the references compute, ascending; None: all."""
    work = max(operations(task, binding), WORK / ELEMENTS * math.prod(binding.shape(task.output)))
    shapes = {binding.shape(v)[:1] for v in task.outputs}
    if work <= WORK or len(shapes) != 1 or () in shapes:
        return None
    (rows,) = shapes.pop()
    kept = max(2, int(rows * WORK / work)) // 2
    if 2 * kept >= rows or not all(_by_itself(node, binding, rows) for node in task.nodes):
        return None
    return np.concatenate([np.arange(kept), np.arange(rows - kept, rows)])


def take(
    task: Task, binding: Binding, arrays: Sequence[np.ndarray | Sample], rows: np.ndarray
) -> list[np.ndarray | Sample]:
    """The inputs of the task for some rows of its outputs."""
    count = binding.shape(task.output)[0]
    rank = len(binding.shape(task.output))
    followed = {v for n in task.nodes for v in n.inputs[: _following(n)]}
    return [
        a[rows] if a.ndim == rank and len(a) == count and v in followed else a
        for v, a in zip(task.inputs, arrays, strict=True)
    ]


def probed_rows(count: int) -> np.ndarray:
    """Rows spread over all of them."""
    return np.unique(np.linspace(0, count - 1, min(count, PROBES)).astype(np.int64))


def _following(node: Node) -> int:
    """How many of a node's inputs may have the rows of its output: filters never do."""
    if isinstance(node.op, Elementwise):
        return len(node.inputs)
    return (
        2
        if isinstance(node.op, MatMul | MatMulFloat8 | MatMulInteger) and node.output.type.rank > 2
        else 1
    )


def _by_itself(node: Node, binding: Binding, rows: int) -> bool:
    """Whether a node computes every row of its output's first axis by itself, in one pass over all
    ranks: inputs have as many axes as the output, and its rows, or one.
    """
    op, rank = node.op, node.output.type.rank
    shapes = [v.type.bind(binding.symbols) for v in node.inputs]
    following = _following(node)
    for shape in shapes[:following]:
        if math.prod(shape) > 1 and len(shape) == rank and shape[0] not in (1, rows):
            return False
        if len(shape) > rank:
            return False
    if isinstance(op, Elementwise):
        return True
    source = shapes[0]
    if len(source) != rank or source[0] != rows:
        return False
    if isinstance(op, Conv | ConvInteger | ConvTranspose | MaxPool | AvgPool | Resize):
        return True
    if isinstance(op, MatMulInteger) and math.prod(shapes[2]) > 1:  # zero points of rows
        return False
    if isinstance(op, MatMul | MatMulFloat8 | MatMulInteger):
        return rank > 2 or not op.transpose_a
    if isinstance(op, Transpose):
        return op.perm[0] == 0
    if isinstance(op, Reduction):
        return op.keepdims and 0 not in normalize_axes(op.axes, rank)
    if isinstance(op, Softmax | LogSoftmax | LayerNorm):
        return normalize_axis(op.axis, rank) != 0
    if isinstance(op, ArgMax | ArgMin):
        return op.keepdims and normalize_axis(op.axis, rank) != 0
    return False
