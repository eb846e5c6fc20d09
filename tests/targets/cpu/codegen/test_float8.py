"""Codes of FP8 made and read on CPUs: every code, every number between two, what is no number."""

from __future__ import annotations

import numpy as np
import pytest

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph import DType
from planish.ops import DecodeFloat8, EncodeFloat8


def check(evaluate, op, x: np.ndarray, scale: float, isa: str) -> None:
    arrays = [x, np.full(len(x), scale, np.float32)]
    (expected,) = op.reference(*arrays)
    leaves = tuple(Leaf(DType.of(a.dtype)) for a in arrays)
    step = Instruction(op, (0, 1), DType.of(expected.dtype))
    for lanes in (16, 1):
        (got,) = evaluate(Expression(leaves, (step,), (2,)), arrays, lanes, isa)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_numbers_become_codes(evaluate, isa, scale) -> None:
    halves = np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32)
    check(evaluate, EncodeFloat8(), halves, scale, isa)
    check(evaluate, EncodeFloat8(), halves * np.float32(1 - 2.0**-23), scale, isa)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_codes_become_numbers(evaluate, isa, scale) -> None:
    check(evaluate, DecodeFloat8(), np.arange(256).astype(np.uint8).view(np.int8), scale, isa)
    sums = np.random.default_rng(3).standard_normal(400).astype(np.float32)
    check(evaluate, DecodeFloat8(), sums, scale, isa)
