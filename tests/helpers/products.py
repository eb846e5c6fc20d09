"""Convolutions and matrix products as tasks, and tactics of the matrix kernel for them."""

from __future__ import annotations

import numpy as np

from helpers.interpreted import check_interpreted
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, ew
from planish.ops.matmul import MatMul
from planish.targets.base import Binding
from planish.targets.cuda.kernels.matrix import MatrixFamily, MatrixTactic
from planish.targets.cuda.kernels.matrix_tile import Walk
from planish.targets.cuda.machine import H200

FAMILY = MatrixFamily(H200)
F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32
TOLERANCES = {F16: 4e-3, BF16: 3e-2, F32: 1e-5}
TAPS, ROW, FLAT = map(int, Walk)


ALL = (TAPS, ROW, FLAT)
SAME = ((1, 1), (1, 1))


class Builder:
    """A chain of ops as a task, with random constants."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.graph, self.nodes = rng, Graph(), []

    def input(self, shape, dtype):
        return self.graph.input(f"x{len(self.graph.inputs)}", TensorType(tuple(shape), dtype))

    def constant(self, shape, dtype, scale=1.0):
        return self.graph.constant((self.rng.standard_normal(shape) * scale).astype(dtype.numpy))

    def add(self, op, *values):
        value = self.graph.add(op, *values)
        self.nodes.append(value.producer)
        return value

    def task(self, *outputs) -> Task:
        for i, output in enumerate(outputs):
            self.graph.mark_output(output, f"y{i}")
        anchor = next(n for n in self.nodes if isinstance(n.op, Conv | MatMul))
        return make_task(self.nodes, anchor)


def conv_task(
    rng,
    shape,
    filters,
    window=(1, 1),
    stride=1,
    padding=None,
    dilation=1,
    dtype=F16,
    groups=1,
    residual=False,
    per_image=False,
    prologue=None,
    relu=True,
) -> Task:
    """A convolution, a bias, and what else is asked for."""
    b = Builder(rng)
    x = y = b.input(shape, F32 if prologue else dtype)
    if prologue == "affine":
        y = b.add(ew.Add(), b.add(ew.Mul(), y, b.constant((shape[-1],), F32)), b.constant((), F32))
    elif prologue == "sum":
        y = b.add(ew.Add(), y, b.input(shape, F32))
        y = b.add(ew.Mul(), y, b.input((*shape[:-1], 1), F32))
    if prologue and dtype is not F32:
        y = b.add(Cast(dtype), y)
    assert prologue != "affine" or y is not x
    depth = int(np.prod(window)) * shape[-1] // groups
    weights = b.constant((*window, shape[-1] // groups, filters), dtype, depth**-0.5)
    spatial = len(window)
    pads = padding or ((0, 0),) * spatial
    y = b.add(Conv((stride,) * spatial, pads, (dilation,) * spatial, groups), y, weights)
    y = b.add(ew.Add(), y, b.constant((filters,), dtype))
    if per_image:
        y = b.add(ew.Mul(), y, b.input((shape[0], *(1,) * spatial, filters), dtype))
    if residual:
        y = b.add(ew.Add(), y, b.input(y.shape, dtype))
    return b.task(b.add(ew.Relu(), y) if relu else y)


def matmul_task(rng, left, right, *, op=None, constant=False, dtype=F16, more=(), cast=False):
    """A product, and tensors of the shapes `more` added to it."""
    b = Builder(rng)
    op = op or MatMul()
    x = b.input(left, F32 if cast else dtype)
    if cast:
        x = b.add(Cast(dtype), x)
    w = b.constant(right, dtype, 0.3) if constant else b.input(right, dtype)
    y = b.add(op, x, w)
    for shape in more:
        y = b.add(ew.Add(), y, b.input(shape, dtype))
    return b.task(y)


def arrays(task: Task, rng) -> list[np.ndarray]:
    """Of about 1 in absolute value, so that tolerances mean the same for all shapes."""
    return [
        v.data if v.data is not None else rng.standard_normal(v.type.bind({})).astype(v.dtype.numpy)
        for v in task.inputs
    ]


def tactics(task: Task, *, walks=(TAPS,), splits=(1,), passes=1) -> list[MatrixTactic]:
    """Small tiles of several forms."""
    forms = [(16, 32, 16), (32, 16, 32), (64, 64, 64)]
    made = []
    for i, (walk, split) in enumerate((w, s) for w in walks for s in splits):
        rows, columns, depth = forms[i % 3]
        made.append(MatrixTactic(task, rows, columns, depth, 4, 2, split, walk, False, passes))
    return made


def check(task: Task, rng, offered=(), limit=2, layouts=None) -> None:
    """Runs tactics given and the first ones that the family offers."""
    values = (*task.inputs, *task.outputs)
    if layouts:
        chosen = {v: layouts(v) for v in values}
        layouts = chosen.__getitem__
    binding = Binding({}, chosen if layouts else {})
    own = [t for t in FAMILY.tactics(task, binding) if t.rows * t.columns <= 4096][:limit]
    data = arrays(task, rng)
    scale = max(float(np.abs(e.astype(np.float32)).max()) for e in task.evaluate(data))
    tolerance = TOLERANCES[task.anchor.output.dtype] * max(scale, 1)
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=[*offered, *own],
        arrays=data,
        tolerance=tolerance,
        layouts=layouts,
        limit=None,
    )
