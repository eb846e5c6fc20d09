"""The elementwise ops of quantization against their references, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph import DType
from planish.ops.quantization import Dequantize, FakeQuant, Quantize, SnapToLevels

F32 = DType.FLOAT32
INTEGERS = [d for d in DType if d.is_integer]


def check(evaluate, op, arrays, isa: str) -> None:
    dtypes = [DType.of(a.dtype) for a in arrays]
    (expected,) = op.reference(*arrays)
    result = DType.of(expected.dtype)
    leaves = tuple(Leaf(d) for d in dtypes)
    step = Instruction(op, tuple(range(len(leaves))), result)
    expression = Expression(leaves, (step,), (len(leaves),))
    for lanes in (16, 1):
        (got,) = evaluate(expression, arrays, lanes, isa)
        np.testing.assert_array_equal(got, expected)


def floats(count: int, scale: float = 40.0, dtype=np.float32) -> np.ndarray:
    """Numbers, halves between integers, and what is no number."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(count) * scale).astype(dtype)
    x[: count // 2] = np.arange(count // 2) / 2 - count // 8
    x[-6:] = [np.nan, np.inf, -np.inf, -0.0, 1e30, -1e30]
    return x


def full(count: int, value: float, dtype=np.float32) -> np.ndarray:
    return np.full(count, value, dtype)


@pytest.mark.parametrize("to", [d for d in INTEGERS if d.size <= 2], ids=lambda d: d.value)
def test_quantize(evaluate, isa, to):
    limits = np.iinfo(to.numpy)
    x = floats(400)
    for scale, zero in ((1.0, 0.0), (0.37, 3.0)):
        op = Quantize(to, int(limits.min), int(limits.max))
        check(evaluate, op, [x, full(400, scale), full(400, zero)], isa)
    check(evaluate, Quantize(to, 3, int(limits.max)), [x, full(400, 0.7), full(400, 3.0)], isa)
    check(evaluate, Quantize(DType.INT8, -8, 7), [x, full(400, 0.7), full(400, 2.0)], isa)


@pytest.mark.parametrize("dtype", [d for d in INTEGERS if d.size <= 4], ids=lambda d: d.value)
def test_dequantize(evaluate, isa, dtype):
    info, rng = np.iinfo(dtype.numpy), np.random.default_rng(2)
    x = rng.integers(info.min, info.max, 400, dtype.numpy, endpoint=True)
    check(evaluate, Dequantize(), [x, full(400, 0.37), full(400, 5.0)], isa)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("half_up", [False, True])
def test_snap_to_levels(evaluate, isa, dtype, half_up):
    for scale in (1.0, 12.7):
        arrays = [floats(400, dtype=dtype), full(400, scale, dtype), full(400, 1 / scale, dtype)]
        check(evaluate, SnapToLevels(half_up), arrays, isa)


@pytest.mark.parametrize("divide", [False, True])
def test_fake_quant(evaluate, isa, divide):
    parameters = [-6.0, 6.0, 12 / 255, 255 / 12, 128.0]
    arrays = [floats(400, 5.0), *(full(400, p) for p in parameters)]
    check(evaluate, FakeQuant(divide), arrays, isa)
