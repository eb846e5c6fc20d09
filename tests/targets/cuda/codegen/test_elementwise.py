"""Every elementwise op, for every dtype it accepts, against its NumPy reference."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.graph.types import DType
from planish.ops.base import OPS
from planish.ops.elementwise import (
    Cast,
    Clip,
    Elementwise,
    Elu,
    Gelu,
    HardSigmoid,
    LeakyRelu,
    Select,
    ew,
)
from planish.ops.float8 import DecodeFloat8, EncodeFloat8
from planish.ops.quantization import Dequantize, ExactDiv, FakeQuant, Quantize, SnapToLevels

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from planish.targets.cuda.codegen.compile import DeviceCode
from planish.targets.cuda.codegen.elementwise import (
    compute_type,
    constant,
    storage_type,
)
from planish.targets.cuda.machine import H200

F32, F64 = DType.FLOAT32, DType.FLOAT64
HALVES = (DType.FLOAT16, DType.BFLOAT16)
INTEGERS = [d for d in DType if d.is_integer]
COUNT = 512
WITH_ATTRIBUTES: list[Elementwise] = [
    Clip(-1.5, 6.0),
    Clip(float("-inf"), 3.0),
    Clip(-1e30, 1e30),
    LeakyRelu(0.1),
    LeakyRelu(-0.5),
    LeakyRelu(0.0),
    Elu(),
    Elu(0.5),
    HardSigmoid(),
    Gelu(),
    Gelu(True),
    Select(),
    SnapToLevels(),
    SnapToLevels(True),
]
SIMPLE: list[Elementwise] = [
    op()
    for op in OPS.values()
    if issubclass(op, Elementwise)
    and not fields(op)
    and op not in (Select, Dequantize, DecodeFloat8, EncodeFloat8)
    and op.__module__.startswith("planish.ops")
]
BY_CANCELLATION = ("mish", "softplus", "hard_sigmoid", "gelu")


def accepts(op: Elementwise, dtype: DType) -> bool:
    return {
        "any": True,
        "number": dtype is not DType.BOOL,
        "float": dtype.is_float,
        "integer": dtype.is_integer,
        "bool": dtype is DType.BOOL,
    }[op.accepts]


def numbers(dtype: DType, seed: int, count: int = COUNT) -> np.ndarray:
    """Mostly small numbers, with the extreme ones among them."""
    rng = np.random.default_rng(seed)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, count).astype(bool)
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        x = rng.integers(max(info.min, -20), 21, count).astype(dtype.numpy)
        x[: count // 4] = rng.integers(info.min, info.max, count // 4, dtype.numpy, endpoint=True)
        least = [info.min, info.max, 0, 1 if dtype.value[0] == "u" else -1]
        x[rng.integers(0, count, 32)] = least * 8
        return x
    x = (rng.standard_normal(count) * 4).astype(dtype.numpy)
    special = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1, -1, 0.5, 2.5, -2.5, 88, -104, 1e-3, -3e-6]
    x[rng.integers(0, count, 4 * len(special))] = np.tile(special, 4).astype(dtype.numpy)
    x[rng.integers(0, count, 2)] = [60000, 60000 if dtype is DType.FLOAT16 else 1e37]
    return x


def wide(x: np.ndarray) -> np.ndarray:
    """Halves as float64: NumPy does not compare bfloat16's NaNs."""
    return x.astype(np.float64) if DType.of(x.dtype) in HALVES else x


def assert_same(got: np.ndarray, expected: np.ndarray, op: Elementwise) -> None:
    """Within a few units in the last place; bools and integers exactly."""
    dtype = DType.of(expected.dtype)
    if not dtype.is_float:
        np.testing.assert_array_equal(got, expected, err_msg=str(op))
        return
    relative = {F64: 4e-15, F32: 1e-6, DType.FLOAT16: 1.0e-3, DType.BFLOAT16: 8.0e-3}[dtype]
    absolute = 1e-6 if dtype is not F64 else 2e-15
    if op.name not in BY_CANCELLATION:
        absolute = {DType.FLOAT16: 6e-8, F64: 1e-300}.get(dtype, 1.2e-38)  # denormals
    np.testing.assert_allclose(
        got.astype(np.float64),
        expected.astype(np.float64),
        rtol=relative,
        atol=absolute,
        err_msg=f"{op} of {dtype.value}",
    )


def every_op(dtype: DType) -> Expression:
    """All ops that accept a dtype, side by side, of the same three operands and a bool."""
    leaves = (*(Leaf(dtype) for _ in range(3)), Leaf(DType.BOOL))
    steps = []
    for op in SIMPLE + WITH_ATTRIBUTES:
        if accepts(op, dtype):
            slots = (3, 0, 1) if isinstance(op, Select) else tuple(range(op.arity))
            steps.append(Instruction(op, slots, op.result or dtype))
    count = len(leaves)
    return Expression(leaves, tuple(steps), tuple(range(count, count + len(steps))))


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
def test_every_op(dtype, evaluate):
    expression = every_op(dtype)
    arrays = [numbers(leaf.dtype, 11 * i + 1) for i, leaf in enumerate(expression.leaves)]
    got = evaluate(expression, arrays)
    assert len(got) >= {DType.BOOL: 7}.get(dtype, 20)
    for array, expected, step in zip(
        got, expression.evaluate(arrays), expression.instructions, strict=True
    ):
        assert_same(array, expected, step.op)


@pytest.mark.parametrize("source", DType, ids=lambda d: d.value)
def test_casts(source, evaluate):
    x = numbers(source, 3, 1024)
    if source is F64:  # where rounding twice would differ from rounding once
        x[:200] = 1 + np.linspace(0, 0.01, 200) * (1 + 2.0**-40)
        x[200:210] = (1 + 2.0**-11) + np.linspace(-1, 1, 10) * 2.0**-40
        x[210:220] = -(1 + 2.0**-8) + np.linspace(-1, 1, 10) * 2.0**-40
    if source.is_float and source.size > 2:
        x[300:500] = (np.random.default_rng(2).standard_normal(200) * 1e10).astype(source.numpy)
        x[500:520] = np.array([127.5, -128.5, 255.9, 2147483648, 4294967296] * 4).astype(x.dtype)
        x[520:530] = np.array([9.3e18, 1.9e19, -9.3e18, 65519, 65520] * 2).astype(x.dtype)
        x[530:534] = np.array([-(2.0**31), -(2.0**63), 2.0**63, 2.0**64]).astype(x.dtype)
    casts = tuple(Instruction(Cast(d), (0,), d) for d in DType)
    got = evaluate(Expression((Leaf(source),), casts, tuple(range(1, len(casts) + 1))), [x])
    for step, array in zip(casts, got, strict=True):
        with np.errstate(invalid="ignore"):
            expected = step.op.reference(x)[0]
        np.testing.assert_array_equal(wide(array), wide(expected), err_msg=step.dtype.value)


def check(evaluate, expression: Expression, arrays) -> None:
    """Against the references, bit by bit."""
    for array, expected in zip(
        evaluate(expression, arrays), expression.evaluate(arrays), strict=True
    ):
        np.testing.assert_array_equal(wide(array), np.broadcast_to(wide(expected), array.shape))


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.value)
def test_integers_and_constants(dtype, evaluate):
    """Divisors, exponents and shifts that are known when compiling."""
    signed = dtype.value[0] == "i"
    known = [
        0,
        1,
        7,
        8 * dtype.size,
        65,
        *((-1, -3, int(np.iinfo(dtype.numpy).min)) if signed else ()),
    ]
    names = ("Div", "FloorDiv", "FloorMod", "TruncMod", "Pow", "LeftShift", "RightShift")
    leaves = (Leaf(dtype), *(Leaf(dtype, c) for c in known))
    steps = tuple(
        Instruction(getattr(ew, name)(), (0, i), dtype)
        for name in names
        for i in range(1, len(leaves))
    )
    steps += tuple(Instruction(c, (0,), dtype) for c in (Clip(-5.5, 6.5), Clip(-1e30, 1e30)))
    results = tuple(range(len(leaves), len(leaves) + len(steps)))
    check(evaluate, Expression(leaves, steps, results), [numbers(dtype, 5), *[None] * len(known)])


@pytest.mark.parametrize("dtype", [F32, F64, DType.FLOAT16], ids=lambda d: d.value)
def test_constant_powers(dtype, evaluate):
    known = (2.0, 1.0, 3.0, -1.0, 0.5, 0.0, -0.5, 1.75)
    leaves = (Leaf(dtype), *(Leaf(dtype, c) for c in known))
    steps = tuple(Instruction(ew.Pow(), (0, i + 1), dtype) for i in range(len(known)))
    results = tuple(range(len(leaves), len(leaves) + len(steps)))
    x = numbers(dtype, 9)
    got = evaluate(Expression(leaves, steps, results), [x, *[None] * len(known)])
    for array, exponent in zip(got, known, strict=True):
        # of an exponent that is one number NumPy makes a square root, which differs at -inf
        (expected,) = ew.Pow().reference(x, np.full_like(x, exponent))
        assert_same(array, expected, ew.Pow())


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
def test_constants(dtype, evaluate):
    """The extremes of each dtype, signs of zeros, what is no number; nothing but constants too."""
    if dtype is DType.BOOL:
        known: list = [True, False]
    elif dtype.is_integer:
        known = [int(np.iinfo(dtype.numpy).min), int(np.iinfo(dtype.numpy).max), 0, 3]
    else:
        parsed = [0.1, -0.0, 1e-30, 6e4, float("inf"), float("-inf"), float("nan")]
        known = [np.array(c).astype(dtype.numpy).item() for c in parsed]
    leaves = (Leaf(dtype), *(Leaf(dtype, c) for c in known))
    results = tuple(range(len(leaves)))
    expression = Expression(leaves, (), results)
    arrays = [numbers(dtype, 1, 64), *[None] * len(known)]
    check(evaluate, expression, arrays)
    for array, value in zip(evaluate(expression, arrays)[1:], known, strict=True):
        assert np.signbit(array[0].astype(np.float64)) == np.signbit(np.float64(value))


def test_several_steps_and_results(evaluate):
    """A residual block's end, its sign, and a constant beside them."""
    expression = Expression(
        (Leaf(F32), Leaf(F32), Leaf(F32, 0.5)),
        (
            Instruction(ew.Add(), (0, 1), F32),
            Instruction(ew.Relu(), (3,), F32),
            Instruction(ew.Greater(), (4, 2), DType.BOOL),
            Instruction(Cast(DType.INT8), (3,), DType.INT8),
        ),
        (4, 5, 6, 2, 0),
    )
    check(evaluate, expression, [numbers(F32, 1), numbers(F32, 2), None])


@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.value)
def test_halves_are_rounded_before_they_decide(dtype, evaluate):
    """0.1 * 3 == 0.3 in halves, though not in float32."""
    x = numbers(dtype, 4)
    leaves = (Leaf(dtype), Leaf(dtype, 3.0), Leaf(dtype))
    steps = (
        Instruction(ew.Mul(), (0, 1), dtype),
        Instruction(ew.Equal(), (3, 2), DType.BOOL),
        Instruction(ew.Floor(), (3,), dtype),
        Instruction(Cast(F32), (3,), F32),
    )
    product = ew.Mul().reference(x, dtype.numpy.type(3))[0]
    check(evaluate, Expression(leaves, steps, (4, 5, 6)), [x, None, product])


def test_signs_of_zeros(evaluate):
    zeros = np.array([0.0, -0.0] * 16, np.float32)
    divisors = np.repeat([1.0, -1.0], 16).astype(np.float32)
    ops = (ew.Neg(), ew.FloorMod(), ew.Round(), ew.Floor(), ew.Sqrt(), ew.Abs())
    steps = tuple(Instruction(op, tuple(range(op.arity)), F32) for op in ops)
    expression = Expression((Leaf(F32), Leaf(F32)), steps, tuple(range(2, 2 + len(ops))))
    for op, array, expected in zip(
        ops,
        evaluate(expression, [zeros, divisors]),
        expression.evaluate([zeros, divisors]),
        strict=True,
    ):
        assert (np.signbit(array) == np.signbit(expected)).all(), op


def levels(count: int = COUNT, scale: float = 40.0) -> np.ndarray:
    """Numbers, halves between integers, and what is no number."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(count) * scale).astype(np.float32)
    x[: count // 2] = np.arange(count // 2) / 2 - count // 8
    x[-6:] = [np.nan, np.inf, -np.inf, -0.0, 1e30, -1e30]
    return x


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_quantization(scale, evaluate):
    """Bit by bit, as an error in the last bit may be a whole level."""
    rng = np.random.default_rng(3)
    quantize = [
        Quantize(d, int(np.iinfo(d.numpy).min), int(np.iinfo(d.numpy).max))
        for d in INTEGERS
        if d.size <= 2
    ]
    quantize.append(Quantize(DType.INT8, -8, 7))
    fake = [FakeQuant(False), FakeQuant(True)]
    integers = [d for d in INTEGERS if d.size <= 4]
    snap = [SnapToLevels(), SnapToLevels(True)]
    constants = (scale, 3.0, -6.0, 6.0, 12 / 255, 255 / 12, 128.0)
    leaves = (
        Leaf(F32),
        *(Leaf(F32, float(np.float32(c))) for c in constants),
        *(Leaf(d) for d in integers),
    )
    steps = [Instruction(q, (0, 1, 2), q.to) for q in quantize]
    steps += [Instruction(f, (0, 3, 4, 5, 6, 7), F32) for f in fake]
    steps += [Instruction(s, (0, 6, 5), F32) for s in snap]
    steps += [Instruction(Dequantize(), (8 + i, 1, 2), F32) for i in range(len(integers))]
    steps += [Instruction(ExactDiv(), (0, 1), F32)]
    arrays = [levels(), *[None] * len(constants)]
    arrays += [
        rng.integers(np.iinfo(d.numpy).min, np.iinfo(d.numpy).max, COUNT, d.numpy, endpoint=True)
        for d in integers
    ]
    results = tuple(range(len(leaves), len(leaves) + len(steps)))
    check(evaluate, Expression(leaves, tuple(steps), results), arrays)


@pytest.mark.parametrize("dtype", [F32, F64, DType.INT8, DType.UINT64, DType.BOOL])
def test_every_op_compiles(dtype, expression_kernel):
    kernel = expression_kernel(4, 1, every_op(dtype), COUNT)
    code = DeviceCode.from_bytes(kernel.compile(H200))
    assert code.arch == "sm_90" and code.cubin[:4] == b"\x7fELF"


def test_casts_compile(expression_kernel):
    leaves = tuple(Leaf(d) for d in DType)
    steps = tuple(Instruction(Cast(d), (i,), d) for i in range(len(leaves)) for d in DType)
    results = tuple(range(len(leaves), len(leaves) + len(steps)))
    assert expression_kernel(4, 1, Expression(leaves, steps, results), 128).compile(H200)


def test_types():
    assert compute_type(DType.BFLOAT16) == compute_type(DType.FLOAT16) == "tl.float32"
    assert {storage_type(d) for d in DType} >= {"tl.bfloat16", "tl.int1", "tl.uint64"}
    assert constant(True, DType.BOOL) == "tl.full([], True, tl.int1)"
    assert constant(3, DType.FLOAT16) == "tl.full([], 3.0, tl.float32)"


@pytest.mark.parametrize("dtype", HALVES, ids=lambda d: d.value)
def test_gelu_of_halves(dtype, evaluate):
    """Within a unit in the last place, also where 1 + erf cancels; every half from -9 to 9."""
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype.numpy)
    with np.errstate(invalid="ignore"):
        x = x[np.abs(wide(x)) <= 9]
    x = np.resize(x, 1 << 16)
    expression = Expression((Leaf(dtype),), (Instruction(Gelu(), (0,), dtype),), (1,))
    (got,) = evaluate(expression, [x])
    exact = np.array([v / 2 * math.erfc(-v / math.sqrt(2)) for v in wide(x).tolist()])
    unit = {DType.FLOAT16: 2.0**-10, DType.BFLOAT16: 2.0**-7}[dtype]
    error = np.abs(wide(got) - exact) / np.maximum(np.abs(exact), 6e-5)
    assert error.max() < 0.76 * unit
