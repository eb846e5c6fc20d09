"""Elementwise ops against TensorFlow, on floats, halves, integers and edge values."""

import math

import ml_dtypes
import numpy as np
import pytest

from helpers.one_op import check, check_symbolic, infer, run, tensor
from planish.errors import ShapeError
from planish.graph import DType, Graph, symbol
from planish.ops import (
    Cast,
    Clip,
    Dims,
    Elu,
    Gelu,
    HardSigmoid,
    LeakyRelu,
    Select,
    ShapeOf,
    ew,
)

tf = pytest.importorskip("tensorflow")
RNG = np.random.default_rng(0)
ALL = RNG.normal(size=300).astype(np.float32) * 4
POSITIVE = np.abs(ALL) + np.float32(0.01)
UNIT = np.tanh(ALL)
EDGES = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, np.inf, -np.inf, np.nan, 1e30], np.float32)

FLOAT_UNARY = {
    "Neg": (tf.negative, ALL),
    "Abs": (tf.abs, ALL),
    "Sign": (tf.sign, ALL),
    "Reciprocal": (tf.math.reciprocal, POSITIVE),
    "Square": (tf.square, ALL),
    "Sqrt": (tf.sqrt, POSITIVE),
    "Rsqrt": (tf.math.rsqrt, POSITIVE),
    "Exp": (tf.exp, ALL),
    "Expm1": (tf.math.expm1, ALL),
    "Log": (tf.math.log, POSITIVE),
    "Log1p": (tf.math.log1p, POSITIVE),
    "Sin": (tf.sin, ALL),
    "Cos": (tf.cos, ALL),
    "Tan": (tf.tan, UNIT),
    "Asin": (tf.asin, UNIT),
    "Acos": (tf.acos, UNIT),
    "Atan": (tf.atan, ALL),
    "Sinh": (tf.sinh, ALL),
    "Cosh": (tf.cosh, ALL),
    "Tanh": (tf.tanh, ALL),
    "Asinh": (tf.asinh, ALL),
    "Acosh": (tf.acosh, POSITIVE + 1),
    "Atanh": (tf.atanh, UNIT * np.float32(0.99)),
    "Erf": (tf.math.erf, ALL),
    "Relu": (tf.nn.relu, ALL),
    "Sigmoid": (tf.sigmoid, ALL),
    "Silu": (tf.nn.silu, ALL),
    "HardSwish": (lambda x: x * tf.nn.relu6(x + 3) / 6, ALL),
    "Mish": (lambda x: x * tf.tanh(tf.nn.softplus(x)), ALL),
    "Softplus": (tf.nn.softplus, ALL),
    "Softsign": (tf.nn.softsign, ALL),
    "Selu": (tf.nn.selu, ALL),
    "Floor": (tf.floor, ALL),
    "Ceil": (tf.math.ceil, ALL),
    "Trunc": (lambda x: tf.raw_ops.Cast(x=tf.cast(x, tf.int32), DstT=tf.float32), ALL),
    "Round": (tf.round, np.round(ALL * 2) / 2),
    "IsNan": (tf.math.is_nan, EDGES),
    "IsInf": (tf.math.is_inf, EDGES),
    "IsFinite": (tf.math.is_finite, EDGES),
}

FLOAT_BINARY = {
    "Add": tf.add,
    "Sub": tf.subtract,
    "Mul": tf.multiply,
    "Div": tf.divide,
    "FloorDiv": tf.math.floordiv,
    "FloorMod": tf.math.floormod,
    "TruncMod": lambda a, b: tf.raw_ops.TruncateMod(x=a, y=b),
    "Maximum": tf.maximum,
    "Minimum": tf.minimum,
    "SquaredDifference": tf.math.squared_difference,
    "Atan2": tf.atan2,
    "Prelu": lambda x, slope: tf.where(x >= 0, x, x * slope),
    "Equal": tf.equal,
    "NotEqual": tf.not_equal,
    "Less": tf.less,
    "LessEqual": tf.less_equal,
    "Greater": tf.greater,
    "GreaterEqual": tf.greater_equal,
}

INTEGER_BINARY = {
    "Add": tf.add,
    "Sub": tf.subtract,
    "Mul": tf.multiply,
    "Div": tf.truncatediv,
    "FloorDiv": tf.math.floordiv,
    "FloorMod": tf.math.floormod,
    "TruncMod": lambda a, b: tf.raw_ops.TruncateMod(x=a, y=b),
    "Maximum": tf.maximum,
    "Minimum": tf.minimum,
    "SquaredDifference": tf.math.squared_difference,
    "Less": tf.less,
    "BitwiseAnd": tf.bitwise.bitwise_and,
    "BitwiseOr": tf.bitwise.bitwise_or,
    "BitwiseXor": tf.bitwise.bitwise_xor,
}


@pytest.mark.parametrize("name", FLOAT_UNARY)
def test_unary_like_tensorflow(name):
    function, x = FLOAT_UNARY[name]
    expected = function(tf.constant(x)).numpy()
    check(getattr(ew, name)(), [x], expected, rtol=5e-6, atol=2e-6)


def test_every_unary_op_is_tested():
    names = {op.__name__ for op in vars(ew).values() if op.arity == 1}
    assert names - set(FLOAT_UNARY) == {"LogicalNot", "BitwiseNot"}


@pytest.mark.parametrize("name", [n for n in FLOAT_UNARY if not n.startswith("Is")])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_unary_rounds_halves_once(name, dtype):
    op = getattr(ew, name)()
    x = FLOAT_UNARY[name][1].astype(dtype)
    (output,) = run(op, x)
    (wide,) = run(op, x.astype(np.float32))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            output.astype(np.float32), wide.astype(dtype).astype(np.float32)
        )


@pytest.mark.parametrize("name", FLOAT_BINARY)
def test_binary_like_tensorflow(name):
    a = RNG.integers(-6, 6, (5, 1, 40)).astype(np.float32) / 2
    b = RNG.normal(size=(4, 40)).astype(np.float32) * 3
    expected = FLOAT_BINARY[name](tf.constant(a), tf.constant(b)).numpy()
    check(getattr(ew, name)(), [a, b], expected, rtol=2e-6, atol=2e-6)


def test_power():
    base, exponent = POSITIVE[:100], ALL[:100]
    check(ew.Pow(), [base, exponent], tf.pow(base, exponent).numpy(), rtol=1e-5)
    integers = np.arange(-4, 5, dtype=np.int32)
    check(ew.Pow(), [integers, np.array(3, np.int32)], integers**3)


@pytest.mark.parametrize("name", INTEGER_BINARY)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers_like_tensorflow(name, dtype):
    a, b = (RNG.integers(-20, 20, (6, 7)).astype(dtype) for _ in range(2))
    b[b == 0] = 3
    expected = INTEGER_BINARY[name](tf.constant(a), tf.constant(b)).numpy()
    check(getattr(ew, name)(), [a, b], expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_integer_division_by_zero_gives_zero(dtype):
    a = np.array([-7 if np.iinfo(dtype).min else 7, 0, 5], dtype)
    for op in (ew.Div(), ew.FloorDiv(), ew.FloorMod(), ew.TruncMod()):
        check(op, [a, np.zeros(3, dtype)], np.zeros(3, dtype))


def test_logic_and_shifts():
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    check(ew.LogicalAnd(), [a, b], a & b)
    check(ew.LogicalOr(), [a, b], a | b)
    check(ew.LogicalXor(), [a, b], a ^ b)
    check(ew.LogicalNot(), [a], ~a)
    x = np.array([-5, 0, 7], np.int32)
    check(ew.BitwiseNot(), [x], ~x)
    two = np.array(2, np.int32)
    check(ew.LeftShift(), [x, two], tf.bitwise.left_shift(x, two).numpy())
    check(ew.RightShift(), [x, two], tf.bitwise.right_shift(x, two).numpy())


@pytest.mark.parametrize(
    ("op", "theirs"),
    [
        (Clip(0.0, 6.0), tf.nn.relu6),
        (Clip(-1.5, math.inf), lambda x: tf.maximum(x, -1.5)),
        (LeakyRelu(0.3), lambda x: tf.nn.leaky_relu(x, 0.3)),
        (Elu(), tf.nn.elu),
        (HardSigmoid(), lambda x: tf.clip_by_value(0.2 * x + 0.5, 0, 1)),
        (Gelu(), lambda x: tf.nn.gelu(x, approximate=False)),
        (Gelu(True), lambda x: tf.nn.gelu(x, approximate=True)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_ops_with_attributes_like_tensorflow(op, theirs):
    check(op, [ALL], theirs(tf.constant(ALL)).numpy(), rtol=5e-6, atol=2e-6)


def test_clip_of_integers():
    x = np.array([-128, -3, 0, 3, 127], np.int8)
    check(Clip(-2.5, 2.5), [x], np.array([-2, -2, 0, 2, 2], np.int8))
    check(Clip(-math.inf, math.inf), [x], x)


@pytest.mark.parametrize("to", [np.int32, np.int64, np.uint8, np.int8])
def test_cast_truncates_and_saturates(to):
    x = np.array([0.9, -0.9, 3.7, 1e30, -1e30, np.nan, np.inf], np.float32)
    limits = np.iinfo(to)
    low = max(-0, limits.min)
    expected = [0, low, 3, limits.max, limits.min, 0, limits.max]
    expected[1] = 0
    check(Cast(DType.of(to)), [x], np.array(expected, to))


def test_cast_like_tensorflow():
    for source in (np.float32, np.int32, np.int64, np.bool_, np.float16):
        x = (ALL * 5).astype(source)
        for to in (np.float32, np.int32, np.bool_, np.float16, np.int64):
            check(Cast(DType.of(to)), [x], tf.cast(tf.constant(x), to).numpy())


def test_double_precision_is_rounded_once_to_bfloat16() -> None:
    """Just beside ties, and on one, in float64, which are all ties in float32."""
    near = np.array([2.0**-8 - 2.0**-40, 2.0**-8, 2.0**-8 + 2.0**-40, 3 * 2.0**-8])
    wanted = np.float32([1, 1, 1 + 2.0**-7, 1 + 2.0**-6])
    large = np.array([1e39, -1e300, np.inf, 3.3895e38, 1e-60, 0.0])
    for x, y in ((1 + near, wanted), (-1 - near, -wanted)):
        check(Cast(DType.BFLOAT16), [x], y.astype(DType.BFLOAT16.numpy))
    limits = np.float32([np.inf, -np.inf, np.inf, 3.3895314e38, 0, 0])
    check(Cast(DType.BFLOAT16), [large], limits.astype(DType.BFLOAT16.numpy))
    assert np.isnan(Cast(DType.BFLOAT16).reference(np.array([np.nan]))[0].astype(np.float32)).all()


def test_select_like_tensorflow():
    condition = RNG.random((3, 1)) > 0.5
    a, b = RNG.normal(size=(4,)).astype(np.float32), RNG.normal(size=(3, 4)).astype(np.float32)
    check(Select(), [condition, a, b], tf.where(condition, a, b).numpy())


def test_edge_values():
    nan = np.array([np.nan], np.float32)
    for op in (ew.Relu(), Clip(0.0, 6.0), ew.Sigmoid(), ew.Silu(), Gelu(), ew.Softplus()):
        assert np.isnan(run(op, nan)[0]).all(), op
    assert np.isnan(run(ew.Maximum(), nan, np.ones(1, np.float32))[0]).all()
    large = np.array([-1e4, 1e4], np.float32)
    assert run(ew.Sigmoid(), large)[0].tolist() == [0, 1]
    assert run(ew.Softplus(), large)[0].tolist() == [0, 1e4]
    assert run(Elu(), large)[0].tolist() == [-1, 1e4]


def test_symbols_broadcast():
    bindings = {"N": 3, "M": 4}
    check_symbolic(ew.Add(), [tensor("f32", "N", 1, "M"), tensor("f32", 2, 1)], bindings)
    check_symbolic(ew.Less(), [tensor("f32", "N", "M"), tensor("f32", "M")], bindings)
    condition = tensor("bool", "N", 1)
    check_symbolic(Select(), [condition, tensor("i8", "M"), tensor("i8")], bindings)
    with pytest.raises(ShapeError, match="do not broadcast"):
        infer(ew.Add(), tensor("f32", "N"), tensor("f32", "M"))


def test_contents():
    graph, n = Graph(), symbol("N")
    shape = graph.add(ShapeOf(), graph.input("x", tensor("f32", "N", 6)))
    two = graph.constant(np.array(2))
    assert graph.add(ew.Add(), shape, two).content.tolist() == [n + 2, 8]
    assert graph.add(ew.Mul(), shape, two).content.tolist() == [n * 2, 12]
    assert graph.add(ew.Sub(), shape, two).content.tolist() == [n - 2, 4]
    assert graph.add(ew.FloorMod(), shape, two).content.tolist()[1] == 0
    assert str(graph.add(ew.FloorDiv(), shape, two).content[0]) == "floordiv(N, 2)"
    assert graph.add(Cast(DType.INT32), shape).content.tolist() == [n, 6]
    for dtype in (DType.FLOAT32, DType.UINT8, DType.UINT32):  # whether it wraps depends on N
        assert graph.add(Cast(DType.INT32), graph.add(Cast(dtype), shape)).content is None
    assert graph.add(ew.Square(), shape).content is None
    equal = graph.add(ew.Equal(), graph.add(Dims((6, n))), shape)
    assert equal.content is None  # whether N is 6 depends on N
    assert graph.add(ew.Equal(), shape, shape).content.tolist() == [True, True]


@pytest.mark.parametrize(
    ("op", "types"),
    [
        (ew.Exp(), [tensor("i32", 2)]),
        (ew.Add(), [tensor("bool", 2), tensor("bool", 2)]),
        (ew.Add(), [tensor("f32", 2), tensor("f16", 2)]),
        (ew.Add(), [tensor("f32", 2)]),
        (ew.Add(), [tensor("f32", 2), tensor("f32", 3)]),
        (ew.LogicalNot(), [tensor("i8", 2)]),
        (ew.BitwiseAnd(), [tensor("f32", 2), tensor("f32", 2)]),
        (Select(), [tensor("i8", 2), tensor("f32", 2), tensor("f32", 2)]),
        (Select(), [tensor("bool", 2), tensor("f32", 2), tensor("f16", 2)]),
        (Cast(DType.INT8), []),
    ],
)
def test_refuses(op, types):
    with pytest.raises(ShapeError):
        infer(op, *types)


def test_contents_are_divided_towards_zero():
    graph = Graph()
    shape = graph.add(Dims((symbol("N"), 3, 2)))
    minus = graph.constant(np.int64([-3, -3, -3]))
    assert [str(d) for d in graph.add(ew.Div(), minus, shape).content] == [
        "-floordiv(3, N)",
        "-1",
        "-1",
    ]
    assert graph.add(ew.Div(), shape, graph.constant(np.int64(-2))).content.tolist()[1:] == [-1, -1]
    below = graph.add(ew.Sub(), graph.constant(np.int64(-1)), shape)  # -N - 1 and so on
    assert str(graph.add(ew.Div(), minus, below).content[0]) == "floordiv(3, N + 1)"


def test_what_is_divided_by_either_sign_is_not_known():
    graph = Graph()
    shape = graph.add(Dims((symbol("N"), 3)))
    for number in (1, 7):
        mixed = graph.add(ew.Sub(), graph.constant(np.int64(number)), shape)
        assert graph.add(ew.Div(), shape, mixed).content is None
