"""Convolutions and matrix products of bfloat16 as tasks, with random constants."""

from __future__ import annotations

import numpy as np

from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, ew
from planish.ops.matmul import MatMul

BF16, F32 = DType.BFLOAT16, DType.FLOAT32


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(BF16.numpy)


def conv_task(
    rng,
    *,
    shape,
    filters,
    window,
    stride=1,
    pad=0,
    dilation=1,
    groups=1,
    prologue=False,
    residual=False,
    wide=False,
) -> Task:
    graph = Graph()
    x = graph.input("x", TensorType(shape, BF16))
    nodes = []
    if prologue:
        x = graph.add(ew.Mul(), x, graph.constant(draw(rng, shape[-1])))
        nodes.append(x.producer)
    weights = graph.constant(draw(rng, window, window, shape[-1] // groups, filters))
    op = Conv((stride, stride), ((pad, pad), (pad, pad)), (dilation, dilation), groups)
    y = graph.add(op, x, weights)
    anchor = y.producer
    nodes.append(anchor)
    if residual:
        y = graph.add(ew.Add(), y, graph.input("r", y.type))
        nodes.append(y.producer)
    if wide:
        y = graph.add(Cast(F32), y)
        nodes.append(y.producer)
    graph.mark_output(y, "y")
    return make_task(nodes, anchor)


def matmul_task(rng, a, b, *, transpose_b=False) -> Task:
    graph = Graph()
    x = graph.input("x", TensorType(a, BF16))
    y = graph.add(MatMul(False, transpose_b), x, graph.constant(draw(rng, *b)))
    graph.mark_output(y, "y")
    return make_task([y.producer], y.producer)
