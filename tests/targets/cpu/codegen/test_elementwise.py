"""Every elementwise op, for every dtype it accepts, against its NumPy reference."""

from __future__ import annotations

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
from planish.ops.quantization import Dequantize
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.compile import emit_text
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.machine import host

OPS_WITH_ATTRIBUTES = [
    Clip(-1.5, 6.0),
    Clip(float("-inf"), 3.0),
    LeakyRelu(0.1),
    LeakyRelu(-0.5),
    LeakyRelu(0.0),
    Elu(),
    Elu(0.5),
    HardSigmoid(),
    Gelu(),
    Gelu(True),
    Select(),
]
SIMPLE = [
    op()
    for op in OPS.values()
    if issubclass(op, Elementwise)
    and not fields(op)
    and op not in (Select, Dequantize, DecodeFloat8, EncodeFloat8)
]
HALVES = (DType.FLOAT16, DType.BFLOAT16)


def accepted(op: Elementwise) -> list[DType]:
    keep = {
        "any": lambda d: True,
        "number": lambda d: d is not DType.BOOL,
        "float": lambda d: d.is_float,
        "integer": lambda d: d.is_integer,
        "bool": lambda d: d is DType.BOOL,
    }[op.accepts]
    return [d for d in DType if keep(d)]


def arrays(dtype: DType, count: int, seed: int) -> np.ndarray:
    """Mostly small numbers, with the extreme ones among them."""
    rng = np.random.default_rng(seed)
    if dtype is DType.BOOL:
        return rng.integers(0, 2, count).astype(bool)
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        x = rng.integers(max(info.min, -20), 21, count).astype(dtype.numpy)
        x[: count // 4] = rng.integers(info.min, info.max, count // 4, dtype.numpy, endpoint=True)
        x[rng.integers(0, count, 12)] = [info.min, info.max, 0, 1] * 3
        return x
    x = (rng.standard_normal(count) * 4).astype(dtype.numpy)
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1, -1, 0.5, 2.5, -2.5, 88, -104])
    x[rng.integers(0, count, 24)] = np.tile(special, 2).astype(dtype.numpy)
    return x


def wide(x: np.ndarray) -> np.ndarray:
    """Halves as float64: NumPy does not compare bfloat16's NaNs."""
    return x.astype(np.float64) if DType.of(x.dtype) in HALVES else x


def assert_same(got: np.ndarray, expected: np.ndarray, op: Elementwise) -> None:
    dtype = DType.of(expected.dtype)
    if not dtype.is_float:
        np.testing.assert_array_equal(got, expected)
        return
    relative = {
        DType.FLOAT64: 4e-15,
        DType.FLOAT32: 2e-6,
        DType.FLOAT16: 1.1e-3,
        DType.BFLOAT16: 8.5e-3,
    }[dtype]
    absolute = 1e-6 if dtype is not DType.FLOAT64 else 2e-15
    if not isinstance(op, Gelu) and op.name not in ("mish", "softplus", "hard_sigmoid"):
        absolute = {DType.FLOAT16: 6e-8}.get(dtype, 1e-40)  # cancellation, or denormals
    np.testing.assert_allclose(
        got.astype(np.float64), expected.astype(np.float64), rtol=relative, atol=absolute
    )


def expression_of(op: Elementwise, dtypes: list[DType], result: DType) -> Expression:
    leaves = tuple(Leaf(d) for d in dtypes)
    step = Instruction(op, tuple(range(len(leaves))), result)
    return Expression(leaves, (step,), (len(leaves),))


@pytest.mark.parametrize("op", SIMPLE + OPS_WITH_ATTRIBUTES, ids=str)
def test_op(op, evaluate):
    for dtype in accepted(op):
        dtypes = [dtype] * op.arity
        if isinstance(op, Select):
            dtypes[0] = DType.BOOL
        inputs = [arrays(d, 400, 11 * i + 1) for i, d in enumerate(dtypes)]
        expected = op.reference(*inputs)[0]
        expression = expression_of(op, dtypes, DType.of(expected.dtype))
        lanes = max(1, 64 // max(dtype.size, 4 if dtype in HALVES else 1))
        (got,) = evaluate(expression, inputs, lanes, "host")
        assert_same(got, expected, op)


@pytest.mark.parametrize("op", SIMPLE + OPS_WITH_ATTRIBUTES, ids=str)
def test_op_on_scalars_and_avx2(op, isa, evaluate):
    """One lane, and the narrower instruction set, for a few dtypes."""
    usual = (DType.FLOAT32, DType.INT8, DType.INT32, DType.UINT64, DType.BOOL)
    for dtype in set(accepted(op)) & set(usual):
        dtypes = [dtype] * op.arity
        if isinstance(op, Select):
            dtypes[0] = DType.BOOL
        inputs = [arrays(d, 200, 5 * i) for i, d in enumerate(dtypes)]
        expected = op.reference(*inputs)[0]
        expression = expression_of(op, dtypes, DType.of(expected.dtype))
        (got,) = evaluate(expression, inputs, 1 if isa == "host" else 8, isa)
        assert_same(got, expected, op)


@pytest.mark.parametrize("source", DType)
def test_casts(source, isa, evaluate):
    x = arrays(source, 600, 3)
    if source is DType.FLOAT64:  # where rounding twice would differ from rounding once
        x[:200] = 1 + np.linspace(0, 0.01, 200) * (1 + 2.0**-40)
        x[200:210] = (1 + 2.0**-11) + np.linspace(-1, 1, 10) * 2.0**-40
        x[210:220] = -(1 + 2.0**-8) + np.linspace(-1, 1, 10) * 2.0**-40
    if source.is_float and source.size > 2:
        x[300:500] = (np.random.default_rng(2).standard_normal(200) * 1e10).astype(source.numpy)
        x[500:520] = np.array([127.5, -128.5, 255.9, 2147483648, 4294967296] * 4).astype(x.dtype)
        x[520:530] = np.array([9.3e18, 1.9e19, -9.3e18, 65519, 65520] * 2).astype(x.dtype)
    targets = [d for d in DType if d is not source]
    casts = tuple(Instruction(Cast(d), (0,), d) for d in targets)
    results = tuple(range(1, len(targets) + 1))
    got = evaluate(Expression((Leaf(source),), casts, results), [x], 16, isa)
    for dtype, array in zip(targets, got, strict=True):
        expected = Cast(dtype).reference(x)[0]
        np.testing.assert_array_equal(wide(array), wide(expected), err_msg=dtype.value)


def test_divisions_by_constants_and_zero(isa, evaluate):
    for dtype in (DType.INT8, DType.UINT16, DType.INT32, DType.INT64):
        x = arrays(dtype, 100, 1)
        for divisor in (0, 7) + ((-1,) if dtype.value[0] == "i" else ()):
            for op in (ew.Div(), ew.FloorDiv(), ew.FloorMod(), ew.TruncMod()):
                leaves = (Leaf(dtype), Leaf(dtype, divisor))
                expression = Expression(leaves, (Instruction(op, (0, 1), dtype),), (2,))
                (got,) = evaluate(expression, [x, None], 8, isa)
                expected = op.reference(x, np.full_like(x, divisor))[0]
                np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("exponent", [2.0, 1.0, 3.0, -1.0, 0.5, 0.0, -0.5, 1.7])
def test_constant_powers(exponent, evaluate):
    x = arrays(DType.FLOAT32, 300, 9)
    leaves = (Leaf(DType.FLOAT32), Leaf(DType.FLOAT32, exponent))
    step = Instruction(ew.Pow(), (0, 1), DType.FLOAT32)
    (got,) = evaluate(Expression(leaves, (step,), (2,)), [x, None], 16, "host")
    assert_same(got, ew.Pow().reference(x, np.full_like(x, exponent))[0], ew.Pow())


def test_several_steps_and_results(isa, evaluate):
    """A residual block's end, its sign, and a constant beside them."""
    f32 = DType.FLOAT32
    expression = Expression(
        (Leaf(f32), Leaf(f32), Leaf(f32, 0.5)),
        (
            Instruction(ew.Add(), (0, 1), f32),
            Instruction(ew.Relu(), (3,), f32),
            Instruction(ew.Greater(), (4, 2), DType.BOOL),
            Instruction(Cast(DType.INT8), (3,), DType.INT8),
        ),
        (4, 5, 6, 2, 0),
    )
    x, y = arrays(f32, 100, 1), arrays(f32, 100, 2)
    got = evaluate(expression, [x, y, None], 16, isa)
    expected = expression.evaluate([x, y, np.float32(0.5)])
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, np.broadcast_to(b, a.shape))


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_rounded_before_they_decide(dtype, evaluate):
    """0.1 * 3 == 0.3 in halves, though not in float32."""
    x = arrays(dtype, 200, 4)
    leaves = (Leaf(dtype), Leaf(dtype, float(dtype.numpy.type(3))), Leaf(dtype))
    steps = (
        Instruction(ew.Mul(), (0, 1), dtype),
        Instruction(ew.Equal(), (3, 2), DType.BOOL),
        Instruction(ew.Floor(), (3,), dtype),
    )
    product = ew.Mul().reference(x, dtype.numpy.type(3))[0]
    got = evaluate(Expression(leaves, steps, (4, 5)), [x, None, product], 16, "host")
    np.testing.assert_array_equal(got[0], ~np.isnan(x.astype(np.float32)))
    np.testing.assert_array_equal(wide(got[1]), wide(ew.Floor().reference(product)[0]))


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_that_become_floats_are_not_rounded_before(dtype, evaluate):
    """Unless they have been halves in memory, or are made halves by a cast."""
    x = arrays(dtype, 200, 4)
    leaves = (Leaf(dtype), Leaf(dtype, float(dtype.numpy.type(3))))
    steps = (
        Instruction(ew.Mul(), (0, 1), dtype),
        Instruction(Cast(DType.FLOAT32), (2,), DType.FLOAT32),
        Instruction(Cast(dtype), (3,), dtype),
        Instruction(Cast(DType.FLOAT32), (4,), DType.FLOAT32),
    )
    exact, rounded = evaluate(Expression(leaves, steps, (3, 5)), [x, None], 16, "host")
    wide_x = x.astype(np.float32)
    np.testing.assert_array_equal(exact, wide_x * np.float32(3))
    np.testing.assert_array_equal(
        rounded, (wide_x * np.float32(3)).astype(dtype.numpy).astype("f4")
    )
    finite = np.isfinite(wide_x)
    assert not np.array_equal(exact[finite], rounded[finite])


@pytest.mark.skipif(not host().triple.startswith("x86_64"), reason="counts x86 instructions")
@pytest.mark.parametrize(("op", "most"), [(ew.Relu(), 1), (Clip(0.0, 6.0), 2), (LeakyRelu(0.1), 2)])
def test_activations_take_few_instructions(op, most):
    machine = host()
    k = KernelBuilder("kernel", machine)
    lanes = machine.lanes
    x = k.load(k.pointer(0), DType.FLOAT32, lanes)
    (y,) = emit(k, expression_of(op, [DType.FLOAT32], DType.FLOAT32), [x], lanes)
    k.store(y, k.pointer(1), DType.FLOAT32, lanes)
    text = emit_text(k.finish(), machine)
    computing = [
        line.split()[0]
        for line in text.splitlines()
        if line.startswith("\tv")
        and not line.startswith(("\tvmov", "\tvzero", "\tvxor", "\tvbroad"))
    ]
    assert len(computing) <= most, text
