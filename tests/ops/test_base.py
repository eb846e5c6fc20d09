"""The registry of ops, their text, and the helpers all of them use."""

import dataclasses
import pickle

import pytest

from planish.errors import ShapeError
from planish.graph import DType, symbol
from planish.ops import (
    OPS,
    ArgMax,
    Clip,
    Conv,
    Op,
    broadcast_shapes,
    ew,
    normalize_axis,
    window_output,
)

N, M = symbol("N"), symbol("M")


def test_registry():
    assert OPS["conv"] is Conv
    assert OPS["squared_difference"] is ew.SquaredDifference
    assert {"mat_mul", "top_k", "arg_max", "resize", "non_max_suppression"} <= set(OPS)
    for name, op in OPS.items():
        assert op.name == name
        assert op.__doc__
        assert dataclasses.is_dataclass(op)
        assert op.infer is not Op.infer
        assert op.reference is not Op.reference
    with pytest.raises(TypeError, match="two ops"):
        type("Conv", (Op,), {})


def test_text_and_attributes():
    assert str(ArgMax(1)) == "arg_max(axis=1, keepdims=False, dtype=i64, select_last=False)"
    assert str(Conv((1,), ((0, 1),), (2,))) == (
        "conv(strides=(1,), padding=((0, 1),), dilations=(2,), groups=1)"
    )
    assert str(ew.Add()) == "add"
    assert Clip(0.0, 6.0).attributes() == {"low": 0.0, "high": 6.0}


def test_ops_are_values():
    assert ArgMax(1, dtype=DType.INT32) == ArgMax(1, dtype=DType.INT32) != ArgMax(1)
    assert ew.Add() == ew.Add() != ew.Mul()
    assert len({ew.Add(), ew.Add(), Clip(0.0, 1.0), Clip(0.0, 1.0)}) == 2
    assert pickle.loads(pickle.dumps(ArgMax(1))) == ArgMax(1)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([], ()),
        ([(2, 3), (3,)], (2, 3)),
        ([(2, 1), (1, 3), ()], (2, 3)),
        ([(N, 1), (M,)], (N, M)),
        ([(N,), (N,), (1,)], (N,)),
        ([(0,), (1,)], (0,)),
    ],
)
def test_broadcast(shapes, expected):
    assert broadcast_shapes(*shapes) == expected


@pytest.mark.parametrize("shapes", [[(2,), (3,)], [(N,), (M,)], [(N,), (2,)], [(0,), (2,)]])
def test_broadcast_refuses(shapes):
    with pytest.raises(ShapeError, match="do not broadcast"):
        broadcast_shapes(*shapes)


def test_axes_and_windows():
    assert normalize_axis(-1, 3) == 2
    with pytest.raises(ShapeError, match="does not exist"):
        normalize_axis(3, 3)
    assert window_output(10, 3, 2, 1, 0, 1) == 5
    assert window_output(2, 5, 1, 1, 0, 0) == 0
    with pytest.raises(ShapeError, match="dilation 9223372036854775807, is too large"):
        window_output(2, 1, 1, 2**63 - 1, 0, 0)
    assert str(window_output(N, 3, 2, 1, 0, 1)) == "floordiv(N, 2)"
