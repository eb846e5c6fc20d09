"""Ops that change nothing disappear, and only those."""

import math

import numpy as np
import pytest

from planish.graph.dims import symbol
from planish.graph.types import DType
from planish.ops.elementwise import Cast, Clip, ew
from planish.ops.indexing import ScatterNd
from planish.ops.pool import AvgPool, MaxPool
from planish.ops.reduce import ReduceMax, ReduceMean, ReduceProd, ReduceSum
from planish.ops.shape import (
    BroadcastTo,
    Concat,
    Identity,
    Pad,
    Reshape,
    Slice,
    Tile,
    Transpose,
)
from planish.ops.spatial import Resize
from planish.passes.identities import remove_identities

N = symbol("N")
NONE = ((0, 0), (0, 0))

NOTHING = {
    "identity": Identity(),
    "cast": Cast(DType.FLOAT32),
    "reshape": Reshape((N, 4, 4, 3)),
    "broadcast": BroadcastTo((N, 4, 4, 3)),
    "tile": Tile((1, 1, 1, 1)),
    "transpose": Transpose((0, 1, 2, 3)),
    "slice": Slice((0, 0, 0, 0), (N, 4, 4, 3), (1, 1, 1, 1)),
    "pad": Pad(((0, 0),) * 4),
    "concat": Concat(1),
    "max_pool": MaxPool((1, 1), (1, 1), NONE, (1, 1)),
    "avg_pool": AvgPool((1, 1), (1, 1), NONE),
    "resize": Resize((4, 4), "linear", "half_pixel"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing(net, check, name):
    x = net.input(N, 4, 4, 3)
    net.output(net.add(ew.Exp(), net.add(NOTHING[name], x)))
    assert check(net, remove_identities) == ["exp"]


def test_an_output_may_become_an_input(net, check):
    net.output(net.add(Identity(), net.input(N, 3)))
    assert check(net, remove_identities) == []


@pytest.mark.parametrize(("op", "number"), [(ew.Add, 0), (ew.Sub, 0), (ew.Mul, 1), (ew.Div, 1)])
@pytest.mark.parametrize("shape", [(), (4,), (1, 4)])
def test_neutral_constants(net, check, op, number, shape):
    import numpy as np

    net.output(net.add(op(), net.input(N, 4), net.constant(np.full(shape, number))))
    assert check(net, remove_identities) == []


def test_slices_backwards_stay(net, check):
    x = net.input(N, 4)
    net.output(net.add(Slice((0, 3), (N, 4), (1, -1)), x))
    assert check(net, remove_identities) == ["slice"]


CLAMPS = {
    "relu, relu": ([ew.Relu(), ew.Relu()], ["relu"]),
    "relu, clip": ([ew.Relu(), Clip(-1, 6)], ["clip"]),
    "clip, relu": ([Clip(-1, 1), ew.Relu()], ["clip"]),
    "clip, relu again": ([Clip(0.5, 1), ew.Relu()], ["clip"]),
    "clip, clip": ([Clip(-1, 1), Clip(0.5, 3)], ["clip"]),
    "clip apart": ([Clip(-2, -1), Clip(0.5, 3)], ["clip"]),
    "one-sided": ([Clip(-1, math.inf), Clip(-math.inf, 1)], ["clip"]),
    "empty": ([Clip(1, -1), Clip(-3, 3)], ["clip", "clip"]),
    "open": ([Clip(-math.inf, math.inf)], []),
    "relu by clip": ([Clip(0, math.inf)], ["relu"]),
    "double negation": ([ew.Neg(), ew.Neg()], []),
    "relu of sigmoid": ([ew.Sigmoid(), ew.Relu()], ["sigmoid"]),
    "abs of square": ([ew.Square(), ew.Abs()], ["square"]),
    "relu of tanh": ([ew.Tanh(), ew.Relu()], ["tanh", "relu"]),
}


@pytest.mark.parametrize("case", CLAMPS)
def test_clamps(net, check, case):
    ops, left = CLAMPS[case]
    x = net.input(N, 4)
    for op in ops:
        x = net.add(op, x)
    net.output(x)
    assert check(net, remove_identities) == left


CASTS = {
    (DType.INT32, DType.INT64, DType.INT32): [],
    (DType.FLOAT16, DType.FLOAT32, DType.FLOAT16): [],
    (DType.UINT8, DType.FLOAT32, DType.INT32): ["cast"],
    (DType.INT8, DType.FLOAT64, DType.UINT8): ["cast", "cast"],
    (DType.INT16, DType.FLOAT32, DType.INT8): ["cast", "cast"],
    (DType.INT16, DType.INT32, DType.INT8): ["cast"],
    (DType.FLOAT32, DType.FLOAT16, DType.FLOAT32): ["cast", "cast"],
    (DType.INT64, DType.FLOAT64, DType.INT64): ["cast", "cast"],
    (DType.INT32, DType.FLOAT32, DType.INT32): ["cast", "cast"],
    (DType.UINT8, DType.INT8, DType.INT32): ["cast", "cast"],
    (DType.BFLOAT16, DType.FLOAT16, DType.BFLOAT16): ["cast", "cast"],
    (DType.FLOAT32, DType.BOOL, DType.FLOAT32): ["cast", "cast"],
}


@pytest.mark.parametrize("chain", CASTS, ids=str)
def test_casts(net, check, chain):
    first, second, third = chain
    x = net.input(N, 4, dtype=first)
    net.output(net.add(Cast(third), net.add(Cast(second), x)))
    assert check(net, remove_identities) == CASTS[chain]


def test_reductions_of_one_element_are_reshapes(net, check):
    x = net.input(N, 1, 3)
    net.output(net.add(ReduceMax((1,), True), x), net.add(ReduceMean((-2,), False), x))
    assert check(net, remove_identities) == ["reshape"]


def test_empty_operands_of_a_concat_disappear(net, check):
    x, empty = net.input(N, 2), net.input(N, 0, name="empty")
    net.output(net.add(Concat(-1), x, empty, x), net.add(Concat(1), empty, x))
    assert check(net, remove_identities) == ["concat"]


def test_a_scatter_of_nothing_disappears(net, check):
    x = net.input(N, 2)
    nowhere = net.constant(np.empty((0, 1)), np.int64)
    y = net.add(ScatterNd("add"), x, nowhere, net.input(0, 2, name="updates"))
    net.output(net.add(ew.Exp(), y))
    assert check(net, remove_identities) == ["exp"]


@pytest.mark.parametrize("op", [ReduceSum((1,)), ReduceMax((1, 2)), ReduceProd((-2,), True)])
def test_a_reduction_of_nothing_is_constant(net, check, op):
    net.output(net.add(op, net.input(N, 0, 3)))
    assert check(net, remove_identities) == ["broadcast_to"]
