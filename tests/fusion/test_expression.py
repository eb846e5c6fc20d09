from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from planish.fusion.expression import Expression, Instruction, Leaf, identity
from planish.graph.types import DType
from planish.ops import Cast, Clip, Select, ew

F32, I32, BOOL = DType.FLOAT32, DType.INT32, DType.BOOL


def bias_and_clip() -> Expression:
    """``clip(x + y * 2, 0, 6)`` and, as a second result, ``x + y * 2``."""
    return Expression(
        (Leaf(F32), Leaf(F32), Leaf(F32, 2.0)),
        (
            Instruction(ew.Mul(), (1, 2), F32),
            Instruction(ew.Add(), (0, 3), F32),
            Instruction(Clip(0.0, 6.0), (4,), F32),
        ),
        (5, 4),
    )


def test_slots_are_leaves_then_instructions() -> None:
    expression = Expression(
        (Leaf(F32), Leaf(I32)),
        (Instruction(Cast(I32), (0,), I32), Instruction(ew.Less(), (2, 1), BOOL)),
        (3,),
    )
    assert [expression.dtype(i) for i in range(4)] == [F32, I32, I32, BOOL]


def test_evaluate() -> None:
    x, y = np.array([1.0, -9.0, 5.0], np.float32), np.array([1.0, 1.0, 3.0], np.float32)
    clipped, total = bias_and_clip().evaluate([x, y, np.zeros(0)])
    np.testing.assert_array_equal(total, [3.0, -7.0, 11.0])
    np.testing.assert_array_equal(clipped, [3.0, 0.0, 6.0])
    assert clipped.dtype == np.float32


def test_constants_have_the_dtype_of_their_leaf() -> None:
    expression = Expression(
        (Leaf(DType.INT8), Leaf(DType.INT8, 100)),
        (Instruction(ew.Add(), (0, 1), DType.INT8),),
        (2,),
    )
    (result,) = expression.evaluate([np.array([100], np.int8), np.zeros(0)])
    assert result.dtype == np.int8
    assert result[0] == -56  # wraps as int8 does


def test_leaves_broadcast() -> None:
    expression = Expression(
        (Leaf(BOOL), Leaf(F32), Leaf(F32)), (Instruction(Select(), (0, 1, 2), F32),), (3,)
    )
    condition = np.array([[True], [False]])
    (result,) = expression.evaluate([condition, np.ones(3, np.float32), np.float32(0)])
    np.testing.assert_array_equal(result, [[1, 1, 1], [0, 0, 0]])


def test_equal_expressions_are_one_key() -> None:
    assert bias_and_clip() == bias_and_clip()
    assert len({bias_and_clip(), bias_and_clip(), identity(F32)}) == 2
    other = dataclasses.replace(bias_and_clip(), results=(4,))
    assert other != bias_and_clip()
    assert identity(F32) != identity(I32)


def test_is_copy() -> None:
    assert identity(F32).is_copy
    assert not bias_and_clip().is_copy
    assert not Expression((Leaf(F32), Leaf(F32)), (), (0,)).is_copy
    assert not Expression((Leaf(F32),), (), (0, 0)).is_copy


def test_text() -> None:
    assert str(bias_and_clip()) == (
        "clip(low=0.0, high=6.0)(add(x0, mul(x1, 2.0))), add(x0, mul(x1, 2.0))"
    )
    assert str(identity(F32)) == "x0"


def test_leaves_must_be_as_many_as_arrays() -> None:
    with pytest.raises(ValueError, match="argument"):
        bias_and_clip().evaluate([np.zeros(1)])
