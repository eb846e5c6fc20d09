"""No op on any dtype that it accepts falls to a host step: a sweep over ops and dtypes.

That the kernels compute what the references do is tested with the code generator and the families.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from planish.errors import ShapeError
from planish.fusion.task import make_task
from planish.graph import DType, Graph, TensorType
from planish.ops import (
    OPS,
    ArgMax,
    ArgMin,
    AvgPool,
    BatchNorm,
    BroadcastTo,
    Cast,
    Clip,
    Concat,
    Conv,
    CumSum,
    Elementwise,
    Elu,
    Gather,
    GatherNd,
    Gelu,
    HardSigmoid,
    Identity,
    InstanceNorm,
    LayerNorm,
    LeakyRelu,
    LogSoftmax,
    Lrn,
    MatMul,
    MaxPool,
    OneHot,
    Op,
    Pad,
    ReduceAll,
    ReduceAny,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
    Reshape,
    Resize,
    ScatterNd,
    Select,
    ShapeOf,
    Slice,
    Softmax,
    Tile,
    TopK,
    Transpose,
)
from planish.targets.base import Binding
from planish.targets.cpu.target import cpu

BOX, IMAGE, INDEX = (2, 6, 8), (2, 6, 6, 8), DType.INT64
ONE = ((0, 0), (0, 0))
Inputs = Callable[[DType], Sequence[tuple[tuple[int, ...], DType]]]


def same(*shapes: tuple[int, ...]) -> Inputs:
    """Inputs of these shapes, all of the dtype that is tested."""
    return lambda dtype: [(shape, dtype) for shape in shapes]


CASES: list[tuple[Op, Inputs]] = [
    *((op, same(BOX)) for op in (Clip(0, 6), LeakyRelu(0.1), Elu(), HardSigmoid(), Gelu())),
    *((Cast(to), same(BOX)) for to in DType),
    (Select(), lambda d: [(BOX, DType.BOOL), (BOX, d), (BOX, d)]),
    (MatMul(), same((6, 8), (8, 5))),
    (MatMul(), same((3, 6, 8), (3, 8, 5))),
    (MatMul(True, True), same((8, 6), (5, 8))),
    (Conv((1, 1), ((1, 1), (1, 1)), (1, 1)), same(IMAGE, (3, 3, 8, 4))),
    (Conv((1, 1), ((1, 1), (1, 1)), (1, 1), 8), same(IMAGE, (3, 3, 1, 8))),
    (Conv((1,) * 3, ((1, 1),) * 3, (1,) * 3), same((1, 4, 4, 4, 8), (3, 3, 3, 8, 4))),
    (MaxPool((2, 2), (1, 1), ONE, (1, 1)), same(IMAGE)),
    (AvgPool((2, 2), (1, 1), ONE), same(IMAGE)),
    *(
        (kind((1,), False), same(BOX))
        for kind in (ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceProd, ReduceAny, ReduceAll)
    ),
    *((kind(1), same(BOX)) for kind in (ArgMax, ArgMin, CumSum)),
    (TopK(3), same(BOX)),
    (Reshape((12, 8)), same(BOX)),
    (Transpose((2, 0, 1)), same(BOX)),
    (BroadcastTo((3, *BOX)), same(BOX)),
    (Slice((0, 1, 0), (2, 3, 4), (1, 1, 2)), same(BOX)),
    (Concat(1), same(BOX, BOX)),
    (Tile((1, 2, 2)), same(BOX)),
    (ShapeOf(), same(BOX)),
    (Identity(), same(BOX)),
    *(
        (Pad(((0, 0), (1, 2), (1, 1)), mode, 1.0), same(BOX))
        for mode in ("constant", "reflect", "symmetric", "edge")
    ),
    (Gather(1), lambda d: [(BOX, d), ((3,), INDEX)]),
    (Gather(1), lambda d: [(BOX, DType.FLOAT32), ((3,), d)]),
    (GatherNd(), lambda d: [(BOX, d), ((3, 2), INDEX)]),
    *(
        (ScatterNd(reduction), lambda d: [(BOX, d), ((3, 2), INDEX), ((3, 8), d)])
        for reduction in ("none", "add", "mul", "max", "min")
    ),
    (OneHot(5), lambda d: [((3,), INDEX), ((), d), ((), d)]),
    (OneHot(5), lambda d: [((3,), d), ((), DType.INT8), ((), DType.INT8)]),
    (BatchNorm(1e-3), same(IMAGE, *[(8,)] * 4)),
    (LayerNorm(-1, 1e-3), same(BOX, (8,), (8,))),
    (InstanceNorm(1e-3), same(IMAGE, (8,), (8,))),
    (Softmax(-1), same(BOX)),
    (LogSoftmax(1), same(BOX)),
    (Lrn(2, 1.0, 1e-4, 0.75), same(IMAGE)),
    *((Resize((9, 9), mode, "half_pixel"), same(IMAGE)) for mode in ("nearest", "linear", "cubic")),
]
KNOWN = {type(op) for op, _ in CASES}
CASES += [
    (kind(), same(*[BOX] * kind.arity))
    for kind in OPS.values()
    if issubclass(kind, Elementwise) and kind not in KNOWN and not kind.__dataclass_fields__
]
REFUSED_BY_FRAMEWORKS = {(Conv, DType.BOOL)}


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
def test_every_op_has_a_kernel(dtype):
    declined, accepted = [], 0
    for op, inputs in CASES:
        if (type(op), dtype) in REFUSED_BY_FRAMEWORKS:
            continue
        for constant in (False, True):
            graph = Graph()
            values = [
                graph.constant(np.zeros(shape, d.numpy))
                if constant and number
                else graph.input(f"x{number}", TensorType(shape, d))
                for number, (shape, d) in enumerate(inputs(dtype))
            ]
            try:
                node = graph.add_node(op, values)
            except ShapeError:  # the op's own rule: it does not take the dtype
                continue
            for value in node.outputs:
                graph.mark_output(value, value.name)
            task = make_task([node], None if isinstance(op, Elementwise) else node)
            accepted += 1
            if not cpu().tactics(task, Binding({})):
                declined.append(f"{op}{' of constants' if constant else ''}")
    assert accepted > 30
    assert not declined, f"no kernel for {dtype.value}: {', '.join(declined)}"
