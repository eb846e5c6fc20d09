"""Whether a layer's kernels use tensor cores, as their machine code says; and the reason if not."""

from __future__ import annotations

import math
from collections.abc import Collection

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.conv import Conv, ConvTranspose
from planish.ops.float8 import MatMulFloat8
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.base import Binding, Tactic

Product = Conv | ConvTranspose | ConvInteger | MatMul | MatMulFloat8 | MatMulInteger

WIDE = 16
"""Bytes that wide loads take."""

FEW = 16
"""Rows that an instruction of tensor cores takes at least."""


def why_not(tactic: Tactic, binding: Binding, permitted: Collection[str]) -> str:
    """Why a tactic does without tensor cores."""
    task = tactic.task
    if task.anchor is None or not isinstance(task.anchor.op, Product):
        return "the layer is no product of matrices"
    dtype = task.anchor.inputs[0].dtype
    if dtype is DType.FLOAT32:
        if "tf32" in permitted:
            return "in float32 this kernel was as fast as those that round to TF32"
        return "float32, and TF32 is not permitted: precision={'tf32'}"
    if dtype not in (DType.FLOAT16, DType.BFLOAT16, DType.INT8, DType.UINT8):
        return f"its factors are {dtype.numpy.name}"
    rows, depth, columns, groups = extents(task, binding)
    if groups > 1 and depth == 1:
        return "a depthwise convolution: every sum is of one channel"
    if groups > 1:
        return f"{groups} groups: each is a product of its own, {depth} channels to {columns}"
    if rows < FEW:
        return f"{rows} rows are too few: a kernel that reads the weights once was faster"
    aligned = WIDE // dtype.size
    for name, extent in (("depth", depth), ("columns", columns)):
        if extent % aligned:
            return (
                f"its {name} of {extent} is no multiple of {aligned}, and another kernel was faster"
            )
    return "another kernel was faster"


def extents(task: Task, binding: Binding) -> tuple[int, int, int, int]:
    """Rows, depth and columns of a product or convolution, of each of its groups; the groups."""
    assert task.anchor is not None
    op, symbols = task.anchor.op, binding.symbols
    shape = task.anchor.outputs[0].type.bind(symbols)
    a, b = (v.type.bind(symbols) for v in task.anchor.inputs[:2])
    if isinstance(op, MatMul | MatMulFloat8 | MatMulInteger):
        shared = math.prod(b[:-2]) == 1
        rows = math.prod(shape[:-1]) if shared else shape[-2]
        return rows, a[-2] if op.transpose_a else a[-1], shape[-1], 1
    assert isinstance(op, Conv | ConvTranspose | ConvInteger)
    return math.prod(shape[:-1]), b[-2], shape[-1] // op.groups, op.groups
